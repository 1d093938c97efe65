"""Reading, sampling and writing video. Decoders are imported when a file is read."""

from cacovid.video.frames import VideoFrames, VideoInfo
from cacovid.video.read import probe, read_frames
from cacovid.video.sampling import FrameSampling, sample_indices
from cacovid.video.write import write_video

__all__ = [
    "FrameSampling",
    "VideoFrames",
    "VideoInfo",
    "probe",
    "read_frames",
    "sample_indices",
    "write_video",
]
