"""Writing frames as a video file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.files import written_whole
from cacovid.video._optional import import_av

#: Encoders whose quality is set by `crf`; others take their default unless `options` say more.
_CRF_CODECS = frozenset({"libx264", "libx265", "libvpx-vp9", "libsvtav1", "libaom-av1"})
#: Ticks per second of the time base with which a variable frame rate is written.
_VARIABLE_TICKS = 90_000


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    fps: float,
    codec: str = "libx264",
    crf: int = 18,
    *,
    pixel_format: str | None = None,
    timestamps: Sequence[float] | np.ndarray | None = None,
    rotation: int = 0,
    keyframe_interval: int | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Writes `frames` as a video; the container follows from the suffix of `path`.

    The file is written beside `path` under another name and moved there when it is complete, so
    that nobody ever sees half of it. The same frames give the same file with the same FFmpeg.

    Args:
        path: Where to; its folder must exist.
        frames: `[F, H, W, 3]` uint8, RGB, at least one.
        fps: Frames per second, above 0.
        codec: Name of an FFmpeg encoder.
        crf: Constant quality of the encoders that know it; lower is better, 18 hardly visible.
        pixel_format: What is stored; by default `yuv420p`, which every player takes, or `yuv444p`
            where a side is odd, since 4:2:0 stores colour for pairs of pixels.
        timestamps: `[F]` seconds, ascending, for a variable frame rate; `fps` is then nominal.
        rotation: 0, 90, 180 or 270: degrees counter-clockwise by which players shall turn the
            frames (noted in the file; the stored pixels stay as they are).
        keyframe_interval: Most frames between two keyframes; by default the encoder's.
        options: Further options for the encoder.

    Returns:
        `path`.

    Raises:
        InvalidInputError: for frames of another shape or type, an `fps` that is not positive, or
            something that the encoder refuses.
        MissingDependencyError: if PyAV is not installed.
    """
    path = Path(path)
    _check(frames, fps, timestamps, rotation)
    av = import_av()
    odd = bool(frames.shape[1] % 2 or frames.shape[2] % 2)
    layout = pixel_format or ("yuv444p" if odd else "yuv420p")
    settings = {"crf": str(crf)} if codec in _CRF_CODECS else {}
    if codec == "libx264":
        settings["mbtree"] = "0"  # with it the vector code gives another stream at each call
    settings.update(options or {})
    with written_whole(path) as part:
        try:
            with av.open(str(part), "w") as container:
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream(codec, rate=rate, options=settings)
                stream.height, stream.width = frames.shape[1:3]
                stream.pix_fmt = layout
                if keyframe_interval is not None:
                    stream.gop_size = keyframe_interval
                if rotation:
                    stream.set_display_rotation(float(rotation))
                if timestamps is not None:
                    stream.codec_context.time_base = Fraction(1, _VARIABLE_TICKS)
                _encode(av, container, stream, frames, timestamps)
        except (av.error.FFmpegError, ValueError) as error:
            raise InvalidInputError(
                f"{path}: {len(frames)} frames of {frames.shape[1]}x{frames.shape[2]} cannot be "
                f"written with codec {codec!r} as {layout}: {error}; choose another codec, "
                f"pixel_format or file suffix"
            ) from error
    return path


def _encode(av: Any, container: Any, stream: Any, frames: np.ndarray, timestamps: Any) -> None:
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        if timestamps is None:
            frame.pts, frame.time_base = number, 1 / Fraction(stream.codec_context.framerate)
        else:
            frame.pts = round(float(timestamps[number]) * _VARIABLE_TICKS)
            frame.time_base = Fraction(1, _VARIABLE_TICKS)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _check(frames: np.ndarray, fps: float, timestamps: Any, rotation: int) -> None:
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[-1] != 3:
        raise InvalidInputError(
            f"frames are {getattr(frames, 'shape', type(frames))}; expected an array [F, H, W, 3]"
        )
    if frames.dtype != np.uint8 or 0 in frames.shape:
        raise InvalidInputError(
            f"frames are {frames.shape} of {frames.dtype}; expected at least one frame of uint8"
        )
    if not 0 < fps < float("inf"):
        raise InvalidInputError(f"fps is {fps}; expected a positive number of frames per second")
    if rotation not in (0, 90, 180, 270):
        raise InvalidInputError(f"rotation is {rotation}; expected 0, 90, 180 or 270 degrees")
    if timestamps is not None and (
        len(timestamps) != len(frames) or not (np.diff(np.asarray(timestamps)) > 0).all()
    ):
        raise InvalidInputError(
            f"{len(timestamps)} timestamps for {len(frames)} frames; expected one for each, "
            f"strictly ascending"
        )
