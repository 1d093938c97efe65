"""The right frame, and the same one from every backend."""

from __future__ import annotations

import importlib

import av
import numpy as np
import pytest

from cacovid.errors import VideoReadError
from cacovid.video import FrameSampling, probe, read_frames

VARIABLE = np.cumsum([0.1 + 0.05 * (n % 3) for n in range(60)])
FILES = {
    "h264.mp4": {},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "turned90.mp4": {"rotation": 90},
    "turned180.mp4": {"rotation": 180},
    "turned270.mp4": {"rotation": 270},
    "odd.mp4": {"height": 97, "width": 131},
    "one.mp4": {"count": 1},
    "two.mp4": {"count": 2},
    "variable.mp4": {"timestamps": VARIABLE},
    "long_gop.mp4": {"keyframe_interval": 250},
}
#: What decord cannot read, or reads wrongly.
OPEN_GOP = {"options": {"x264-params": "open-gop=1:bframes=3"}}
PYAV_ONLY = {
    "av1.mp4": {"codec": "libsvtav1"},
    "h264.ts": {},
    "open_gop.mp4": OPEN_GOP,
    "open_gop.mkv": OPEN_GOP,
}


def _loads(backend):
    try:
        importlib.import_module({"pyav": "av"}.get(backend, backend))
    except Exception:  # a library that does not load raises what it likes
        return False
    return True


def _read(path, backend, **sampling):
    return read_frames(path, FrameSampling(**sampling), backend, timeout=None)


def _upright(read):
    """Frames as they were stored."""
    return np.rot90(read.frames, -read.metadata.rotation // 90, axes=(1, 2))


@pytest.mark.parametrize("backend", ["decord", "pyav", "torchcodec"])
@pytest.mark.parametrize("name", FILES)
def test_right_frames(make_video, name, backend, numbers):
    if not _loads(backend):
        pytest.skip(f"{backend} does not load here")
    path = make_video(name, **FILES[name])
    for sampling in ({"max_frames": 7, "rule": "eval"}, {"max_frames": 99, "fps": 99}):
        read = _read(path, backend, **sampling)
        assert read.backend == backend
        assert numbers(_upright(read)) == read.indices.tolist()
        assert len(read) == min(sampling["max_frames"], FILES[name].get("count", 60))


@pytest.mark.parametrize("name", FILES)
def test_decord_and_pyav_agree_to_the_bit(make_video, name):
    pytest.importorskip("decord")
    path = make_video(name, **FILES[name])
    one, two = (_read(path, backend, max_frames=9, rule="eval") for backend in ("decord", "pyav"))
    np.testing.assert_array_equal(one.frames, two.frames)
    np.testing.assert_array_equal(one.timestamps, two.timestamps)
    assert one.metadata == two.metadata


@pytest.mark.parametrize("name", PYAV_ONLY)
def test_pyav_serves_where_decord_must_not(make_video, name, numbers):
    read = _read(make_video(name, **PYAV_ONLY[name]), None, max_frames=9, rule="eval")
    assert read.backend == "pyav"
    assert numbers(read.frames) == read.indices.tolist()


@pytest.mark.parametrize("name", PYAV_ONLY)
def test_decord_refuses_rather_than_guess(make_video, name):
    pytest.importorskip("decord")
    with pytest.raises(VideoReadError, match="decord"):
        _read(make_video(name, **PYAV_ONLY[name]), "decord")


def test_rotation_is_applied(make_video):
    flat = _read(make_video("h264.mp4"), "pyav", max_frames=3, rule="eval")
    turned = _read(make_video("turned90.mp4", rotation=90), "pyav", max_frames=3, rule="eval")
    assert (turned.metadata.height, turned.metadata.width) == (128, 96)
    np.testing.assert_array_equal(turned.frames, np.rot90(flat.frames, axes=(1, 2)))


def test_times_and_facts(make_video):
    info = probe(make_video("h264.mp4"), timeout=None)
    assert (info.fps, info.duration, info.total_frames, info.codec) == (25.0, 2.4, 60, "h264")
    read = _read(make_video("variable.mp4", timestamps=VARIABLE), None, max_frames=60, fps=99)
    np.testing.assert_allclose(read.timestamps, VARIABLE - VARIABLE[0], atol=1e-3)
    assert probe(make_video("av1.mp4", codec="libsvtav1"), timeout=None).codec.endswith("av1")


def test_files_without_time_stamps_are_counted(make_video, tmp_path, numbers):
    raw = tmp_path / "raw.h264"
    with av.open(str(make_video("h264.ts"))) as source, raw.open("wb") as target:
        for packet in source.demux(source.streams.video[0]):
            target.write(bytes(packet))
    read = _read(raw, None, max_frames=9, rule="eval")
    assert read.metadata.total_frames == 60
    assert numbers(read.frames) == read.indices.tolist()


def test_sparse_reading_seeks(make_video, monkeypatch, numbers):
    """The last frames of a file cost one group of pictures, not the whole file."""
    from cacovid.video import _backends, _index

    path = make_video("h264.mp4")
    index = _index.build_index(path)
    decoded = []
    real = _index.open_video

    class Counting:
        def __init__(self, container):
            self._container = container

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._container.close()

        def seek(self, *args, **kwargs):
            self._container.seek(*args, **kwargs)

        def decode(self, stream):
            for frame in self._container.decode(stream):
                decoded.append(frame.pts)
                yield frame

    def counting(path):
        container, stream = real(path)
        return Counting(container), stream

    monkeypatch.setattr(_backends, "open_video", counting)
    frames = _backends.decode_pyav(path, index, np.array([0, 59]))
    assert numbers(frames) == [0, 59]
    assert len(decoded) <= 1 + 12


def test_hf_metadata(make_video):
    pytest.importorskip("transformers")
    read = _read(make_video("h264.mp4"), None, max_frames=3, rule="eval")
    made = read.hf()
    assert (made.total_num_frames, made.fps, made.width) == (60, 25.0, 128)
    assert made.frames_indices == [0, 29, 59]
    assert read.metadata.hf().total_num_frames == 60
