"""Marks of replies as models write them: tags, minus signs, scripts without spaces."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacovid.train.marking import extract_answer, mark

CHOICES = [
    ("<answer>12</answer>", "A", 0.0),  # the tag's own letter is no answer
    ("<answer></answer>", "A", 0.0),
    ("<ANSWER> 3 </ANSWER>", "A", 0.0),
    ("<answer></answer> B", "B", 1.0),  # then the raw reply is read
    ("<answer>12</answer> D", "D", 1.0),
    ("<answer>B", "B", 1.0),  # cut off by the limit on new tokens
    ("<answer>B", "A", 0.0),
    ("B</answer>", "B", 1.0),
    ("<think>A cat?</think><answer>2</answer>", "A", 0.0),
    ("<think>A cat?</think> C", "C", 1.0),
    ("<think>A cat, as far", "A", 0.0),  # cut off before any answer
    ("Answer: B", "B", 0.0),  # the literal rule: the first letter
    ("Answer: B", "A", 1.0),
]


@pytest.mark.parametrize(("reply", "solution", "expected"), CHOICES)
def test_tags_are_not_read_as_letters(reply, solution, expected):
    assert mark(reply, solution, "multiple choice") == expected


def test_what_the_answer_is():
    assert extract_answer("<think>a</think> two words") == "two words"
    assert extract_answer("<answer>\n two words") == "two words"
    assert extract_answer("1 < 2 > 0 <b>") == "1 < 2 > 0 <b>"
    assert extract_answer("<think>a<answer>x</answer></think><answer>y</answer>") == "x"


@pytest.mark.parametrize("minus", ["-", "\u2212", "\u2013", "\u2012", "\ufe63", "\uff0d"])
def test_every_minus_sign_is_one(minus):
    assert mark(f"{minus}3", "-3", "numerical") == 1.0
    assert mark("-3.5", f"{minus}3.5", "numerical") == 1.0
    assert mark(f"about {minus}3 degrees", "-3", "numerical") == 1.0
    assert mark(f"{minus}3", "3", "numerical") == 0.0
    assert mark(f"{minus}8", "-10", "regression") == pytest.approx(0.8)


@pytest.mark.parametrize("reply", ["nan", "inf", "-inf", "1e999"])
def test_numbers_that_are_none_earn_nothing(reply):
    for kind in ("numerical", "regression"):
        assert mark(reply, "10", kind) == 0.0
        assert mark("10", reply, kind) == 0.0


UNSPACED = [
    ("OCR", "停止标志", "停止标志", 1.0),
    ("OCR", "停止", "停止标志", 0.5),  # two of four characters are missing
    ("OCR", "停止 SIGN", "停止SIGN", 1.0),
    ("OCR", "STOP停", "STOP停止", 2 / 3),  # STOP, 停, 止
    ("OCR", "정지 표지", "정지 표지판", 0.5),  # Korean has spaces: words
    ("free-form", "红色的球", "红色的球", 1.0),
    ("free-form", "红色", "红色的球", (2 / 3 + 1 / 2 + 2 / 3) / 3),  # 2 of 4, 1 of 3, 2 of 4
    ("free-form", "красный мяч", "красный мяч", 1.0),
    ("free-form", "красный мяч", "красный кот", (1 / 2 + 0 + 1 / 2) / 3),
    ("free-form", "café noir", "café noir", 1.0),
    ("free-form", "cafe\u0301 noir", "caf\u00e9 noir", 1.0),
    ("free-form", "लाल गेंद", "लाल गेंद", 1.0),
    ("free-form", "लाल गेंद", "नीली गेंद", (1 / 2 + 0 + 1 / 2) / 3),
    ("free-form", "ลูกบอล", "สีแดง", 0.0),
]


@pytest.mark.parametrize(("kind", "reply", "solution", "expected"), UNSPACED)
def test_texts_of_other_scripts(kind, reply, solution, expected):
    assert mark(reply, solution, kind) == pytest.approx(expected)


@given(st.text(alphabet=string.printable, max_size=80))
def test_ascii_words_are_those_of_rouge_score(text):
    from rouge_score.tokenizers import DefaultTokenizer

    from cacovid.train.words import RougeWords

    assert RougeWords().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@given(st.text(alphabet=string.printable, max_size=80))
def test_ascii_transcripts_are_left_as_they_are(text):
    from cacovid.train.words import space_unspaced

    assert space_unspaced(text).split() == text.split()
