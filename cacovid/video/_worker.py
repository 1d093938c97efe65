"""The child process that reads files for `cacovid.video._process`.

Requests are lines of JSON on standard input. An answer is a length (4 bytes, little-endian), that
many bytes of JSON, and for frames their raw bytes. Nothing of the parent's program is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from cacovid import errors
from cacovid.video._decode import probe_here, read_here
from cacovid.video.sampling import FrameSampling


def main() -> None:
    """Serves requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    _send(out, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            header, payload = _answer(request)
        except errors.CacovidError as error:
            header, payload = {"error": type(error).__name__, "message": str(error)}, None
        except MemoryError:
            header, payload = _failed(request, "not enough memory for its frames"), None
        except Exception as error:
            header, payload = _failed(request, f"{type(error).__name__}: {error}"), None
        _send(out, header, payload)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], memoryview | None]:
    if request["backends"] is None:
        return {"info": asdict(probe_here(request["path"]))}, None
    read = read_here(
        request["path"],
        FrameSampling(**request["sampling"]),
        request["backends"],
        request["only"],
        request["max_bytes"],
    )
    header = {
        "info": asdict(read.metadata),
        "backend": read.backend,
        "indices": read.indices.tolist(),
        "timestamps": read.timestamps.tolist(),
        "shape": read.frames.shape,
    }
    return header, read.frames.data.cast("B")


def _failed(request: dict[str, Any], reason: str) -> dict[str, Any]:
    message = f"cannot read video {request['path']!r}: {reason}"
    return {"error": "VideoReadError", "message": message}


def _send(out: int, header: dict[str, Any], payload: memoryview | None = None) -> None:
    text = json.dumps(header).encode()
    for part in (memoryview(len(text).to_bytes(4, "little") + text), payload):
        while part is not None and len(part):
            part = part[os.write(out, part) :]
