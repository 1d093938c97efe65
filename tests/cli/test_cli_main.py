"""The command line around its commands: help, version, wrong usage, interruptions, doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from cacovid import __version__, cli
from cacovid.commands.doctor import Doctor
from cacovid.commands.progress import Progress, progress


def test_help_is_quick_and_imports_no_torch(cacovid):
    begin = time.perf_counter()
    done = cacovid("--help", PYTHONPROFILEIMPORTTIME="1")
    seconds = time.perf_counter() - begin
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("ask", "demo", "doctor"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "cacovid.cli" in imported
    assert not imported & {"torch", "transformers", "numpy"}
    # Its promise is 1.5 s; this bound is for machines that are busy with something else.
    assert seconds < 10


def _environment(encoding):
    return {"PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding}


# Long help is written while it is made; short help lies in the buffer until the end.
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"]])
def test_a_closed_pipe_is_no_error_to_tell(arguments, encoding):
    command = [sys.executable, "-m", "cacovid", *arguments]
    pipe, environment = subprocess.PIPE, _environment(encoding)
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_help_on_a_terminal_of_ascii_only():
    command = [sys.executable, "-m", "cacovid", "--help"]
    done = subprocess.run(command, capture_output=True, env=_environment("ascii"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"usage: cacovid" in done.stdout and done.stdout.isascii()


def test_help_of_a_command_names_its_options(cacovid):
    done = cacovid("ask", "--help")
    assert done.returncode == 0
    for option in ("--retention", "--method", "--model", "--overlay", "--json", "--seed"):
        assert option in done.stdout


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(capsys, flag):
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"cacovid {__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "usage: cacovid" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["ask"], ["ask", "a.mp4"], ["ask", "a", "b", "--nosuch"], ["demo", "--seed", "x"]],
)
def test_wrong_usage_ends_with_2_and_says_so_on_standard_error(capsys, arguments):
    assert cli.main(arguments) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError("disk full"), 1, "disk full"),
        (RuntimeError("odd"), 1, "RuntimeError: odd"),
        (RuntimeError(), 1, "RuntimeError"),
    ],
)
def test_what_goes_wrong_inside_a_command(capsys, monkeypatch, error, status, message):
    def fail(self):
        raise error

    monkeypatch.setattr(Doctor, "run", fail)
    assert cli.main(["doctor"]) == status
    seen = capsys.readouterr()
    assert message in seen.err and "Traceback" not in seen.err and seen.out == ""
    if status == 1:
        assert cli.main(["doctor", "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err


def test_doctor_as_text_and_as_json(capsys):
    assert cli.main(["doctor"]) == 0
    assert f"cacovid {__version__}" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["reference"]["available"] is True


def test_progress_without_a_terminal_is_a_line_per_stage(capsys):
    with progress(2) as shown:
        shown.stage("read")
        shown.stage("Asking", "something")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["Reading the video", "Asking something"]


def test_progress_on_a_terminal_counts_the_stages():
    class Bar:
        def __init__(self):
            self.seen = []

        def add_task(self, words, total):
            self.seen.append((words, 0, total))
            return 5

        def update(self, task, description, completed, total):
            assert task == 5
            self.seen.append((description, completed, total))

    bar = Bar()
    shown = Progress(2, bar)
    for name in ("load", "read", "more"):
        shown.stage(name)
    assert bar.seen == [
        ("Starting", 0, 2),
        ("Loading model", 0, 2),
        ("Reading the video", 1, 2),
        ("more", 2, 3),
    ]
