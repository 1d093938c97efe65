"""Progress on a terminal: ids and paths are shown as they are, whatever brackets they hold."""

import io
import sys

from cacovid.commands.common import show_table
from cacovid.commands.progress import progress, steps_bar

#: An end of markup that was not begun, and markup of a name that rich would swallow.
NAME = "a[/b]/1 [red] :smile:"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_terminal(monkeypatch):
    """Standard error as a terminal; not a fixture, after which pytest sets its own one."""
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return out


def test_notes_and_words_of_a_bar(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with steps_bar(f"Reading {NAME}", 2) as bar:
        bar.step(1, {"reward": 0.5})
        bar.note(f"skipped {NAME}: truncated")
    assert f"skipped {NAME}: truncated" in terminal.getvalue()
    assert f"Reading {NAME}" in terminal.getvalue()


def test_details_of_a_stage(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with progress(1) as shown:
        shown.stage("decode", NAME)
        shown._bar.refresh()
    assert f"Writing the answer {NAME}" in terminal.getvalue()


def test_headings_of_a_table(capsys):
    show_table(["method", NAME], [["uniform", NAME]])
    assert capsys.readouterr().out.count(NAME) == 2
