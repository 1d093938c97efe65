"""The recall task of `bench/families.py`: one answer, shown by one token; nothing is trained."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

from cacovid.video import FrameSampling, read_frames


def _load():
    path = Path(__file__).resolve().parents[2] / "bench" / "recall_task.py"
    spec = importlib.util.spec_from_file_location("bench_recall_task", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


task = _load()


def test_what_is_asked_for_stands_in_the_clip_once():
    clips = task.draw_clips(20, np.random.default_rng(0))
    for cells, asked, answers in zip(clips.cells, clips.asked, clips.answers, strict=True):
        left, right = np.divmod(cells[cells < task.PAIRS], len(task.NAMES))
        assert len(set(left)) == task.SHOWN
        assert dict(zip(left, right, strict=True)) == dict(zip(asked, answers, strict=True))


def test_a_cell_is_drawn_where_its_token_is():
    cells = np.full(task.TOKENS, task.PAIRS)
    red, blue = task.NAMES.index("red"), task.NAMES.index("blue")
    cells[9 + 3 * 2 + 1] = len(task.NAMES) * red + blue  # second picture, last row, middle
    frames = task.render(cells, np.random.default_rng(0))
    assert frames.shape == (6, 24, 24, 3)
    assert (frames[2:4, 16:24, 8:12] == task.COLOURS["red"]).all()
    assert (frames[2:4, 16:24, 12:16] == task.COLOURS["blue"]).all()
    rest = frames[[0, 1, 4, 5]].astype(float)
    assert np.ptp(rest, axis=-1).max() < 160  # greys of small chance, no pure colour


def test_files_hold_what_the_questions_ask_for(tmp_path):
    path = task.write_questions(tmp_path, clips=2, seed=4)
    rows = json.loads(path.read_text())
    assert len({row["problem_id"] for row in rows}) == len(rows) == 2 * task.SHOWN
    sampling = FrameSampling(max_frames=task.PICTURES * task.HELD, fps=task.FPS)
    frames = read_frames(tmp_path / rows[0]["path"], sampling).frames
    assert len(frames) == task.PICTURES * task.HELD
    asked, answer = (np.array(task.COLOURS[name], dtype=float) for name in
                     (rows[0]["problem"].split()[-1], rows[0]["solution"]))  # fmt: skip
    cells = frames.reshape(-1, 3, 8, 3, 8, 3).swapaxes(2, 3).reshape(-1, 8, 8, 3).astype(float)
    left, right = cells[:, 1:-1, 1:3].mean((1, 2)), cells[:, 1:-1, 5:7].mean((1, 2))
    near = (np.abs(left - asked).max(-1) < 40) & (np.abs(right - answer).max(-1) < 40)
    assert near.any()
