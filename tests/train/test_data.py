"""Marks, wording, reading of data, the blind filter, replay and ratio."""

import json

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.train.data import Samples, TrainingSample, apart, embedded_samples
from cacovid.train.filtering import filter_blind
from cacovid.train.marking import PROBLEM_TYPES, extract_answer, mark
from cacovid.train.replay import RatioSettings
from cacovid.train.video_r1 import read_video_r1
from cacovid.train.wording import put_plainly, word_problem

MARKS = [
    ("multiple choice", "B", "B", 1.0),
    ("multiple choice", "b) a dog", "<answer>B</answer>", 1.0),
    ("multiple choice", "<answer> (C) </answer>", "C", 1.0),
    ("multiple choice", "", "A", 0.0),
    ("multiple choice", "42", "A", 0.0),
    ("numerical", "3.14", "3.142", 1.0),
    ("numerical", "3", "3.0", 0.0),
    ("numerical", "42", "42", 1.0),
    ("numerical", "1,200", "1,200", 1.0),
    ("numerical", "1200", "1,200", 0.0),
    ("numerical", "none", "4", 0.0),
    ("OCR", "stop sign", "stop sign", 1.0),
    ("OCR", "stop", "stop sign", 0.5),
    ("OCR", "a b c d e", "x", 0.0),
    ("OCR", "", "", 1.0),
    ("free-form", "a red ball", "a red ball", 1.0),
    ("free-form", "balls", "ball", 2 / 3),  # stemmed; one word has no pair
    ("free-form", "green", "ball", 0.0),
    ("regression", "8", "10", 0.8),
    ("regression", "30", "10", 0.0),
    ("regression", "0", "0", 1.0),
    ("regression", "0.1", "0", 0.0),
    ("exact", " Red. ", "red", 1.0),
    ("exact", "reddish", "red", 0.0),
]


@pytest.mark.parametrize(("kind", "reply", "solution", "expected"), MARKS)
def test_marks(kind, reply, solution, expected):
    assert mark(reply, solution, kind) == pytest.approx(expected)


def test_marks_of_longer_texts():
    # rouge-1: 2 of 3 words on both sides; rouge-2: 1 of 2 pairs; rouge-L: 2 of 3.
    by_hand = (2 / 3 + 1 / 2 + 2 / 3) / 3
    assert mark("a red cat", "a red ball", "free-form") == pytest.approx(by_hand)
    assert extract_answer("<think>A</think><ANSWER>\n two words </ANSWER>") == "two words"
    with pytest.raises(InvalidInputError, match="'poem'; expected one of multiple choice"):
        mark("a", "a", "poem")


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_every_problem_type_has_its_closing_sentence(kind):
    sample = TrainingSample("1", "What is it?", "A", kind, options=("A. one", "B. two"))
    text = word_problem(sample)
    assert text.startswith("What is it?\nA. one\nB. two\nReply with ") and text.endswith(".")
    worded = TrainingSample("1", "What is it?", "A", kind, options=("x", "y"), worded=True)
    assert word_problem(worded) == "What is it?"
    plain = put_plainly(Samples((sample, worded), (("row 2", "bad"),)))
    assert [word_problem(s) for s in plain] == ["What is it?\nA. one\nB. two", "What is it?"]
    assert plain[0].options == sample.options and plain.skipped == (("row 2", "bad"),)


def row(**changes):
    return {
        "problem_id": 7, "problem": "Which?", "solution": "<answer>A</answer>",
        "problem_type": "multiple choice", "data_type": "video", "path": "clip.mp4",
        "options": ["A. x", "B. y"],
    } | changes  # fmt: skip


def test_reading_keeps_the_good_and_names_the_bad(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    rows = [
        row(), row(problem_id=8, options=None), row(problem_id=9, data_type="image"),
        row(problem_id=10, problem_type="poem"), row(problem_id=11, path="gone.mp4"),
        row(problem_id=7), row(problem_id=12, solution=""), "text",
        row(problem_id=13, problem_type="numerical", solution=3, options=None),
    ]  # fmt: skip
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    samples = read_video_r1(path, max_skipped=0.9)
    assert [s.id for s in samples] == ["7", "13"] and samples[0].solution == "A"
    reasons = dict(samples.skipped)
    assert "without options" in reasons["row 1"] and "'image'" in reasons["row 2"]
    assert "poem" in reasons["row 3"] and "gone.mp4" in reasons["row 4"]
    assert reasons["row 5"] == "the same as row 0" and "no solution" in reasons["row 6"]
    assert "not an object" in reasons["row 7"]
    with pytest.raises(InvalidInputError, match=r"7 of 9 rows cannot be used \(row 1: multiple"):
        read_video_r1(path)
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(json.dumps(r) for r in (row(), row(problem_id=8))))
    assert len(read_video_r1(lines)) == 2
    for text, message in (("{", "neither JSON nor"), ('{"a": 1}', "expected a list")):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=message):
            read_video_r1(path)


