"""Files are written whole, or stay as they were."""

from __future__ import annotations

import os
import stat

import pytest

from cacovid.files import write_text, written_whole


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "früher\n")
    assert path.read_text(encoding="utf-8") == "früher\n"
    with written_whole(path) as part:
        assert part.parent == tmp_path and part.suffix == ".csv"
        part.write_text("half")
        assert path.read_text(encoding="utf-8") == "früher\n"
    assert path.read_text() == "half" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "earlier")
    with pytest.raises(RuntimeError), written_whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_usual_rights(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "page.html", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o644
