"""Rewards: a frozen model answers from the kept tokens, and its answer is marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid import ops
from cacovid.errors import InvalidInputError
from cacovid.models import deepstack
from cacovid.models.finite import check_answers
from cacovid.train.choices import letter_ids
from cacovid.train.data import TrainingSample
from cacovid.train.decoding import decode_greedily
from cacovid.train.encoding import PreparedSample, SampleEncoder
from cacovid.train.marking import extract_answer, mark
from cacovid.train.packing import pad_rows
from cacovid.types import Prompt

RewardKind: TypeAlias = Literal["correct", "probability", "log_probability"]
FreeText: TypeAlias = Literal["generate", "forced"]


@dataclass(frozen=True)
class Rewards:
    """What rollouts earned.

    Args:
        value: `[G]` float32, what the objective reads.
        correct: `[G]` float32 in [0, 1]: the marks, which the dynamic ratio reads. With a graded
            reward of free text, whether greedy decoding would give the solution. Of `LocalReward`
            in host memory, where its reader wants them.
    """

    value: Tensor
    correct: Tensor


class RewardBackend(Protocol):
    """Where rewards come from: a local model, or anything that answers prompts."""

    def prepare(self, sample: TrainingSample) -> PreparedSample:
        """Reads and embeds a sample; raises `VideoReadError` for a video that cannot be read."""
        ...

    def __call__(self, prepared: PreparedSample, rollouts: Tensor) -> Rewards:
        """Rewards of `[G, N]` masks or `[G, K]` token indices, on the prompt's device."""
        ...


@dataclass(frozen=True)
class TargetTold:
    """How well kept tokens tell the right answer.

    Args:
        cross_entropy: `[G]` float32, nats per token of the answer, teacher-forced.
        correct: `[G]` float32, 1 where greedy decoding would begin with exactly the answer; of
            `LocalReward` in host memory.
    """

    cross_entropy: Tensor
    correct: Tensor


class TargetBackend(Protocol):
    """Where the cross-entropy of answers comes from."""

    def prepare(self, sample: TrainingSample) -> PreparedSample:
        """Reads and embeds a sample; raises `VideoReadError` for a video that cannot be read."""
        ...

    def read_target(self, prepared: PreparedSample, rollouts: Tensor) -> TargetTold:
        """The answer's cross-entropy from `[G, N]` masks, on the prompt's device."""
        ...