def test_embedded_samples_and_their_order():
    samples = embedded_samples("train", 3, scenes=2, per_scene=4)
    assert len(samples) == 8 and len({s.id for s in samples}) == 8
    assert {s.problem_type for s in samples} <= {"multiple choice", "exact"}
    assert all(s.worded and s.kind and s.solution in s.problem + s.solution for s in samples)
    assert samples.kept == embedded_samples("train", 3, scenes=2, per_scene=4).kept
    assert samples.kept[4:] == embedded_samples("train", 3, 1, 4, first=1).kept
    order = samples.order(0, 0)
    assert sorted(order) == list(range(8)) and order == samples.order(0, 0)
    assert order != samples.order(0, 1) or order != samples.order(1, 0)
    kept = samples.only([samples[3].id, samples[1].id])
    assert [s.id for s in kept] == [samples[1].id, samples[3].id]
    with pytest.raises(InvalidInputError, match="names 1 samples that the data does not hold"):
        samples.only(["nothing"])


def test_the_filter_goes_on_where_it_was_stopped(tmp_path):
    samples = Samples(tuple(TrainingSample(str(i), "?", "A", "exact") for i in range(6)))
    asked = []

    def reader(sample):
        asked.append(sample.id)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return float(sample.id in "02")

    output = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        filter_blind(samples, reader, output, {"model": "one"})
    assert not output.exists()
    with open(tmp_path / "kept.json.part", "a") as file:
        file.write('["3", 1')  # a line that a kill cut off
    found = filter_blind(samples, reader, output, {"model": "one"})
    assert asked == ["0", "1", "2", "3", "3", "4", "5"]
    assert found.kept == ("1", "3", "4", "5") and found.dropped == ("0", "2")
    assert json.loads(output.read_text())["kept"] == ["1", "3", "4", "5"]
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]
    with pytest.raises(InvalidInputError, match="all 6 questions are answered rightly"):
        filter_blind(samples, lambda s: 1.0, tmp_path / "none.json", {})
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InvalidInputError, match="folder is a folder; expected the name of"):
        filter_blind(samples, reader, folder, {})
    assert not folder.with_name("folder.part").exists()


def test_the_filter_does_not_go_on_with_the_marks_of_another_run(tmp_path):
    samples = Samples(tuple(TrainingSample(str(i), "?", "A", "exact") for i in range(3)))
    output, part = tmp_path / "kept.json", tmp_path / "kept.json.part"

    def stops(sample):
        if sample.id == "2":
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        filter_blind(samples, stops, output, {"model": "one"})
    there = part.read_bytes()
    others = Samples((*samples.kept[:2], TrainingSample("2", "why?", "A", "exact")))
    for given, header, message in (
        (samples, {"model": "two"}, "model was 'one' and is now 'two'"),
        (others, {"model": "one"}, "questions was '"),
    ):
        with pytest.raises(InvalidInputError, match=f"marks of another run .{message}"):
            filter_blind(given, lambda s: 1.0, output, header)
        assert part.read_bytes() == there and not output.exists()
    found = filter_blind(samples, lambda s: float(s.id == "2"), output, {"model": "one"})
    assert found.kept == ("0", "1")
    # Of a version without the line that says what the marks depend on.
    part.write_text('["0", 1.0]\n')
    with pytest.raises(InvalidInputError, match=r"another run .which one is not said.* take the"):
        filter_blind(samples, lambda s: 0.0, output, {})
    part.write_text('{"questions"')  # killed at once
    assert filter_blind(samples, lambda s: 0.0, output, {}).kept == ("0", "1", "2")
    part.write_text('{"questions": "x"}\n["0"]\n')
    with pytest.raises(InvalidInputError, match=r"holds no marks .* begin anew"):
        filter_blind(samples, lambda s: 0.0, output, {})


def test_the_ratio_follows_the_reward():
    ratio = RatioSettings(base=0.02)
    assert ratio.after(0.02, 0.5) == 0.02
    assert ratio.after(0.02, 0.875) == 0.01 and ratio.after(0.01, 1.0) == 0.01
    assert ratio.after(0.02, 0.125) == 0.04 and ratio.after(0.1, 0.0) == 0.12
    assert RatioSettings(base=0.2).after(0.2, 0.0) == 0.2
    assert RatioSettings(base=0.005).after(0.005, 1.0) == 0.005
    assert RatioSettings(dynamic=False).after(0.02, 1.0) == 0.02
    with pytest.raises(InvalidInputError, match=r"ratio\.base is 0"):
        RatioSettings(base=0)


