"""Overlays: what is drawn where, and the files that come of it."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from cacovid import methods
from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Scores, Selection
from cacovid.viz import check_overlay_path, colours, write_overlay
from cacovid.viz.clip import clip_fps, clip_frames
from cacovid.viz.frame import paint_frame
from cacovid.viz.furniture import legend_height
from cacovid.viz.sheet import _layout, draw_sheet
from cacovid.viz.subject import make_subject
from cacovid.viz.text import font_for, width, wrap


def selection(grid: Grid, keep: list[int]) -> Selection:
    return Selection(torch.tensor(keep, dtype=torch.int64), grid, (len(keep),))


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_kept_tokens_are_bright_outlined_and_dropped_ones_dimmed():
    frame = np.full((60, 60, 3), (200, 40, 40), dtype=np.uint8)
    kept = np.zeros((3, 3), dtype=bool)
    kept[1, 2] = True
    picture = np.asarray(paint_frame(frame, (300, 300), kept, None)).astype(int)
    # The kept cell is rows 100-199, columns 200-299: the frame as it is in its middle, a white
    # line at its edge, also at the picture's own edge.
    assert tuple(picture[150, 250]) == (200, 40, 40)
    for row, column in ((100, 250), (199, 250), (150, 200), (150, 299)):
        assert tuple(picture[row, column]) == colours.OUTLINE
    assert tuple(picture[99, 250]) == colours.HALO
    # Elsewhere it is grey and dark.
    dropped = picture[50, 50]
    assert len(set(dropped.tolist())) == 1 and 0 < dropped[0] < 60


def test_the_heat_map_tints_dropped_tokens_and_rims_kept_ones():
    frame = np.full((40, 40, 3), 128, dtype=np.uint8)
    kept = np.array([[True, False], [False, False]])
    heat = np.array([[1.0, 1.0], [0.0, 0.5]])
    picture = np.asarray(paint_frame(frame, (200, 200), kept, heat)).astype(int)
    assert tuple(picture[50, 50]) == (128, 128, 128)
    low, high = picture[150, 50], picture[50, 150]
    # Viridis runs from violet (blue over green) to yellow (red and green over blue).
    assert low[2] > low[1] and high[0] > high[2] and high[1] > high[2]
    yellow = colours.viridis(np.array(1.0))
    assert np.abs(picture[50, 5] - yellow).max() <= 1


def test_neighbouring_kept_tokens_share_one_outline():
    frame = np.full((40, 40, 3), 90, dtype=np.uint8)
    kept = np.array([[True, True], [False, False]])
    picture = np.asarray(paint_frame(frame, (200, 200), kept, None)).astype(int)
    assert tuple(picture[50, 100]) == (90, 90, 90)
    assert tuple(picture[0, 100]) == colours.OUTLINE


def test_viridis_ends_and_clipping():
    ends = colours.viridis(np.array([-1.0, 0.0, 1.0, 2.0]))
    assert ends[0].tolist() == ends[1].tolist() == [68, 1, 84]
    assert ends[2].tolist() == ends[3].tolist() == [253, 231, 37]


def test_equal_and_infinite_scores_have_colours():
    equal = np.ones(5, dtype=np.float32)
    assert colours.normalised(equal, colours.score_range(equal)).tolist() == [0.5] * 5
    mixed = np.array([0.0, 1.0, np.inf, -np.inf], dtype=np.float32)
    values = colours.normalised(mixed, colours.score_range(mixed))
    assert values[2] == 1.0 and values[3] == 0.0 and np.isfinite(values).all()
    assert colours.score_range(np.array([np.inf])) == (0.0, 0.0)


def test_subject_counts_and_labels():
    grid = Grid([(2, 2, 3)])
    subject = make_subject(
        noise(4, 8, 8), grid, None, selection(grid, [0, 1, 7]), [0.0, 0.5, 75.0, 3700.25], "a\n\nb"
    )
    assert subject.step.tolist() == [0, 0, 1, 1]
    assert subject.per_step.tolist() == [2, 1] and subject.tokens_per_step == 6
    assert [subject.label(i) for i in range(4)] == ["0.00 s", "0.50 s", "1:15.0", "1:01:40.2"]
    assert subject.caption == ("a", "b")
    assert subject.summary() == "3 of 12 video tokens kept (25.0%)"


@pytest.mark.parametrize(
    ("count", "size", "grid_size"),
    [
        (1, (1, 1), (1, 1, 1)),
        (1, (37, 53), (1, 14, 14)),
        (5, (101, 57), (5, 7, 4)),
        (16, (144, 144), (16, 6, 6)),
        (7, (33, 250), (3, 9, 13)),
    ],
)
def test_sheets_and_clips_of_odd_sizes(tmp_path, count, size, grid_size):
    grid = Grid([grid_size])
    scores = Scores(torch.randn(grid.num_tokens, generator=torch.Generator().manual_seed(1)))
    kept = methods.top_k(scores.token, grid, 0.3)
    frames = noise(count, *size)
    path = write_overlay(
        tmp_path / "sheet.png", frames, grid, scores, kept,
        timestamps=np.arange(count) * 0.5, caption=("What is it?", "a thing"),
    )  # fmt: skip
    with Image.open(path) as sheet:
        assert sheet.mode == "RGB" and sheet.width >= 800 and sheet.height >= 200
    subject = make_subject(frames, grid, scores, kept, None, "What is it?")
    pictures = list(clip_frames(subject))
    assert len(pictures) == count
    height, width_, channels = pictures[0].shape
    assert height % 2 == 0 and width_ % 2 == 0 and channels == 3
    assert {picture.shape for picture in pictures} == {pictures[0].shape}


def test_the_sheet_shows_every_frame_once():
    for count in (1, 2, 7, 16, 32, 64, 1024):
        layout = _layout(count, 16 / 9)
        assert layout.rows * layout.columns >= count > (layout.rows - 1) * layout.columns
        assert layout.cell[0] >= 100


def test_tokens_of_wide_frames_are_large_enough_to_be_seen():
    for aspect, rows in ((30.0, 6), (10.0, 14)):
        width, height = _layout(16, aspect, rows).cell
        assert height / rows >= 7 and width >= 4 * height
    # Others keep their shape.
    assert _layout(16, 16 / 9, 27) == _layout(16, 16 / 9)
    frame = np.full((24, 400, 3), 200, dtype=np.uint8)
    kept, heat = np.zeros((6, 6), dtype=bool), np.ones((6, 6))
    kept[2, 3] = True
    for size in ((400, 60), (400, 24)):  # the sheet's, and one of tokens 4 pixels high
        picture = np.asarray(paint_frame(frame, size, kept, heat)).astype(int)
        assert (picture == 200).all(axis=2).sum() >= 100


def test_a_sheet_without_scores_differs_from_one_with():
    grid = Grid([(2, 3, 3)])
    kept = selection(grid, [0, 9])
    frames = noise(2, 30, 30)
    plain = draw_sheet(make_subject(frames, grid, None, kept, None, None))
    heat = draw_sheet(make_subject(frames, grid, Scores(torch.arange(18.0)), kept, None, None))
    plain_pixels = np.asarray(plain).astype(int)
    saturation = plain_pixels.max(-1) - plain_pixels.min(-1)
    assert plain.size == heat.size
    assert saturation.mean() < (np.asarray(heat).max(-1) - np.asarray(heat).min(-1)).mean()


def test_caption_changes_the_picture_and_long_ones_are_cut():
    lines = wrap("word " * 500, 20, 300, max_lines=3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(width(line, 20) <= 300 for line in lines)
    (long,) = wrap("x" * 300, 20, 200)
    assert long.endswith("…") and width(long, 20) <= 200
    assert wrap("", 20, 200) == []


def test_there_is_a_font_for_plain_text_of_the_wanted_size():
    assert font_for("What?", 30).size == 30
    assert width("What?", 40) > 1.5 * width("What?", 20)


def test_slow_enough_to_look_at():
    assert clip_fps(16) < 2
    assert 200 / clip_fps(200) <= 46


def test_the_video_is_readable_and_whole(tmp_path):
    av = pytest.importorskip("av")
    grid = Grid([(4, 2, 2)])
    path = write_overlay(
        tmp_path / "clip.mp4", noise(4, 31, 45), grid, Scores(torch.arange(16.0)),
        selection(grid, [1, 2, 15]), timestamps=[0.0, 1.0, 2.0, 3.0], caption="Which?\nthis",
    )  # fmt: skip
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 4
    assert frames[0].shape[1] > 1000
    # The timeline's bar has moved, and the pictures differ.
    assert np.abs(frames[0].astype(int) - frames[3]).mean() > 2
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    grid = Grid([(1, 1, 1)])
    path = tmp_path / "sheet.png"
    path.write_text("before")
    monkeypatch.setattr(Image.Image, "save", _broken_save)
    with pytest.raises(OSError, match="disk full"):
        write_overlay(path, noise(1, 4, 4), grid, None, selection(grid, [0]))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["sheet.png"]


def _broken_save(self, fp, **options):
    with open(fp, "wb") as file:
        file.write(b"half")
    raise OSError("disk full")


def test_what_does_not_fit_together_is_refused(tmp_path):
    grid = Grid([(2, 2, 2)])
    frames, kept = noise(2, 8, 8), selection(grid, [0])
    path = tmp_path / "a.png"
    cases = [
        ("one video", (frames, Grid([(1, 2, 2), (1, 2, 2)]), None, kept), {}),
        ("expected uint8", (frames.astype(np.float32), grid, None, kept), {}),
        ("expected uint8", (frames[0], grid, None, kept), {}),
        ("2 time steps", (frames[:1], grid, None, kept), {}),
        ("selection is for", (frames, Grid([(2, 2, 3)]), None, kept), {}),
        ("scores.token", (frames, grid, Scores(torch.zeros(7)), kept), {}),
        ("timestamps", (frames, grid, None, kept), {"timestamps": [0.0]}),
    ]
    for message, arguments, options in cases:
        with pytest.raises(InvalidInputError, match=message):
            write_overlay(path, *arguments, **options)
    with pytest.raises(InvalidInputError, match=r"\.png .*\.mp4"):
        write_overlay(tmp_path / "a.gif", frames, grid, None, kept)
    with pytest.raises(InvalidInputError, match="no folder"):
        write_overlay(tmp_path / "no" / "a.png", frames, grid, None, kept)
    assert os.listdir(tmp_path) == []


def test_the_legend_ends_inside_a_narrow_sheet():
    grid = Grid([(1, 2, 2)])
    scores = Scores(torch.tensor([0.000123456, 0.0012, 0.0034, 0.00987654]))
    subject = make_subject(noise(1, 20, 20), grid, scores, selection(grid, [3]), None, None)
    sheet = np.asarray(draw_sheet(subject)).astype(int)
    legend = sheet[-legend_height() - 28 :]
    drawn = np.abs(legend - colours.BACKGROUND).max(axis=(0, 2)) > 8
    # The margin right of it is free, and the upper end's number is there: the ramp's yellow end
    # is not the last thing drawn.
    assert not drawn[-20:].any()
    last = int(np.flatnonzero(drawn)[-1])
    yellow = np.flatnonzero((np.abs(legend - (253, 231, 37)).max(axis=2) < 12).any(axis=0))[-1]
    assert last > yellow + 10


@pytest.mark.parametrize("ending", ["png", "mp4"])
def test_a_place_that_takes_no_file_is_told_beforehand(tmp_path, ending):
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(InvalidInputError, match="is a folder"):
        check_overlay_path(tmp_path / f"folder.{ending}")
    with pytest.raises(InvalidInputError, match="no folder"):
        check_overlay_path(tmp_path / "absent" / f"out.{ending}")
    assert check_overlay_path(tmp_path / f"out.{ending}") == tmp_path / f"out.{ending}"
    assert [path.name for path in tmp_path.iterdir()] == [f"folder.{ending}"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks for a folder without files")
def test_a_folder_that_takes_no_files_is_told_beforehand():
    # Refused for root as well, whom rights alone do not stop.
    with pytest.raises(InvalidInputError, match="takes no files"):
        check_overlay_path("/proc/out.png")


def test_small_kept_tokens_still_show_their_scores():
    # 14 x 14 tokens in a cell of a sheet of 32 frames.
    frame = np.full((180, 320, 3), 128, dtype=np.uint8)
    kept, heat = np.zeros((14, 14), dtype=bool), np.ones((14, 14))
    kept[4:9, 4:9] = True
    picture = np.asarray(paint_frame(frame, (272, 153), kept, heat)).astype(int)
    yellow = (np.abs(picture - colours.viridis(np.array(1.0))).max(axis=2) <= 1).sum()
    assert yellow > 100
    # The rim is narrow: most of what is kept is still seen.
    assert (picture == 128).all(axis=2).sum() > 2500
