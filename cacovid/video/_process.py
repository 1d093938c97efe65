"""Reading in a child process that can be killed: the only timeout that holds in native code.

The child is a plain `python -c` with pipes, not `multiprocessing`: that would run the user's
script again. Children are kept for the next call, one for each thread that reads at the same time.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.errors import VideoReadError

#: Seconds within which Python must start in the child; not counted to the caller's timeout.
_START_TIMEOUT = 120.0
_PIPE_BYTES = 1 << 20
_START = (
    "import json, sys; sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]; "
    "from cacovid.video._worker import main; main()"
)
_idle: list[_Child] = []
_guard = threading.Lock()


class _TimeIsUp(Exception):
    pass


class _Gone(Exception):
    pass


class _Child:
    """One child process and its two pipes."""

    def __init__(self) -> None:
        # The child finds what this process finds, and nothing of the working directory (-P).
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *(os.path.abspath(p) for p in sys.path if p)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests = self.process.stdin
        self.answers = self.process.stdout.fileno()
        with contextlib.suppress(OSError, AttributeError):  # only Linux lets a pipe grow
            fcntl.fcntl(self.answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.receive(time.monotonic() + _START_TIMEOUT)

    def receive(self, deadline: float) -> tuple[dict[str, Any], np.ndarray | None]:
        """The next answer: its header, and its frames if it has any."""
        length = np.empty(4, np.uint8)
        self._fill(length, deadline)
        text = np.empty(int.from_bytes(length.tobytes(), "little"), np.uint8)
        self._fill(text, deadline)
        header = json.loads(text.tobytes())
        if "shape" not in header:
            return header, None
        frames = np.empty(header["shape"], np.uint8)
        self._fill(frames.reshape(-1), deadline)
        return header, frames

    def _fill(self, target: np.ndarray, deadline: float) -> None:
        rest = target.data
        poll = select.poll()
        poll.register(self.answers, select.POLLIN)
        while len(rest):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1e3):
                raise _TimeIsUp
            got = os.readv(self.answers, [rest])
            if got == 0:
                raise _Gone
            rest = rest[got:]

    def end(self) -> None:
        """Kills the child, whatever it does."""
        self.process.kill()
        with contextlib.suppress(OSError):
            self.requests.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)


@contextlib.contextmanager
def _child() -> Iterator[_Child]:
    """A child for one request: an idle one or a new one; kept if the request went well."""
    child = None
    with _guard:
        while _idle and child is None:
            child = _idle.pop()
            if child.process.poll() is not None:  # it was ended from outside meanwhile
                child.end()
                child = None
    if child is None:
        child = _Child()
    try:
        yield child
    except BaseException:
        # Also on Ctrl-C: half an answer may be in the pipe.
        child.end()
        raise
    with _guard:
        _idle.append(child)


def ask(request: dict[str, Any], timeout: float) -> tuple[dict[str, Any], np.ndarray | None]:
    """Sends one request to a child and gives its answer.

    Raises:
        VideoReadError: after `timeout` seconds, or if the child dies; it is killed and the next
            call gets a new one.
    """
    path = request["path"]
    try:
        with _child() as child:
            try:
                child.requests.write(json.dumps(request).encode() + b"\n")
                child.requests.flush()
                return child.receive(time.monotonic() + timeout)
            except (_Gone, BrokenPipeError) as error:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(5.0)
                raise VideoReadError(
                    f"cannot read video {path!r}: the decoder crashed "
                    f"(exit status {child.process.returncode}); try another backend"
                ) from error
            except _TimeIsUp as error:
                raise VideoReadError(
                    f"cannot read video {path!r}: reading took longer than the timeout of "
                    f"{timeout:g} s; raise timeout or re-encode the file"
                ) from error
    except (_Gone, _TimeIsUp) as error:
        raise VideoReadError(
            f"cannot read video {path!r}: the reading process does not start; "
            f"timeout=None reads in this process"
        ) from error


def _forget() -> None:
    """In a forked child: the idle processes belong to the parent."""
    global _guard
    _guard = threading.Lock()
    for child in _idle:
        child.process.returncode = 0  # or its finaliser would wait for a process not its own
    _idle.clear()


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget)
atexit.register(_end_all)
