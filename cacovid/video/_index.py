"""The index of a video file: when each frame is shown, and from where it can be decoded.

Headers lie about frame counts (or know none), so the packets are counted. No frame is decoded for
it, except in files without usable time stamps.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.errors import VideoReadError
from cacovid.video._optional import import_av
from cacovid.video.frames import VideoInfo

#: Containers whose header gives a duration that was written when the file was complete.
_SURE_OF_DURATION = ("matroska", "webm", "avi", "flv")


@dataclass(frozen=True)
class Index:
    """Where the frames of a file stand.

    Args:
        info: Facts about the file.
        pts: `[n]` int64, presentation times in units of `time_base`, strictly ascending; None
            where the file has no usable ones and frames must be counted from the start.
        keys: `[k, 2]` int64, presentation and decoding time of each keyframe, ascending.
        time_base: Seconds per unit.
        start: Presentation time of the first frame, in units.
        container: FFmpeg's names of the container format, comma-separated.
        leading: Some frames are stored after a keyframe and shown before it (open groups of
            pictures): decoders that count frames from a keyframe go wrong on them.
    """

    info: VideoInfo
    pts: np.ndarray | None
    keys: np.ndarray
    time_base: Fraction
    start: int
    container: str
    leading: bool

    def timestamps(self, indices: np.ndarray) -> np.ndarray:
        """Seconds since the first frame, `[F]` float64."""
        if self.pts is None:
            return indices / self.info.fps
        return (self.pts[indices] - self.start) * float(self.time_base)


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path of a regular file that can be read and is not empty.

    Raises:
        VideoReadError: for anything else.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise failure(path, "it is a directory; give the path of a video file")
        if not stat.S_ISREG(status.st_mode):
            raise failure(path, "it is no regular file (a pipe, socket or device); copy it to one")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise failure(path, "there is no such file") from error
    except PermissionError as error:
        raise failure(path, "permission to read it is denied") from error
    except VideoReadError:
        raise
    except (OSError, ValueError) as error:
        raise failure(path, str(error)) from error
    if status.st_size == 0:
        raise failure(path, "the file is empty")
    return path


def failure(path: object, reason: str) -> VideoReadError:
    """The one form of error for a file that cannot be read."""
    return VideoReadError(f"cannot read video {str(path)!r}: {reason}")


def open_video(path: Path) -> tuple[Any, Any]:
    """The PyAV container and video stream of a file; the caller closes the container.

    Raises:
        VideoReadError: if it is not a video.
    """
    av = import_av()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise failure(
            path, f"it is not a video, or it is truncated or damaged ({_short(error)})"
        ) from error
    # A cover picture of a music file is a video stream of one frame, but no video.
    streams = [
        s for s in container.streams.video if "attached_pic" not in (s.disposition.name or "")
    ]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        container.close()
        raise failure(path, f"it holds no video stream, only {kinds}")
    return container, streams[0]


def build_index(path: Path) -> Index:
    """Reads all packets of a file.

    Raises:
        VideoReadError: if it is not a video, truncated or damaged.
    """
    av = import_av()
    container, stream = open_video(path)
    with container:
        shown: list[tuple[int | None, int | None, bool]] = []
        last = 0
        reach, damaged = 0.0, False
        try:
            for packet in container.demux():
                end = packet.pts if packet.pts is not None else packet.dts
                if end is not None and packet.time_base is not None:
                    reach = max(reach, float((end + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index != stream.index or packet.size == 0:
                    continue
                damaged |= packet.is_corrupt
                if not packet.is_discard:
                    shown.append((packet.pts, packet.dts, packet.is_keyframe))
                    last = packet.duration or last
            damaged |= _cut_short(container, stream, len(shown), reach)
        except (av.error.FFmpegError, OSError) as error:
            raise failure(path, f"it is truncated or damaged ({_short(error)})") from error
        if damaged:
            raise failure(path, "it is truncated: data that its header announces is missing")
        times = [pts for pts, _, _ in shown if pts is not None]
        usable = len(times) == len(shown) == len(set(times)) > 0
        count = len(shown)
        if not usable:
            count = _count(path)
        first_frame = _first_frame(path)
        if count == 0 or first_frame is None:
            raise failure(path, "no frame of it can be decoded; it is damaged or has none")
        tick = Fraction(stream.time_base)
        pts = np.sort(np.array(times, dtype=np.int64)) if usable else None
        duration = _duration(pts, count, last, tick, stream.average_rate)
        turn = round(first_frame.rotation) % 360
        height, width = first_frame.height, first_frame.width
        if turn in (90, 270):
            height, width = width, height
        info = VideoInfo(
            fps=count / duration,
            duration=duration,
            total_frames=count,
            height=height,
            width=width,
            codec=_codec(stream),
            rotation=turn,
        )
        keys = sorted((p, d if d is not None else p) for p, d, key in shown if key and usable)
        return Index(
            info,
            pts,
            np.array(keys, dtype=np.int64).reshape(-1, 2),
            tick,
            int(pts[0]) if pts is not None else 0,
            container.format.name,
            usable and _has_leading(shown),
        )


def _cut_short(container: Any, stream: Any, packets: int, reach: float) -> bool:
    """Whether the file ends before what its own tables announce."""
    names = container.format.name
    if "mp4" in names:
        # The sample table of MP4 is exact; it does not count what an edit list leaves out.
        # PyAV before 16 does not show it, but the count of its samples.
        entries = getattr(stream, "index_entries", None)
        announced = stream.frames if entries is None else len(entries)
        return packets < announced and bool(reach < 0.99 * float((container.duration or 0) / 1e6))
    if any(name in names for name in _SURE_OF_DURATION) and container.duration:
        announced = container.duration / 1e6
        return reach < announced - max(0.3, 0.05 * announced)
    return False


def _has_leading(shown: list[tuple[int | None, int | None, bool]]) -> bool:
    key: int | None = None
    for pts, _, is_key in shown:
        if is_key:
            key = pts
        elif key is not None and pts is not None and pts < key:
            return True
    return False


def _duration(
    pts: np.ndarray | None, count: int, last: int, tick: Fraction, rate: Fraction | None
) -> float:
    """Seconds; exact at a fixed frame rate even where the container rounds time stamps."""
    nominal = float(count / rate) if rate else None
    if pts is None:
        return nominal or count / 25.0
    if not last:
        last = round((pts[-1] - pts[0]) / (count - 1)) if count > 1 else 0
    measured = float((int(pts[-1] - pts[0]) + last) * tick)
    if measured <= 0:
        return nominal or count / 25.0
    if nominal is not None and abs(nominal - measured) <= max(2 * float(tick), 2e-3):
        return nominal
    return measured


def _first_frame(path: Path) -> Any:
    av = import_av()
    container, stream = open_video(path)
    with container:
        try:
            return next(container.decode(stream), None)
        except (av.error.FFmpegError, OSError):
            return None


def _count(path: Path) -> int:
    """Frames by decoding all: for files whose packets carry no times (raw streams, some AVI)."""
    av = import_av()
    container, stream = open_video(path)
    with container:
        try:
            return sum(1 for _ in container.decode(stream))
        except (av.error.FFmpegError, OSError) as error:
            raise failure(path, f"it is truncated or damaged ({_short(error)})") from error


def _codec(stream: Any) -> str:
    codec = stream.codec_context.codec
    # "av1", whichever library decodes it.
    return str(getattr(codec, "canonical_name", None) or codec.name)


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