@pytest.mark.parametrize("sampler", ["ocss", "mixed", "multinomial", "uniform"])
def test_rollouts(sampler):
    from cacovid import Grid, Prompt, Scores, reference
    from cacovid.train.rollouts import RolloutSettings, draw_rollouts

    generator = torch.Generator().manual_seed(0)
    prompt = Prompt(
        torch.randn(98, 8, generator=generator), torch.arange(98), torch.arange(1, 97),
        torch.tensor([97]), Grid([(16, 2, 3)]),
    )  # fmt: skip
    scores = Scores(torch.randn(96, generator=generator) * 3, torch.randn(16, generator=generator))

    def rows(masks):
        return [tuple(row) for row in masks.tolist()]

    settings = RolloutSettings(5, 4, sampler)
    drawn = draw_rollouts(scores, prompt, 0.3, settings, seed=1, draw=0)
    assert drawn.token_masks.view(5, 16, 6).sum(-1).eq(2).all()
    assert drawn.frame_masks.sum(1).eq(2).all()
    assert drawn.frame_token_masks.view(4, 16, 6).any(-1).equal(drawn.frame_masks)
    assert drawn.read.shape == (9, 96)
    for ratio in (0.01, 0.3, 1.0):
        tried = draw_rollouts(scores, prompt, ratio, settings, seed=2, draw=0)
        for frames, read in zip(tried.frame_masks, tried.frame_token_masks, strict=True):
            places = frames.repeat_interleave(6).nonzero().flatten()
            count = min(max(1, round(6 * ratio)) * 16, len(places))
            peaks = reference.density_peaks(prompt.video_embeds[places], count, 4)
            assert read.nonzero().flatten().equal(places[peaks])
    top = scores.token.view(16, 6).topk(2).indices
    greedy = torch.zeros(16, 6, dtype=torch.bool).scatter_(1, top, True)
    assert drawn.token_masks[0].equal(greedy.flatten())
    assert drawn.frame_masks[0].nonzero().flatten().equal(scores.frame.topk(2).indices.sort()[0])
    again = draw_rollouts(scores, prompt, 0.3, settings, seed=1, draw=0)
    other = draw_rollouts(scores, prompt, 0.3, settings, seed=1, draw=1)
    assert drawn.read.equal(again.read) and not drawn.read.equal(other.read)
    drawn_only = RolloutSettings(5, 4, sampler, greedy=False)
    without = draw_rollouts(scores, prompt, 0.3, drawn_only, seed=1, draw=0)
    assert without.read.shape == (9, 96) and without.token_masks.view(5, 16, 6).sum(-1).eq(2).all()
    # The others are the draws they were; what makes up the number is one more draw.
    tokens, frames = map(rows, (without.token_masks, without.frame_masks))
    assert set(rows(drawn.token_masks[1:])) <= set(tokens)
    assert set(rows(drawn.frame_masks[1:])) <= set(frames)
    assert tuple(greedy.flatten().tolist()) not in tokens
    none = draw_rollouts(Scores(scores.token), prompt, 0.3, RolloutSettings(5, 0), seed=1, draw=0)
    assert none.frame_masks.shape == (0, 16) and none.read.shape == (5, 96)
    with pytest.raises(InvalidInputError, match="frame rollouts need frame scores"):
        draw_rollouts(Scores(scores.token), prompt, 0.3, settings, seed=1, draw=0)


def test_no_video_is_learned_from_and_judged_by(tmp_path):
    def sample(id, video):
        return TrainingSample(id, "?", "red", "exact", video=tmp_path / video)

    (tmp_path / "folder").mkdir()
    samples = Samples((sample("1", "a.mp4"), sample("2", "b.mp4"), sample("3", "a.mp4")))
    held_out = Samples((sample("9", "folder/../a.mp4"),))
    left = apart(samples, held_out)
    assert [s.id for s in left] == ["2"]
    assert [row for row, _ in left.skipped] == ["sample '1'", "sample '3'"]
    assert apart(samples, Samples((sample("9", "c.mp4"),))) is samples
    with pytest.raises(InvalidInputError, match="all 3 samples are on videos of held-out"):
        apart(samples, samples)
    scenes = embedded_samples("train", 0, 2, 2)
    assert apart(scenes, embedded_samples("validation", 0, 2, 2)) is scenes
    assert len(apart(scenes, embedded_samples("train", 0, 1, 1))) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ('["1"]', "holds a list without 'kept'; expected the list that cacovid filter writes"),
        ('{"dropped": []}', "holds a dict without 'kept'"),
        ('{"kept": "12"}', "holds 'kept' as '12'"),
        ('{"kept": [1, 2]}', "holds the id 1; expected"),
        (None, "cannot be read"),
    ],
)
def test_lists_that_no_filter_wrote(tmp_path, text, told):
    from cacovid.train.config import DataSection
    from cacovid.train.run import read_data

    path = tmp_path / "kept.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInputError, match=told):
        read_data(DataSection(scenes=1, per_scene=2, kept=str(path)))
