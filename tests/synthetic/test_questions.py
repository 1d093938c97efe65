"""Questions: their answers are worked out again from the scene's geometry."""

from collections import Counter

import numpy as np
import pytest

from cacovid.synthetic import QUESTION_TYPES, make_scene, sample_questions, world
from cacovid.synthetic.questions import CLASSES, LETTERS, OPEN_TYPES, TEMPLATES

SCENES = [make_scene(split, 3, index) for split in ("test", "shifted") for index in range(4)]
QUESTIONS = [(scene, question) for scene in SCENES for question in scene.questions]


def said(question):
    """The answer as a word, also of a multiple-choice question."""
    return question.options[LETTERS.index(question.answer)] if question.options else question.answer


def of_type(name):
    found = [(scene, q) for scene, q in QUESTIONS if q.type == name]
    assert found, f"no question of type {name}"
    return found


def named(scene, words):
    """Objects that a colour, a shape or a pattern in the words may mean."""
    return [
        item
        for item in scene.items
        if all(
            word not in choices or getattr(item, attribute) == word
            for attribute, choices in (
                ("colour", world.COLOUR_NAMES),
                ("shape", world.SHAPES),
                ("pattern", world.PATTERNS),
            )
            for word in words
        )
    ]


def known_words(question):
    text = question.text.split(" A. ")[0].rstrip("?.").split()
    known = (*world.COLOUR_NAMES, *world.SHAPES, *world.PATTERNS)
    return [word.strip("?.,") for word in text if word.strip("?.,") in known]


@pytest.mark.parametrize("name", QUESTION_TYPES)
def test_every_type_is_offered_with_its_answers(name):
    for _, question in of_type(name):
        assert said(question) in CLASSES[name]
        if question.options:
            assert len(question.options) <= 4 and len(set(question.options)) == len(
                question.options
            )


@pytest.mark.parametrize("name", ["colour", "shape", "pattern"])
def test_appearance(name):
    for scene, question in of_type(name):
        (item,) = named(scene, known_words(question))
        assert getattr(item, name) == said(question) and item.brief


def test_direction_is_the_way_the_centre_goes():
    for scene, question in of_type("direction"):
        (item,) = named(scene, known_words(question))
        x, y = item.centre[-1] - item.centre[0]
        way = ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
        assert way == said(question)


def test_place_is_the_quarter_of_the_frame():
    for scene, question in of_type("place"):
        (item,) = named(scene, known_words(question))
        x, y = item.centre.mean(axis=0) - world.FRAME_SIZE / 2
        assert said(question) == ("bottom" if y > 0 else "top") + ("right" if x > 0 else "left")


def test_order():
    for scene, question in of_type("order"):
        words = known_words(question)
        (first,), (second,) = named(scene, words[:2]), named(scene, words[2:])
        assert said(question) == ("before" if first.start < second.start else "after")


def test_open_types_carry_no_options():
    assert any(q.options for _, q in QUESTIONS)
    assert not any(q.options for _, q in QUESTIONS if q.type in OPEN_TYPES)


def test_evidence_of_question_dependent_types_is_at_most_two_percent():
    shares = [len(q.evidence) / world.CLIP_TOKENS for _, q in QUESTIONS if q.question_dependent]
    assert max(shares) <= world.MAX_EVIDENCE_SHARE
    assert all((np.diff(q.evidence) > 0).all() for _, q in QUESTIONS)


def test_the_shifted_set_has_wordings_of_its_own():
    for scene, question in QUESTIONS:
        starts = [t.split("{")[0] for t in TEMPLATES[question.type]]
        if scene.split == "shifted":
            assert question.text.startswith(starts[-1])
    held_out = {t[-1] for t in TEMPLATES.values()}
    assert not held_out & {w for t in TEMPLATES.values() for w in t[:-1]}


def test_sampling_takes_types_in_turn_and_balances_answers():
    drawn = Counter()
    answers = Counter()
    for index in range(30):
        scene = make_scene("validation", 5, index)
        questions = sample_questions(scene, 10, np.random.default_rng(index))
        drawn.update(q.type for q in questions)
        answers.update(said(q) for q in questions if q.type == "order")
    assert min(drawn[name] for name in QUESTION_TYPES) >= 20
    assert abs(answers["before"] - answers["after"]) <= 18
