"""The question side of a session: folded on a stream of its own, while the video is not yet there.

Nothing is padded: a question of `L` tokens is folded as it is, so that its fold is that of
`policy(prompt)`. The fold's shape does not depend on `L` where the policy has slots, so one graph
of the video side serves questions of every length; lengths that come again get their own graphs.
The fold is packed here too, so that the video's graph holds nothing but what reads the video.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cacovid.ops.score import PackedFolds, pack_folds
from cacovid.policies import CrossAttentionPolicy
from cacovid.session.recording import Recent, Recorder, Repeated, Tensors


@dataclass(frozen=True)
class ReadQuestion:
    """A question that a session has read ahead (`CompressionSession.read_question`).

    Args:
        embeds: `[L, D]`, as it was given.
        fold: Its fold, packed for videos of the same dtype; None where the policy does not fold.
        ready: On CUDA, when the fold is there.
        owner: The session that read it.
    """

    embeds: Tensor
    fold: PackedFolds | None
    ready: torch.cuda.Event | None
    owner: Any


class QuestionSide:
    """Folds questions, and remembers how for the lengths that were asked for last.

    Args:
        policy: The policy that folds.
        stream: Stream to fold on; None: in order with the caller.
        recorder: For graphs of lengths that come again.
        cached: Lengths that are remembered.
        settle: Waits until nothing remembered is in use.
    """

    def __init__(
        self,
        policy: CrossAttentionPolicy,
        stream: torch.cuda.Stream | None,
        recorder: Recorder | None,
        cached: int,
        settle: Callable[[], None],
    ) -> None:
        self.stream = stream
        self._policy, self._recorder = policy, recorder
        self._lengths: Recent[tuple[Repeated, list[PackedFolds]]] = Recent(cached, settle)

    def fold(self, question: Tensor, after: torch.cuda.Event | None) -> PackedFolds:
        """The fold of `question` `[L, D]`, packed; on CUDA still to be waited for.

        Args:
            question: Of any length; on CUDA, what was queued before this call makes it.
            after: What must be done before the memory of an earlier fold is written again.
        """
        if self.stream is None:
            return self._fold(question)
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        if after is not None:
            self.stream.wait_event(after)
        question.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            return self._fold(question)

    def context(self) -> AbstractContextManager[Any]:
        """What runs inside runs on the question's stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _fold(self, question: Tensor) -> PackedFolds:
        if self._recorder is None or not len(question):
            return self._packed(question)
        key = (question.shape[0], question.dtype)
        repeated, template = self._lengths.get(key, lambda: self._repeated(question))
        tensors = repeated((question,))
        return template[0].with_tensors(tensors)

    def _packed(self, question: Tensor) -> PackedFolds:
        return pack_folds(self._policy.fold(question), question.dtype)

    def _repeated(self, question: Tensor) -> tuple[Repeated, list[PackedFolds]]:
        template: list[PackedFolds] = []

        def run(static: Tensor) -> Tensors:
            packed = self._packed(static)
            template[:] = [packed]  # its settings are the same at every call
            return packed.tensors

        return Repeated(run, [torch.empty_like(question.contiguous())], self._recorder), template
