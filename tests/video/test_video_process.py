"""The child process: real hangs, crashes, plain scripts, threads, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cacovid.errors import VideoReadError
from cacovid.video import FrameSampling, _process, read, read_frames

DECODERS = """
import ctypes, os

def hang(path, index, indices):
    ctypes.PyDLL(None).sleep(1000)  # native code that keeps Python's lock: no signal gets through

def crash(path, index, indices):
    ctypes.string_at(0)
"""


@pytest.fixture
def decoders(tmp_path, monkeypatch):
    (tmp_path / "bad_decoders.py").write_text(DECODERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    _process._end_all()  # the next child shall see this path
    for kind in ("hang", "crash"):
        monkeypatch.setitem(read.BACKENDS, kind, f"bad_decoders:{kind}")


def test_native_hang_is_ended(make_video, decoders):
    path = make_video("h264.mp4")
    begin = time.monotonic()
    with pytest.raises(VideoReadError, match=r"h264\.mp4.*timeout of 1 s"):
        read_frames(path, backend="hang", timeout=1.0)
    assert time.monotonic() - begin < 60
    assert not _process._idle
    assert read_frames(path).frames.shape[1:] == (96, 128, 3)


def test_crash_is_told(make_video, decoders):
    path = make_video("h264.mp4")
    with pytest.raises(VideoReadError, match=r"h264\.mp4.*crashed"):
        read_frames(path, backend="crash")
    assert len(read_frames(path)) >= 1


def test_child_gives_what_this_process_gives(make_video):
    path = make_video("h264.mp4")
    here, there = (read_frames(path, FrameSampling(9, 9.0), timeout=t) for t in (None, 60.0))
    np.testing.assert_array_equal(here.frames, there.frames)
    np.testing.assert_array_equal(here.timestamps, there.timestamps)
    np.testing.assert_array_equal(here.indices, there.indices)
    assert (here.metadata, here.backend) == (there.metadata, there.backend)


def test_the_child_is_kept(make_video):
    path = make_video("h264.mp4")
    read_frames(path)
    before = [child.process.pid for child in _process._idle]
    read_frames(path)
    assert [child.process.pid for child in _process._idle] == before


def test_a_dead_child_is_replaced(make_video):
    path = make_video("h264.mp4")
    read_frames(path)
    for child in _process._idle:
        child.process.kill()
        child.process.wait()
    assert len(read_frames(path)) >= 1


def test_threads(make_video):
    path = make_video("h264.mp4")
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda n: len(read_frames(path, FrameSampling(n, 25))), range(1, 9)))
    assert counts == list(range(1, 9))


def test_fork(make_video):
    path = make_video("h264.mp4")
    read_frames(path)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if len(read_frames(path, FrameSampling(5, 25))) == 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(read_frames(path, FrameSampling(5, 25))) == 5


def test_a_plain_script_runs_once(make_video, tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys\nfrom cacovid.video import read_frames\n"
        "print('run', len(read_frames(sys.argv[1])))\n"
    )
    # A file of the user that would shadow the standard library in a careless child.
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')\n")
    run = subprocess.run(
        [sys.executable, "-P", str(script), str(make_video("h264.mp4"))],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "run 2\n"
