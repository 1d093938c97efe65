"""Question files as they come: encodings, odd values, letters, ids that stand twice."""

import json

import pytest

from cacovid.errors import InvalidInputError
from cacovid.train.data import TrainingSample
from cacovid.train.video_r1 import read_video_r1


def row(**changes):
    values = {
        "problem_id": 7, "problem": "Which?", "solution": "<answer>A</answer>",
        "problem_type": "multiple choice", "data_type": "video", "path": "clip.mp4",
        "options": ["A. red", "B. blue", "C. green"],
    } | changes  # fmt: skip
    return {name: value for name, value in values.items() if value is not ...}


@pytest.fixture
def read(tmp_path):
    """Writes rows (or text, or bytes) and reads them."""
    (tmp_path / "clip.mp4").write_bytes(b"x")

    def read(data, **options):
        path = tmp_path / "data.json"
        if isinstance(data, list):
            data = json.dumps(data)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_video_r1(path, **{"max_skipped": 1.0} | options)

    return read


def refused(read, **changes):
    """The reason why a row is left out."""
    samples = read([row(**changes), row(problem_id=99, problem="good")])
    assert [s.id for s in samples] == ["99"] and [n for n, _ in samples.skipped] == ["row 0"]
    return samples.skipped[0][1]


SOLUTIONS = [
    "B", "b", " b ", "(B)", "B.", "B)", "[b]", "(B).", "Ｂ", "B. blue", "B) something blue",
    "<answer>(b)</answer>", "blue", "Blue.", "b. BLUE", "<answer>blue</answer>",
]  # fmt: skip


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_the_letter_of_a_solution_is_found(read, solution):
    (sample,) = read([row(solution=solution)])
    assert sample.solution == "B" and sample.letters == ("A", "B", "C")


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("D", "'D' is beyond the 3 options"),
        ("(e)", "'(e)' is beyond the 3 options"),
        ("Answer: B", "neither a letter from A to C nor the text of one option"),
        ("yellow", "neither a letter"),
        ("12", "neither a letter"),
        (1, "neither a letter"),
        ("<answer></answer>", "no solution"),
        ("<answer> </answer>", "no solution"),
        ("A or B", "neither a letter"),
        (None, "no solution"),
        (True, "solution is True; expected text or a number"),
        (["A"], "solution is ['A']"),
        ("\ud800", "half of a character"),
    ],
)
def test_a_solution_without_a_letter_is_refused_by_its_row(read, solution, reason):
    assert reason in refused(read, solution=solution)


OPTIONS = [
    (["red", "blue"], ("A. red", "B. blue")),
    ([3, 4.5], ("A. 3", "B. 4.5")),
    (["(A) red", "(B) blue"], ("(A) red", "(B) blue")),
    (["a) red", "b) blue"], ("a) red", "b) blue")),
    (["A: red", "B：blue"], ("A: red", "B：blue")),
    (["A", "B"], ("A", "B")),  # the options' texts stand in the problem
    (["B. blue", "A. red"], ("B. blue", "A. red")),
    (["E. coli", "S. aureus"], ("A. E. coli", "B. S. aureus")),
    ({"A": "red", "B": "blue"}, ("A. red", "B. blue")),
    ({"b": "blue", "a": "red"}, ("A. red", "B. blue")),
]


@pytest.mark.parametrize(("given_options", "expected"), OPTIONS)
def test_options_have_letters(read, given_options, expected):
    (sample,) = read([row(options=given_options)])
    assert sample.options == expected and sample.solution == "A"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("A. red\nB. blue", "options are 'A. red\\nB. blue'; expected a list"),
        (4, "options are 4; expected a list"),
        (True, "options are True; expected a list"),
        (None, "multiple choice without options"),
        ([], "multiple choice without options"),
        ("", "multiple choice without options"),
        (..., "multiple choice without options"),
        ({"x": "red", "y": "blue"}, "expected a list"),
        ({"A": None, "B": "blue"}, "option 1 is None"),
        (["A. red", None], "option 2 is None"),
        (["A. red", ["blue"]], "option 2 is ['blue']"),
        (["A. red", True], "option 2 is True"),
        (["A. red", " "], "option 2 is empty"),
        (["A. red"], "1 option"),
        ([str(n) for n in range(27)], "27 options"),
        (["A. red", "blue", "C. green"], "only some options have their letters"),
        (["A. red", "A. blue"], "only some options have their letters"),
        (["A. red", "\udfff"], "half of a character"),
    ],
)
def test_bad_options_are_refused_by_their_row(read, options, reason):
    assert reason in refused(read, options=options)


