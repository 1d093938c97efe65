"""Questions about a scene whose answer hangs on few tokens in few frames.

`QUESTION_TYPES` says of each type whether it needs question-awareness: `big_colour` asks about an
object that covers many tokens in many frames, so that a question-blind choice serves it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cacovid.synthetic import world
from cacovid.synthetic.scene import Item, Scene

LETTERS = ("A", "B", "C", "D")

#: Wordings of each type. The last one is held out: only the "shifted" set uses it. Its words
#: are all known from other wordings.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {0}?",
        "Tell me the colour of the {0}.",
        "Name the colour that the {0} has.",
        "Which colour is the {0}?",
    ),
    "shape": (
        "What shape is the {0} thing?",
        "Tell me the shape of the {0} thing.",
        "Name the shape that the {0} thing has.",
        "Which shape is the {0} thing?",
    ),
    "pattern": (
        "What pattern is on the {0}?",
        "Tell me the pattern of the {0}.",
        "Which pattern is on the {0}?",
        "Name the pattern that the {0} has.",
    ),
    "direction": (
        "Which way does the {0} move?",
        "Tell me the way that the {0} moves.",
        "Name the way that the {0} moves.",
        "What way does the {0} move?",
    ),
    "place": (
        "Where does the {0} appear?",
        "Tell me where the {0} is.",
        "Where is the {0}?",
        "Name the place where the {0} is.",
    ),
    "order": (
        "Does the {0} appear before or after the {1}?",
        "Is the {0} seen before or after the {1}?",
        "Tell me if the {0} is before or after the {1}.",
        "Tell me if the {0} appears before or after the {1}.",
    ),
    "big_colour": (
        "What colour is the big {0}?",
        "Tell me the colour of the big {0}.",
        "Name the colour that the big {0} has.",
        "Which colour is the big {0}?",
    ),
}

#: Types without options: the embedded model answers them in a word, and does not find the letter.
OPEN_TYPES = ("direction", "place", "order")

QUESTION_TYPES: dict[str, bool] = {name: name != "big_colour" for name in TEMPLATES}
"""Type -> whether it needs question-awareness."""

CLASSES: dict[str, tuple[str, ...]] = {
    "colour": world.COLOUR_NAMES,
    "shape": world.SHAPES,
    "pattern": world.PATTERNS,
    "direction": world.DIRECTIONS,
    "place": world.PLACES,
    "order": ("before", "after"),
    "big_colour": world.COLOUR_NAMES,
}


@dataclass(frozen=True)
class Question:
    """One question on one scene.

    Args:
        type: A name out of `QUESTION_TYPES`.
        text: The wording, with its options if it has some.
        answer: The word, or the letter of the right option.
        options: The options' texts, in order; empty for an open question.
        items: Numbers of the asked-about objects.
        evidence: Flat tokens (ascending) that show them.
        blanks: What fills the wording's blanks.
    """

    type: str
    text: str
    answer: str
    options: tuple[str, ...]
    items: tuple[int, ...]
    evidence: np.ndarray
    blanks: tuple[str, ...] = ()

    @property
    def question_dependent(self) -> bool:
        """Whether the type needs question-awareness."""
        return QUESTION_TYPES[self.type]


@dataclass(frozen=True)
class Fact:
    """A question before it is worded: type, the blanks' fillings, the answer, the objects."""

    type: str
    blanks: tuple[str, ...]
    answer: str
    items: tuple[int, ...]


def facts(scene: Scene) -> list[Fact]:
    """Everything that can be asked of a scene, without the limits on evidence."""
    return [fact for finder in _FINDERS for fact in finder(scene)]


def offered_facts(scene: Scene) -> list[Fact]:
    """The facts whose every object is clearly visible on few enough tokens."""
    visible = scene.visible
    counts = (visible >= world.EVIDENCE_PIXELS).reshape(len(scene.items), -1).sum(axis=1)
    offered = []
    for fact in facts(scene):
        seen = counts[list(fact.items)]
        enough = bool((seen >= 2).all())
        if enough and (not QUESTION_TYPES[fact.type] or seen.sum() <= world.MAX_EVIDENCE_TOKENS):
            offered.append(fact)
    return offered


def all_questions(scene: Scene) -> Iterator[Question]:
    """Every offered fact, worded once, in a fixed order."""
    rng = scene.generator(purpose=2)
    for fact in offered_facts(scene):
        yield word_question(fact, rng, _evidence(scene, fact), held_out=scene.held_out_wording)


def sample_questions(
    scene: Scene, count: int, rng: np.random.Generator, types: Sequence[str] = tuple(TEMPLATES)
) -> list[Question]:
    """At most `count` questions, types in turn, answers of a type balanced as far as they go."""
    return [
        word_question(fact, rng, _evidence(scene, fact), held_out=scene.held_out_wording)
        for fact in balanced_facts(offered_facts(scene), count, rng, types)
    ]