class LocalReward:
    """The frozen model on this machine.

    Multiple choice is answered by one forward over the letters of the options; free text by
    greedy generation, or by one teacher-forced forward. All rollouts of a call run as one ragged
    batch (cut at `batch_tokens`), from vision features that were computed once.

    Args:
        encoder: Embeds the samples; holds the model and its processor.
        kind: `"correct"`: the mark. `"probability"`, `"log_probability"` (graded): of the right
            letter among the letters, or the mean over the solution's tokens.
        free_text: `"generate"`: greedy decoding, then the mark. `"forced"`: 1 if greedy decoding
            would give exactly the solution and then stop, told by one forward; the same for
            answers that are either right or wrong, and faster.
        max_new_tokens: Of a generated answer.
        batch_tokens: Prompt tokens of one forward.

    Raises:
        InvalidInputError: for an unknown `kind` or `free_text`.
    """

    def __init__(
        self,
        encoder: SampleEncoder,
        kind: RewardKind = "correct",
        free_text: FreeText = "generate",
        max_new_tokens: int = 64,
        batch_tokens: int = 32_768,
    ) -> None:
        for name, value, known in (("kind", kind, RewardKind), ("free_text", free_text, FreeText)):
            if value not in get_args(known):
                raise InvalidInputError(
                    f"{name} is {value!r}; expected one of {', '.join(get_args(known))}"
                )
        self.encoder = encoder
        self.kind = kind
        self.free_text = free_text
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens
        self._tokenizer = encoder.processor.tokenizer

    @property
    def model(self) -> Any:
        """The frozen model."""
        return self.encoder.model

    def prepare(self, sample: TrainingSample) -> PreparedSample:
        """Reads and embeds a sample."""
        return self.encoder(sample)

    @torch.no_grad()
    def __call__(self, prepared: PreparedSample, rollouts: Tensor) -> Rewards:
        """Rewards of `[G, N]` masks or `[G, K]` token indices of one sample.

        Raises:
            InvalidInputError: for logits that are NaN or infinite.
        """
        value, correct = self._in_parts(
            prepared, rollouts, lambda part: _pair(self._part(prepared.sample, part))
        )
        return Rewards(value, correct)

    @torch.no_grad()
    def read_target(self, prepared: PreparedSample, rollouts: Tensor) -> TargetTold:
        """The solution's cross-entropy, teacher-forced, from `[G, N]` masks of one sample.

        The target is the solution's text, a letter for multiple choice; `kind` and `free_text`
        have no say. All rollouts run as one ragged batch, without generation.

        Raises:
            InvalidInputError: for a solution without any token, and for logits that are NaN or
                infinite.
        """
        text = extract_answer(prepared.sample.solution)
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            raise InvalidInputError(
                f"sample {prepared.sample.id!r}: the solution {text!r} has no token; it cannot be "
                f"a target"
            )
        target = torch.tensor(ids, device=prepared.prompt.embeds.device)
        return TargetTold(
            *self._in_parts(prepared, rollouts, lambda part: self._read(target, part))
        )

    def _in_parts(
        self,
        prepared: PreparedSample,
        rollouts: Tensor,
        read: Callable[[Prompt], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Two numbers of each rollout, `[G]`, read batch by batch; the second in host memory.

        `read` gives NaN as the second number of a rollout whose logits are no numbers.
        """
        # By length, so that little of a batch is padding.
        kept = rollouts.sum(dim=1) if rollouts.dtype == torch.bool else rollouts.new_zeros(0)
        order = torch.argsort(kept, stable=True) if kept.numel() else None
        if order is not None:
            rollouts = rollouts[order]
        packed = ops.pack_rollouts(deepstack.widened(prepared.prompt), rollouts)
        parts = [read(part) for part in _cut(packed, self.batch_tokens)]
        first, second = (torch.cat(column) for column in zip(*parts, strict=True))
        if order is not None:
            back = torch.argsort(order)
            first, second = first[back], second[back]
        # The marks are read on the host next; coming there now, they cost no further wait.
        second = second.cpu()
        broken = second.isnan()
        if bool(broken.any()):
            sample = f"sample {prepared.sample.id!r}"
            check_answers(broken.tolist(), [sample] * len(broken), self.model)
        return first, second

    def _read(self, target: Tensor, packed: Prompt) -> tuple[Tensor, Tensor]:
        """Cross-entropy per token of `target` `[A]`, and whether all are the likeliest."""
        answer = self.model.get_input_embeddings()(target[:-1]) if len(target) > 1 else None
        logits = self._logits(packed, answer)
        targets = target.expand(logits.shape[0], -1)
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(dim=1)
        return each, _where_finite(each, (logits.argmax(dim=-1) == targets).all(dim=1))

    def _part(self, sample: TrainingSample, packed: Prompt) -> Rewards:
        if sample.problem_type == "multiple choice":
            return self._choice(sample, packed)
        if self.kind != "correct" or self.free_text == "forced":
            return self._forced(sample, packed)
        return self._generated(sample, packed)

    def _choice(self, sample: TrainingSample, packed: Prompt) -> Rewards:
        right = sample.letters.index(sample.solution)
        ids = letter_ids(self._tokenizer, sample.letters)
        logits = self._logits(packed, None)[:, -1, ids]
        log_probability = torch.log_softmax(logits, dim=-1)[:, right]
        correct = _where_finite(log_probability, logits.argmax(dim=-1) == right)
        return self._graded(log_probability, correct)

    def _forced(self, sample: TrainingSample, packed: Prompt) -> Rewards:
        ids = self._tokenizer(extract_answer(sample.solution), add_special_tokens=False).input_ids
        ids = torch.tensor([*ids, self._end_id()], device=packed.embeds.device)
        cross_entropy, correct = self._read(ids, packed)
        return self._graded(-cross_entropy, correct)

    def _generated(self, sample: TrainingSample, packed: Prompt) -> Rewards:
        rows = pad_rows(packed)
        new = decode_greedily(
            self.model, self._tokenizer, rows, self.max_new_tokens, [sample.id] * len(rows.embeds)
        )
        marks = [mark(text, sample.solution, sample.problem_type) for text in new]
        correct = torch.tensor(marks, dtype=torch.float32, device=packed.embeds.device)
        return Rewards(correct, correct)

    def _logits(self, packed: Prompt, answer: Tensor | None) -> Tensor:
        """`[G, A + 1, vocabulary]` float32: after the prompt and after each answer token."""
        if answer is not None:  # words have nothing to add behind the first layers
            answer = F.pad(answer, (0, packed.embeds.shape[1] - answer.shape[1]))
        rows = pad_rows(packed, answer)
        with deepstack.reading(self.model):
            out = self.model(
                inputs_embeds=rows.embeds,
                attention_mask=rows.attention_mask,
                position_ids=rows.position_ids,
                logits_to_keep=1 if answer is None else answer.shape[0] + 1,
                use_cache=False,
            )
        return out.logits.float()

    def _graded(self, log_probability: Tensor, correct: Tensor) -> Rewards:
        if self.kind == "correct":
            return Rewards(correct, correct)
        value = log_probability.exp() if self.kind == "probability" else log_probability
        return Rewards(value.float(), correct)

    def _end_id(self) -> int:
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        end = ends[0] if isinstance(ends, (list, tuple)) else ends
        return int(self._tokenizer.eos_token_id if end is None else end)


def _pair(rewards: Rewards) -> tuple[Tensor, Tensor]:
    return rewards.value, rewards.correct


def _where_finite(told: Tensor, correct: Tensor) -> Tensor:
    """`correct` `[G]` as float32, NaN where the log-probabilities `told` `[G]` are no numbers.

    Any NaN or infinity among the logits makes their softmax so.
    """
    return correct.float().masked_fill(~torch.isfinite(told), torch.nan)


def _cut(packed: Prompt, batch_tokens: int) -> Sequence[Prompt]:
    """Packed prompts in parts of at most `batch_tokens` (padded), at least one prompt each.

    A part's longest prompt is at most a quarter longer than its shortest (and 32 tokens).
    """
    offsets = packed.prompt_offsets or (0, packed.embeds.shape[0])
    lengths = [b - a for a, b in pairwise(offsets)]
    parts: list[Prompt] = []
    first = 0
    while first < len(lengths):
        last, longest, shortest = first, 0, lengths[first]
        while last < len(lengths):
            longest, shortest = max(longest, lengths[last]), min(shortest, lengths[last])
            padded = longest * (last - first + 1) > batch_tokens or longest > 32 + 1.25 * shortest
            if last > first and padded:
                break
            last += 1
        parts.append(_prompts(packed, offsets, first, last))
        first = last
    return parts


def _prompts(packed: Prompt, offsets: Sequence[int], first: int, last: int) -> Prompt:
    if first == 0 and last == len(offsets) - 1:
        return packed
    begin, end = offsets[first], offsets[last]
    # Only what a decoder reads; video and question have no say any more.
    video = packed.video_index[(packed.video_index >= begin) & (packed.video_index < end)]
    grid = type(packed.grid)([(1, 1, int(video.numel()))])
    return Prompt(
        embeds=packed.embeds[begin:end],
        position_ids=packed.position_ids[..., begin:end],
        video_index=video - begin,
        question_index=packed.question_index[:0],
        grid=grid,
        prompt_offsets=tuple(o - begin for o in offsets[first : last + 1]),
    )


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients; the model itself."""
    return model.eval().requires_grad_(False)
