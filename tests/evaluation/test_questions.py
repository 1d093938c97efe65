"""Questions from people's files: every row is used or listed with its reason."""

import json

import pytest

from cacovid.errors import InvalidInputError
from cacovid.evaluation.questions import read_questions


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mkv"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def said(samples):
    return [(s.problem, s.options, s.solution, s.video.name) for s in samples]


def test_csv_with_a_column_for_each_option(folder):
    path = write(
        folder, "q.csv",
        "id,question,video,A,B,C,answer\n"
        'q1,"What, then?",a.mp4,red,blue,,B\n'
        "q2,Which?,b,one,two,three,three\n",
    )  # fmt: skip
    samples = read_questions(path)
    assert said(samples) == [
        ("What, then?", ("A. red", "B. blue"), "B", "a.mp4"),
        ("Which?", ("A. one", "B. two", "C. three"), "C", "b.mkv"),
    ]
    assert [s.id for s in samples] == ["q1", "q2"] and samples.skipped == ()


@pytest.mark.parametrize(
    "columns", ["a0 a1 a2", "option 1,option 2,option 3", "choice_a choice_b choice_c"]
)
def test_names_of_option_columns(folder, columns):
    names = columns.split(",") if "," in columns else columns.split()
    row = {"Question": "?", "VIDEO_ID": "a", "Answer": "blue"} | dict(
        zip(names, ("red", "blue", "green"), strict=True)
    )
    (sample,) = read_questions(write(folder, "q.json", [row]))
    assert sample.options == ("A. red", "B. blue", "C. green") and sample.solution == "B"


def test_lists_of_options_and_json_text_of_one(folder):
    rows = [
        {"question": "?", "path": "a.mp4", "options": ["x", "y"], "answer": "(A)"},
        {"question": "!", "path": "a.mp4", "candidates": '["xx", "yy"]', "correct_choice": "yy"},
    ]
    samples = read_questions(write(folder, "q.json", rows))
    assert [s.solution for s in samples] == ["A", "B"]


def numbered(*answers, options=("x", "y", "z")):
    return [
        {"question": f"{n}?", "video": "a.mp4", "options": list(options), "answer": answer}
        for n, answer in enumerate(answers)
    ]


def test_numbers_count_from_what_the_file_shows(folder):
    def letters(rows, **given):
        return [s.solution for s in read_questions(write(folder, "q.json", rows), **given)]

    assert letters(numbered(0, "1")) == ["A", "B"]
    assert letters(numbered(1, 3)) == ["A", "C"]
    assert letters(numbered(1, 2), answers_from=0) == ["B", "C"]
    with pytest.raises(InvalidInputError, match=r"--answers-from"):
        letters(numbered(1, 2))
    # Texts that are numbers are texts.
    assert letters(numbered(4, 2, options=("2", "3", "4"))) == ["C", "A"]
    assert letters(numbered(1, 2, options=("2", "3", "4")), answers_from=1) == ["A", "B"]


def test_bad_rows_are_listed_with_their_reason(folder):
    good = numbered("A")[0]
    rows = [
        good,
        {**good, "video": "missing.mp4"},
        {**good, "question": ""},
        {k: v for k, v in good.items() if k != "options"},
        {**good, "answer": "E"},
        "text",
        {**good, "question": "1", "answer": "B"},
        {**good, "question": "2", "options": ["x"]},
        {**good, "question": "3"}, {**good, "question": "4"}, {**good, "question": "5"},
        {**good, "question": "6"},
    ]  # fmt: skip
    samples = read_questions(write(folder, "q.json", rows))
    reasons = dict(samples.skipped)
    assert len(samples) + len(reasons) == len(rows)
    assert set(reasons) == {"row 1", "row 2", "row 3", "row 4", "row 5", "row 7"}
    for row, words in (
        ("row 1", "there is no video"), ("row 2", "no question"), ("row 3", "no options"),
        ("row 4", "beyond the 3 options"), ("row 7", "expected 2 to 26"),
    ):  # fmt: skip
        assert words in reasons[row]


def test_rows_of_a_table_with_other_cells_are_listed(folder):
    text = "question\tvideo\tA\tB\tanswer\n" + "w\ta\tx\ty\tA\n" + "v\ta\tx\ty\tB\n" + "u\ta\tx\n"
    samples = read_questions(write(folder, "q.tsv", text))
    assert len(samples) == 2
    assert samples.skipped == (("line 4", "another number of cells than the line of names has"),)


def test_a_row_is_told_by_the_line_where_it_begins(folder):
    text = (
        'question,video,A,B,answer\r\n"two\r\nlines",a,x,y,A\r\n\r\n"three\n\nlines",no,x,y,A\r\n'
        'w,a,x,y,B\r\nv,a,x,y,"C\n"\r\nu,a,x,y,A,"more\ncells"\r\nt,no,x,y,A\r\ns,a,x,y,A\r\n'
    )
    samples = read_questions(write(folder, "q.csv", text), max_skipped=1.0)
    assert [s.problem for s in samples] == ["two\r\nlines", "w", "s"]
    assert [row for row, _ in samples.skipped] == ["line 5", "line 9", "line 11", "line 13"]
    row = {**numbered("A")[0], "id": 0}
    lines = "\n".join(json.dumps(r) for r in (*numbered("A", "E"), row))
    samples = read_questions(write(folder, "q.jsonl", "\n" + lines), max_skipped=0.7)
    assert [row for row, _ in samples.skipped] == ["line 3", "line 4"]
    assert samples.skipped[1][1] == "the same as line 2"


def test_gaps_between_option_columns_are_told(folder):
    row = {"question": "?", "video": "a.mp4", "answer": "B"}
    rows = [{**row, "A": "x", "B": "y"}, {**row, "A": "x", "B": "y", "D": "z"}]
    assert "gaps" in read_questions(write(folder, "q.json", rows)).skipped[0][1]


def test_video_r1_rows_are_read_as_they_are(folder):
    row = {"problem": "How many?", "solution": "<answer>3</answer>", "path": "a.mp4"}
    samples = read_questions(write(folder, "q.json", [{**row, "problem_type": "numerical"}]))
    assert samples[0].solution == "3" and samples[0].problem_type == "numerical"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("q.csv", "question,video\n", "holds no rows"), ("q.json", "{", "JSON")],
)
def test_files_without_questions(folder, name, content, words):
    with pytest.raises(InvalidInputError, match=words):
        read_questions(write(folder, name, content))
