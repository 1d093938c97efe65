"""Accuracy of the embedded model on test scenes, uncompressed, blind and with tokens dropped.

Clips are written as H.264 files and read back by `cacovid.video`. Features are computed once per
clip; each question is then answered on its own, in the chat template's order, from the kept
tokens at their original positions. An answer is right when the first word is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cacovid.synthetic import world
from cacovid.synthetic.questions import QUESTION_TYPES, TEMPLATES, Question, sample_questions
from cacovid.synthetic.scene import Scene, make_scene
from cacovid.synthetic.tiny.packed_questions import QuestionWriter, build_batch
from cacovid.synthetic.tiny.vision import video_features
from cacovid.types import floor_budget

#: Rows of one forward hold about this many prompt tokens.
_BATCH_TOKENS = 12_000


@dataclass
class TestSet:
    """Scenes, their features `[scenes, 576, D]` float32, and `(scene, question)` pairs."""

    __test__ = False  # no test class, whatever its name suggests to pytest

    split: str
    scenes: list[Scene]
    features: Tensor
    asked: list[tuple[int, Question]]

    @property
    def types(self) -> np.ndarray:
        """The type of every question."""
        return np.array([question.type for _, question in self.asked])


def make_test_set(
    model: Any,
    split: str,
    scenes: int,
    per_scene: int = 10,
    seed: int = 0,
    types: Sequence[str] = tuple(TEMPLATES),
) -> TestSet:
    """Writes, reads and encodes the scenes, and draws balanced questions on them."""
    from cacovid.video import FrameSampling, read_frames

    made = [make_scene(split, seed, index) for index in range(scenes)]
    sampling = FrameSampling(max_frames=world.CLIP_FRAMES, fps=world.CLIP_FPS)
    features: list[Tensor] = []
    asked: list[tuple[int, Question]] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for index, scene in enumerate(made):
            path = scene.write(Path(folder) / "clip.mp4")
            frames = read_frames(path, sampling, timeout=None).frames
            features.append(video_features(model, frames[None]).float())
            rng = np.random.default_rng([seed, 3, index])
            asked.extend((index, q) for q in sample_questions(scene, per_scene, rng, types))
            path.unlink()
    return TestSet(split, made, torch.stack(features), asked)


@torch.no_grad()
def answers(model: Any, tokenizer: Any, test: TestSet, keep: Sequence[np.ndarray]) -> np.ndarray:
    """The first word's token id that the model answers each question with.

    Args:
        keep: Kept tokens for each question, ascending.
    """
    model.eval()
    writer = QuestionWriter(tokenizer)
    order = sorted(range(len(test.asked)), key=lambda i: len(keep[i]))
    said = np.zeros(len(order), dtype=np.int64)
    begin = 0
    while begin < len(order):
        size = max(1, _BATCH_TOKENS // (len(keep[order[begin]]) + 48))
        part = order[begin : begin + size]
        features = test.features[[test.asked[i][0] for i in part]]
        batch = build_batch(
            model, writer, features, [keep[i] for i in part], [[test.asked[i][1]] for i in part]
        )
        hidden = model.model.language_model(
            inputs_embeds=batch.embeds,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        first = batch.answer_at[::2]
        logits = model.lm_head(hidden[first[:, 0], first[:, 1]])
        said[part] = logits.argmax(dim=1).numpy()
        begin += size
    return said


def truth(tokenizer: Any, test: TestSet) -> np.ndarray:
    """The right first word's token id of each question."""
    words = [question.answer for _, question in test.asked]
    return np.array(tokenizer.convert_tokens_to_ids(words))


def kept_by(choice: Any, test: TestSet, retention: float, seed: int = 0) -> list[np.ndarray]:
    """What a way of choosing keeps for each question; the exact budget."""
    count = max(1, floor_budget(retention, world.CLIP_TOKENS))
    return [
        choice(test.scenes[scene], question, count, np.random.default_rng([seed, 5, number]))
        for number, (scene, question) in enumerate(test.asked)
    ]


def majority(test: TestSet) -> np.ndarray:
    """Whether each question is answered rightly by the commonest answer to its type and form."""
    kinds = [(q.type, bool(q.options)) for _, q in test.asked]
    given = [q.answer for _, q in test.asked]
    best: dict[tuple[str, bool], str] = {}
    for kind in set(kinds):
        of_kind = [a for a, k in zip(given, kinds, strict=True) if k == kind]
        best[kind] = max(sorted(set(of_kind)), key=of_kind.count)
    return np.array([best[k] == a for k, a in zip(kinds, given, strict=True)])


def needs_question(test: TestSet) -> np.ndarray:
    """Whether each question is of a type that needs question-awareness."""
    return np.array([QUESTION_TYPES[name] for name in test.types])


def interval(right: np.ndarray, against: np.ndarray | None = None) -> tuple[float, float]:
    """95% interval of the mean of `right` (minus `against`: paired), by bootstrap of questions."""
    values = right.astype(np.float64) if against is None else right * 1.0 - against * 1.0
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def agreement(
    folder: Path, tokenizer: Any, model: Any, test: TestSet, count: int = 100
) -> tuple[int, int]:
    """How many uncompressed answers equal those of the ordinary way.

    The ordinary way: an H.264 file, `cacovid.video`, the stored processor and chat template, and
    the model's own `generate`.

    Returns:
        Equal answers, and answers compared.
    """
    from cacovid.models import load_processor
    from cacovid.video import FrameSampling, read_frames

    processor = load_processor(folder)
    picked = np.random.default_rng(0).permutation(len(test.asked))[:count]
    part = TestSet(test.split, test.scenes, test.features, [test.asked[i] for i in picked])
    packed = answers(model, tokenizer, part, [np.arange(world.CLIP_TOKENS)] * len(part.asked))
    sampling = FrameSampling(max_frames=world.CLIP_FRAMES, fps=world.CLIP_FPS)
    same = 0
    with tempfile.TemporaryDirectory() as where:
        for (scene, question), word in zip(part.asked, packed, strict=True):
            path = test.scenes[scene].write(Path(where) / "clip.mp4")
            content = [{"type": "video"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            frames = read_frames(path, sampling, timeout=None).frames
            inputs = processor(text=[prompt], videos=[frames], return_tensors="pt", padding=True)
            out = model.generate(**inputs, max_new_tokens=1, do_sample=False)
            same += int(out[0, -1] == word)
    return same, len(part.asked)