def test_options_of_other_problems(read):
    changes = {"problem_type": "numerical", "solution": 3}
    for options in (None, [], {}, "", ...):
        assert read([row(**changes, options=options)])[0].options == ()
    assert read([row(**changes, options=["3", 4])])[0].options == ("3", "4")
    assert "expected a list" in refused(read, **changes, options="3 or 4")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": None}, "no path or video"),
        ({"path": ["clip.mp4"]}, "path is ['clip.mp4']; expected text"),
        ({"path": "a\0b"}, "there is no video"),
        ({"path": "x" * 5000}, "there is no video"),
        ({"path": "."}, "there is no video"),
        ({"problem": None}, "no problem"),
        ({"problem": ["?"]}, "problem is ['?']; expected text"),
        ({"problem": "\ud800?"}, "half of a character"),
        ({"problem_type": ["OCR"]}, "problem_type ['OCR'] is not known; expected one of multiple"),
        ({"problem_id": [1]}, "problem_id is [1]; expected text or a number"),
        ({"problem_type": "numerical", "solution": "many"}, "'many' holds no number"),
        ({"problem_type": "regression", "solution": float("nan")}, "'nan' holds no number"),
        ({"problem_type": "free-form", "solution": "?!"}, "'?!' holds no word"),
    ],
)
def test_odd_values_are_refused_by_their_row(read, changes, reason):
    assert reason in refused(read, **changes)


def test_null_is_as_good_as_absent(read):
    samples = read(
        [
            row(path=None, video="clip.mp4", problem_id=None, id="x"),
            row(problem_id=None, problem="other"),
            row(problem_id=..., problem="third", data_type=None),
        ]
    )
    assert [s.id for s in samples] == ["x", "1", "2"]
    assert samples[0].video is not None and samples[0].video.name == "clip.mp4"


def test_encodings(read):
    text = json.dumps([row(problem="où\u2028là?")], ensure_ascii=False)
    for data in (text.encode(), text.encode("utf-8-sig")):
        assert read(data)[0].problem == "où\u2028là?"
    lines = [json.dumps(row(problem_id=n, problem="a\u2028b"), ensure_ascii=False) for n in (1, 2)]
    assert [s.id for s in read("\n".join(lines))] == ["1", "2"]
    assert [s.id for s in read("\ufeff" + "\r\n".join(lines) + "\r\n\r\n")] == ["1", "2"]
    with pytest.raises(InvalidInputError, match=r"data\.json is not UTF-8 .*save it as UTF-8"):
        read(text.encode("latin-1", errors="replace"))
    with pytest.raises(InvalidInputError, match="is not UTF-8"):
        read(text.encode("utf-16"))


def test_json_lines(read):
    assert read(json.dumps(row()))[0].id == "7"  # one row
    broken = read(json.dumps(row()) + '\n{"problem": \n' + json.dumps(row(problem_id=8)))
    assert [s.id for s in broken] == ["7", "8"]
    assert broken.skipped[0][0] == "line 2" and "not JSON: " in broken.skipped[0][1]
    with pytest.raises(InvalidInputError, match="neither JSON nor JSON lines"):
        read("problem,solution\nwhich?,A")
    with pytest.raises(InvalidInputError, match=r"is not JSON: .*line 3 column 1"):
        read('[\n{"problem": 1},\n')
    with pytest.raises(InvalidInputError, match="holds no rows"):
        read("[]")
    with pytest.raises(InvalidInputError, match="holds no rows"):
        read(" \n")
    with pytest.raises(InvalidInputError, match="expected a list of rows"):
        read({"data": [row()]}.__repr__().replace("'", '"'))
    with pytest.raises(InvalidInputError, match="JSON"):
        read("[" * 100_000)


def test_no_row_is_lost_to_an_id_that_stands_twice(read):
    other, third = row(problem="Other?"), row(problem="Third?")
    samples = read([row(), other, row(), third, other, row(problem_id="7#2", problem="Fourth?")])
    assert [(s.id, s.problem) for s in samples] == [
        ("7", "Which?"), ("7#2", "Other?"), ("7#3", "Third?"), ("7#2#2", "Fourth?"),
    ]  # fmt: skip
    assert samples.skipped == (("row 2", "the same as row 0"), ("row 4", "the same as row 1"))
    assert samples.renamed == (("row 1", "7#2"), ("row 3", "7#3"), ("row 5", "7#2#2"))
    only = samples.only(["7#3"])
    assert only.skipped == samples.skipped and only.renamed == samples.renamed


def test_a_row_without_an_id_never_takes_anothers(read):
    samples = read([row(problem_id=1), row(problem_id=None, problem="Other?")])
    assert [s.id for s in samples] == ["1", "1#2"]


def test_a_choice_is_sound_when_it_is_made():
    for solution, options in (("(B)", ("A. x", "B. y")), ("C", ("A. x", "B. y")), ("A", ())):
        with pytest.raises(InvalidInputError, match=r"sample '1'"):
            TrainingSample("1", "?", solution, "multiple choice", options=options)
