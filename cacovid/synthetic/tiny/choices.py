"""Ways of choosing tokens that the embedded model is gated with: they know the scene, or nothing.

Each keeps exactly `count` tokens of a clip. The oracles read the generator's truth, which no
method may; they bound what a policy can reach, question-aware or question-blind.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cacovid.synthetic import world
from cacovid.synthetic.questions import Question
from cacovid.synthetic.scene import Scene

Choice = Callable[[Scene, Question, int, np.random.Generator], np.ndarray]


def random_tokens(
    scene: Scene, question: Question, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` tokens, each as likely as any other."""
    return np.sort(rng.permutation(world.CLIP_TOKENS)[:count])


def uniform_tokens(
    scene: Scene, question: Question, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` tokens, evenly spaced over the flat clip, half a step from its ends."""
    return (2 * np.arange(count) + 1) * world.CLIP_TOKENS // (2 * count)


def asked_object(
    scene: Scene, question: Question, count: int, rng: np.random.Generator
) -> np.ndarray:
    """The oracle: tokens of the asked-about objects, then random ones."""
    return _filled(question.evidence, count, rng)


def any_object(
    scene: Scene, question: Question, count: int, rng: np.random.Generator
) -> np.ndarray:
    """The question-blind oracle of the gate: random tokens that show some object."""
    return _filled(object_tokens(scene), count, rng)


def every_object(
    scene: Scene, question: Question, count: int, rng: np.random.Generator
) -> np.ndarray:
    """A stronger question-blind oracle: every object in turn gives its best visible token.

    It knows which tokens belong to which object, which no method is told.
    """
    visible = scene.visible.reshape(len(scene.items), -1)
    queues = []
    for row in visible:
        seen = np.flatnonzero(row >= world.EVIDENCE_PIXELS)
        queues.append(list(seen[np.argsort(row[seen], kind="stable")]))
    chosen: set[int] = set()
    while len(chosen) < count and any(queues):
        for index in rng.permutation(len(queues)):
            if queues[index] and len(chosen) < count:
                chosen.add(int(queues[index].pop()))
    return _filled(np.array(sorted(chosen), dtype=np.int64), count, rng)


def object_tokens(scene: Scene) -> np.ndarray:
    """Tokens that show an object, ascending."""
    visible = scene.visible.reshape(len(scene.items), -1)
    return np.flatnonzero((visible >= world.EVIDENCE_PIXELS).any(axis=0))


def _filled(first: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` tokens: out of `first` at random if it has enough, else all of it and others."""
    if len(first) >= count:
        return np.sort(rng.permutation(first)[:count])
    others = np.setdiff1d(np.arange(world.CLIP_TOKENS), first)
    more = rng.permutation(others)[: count - len(first)]
    return np.sort(np.concatenate([first, more]))


CHOICES: dict[str, Choice] = {
    "random": random_tokens,
    "uniform": uniform_tokens,
    "oracle: asked object": asked_object,
    "blind oracle: any object": any_object,
    "blind oracle: every object in turn": every_object,
}
