"""What reading a video gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cacovid.errors import MissingDependencyError


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file, counted from its packets and not taken from its header.

    Args:
        fps: Mean frames per second.
        duration: Seconds from the start of the first frame to the end of the last.
        total_frames: Frames that are shown.
        height, width: Of the frames as shown, after the rotation that the file asks for.
        codec: FFmpeg's name of the codec.
        rotation: Degrees counter-clockwise by which the stored frames are turned (already done).
    """

    fps: float
    duration: float
    total_frames: int
    height: int
    width: int
    codec: str
    rotation: int = 0

    def hf(self, indices: np.ndarray | None = None, backend: str | None = None) -> Any:
        """`transformers.video_utils.VideoMetadata` of this file.

        Args:
            indices: `[F]` the frames that were read, if any were.
            backend: What read them.

        Raises:
            MissingDependencyError: if transformers is not installed.
        """
        try:
            from transformers.video_utils import VideoMetadata
        except ImportError as error:
            raise MissingDependencyError(
                f"VideoMetadata needs transformers ({error}); install it with: "
                f"pip install 'cacovid[models]'"
            ) from error
        return VideoMetadata(
            total_num_frames=self.total_frames,
            fps=self.fps,
            width=self.width,
            height=self.height,
            duration=self.duration,
            video_backend=backend,
            frames_indices=None if indices is None else indices.tolist(),
        )


@dataclass(frozen=True)
class VideoFrames:
    """Frames read from a video.

    Args:
        frames: `[F, H, W, 3]` uint8, RGB.
        timestamps: `[F]` float64, seconds since the first frame of the video.
        indices: `[F]` int64, positions among the frames that are shown, ascending.
        metadata: Facts about the file.
        backend: Which decoder served: "decord", "pyav" or "torchcodec".
    """

    frames: np.ndarray
    timestamps: np.ndarray
    indices: np.ndarray
    metadata: VideoInfo
    backend: str

    def __len__(self) -> int:
        return len(self.indices)

    def hf(self) -> Any:
        """`transformers.video_utils.VideoMetadata` of these frames, for a video processor.

        Raises:
            MissingDependencyError: if transformers is not installed.
        """
        return self.metadata.hf(self.indices, self.backend)
