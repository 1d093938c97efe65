"""`read_frames` and `probe`: the public way to frames."""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict

import numpy as np

from cacovid import errors
from cacovid.errors import InvalidInputError, VideoReadError
from cacovid.video._backends import BACKENDS
from cacovid.video._decode import probe_here, read_here
from cacovid.video._process import ask
from cacovid.video.frames import VideoFrames, VideoInfo
from cacovid.video.sampling import FrameSampling

#: Two letters at least: one is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)

#: Most memory that the frames of one call may take.
MAX_BYTES = 8 << 30


def read_frames(
    path: str | os.PathLike[str],
    sampling: FrameSampling | None = None,
    backend: str | None = None,
    timeout: float | None = 60.0,
) -> VideoFrames:
    """Reads sampled frames of a video file.

    The packets are counted first; headers are not trusted. Frames are turned as the file asks
    (its rotation flag). Every backend gives the same frames, at the same indices.

    Args:
        path: The file.
        sampling: Which frames; by default `FrameSampling()`: up to 32, one a second.
        backend: "decord", "pyav" or "torchcodec"; None takes the first of them that loads and
            reads the file with the frame count and times that its packets have.
        timeout: Seconds for this file. Reading is done in a child process, kept for the next call,
            which is killed when time is up even if native code hangs. None reads in this process,
            without a limit.

    Returns:
        `VideoFrames`: frames `[F, H, W, 3]` uint8, their timestamps, indices and the metadata.

    Raises:
        VideoReadError: if the file is missing, empty, truncated, not a video, ... or time is up;
            the message names the file and the reason.
        MissingDependencyError: if PyAV, or the backend asked for, is not installed.
        InvalidInputError: for a path or a sampling that is none, an unknown backend, or a timeout
            that is not positive.
    """
    sampling = FrameSampling() if sampling is None else sampling
    if not isinstance(sampling, FrameSampling):
        raise InvalidInputError(
            f"sampling is {sampling!r}; expected a FrameSampling, such as "
            f"FrameSampling(max_frames=8)"
        )
    if backend is not None and backend not in BACKENDS:
        raise InvalidInputError(
            f"backend is {backend!r}; expected None or one of {', '.join(map(repr, BACKENDS))}"
        )
    _check_timeout(timeout)
    refuse_url(path)
    backends = BACKENDS if backend is None else {backend: BACKENDS[backend]}
    if timeout is None:
        return read_here(path, sampling, backends, backend is not None, MAX_BYTES)
    header, frames = ask(
        {
            "path": os.path.abspath(path),
            "sampling": asdict(sampling),
            "backends": backends,
            "only": backend is not None,
            "max_bytes": MAX_BYTES,
        },
        timeout,
    )
    _raise(header)
    assert frames is not None
    return VideoFrames(
        frames,
        np.array(header["timestamps"], dtype=np.float64),
        np.array(header["indices"], dtype=np.int64),
        VideoInfo(**header["info"]),
        header["backend"],
    )


def probe(path: str | os.PathLike[str], timeout: float | None = 60.0) -> VideoInfo:
    """Facts about a video file: counts its packets, decodes one frame.

    Raises:
        VideoReadError, MissingDependencyError, InvalidInputError: as `read_frames`.
    """
    _check_timeout(timeout)
    refuse_url(path)
    if timeout is None:
        return probe_here(path)
    header, _ = ask({"path": os.path.abspath(path), "backends": None}, timeout)
    _raise(header)
    return VideoInfo(**header["info"])


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Raises VideoReadError for a URL, in a `Path` too, which makes one slash of two.

    Raises:
        InvalidInputError: for what is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInputError(f"the video is {path!r:.80}; expected the path of a file")
    found = _URL.match(os.fspath(path))
    if found is None or os.path.exists(path):
        return
    scheme, rest = found.groups()
    if scheme.lower() == "file":
        raise VideoReadError(f"file:///{rest} is a URL; give the path alone, /{rest}")
    raise VideoReadError(
        f"{scheme}://{rest} is a URL, and videos are read from files; download it first"
    )


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not 0 < timeout < math.inf:
        raise InvalidInputError(f"timeout is {timeout}; expected positive seconds or None")


def _raise(header: dict[str, object]) -> None:
    if "error" in header:
        kind = getattr(errors, str(header["error"]), VideoReadError)
        raise kind(header["message"])
