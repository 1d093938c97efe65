"""The command line: `cacovid ask | demo | report | eval | ...`.

`cacovid --help` lists all commands.

Exit status: 0; 1 for an error; 2 for wrong usage; 130 when interrupted. Errors go to standard
error, without a traceback unless `--debug` is given.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cacovid._version import __version__
from cacovid.errors import CacovidError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: What stands after the program's name; `sys.argv[1:]` when omitted.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _tolerate_plain_terminals()
    if arguments[:1] in (["--version"], ["-V"]):
        sys.stdout.write(f"cacovid {__version__}\n")
        return 0
    try:
        try:
            import rich  # noqa: F401
            import tyro  # noqa: F401
        except ImportError as error:
            return _fail(f"the command line needs {error.name}: pip install 'cacovid[cli]'", FAILED)
        return _run(arguments or ["--help"])
    except KeyboardInterrupt:  # the imports take a moment too
        return _fail("interrupted", INTERRUPTED)


def _run(arguments: list[str]) -> int:
    from cacovid.commands import parse
    from cacovid.commands.common import UsageError

    try:
        command = parse(arguments)
    except SystemExit as stop:  # tyro has told what is wrong, or shown the help
        return _flushed(stop.code if isinstance(stop.code, int) else WRONG_USAGE)
    except BrokenPipeError:
        return _nobody_reads()
    try:
        with _plain_warnings(command.debug):
            command.run()
        sys.stdout.flush()
    except BrokenPipeError:
        return _nobody_reads()
    except UsageError as error:
        return _fail(f"{error}", WRONG_USAGE)
    except Exception as error:
        if command.debug:
            traceback.print_exc()
            return FAILED
        return _fail(_message(error), FAILED)
    return 0


@contextmanager
def _plain_warnings(debug: bool) -> Iterator[None]:
    """Warnings become lines for people, without the source that they came from."""
    if debug:
        yield
        return

    def show(message: Warning | str, *where: object, **more: object) -> None:
        sys.stderr.write(f"cacovid: warning: {' '.join(str(message).split())}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _tolerate_plain_terminals() -> None:
    """Where only ASCII can be written, signs beyond it become "?" instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flushed(status: int) -> int:
    """Short output may still lie in the buffer; a closed pipe must show here, not at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _nobody_reads()
    return status


def _nobody_reads() -> int:
    """Whoever read our output has closed it; what is left must not be flushed at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, CacovidError):
        return text
    if isinstance(error, OSError) and text:
        return text
    name = type(error).__name__
    return f"{name}: {text or 'no message'} (--debug shows where)"


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"cacovid: error: {message}\n")
    return status
