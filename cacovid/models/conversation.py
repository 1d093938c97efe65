"""Several questions on one video: its features are made once, its tokens chosen for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.methods import Method
from cacovid.models.base import VideoFeatures
from cacovid.models.further_prompt import FurtherPrompt
from cacovid.models.generation import generate_timed
from cacovid.models.inputs import chat_prompt, video_inputs
from cacovid.models.inside import running
from cacovid.models.memory import SelectionMemory
from cacovid.models.prune import prepare_inputs
from cacovid.models.timing import StageClock
from cacovid.models.tokenizer import refuse_special_tokens
from cacovid.types import Grid

if TYPE_CHECKING:
    from cacovid.models.video_qa import Answer, VideoQA

#: `"fresh"`: each question's tokens alone. `"sticky"`: also those of the questions before it.
Mode: TypeAlias = Literal["fresh", "sticky"]

#: What tells a prompt's tokens apart.
_PLACED = ("input_ids", "position_ids")


class Conversation:
    """Questions on one video; made by `VideoQA.conversation`.

    The vision tower runs for the first question only. A changed selection changes the prompt from
    the first other video token on: its keys and values before that place stay valid, those behind
    it do not (`Answer.shared_prefix` says how many are valid).

    Args:
        qa: The model with its processor.
        frames: uint8 `[F, H, W, 3]`, as the model is to see them.
        timestamps: Seconds of each frame, or None.
        method: What chooses the tokens.
        retention: Share of the tokens that each question selects, in (0, 1].
        mode: Whether tokens of earlier questions stay.
        max_retention: With `"sticky"`: share of the tokens that are kept at most; twice the
            retention by default.
        history: Whether earlier questions and answers stand in the prompt.
        told: What the processor is told of the file, as `video_inputs` takes it.

    Raises:
        InvalidInputError: for an unknown mode, a share outside (0, 1], or a `max_retention` that
            is below the retention or given without `"sticky"`; for `"sticky"` with a method inside
            the language model.
    """

    def __init__(
        self,
        qa: VideoQA,
        frames: np.ndarray,
        timestamps: np.ndarray | None,
        method: Method,
        *,
        retention: float = 0.1,
        mode: Mode = "fresh",
        max_retention: float | None = None,
        history: bool = False,
        told: Any = None,
    ) -> None:
        self.qa = qa
        self.frames = frames
        self.timestamps = timestamps
        self.method = method
        self.retention = checked_share(retention)
        self.mode = mode
        self.memory = _memory(mode, self.retention, max_retention)
        if self.memory is not None and getattr(method, "inside", False):
            raise InvalidInputError(
                f"{method.name} prunes inside the language model: every token goes in, and there "
                f"is no selection to keep; pass mode='fresh'"
            )
        self.history = history
        self._told = told
        #: The answers so far.
        self.answers: list[Answer] = []
        self._features: VideoFeatures | None = None
        self._further: FurtherPrompt | None = None
        self._before: Mapping[str, Tensor] | None = None

    def ask(
        self,
        question: str,
        *,
        options: Sequence[str] | None = None,
        max_new_tokens: int = 64,
        seed: int = 0,
        on_stage: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers the next question; greedy, hence deterministic.

        Args:
            question: The question.
            options: Options of a multiple choice, as in `VideoQA.ask`.
            max_new_tokens: The longest answer, in tokens.
            seed: Seed of the methods that draw.
            on_stage: Called with a stage's name when it begins.

        Returns:
            The answer; its `selection` is what the prompt held, with `"sticky"` the union.

        Raises:
            InvalidInputError: for an empty question or one that holds a special token of the
                model's tokenizer; with `"sticky"`, for a method that merges tokens.
            UnsupportedModelError: if the model's adapter hands over no features to keep.
        """
        from cacovid.models.video_qa import READ, Answer, with_options

        qa, asked = self.qa, with_options(question, options)
        refuse_special_tokens(asked, qa.processor.tokenizer)
        clock = StageClock(qa.model.device, on_stage)
        with clock(READ):
            inputs = self._inputs(asked)
        pruned = prepare_inputs(
            qa.model, inputs, self.method, self.retention, seed=seed, question=asked,
            tokenizer=qa.processor.tokenizer, on_stage=on_stage,
            features=self._features, memory=self.memory,
        )  # fmt: skip
        if pruned.features is None:
            raise UnsupportedModelError(
                f"the adapter of {type(qa.model).__name__} hands over no features; ask each "
                f"question by VideoQA.ask"
            )
        self._features = pruned.features
        for stage, seconds in pruned.timings.items():
            clock.add(stage, seconds)
        with running(qa.model, pruned.hook):
            text = generate_timed(
                qa.model, qa.processor.tokenizer, pruned.inputs, clock, max_new_tokens
            )
        answer = Answer(
            text=text, selection=pruned.kept, scores=pruned.scores, timings=clock.seconds,
            tokens=pruned.tokens, frames=self.frames, timestamps=self.timestamps, question=asked,
            method=pruned.method, retention=self.retention,
            shared_prefix=shared_prefix(self._before, pruned.inputs),
        )  # fmt: skip
        self._before = {name: pruned.inputs[name] for name in _PLACED}
        self.answers.append(answer)
        return answer

    def _inputs(self, question: str) -> dict[str, Any]:
        if self._further is not None:
            return self._further(self._text(question))
        inputs = video_inputs(
            self.qa.model, self.qa.processor, self.frames, question, told=self._told
        )
        self._further = FurtherPrompt(self.qa.processor.tokenizer, self._text(question), inputs)
        return inputs

    def _text(self, question: str) -> str:
        if not (self.history and self.answers):
            return chat_prompt(self.qa.processor, question)
        turns = [text for answer in self.answers for text in (answer.question, answer.text)]
        messages: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
            for i, text in enumerate([*turns, question])
        ]
        messages[0]["content"].insert(0, {"type": "video"})
        return str(self.qa.processor.apply_chat_template(messages, add_generation_prompt=True))


