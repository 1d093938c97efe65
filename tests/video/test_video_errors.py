"""Files that cannot be read: one clear error with the name and the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from cacovid.errors import InvalidInputError, MissingDependencyError, VideoReadError
from cacovid.video import FrameSampling, read, read_frames


def _sound(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0" * 8000)


BROKEN = {
    "missing": (lambda path, _: None, "no such file"),
    "empty": (lambda path, _: path.write_bytes(b""), "empty"),
    "text": (lambda path, _: path.write_text("no video\n" * 99), "not a video"),
    "folder": (lambda path, _: path.mkdir(), "directory"),
    "pipe": (lambda path, _: os.mkfifo(path), "regular file"),
    "sound": (lambda path, _: _sound(path), "no video stream, only audio"),
    "half": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "truncated"),
}


@pytest.mark.parametrize("timeout", [None, 60.0], ids=["here", "child"])
@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable(make_video, tmp_path, kind, timeout):
    make, reason = BROKEN[kind]
    path = tmp_path / "clip.mp4"
    make(path, make_video("h264.mp4").read_bytes())
    with pytest.raises(VideoReadError, match=reason) as caught:
        read_frames(path, timeout=timeout)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("cut_first.mp4", {"options": {"movflags": "+faststart"}}), ("cut.mkv", {}), ("cut.avi", {})],
)
def test_truncated_with_its_header_intact(make_video, tmp_path, name, options):
    import av

    whole = make_video("h264.mp4") if name.endswith("mp4") else make_video(name, count=120)
    target = tmp_path / name
    if name.endswith("mp4"):
        with (
            av.open(str(whole)) as source,
            av.open(str(target), "w", options=options["options"]) as sink,
        ):
            stream = sink.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    sink.mux(packet)
        data = target.read_bytes()
    else:
        data = whole.read_bytes()
    target.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoReadError, match="truncated"):
        read_frames(target, timeout=None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(make_video, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video("h264.mp4").read_bytes())
    path.chmod(0)
    with pytest.raises(VideoReadError, match="permission"):
        read_frames(path)


def test_wrong_arguments(make_video):
    path = make_video("h264.mp4")
    with pytest.raises(InvalidInputError, match="backend"):
        read_frames(path, backend="opencv")
    with pytest.raises(InvalidInputError, match="timeout"):
        read_frames(path, timeout=0)


def test_memory_is_bounded(make_video, monkeypatch):
    monkeypatch.setattr(read, "MAX_BYTES", 100_000)
    with pytest.raises(VideoReadError, match="max_frames"):
        read_frames(make_video("h264.mp4"), FrameSampling(60, 25))
    assert len(read_frames(make_video("h264.mp4"), FrameSampling(2, 25))) == 2


def test_missing_packages(make_video, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    path = make_video("h264.mp4")
    assert read_frames(path, timeout=None).backend == "pyav"
    with pytest.raises(MissingDependencyError, match="pip install"):
        read_frames(path, backend="decord", timeout=None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        read_frames(path, timeout=None)


def test_import_is_light():
    code = (
        "import sys, cacovid.video; "
        "bad = {'av', 'decord', 'torch', 'torchcodec', 'transformers'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_cut_short_is_told_without_the_index_of_newer_pyav():
    from types import SimpleNamespace

    from cacovid.video._index import _cut_short

    container = SimpleNamespace(format=SimpleNamespace(name="mov,mp4"), duration=10_000_000)
    older = SimpleNamespace(frames=100)
    newer = SimpleNamespace(frames=0, index_entries=range(100))
    for stream in (older, newer):
        assert _cut_short(container, stream, packets=50, reach=5.0)
        assert not _cut_short(container, stream, packets=100, reach=10.0)
        assert not _cut_short(container, stream, packets=99, reach=9.95)  # an edit list's doing


@pytest.mark.parametrize("call", [read_frames, read.probe])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://example.org/a.mp4", "^https://example.org/a.mp4 is a URL.*download it first"),
        (Path("rtsp://example.org/a"), "^rtsp://example.org/a is a URL"),
        ("file:///tmp/a.mp4", "give the path alone, /tmp/a.mp4"),
        ("C:/clips/a.mp4", "no such file"),
    ],
)
def test_a_url_is_told_as_one(call, path, message):
    with pytest.raises(VideoReadError, match=message):
        call(path, timeout=None)
