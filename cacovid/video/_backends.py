"""The decoders. Each gives the frames at some positions of an indexed file.

A decoder is a function `(path, index, indices) -> [F, H, W, 3]` uint8 RGB, turned as the file asks.
It raises `VideoReadError` rather than give a frame that may be another one, and
`MissingDependencyError` where its package cannot be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cacovid.errors import MissingDependencyError, VideoReadError
from cacovid.video._index import Index, failure, open_video
from cacovid.video._optional import import_av

#: Where each decoder is found, in the order in which they are tried.
BACKENDS = {
    "decord": "cacovid.video._backends:decode_decord",
    "pyav": "cacovid.video._backends:decode_pyav",
    "torchcodec": "cacovid.video._backends:decode_torchcodec",
}

#: Containers in which decord seeks rightly. In MPEG-TS it gives wrong frames without an error.
_DECORD_CONTAINERS = {"mp4", "matroska", "webm", "avi"}


def decode_pyav(path: Path, index: Index, indices: np.ndarray) -> np.ndarray:
    """PyAV, seeking to the keyframe before each wanted frame."""
    av = import_av()
    frames = _empty(index, len(indices))
    container, stream = open_video(path)
    with container:
        stream.thread_type = "AUTO"
        try:
            if index.pts is None:
                _counted(container, stream, index, indices, frames)
            else:
                _seeking(path, container, stream, index, indices, frames)
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, VideoReadError):
                raise
            raise failure(path, f"it is damaged; decoding failed ({error})") from error
    return frames


def _counted(
    container: Any, stream: Any, index: Index, indices: np.ndarray, frames: np.ndarray
) -> None:
    wanted = {int(number): slot for slot, number in enumerate(indices)}
    for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
            frames[wanted[number]] = _rgb(frame, index)


def _seeking(
    path: Path, container: Any, stream: Any, index: Index, indices: np.ndarray, frames: np.ndarray
) -> None:
    assert index.pts is not None
    decoder: Any = None
    at: int | None = None  # presentation time of the last decoded frame
    for slot, number in enumerate(indices):
        target = int(index.pts[number])
        key = int(np.searchsorted(index.keys[:, 0], target, side="right")) - 1
        # Decoding on is cheaper than a seek unless a later keyframe lies on the way.
        fresh = decoder is None or at is None or (key >= 0 and index.keys[key, 0] > at)
        frame = None
        # By presentation time first; that may land one keyframe too late, and the decoding time
        # one too early, depending on the container.
        column = 0
        while frame is None:
            if fresh:
                to = index.keys[key, column] if key > 0 else min(index.start, 0)
                container.seek(int(to), stream=stream, backward=True)
                decoder = container.decode(stream)
            for candidate in decoder:
                at = candidate.pts
                if at is None or at >= target:
                    frame = candidate if at == target else None
                    break
            if frame is None:
                if fresh and key <= 0:
                    raise failure(path, f"frame {number} cannot be decoded; the file is damaged")
                if fresh and column == 0:
                    column = 1
                elif fresh:
                    key -= 1
                fresh = True
        if frame.is_corrupt:
            raise failure(path, f"frame {number} is damaged")
        frames[slot] = _rgb(frame, index)


def _rgb(frame: Any, index: Index) -> np.ndarray:
    """One frame as it is shown; a change of size inside a video is scaled to its first frame."""
    info = index.info
    turned = info.rotation in (90, 270)
    height, width = (info.width, info.height) if turned else (info.height, info.width)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
    return np.rot90(pixels, info.rotation // 90)


def decode_decord(path: Path, index: Index, indices: np.ndarray) -> np.ndarray:
    """decord, if it counts and times the frames as the packets do."""
    try:
        import decord
    except Exception as error:  # no wheel for this machine, or a library that does not load
        raise MissingDependencyError(
            f"backend 'decord' cannot be loaded ({error}); install it with: pip install decord"
        ) from error
    if not _DECORD_CONTAINERS & set(index.container.split(",")):
        raise failure(path, f"decord seeks wrongly in {index.container} files; use backend 'pyav'")
    if index.leading:
        raise failure(path, "decord gives wrong frames of open groups of pictures; use 'pyav'")
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    except Exception as error:  # decord raises its own, AssertionError and RuntimeError
        raise failure(path, f"decord cannot open it ({str(error).strip()[:200]})") from error
    count = index.info.total_frames
    if len(times) != count or index.pts is None:
        raise failure(path, f"decord sees {len(times)} frames, its packets hold {count}")
    expected = index.timestamps(np.arange(count))
    if np.abs(times - times[0] - expected).max() > 2e-3:
        raise failure(path, "decord gives its frames other times than its packets have")
    try:
        frames = reader.get_batch(indices.tolist()).asnumpy()
    except Exception as error:
        raise failure(path, f"decord cannot decode it ({str(error).strip()[:200]})") from error
    return _checked(path, frames, index, indices, "decord")


def decode_torchcodec(path: Path, index: Index, indices: np.ndarray) -> np.ndarray:
    """torchcodec with its exact seek mode, if it counts the frames as the packets do."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # beside another torch its library raises OSError or RuntimeError
        raise MissingDependencyError(
            f"backend 'torchcodec' cannot be loaded ({str(error)[:200]}); install it with: "
            f"pip install torchcodec"
        ) from error
    try:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
        if len(decoder) != index.info.total_frames:
            raise failure(
                path,
                f"torchcodec sees {len(decoder)} frames, its packets hold "
                f"{index.info.total_frames}",
            )
        frames = decoder.get_frames_at(indices.tolist()).data.numpy()
    except VideoReadError:
        raise
    except Exception as error:
        raise failure(path, f"torchcodec cannot decode it ({str(error)[:200]})") from error
    return _checked(path, frames, index, indices, "torchcodec")


def _checked(
    path: Path, frames: np.ndarray, index: Index, indices: np.ndarray, backend: str
) -> np.ndarray:
    expected = (len(indices), index.info.height, index.info.width, 3)
    if frames.shape != expected or frames.dtype != np.uint8:
        raise failure(path, f"{backend} gave {frames.shape} of {frames.dtype}, not {expected}")
    return frames


def _empty(index: Index, count: int) -> np.ndarray:
    return np.empty((count, index.info.height, index.info.width, 3), dtype=np.uint8)
