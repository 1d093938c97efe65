"""Reading one file inside this process: index, sampling, the first decoder that serves."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

import numpy as np

from cacovid.errors import MissingDependencyError, VideoReadError
from cacovid.video._index import build_index, check_file, failure
from cacovid.video.frames import VideoFrames, VideoInfo
from cacovid.video.sampling import FrameSampling, sample_indices


def probe_here(path: str | os.PathLike[str]) -> VideoInfo:
    """Facts about a file. See `cacovid.video.probe`."""
    return build_index(check_file(path)).info


def read_here(
    path: str | os.PathLike[str],
    sampling: FrameSampling,
    backends: Mapping[str, str],
    only: bool,
    max_bytes: int,
) -> VideoFrames:
    """The sampled frames of a file.

    Args:
        path: The file.
        sampling: Which frames.
        backends: Name and `module:function` of each decoder, in the order of trying.
        only: One decoder was asked for by name, so that its absence is an error.
        max_bytes: Most memory that the frames may take.

    Raises:
        VideoReadError: if no decoder reads it; the last one's reason.
        MissingDependencyError: if the one decoder asked for, or PyAV, is not installed.
    """
    file = check_file(path)
    index = build_index(file)
    info = index.info
    indices = sample_indices(info.total_frames, info.duration, sampling)
    size = len(indices) * info.height * info.width * 3
    if size > max_bytes:
        raise failure(
            file,
            f"{len(indices)} frames of {info.height}x{info.width} take {size / 2**30:.1f} GiB, "
            f"more than the {max_bytes / 2**30:.1f} GiB allowed; choose a smaller max_frames",
        )
    problem: Exception | None = None
    for name, target in backends.items():
        module, function = target.split(":")
        try:
            frames: np.ndarray = getattr(importlib.import_module(module), function)(
                file, index, indices
            )
        except MissingDependencyError as error:
            if only:
                raise
            problem = problem or error
        except VideoReadError as error:
            problem = error
        else:
            times = index.timestamps(indices).astype(np.float64)
            return VideoFrames(np.ascontiguousarray(frames), times, indices, info, name)
    assert problem is not None
    raise problem