def shared_prefix(before: Mapping[str, Tensor] | None, after: Mapping[str, Tensor]) -> int:
    """Leading tokens that two pruned prompts on the same video have in common.

    They have the same ids and the same positions, and so the same keys and values: video tokens
    share one id, but each has a position of its own (with `positions="original"`).

    Args:
        before: `input_ids` `[1, W]` and `position_ids` `[..., W]` of a prompt; None for none.
        after: Those of another prompt.
    """
    if before is None:
        return 0
    pairs = [(_rows(before[name]), _rows(after[name])) for name in _PLACED]
    length = min(a.shape[1] for pair in pairs for a in pair)
    same = torch.stack([(a[:, :length] == b[:, :length]).all(0) for a, b in pairs]).all(0)
    return int(same.long().cumprod(0).sum())


def checked_share(retention: float) -> float:
    """`retention` as a float.

    Raises:
        InvalidInputError: if it is not one number in (0, 1].
    """
    one = Grid([(1, 1, 1)])
    one.budgets(retention)
    return one.per_video(retention, "retention")[0]


def _rows(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _memory(mode: str, retention: float, limit: float | None) -> SelectionMemory | None:
    if mode not in get_args(Mode):
        raise InvalidInputError(
            f"mode is {mode!r}; expected 'fresh' (each question's tokens alone) or 'sticky' (also "
            f"those of the questions before it)"
        )
    if mode == "fresh":
        if limit is not None:
            raise InvalidInputError(
                f"max_retention={limit} was given with mode='fresh', which keeps what a question "
                f"selects and no more; pass mode='sticky', or leave it out"
            )
        return None
    limit = min(1.0, 2 * retention) if limit is None else checked_share(limit)
    if limit < retention:
        raise InvalidInputError(
            f"max_retention is {limit}, below the retention {retention}; expected at least as much"
        )
    return SelectionMemory(limit)