def balanced_facts(
    offered: Sequence[Fact],
    count: int,
    rng: np.random.Generator,
    types: Sequence[str] = tuple(TEMPLATES),
) -> list[Fact]:
    """At most `count` of the facts: types in turn, and an answer drawn before a fact with it."""
    by_type: dict[str, dict[str, list[Fact]]] = {name: {} for name in types}
    for fact in offered:
        if fact.type in by_type:
            by_type[fact.type].setdefault(fact.answer, []).append(fact)
    chosen: list[Fact] = []
    while len(chosen) < count and any(by_type.values()):
        for index in rng.permutation(len(types)):
            answers = by_type[types[index]]
            if not answers or len(chosen) == count:
                continue
            names = sorted(answers)
            answer = names[rng.integers(len(names))]
            left = answers[answer]
            chosen.append(left.pop(int(rng.integers(len(left)))))
            if not left:
                del answers[answer]
    return chosen


def word_question(
    fact: Fact,
    rng: np.random.Generator,
    evidence: np.ndarray,
    held_out: bool = False,
    multiple_choice: bool | None = None,
) -> Question:
    """Puts a fact into words; half of the questions carry options unless it is said.

    Questions of `OPEN_TYPES` never do.
    """
    templates = TEMPLATES[fact.type]
    template = templates[-1] if held_out else templates[rng.integers(len(templates) - 1)]
    text = template.format(*fact.blanks)
    if fact.type in OPEN_TYPES:
        multiple_choice = False
    if multiple_choice is None:
        multiple_choice = bool(rng.random() < 0.5)
    if not multiple_choice:
        return Question(fact.type, text, fact.answer, (), fact.items, evidence, fact.blanks)
    options = _options(fact, rng)
    listed = (f" {c}. {option}" for c, option in zip(LETTERS, options, strict=False))
    letter = LETTERS[options.index(fact.answer)]
    text += "".join(listed)
    return Question(fact.type, text, letter, options, fact.items, evidence, fact.blanks)


def _options(fact: Fact, rng: np.random.Generator) -> tuple[str, ...]:
    others = [name for name in CLASSES[fact.type] if name != fact.answer]
    picked = [others[i] for i in rng.permutation(len(others))[: len(LETTERS) - 1]]
    options = [*picked, fact.answer]
    return tuple(options[i] for i in rng.permutation(len(options)))


def _evidence(scene: Scene, fact: Fact) -> np.ndarray:
    return np.unique(np.concatenate([scene.evidence(item) for item in fact.items]))


def _brief(scene: Scene) -> list[tuple[int, Item]]:
    return [(number, item) for number, item in enumerate(scene.items) if item.brief]


def _name(item: Item) -> str:
    return f"{item.colour} {item.shape}"


def _colours(scene: Scene) -> Iterator[Fact]:
    count = Counter((item.pattern, item.shape) for item in scene.items)
    for number, item in _brief(scene):
        if count[item.pattern, item.shape] == 1:
            yield Fact("colour", (f"{item.pattern} {item.shape}",), item.colour, (number,))


def _shapes(scene: Scene) -> Iterator[Fact]:
    count = Counter((item.pattern, item.colour) for item in scene.items)
    for number, item in _brief(scene):
        if count[item.pattern, item.colour] == 1:
            yield Fact("shape", (f"{item.pattern} {item.colour}",), item.shape, (number,))


def _patterns(scene: Scene) -> Iterator[Fact]:
    for number, item in _brief(scene):
        yield Fact("pattern", (_name(item),), item.pattern, (number,))


def _directions(scene: Scene) -> Iterator[Fact]:
    for number, item in _brief(scene):
        if item.stop - item.start >= 3 and item.direction is not None:
            yield Fact("direction", (_name(item),), item.direction, (number,))


def _places(scene: Scene) -> Iterator[Fact]:
    middle, margin = world.FRAME_SIZE / 2, world.CELL_SIZE / 3
    for number, item in _brief(scene):
        offset = item.centre - middle
        clear = (np.abs(offset) > margin).all() and (np.sign(offset) == np.sign(offset[0])).all()
        if clear:
            right, below = offset[0] > 0
            place = ("bottom" if below else "top") + ("right" if right else "left")
            yield Fact("place", (_name(item),), place, (number,))


def _pairs(scene: Scene) -> Iterator[tuple[int, Item, int, Item]]:
    brief = _brief(scene)
    for a, first in brief:
        for b, second in brief:
            if a != b:
                yield a, first, b, second


def _orders(scene: Scene) -> Iterator[Fact]:
    for a, first, b, second in _pairs(scene):
        if abs(first.start - second.start) >= 2:
            answer = "before" if first.start < second.start else "after"
            yield Fact("order", (_name(first), _name(second)), answer, (a, b))


def _big_colours(scene: Scene) -> Iterator[Fact]:
    big = [(n, item) for n, item in enumerate(scene.items) if not item.brief]
    count = Counter(item.shape for _, item in big)
    for number, item in big:
        if count[item.shape] == 1:
            yield Fact("big_colour", (item.shape,), item.colour, (number,))


_FINDERS: tuple[Callable[[Scene], Iterator[Fact]], ...] = (
    _colours,
    _shapes,
    _patterns,
    _directions,
    _places,
    _orders,
    _big_colours,
)
