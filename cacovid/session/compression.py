"""`CompressionSession`: one policy, one device, and everything that repeats made beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from cacovid import ops
from cacovid.errors import InvalidInputError
from cacovid.ops._registry import TABLE
from cacovid.ops.score import PackedFolds
from cacovid.policies import CrossAttentionPolicy, SelfAttentionPolicy
from cacovid.policies.ranking import highest_scores
from cacovid.reference.select_tokens import select_plan
from cacovid.session import checks
from cacovid.session.guard import Guard
from cacovid.session.placement import check_policy, device_of, first, with_weights_on
from cacovid.session.question import QuestionSide, ReadQuestion
from cacovid.session.recording import CudaRecorder, Recent, Recorder, Repeated, Tensors
from cacovid.types import Grid, PerVideo, Prompt, Scores


class Pruned(NamedTuple):
    """What is left of the video.

    Args:
        keep: `[K]` int64, the kept tokens, ascending, flat over the packed videos.
        embeds: `[K, D]`, their embeddings, of the dtype that was given.
        position_ids: `[K]` or `[3, K]` int64, their original positions.
    """

    keep: Tensor
    embeds: Tensor
    position_ids: Tensor


class CompressionSession:
    """Prunes videos of a few shapes again and again, at the lowest latency.

    The result is that of `policy(prompt)`, `ops.select_tokens` (of a `SurprisePolicy`: one top-k
    over each video) and `ops.gather`. On CUDA everything from the embeddings to the kept
    embeddings and positions is one CUDA graph over static memory; the question is folded on a
    stream of its own. On the CPU the same interface calls the ops.

    The first call of a shape runs as it is, the second captures, the others replay (`warm_up` does
    the first two beforehand). A shape is a grid, a retention, a dtype and, for a policy that does
    not fold, the question's length; the `cached` last ones are held. Questions are never padded.
    Positions of three axes for a `SelfAttentionPolicy` whose rotary embedding has one are never
    captured: it has to look whether they agree.

    One session may be called from several threads and streams: calls run one after another, on the
    device too. Deterministic.

    Args:
        policy: `CrossAttentionPolicy`, `SelfAttentionPolicy`, or any callable `policy(prompt) ->
            Scores` that waits for nothing on the device. A policy on another device is copied.
            Weights may change in place between calls, but may not be replaced or moved.
        grid: The packed videos' grids; a call may name others.
        retention: `r` in (0, 1], one number or one per video; a call may name another.
        device: Where inputs and results are; default: the policy's device.
        policy_share: Share of the budget that the scores choose; default: the policy's own, else
            0.5.
        max_frame_ratio: Limit on a frame's share; default: the policy's own, else `1.5 * r`.
        cached: Shapes that are held, the last ones used.
        reuse_outputs: Return a graph's own memory, which the next call of any shape may
            overwrite, instead of a copy; not for sessions that several threads call.

    Raises:
        InvalidInputError: for a device that is not there, settings out of range, or what is no
            policy (a name, a method).

    >>> from cacovid.policies import CrossAttentionConfig
    >>> policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=16))
    >>> session = CompressionSession(policy, [(2, 5, 5)], retention=0.1, device="cpu")
    >>> pruned = session(torch.randn(50, 16), torch.randn(7, 16), torch.arange(50))
    >>> pruned.embeds.shape, bool((pruned.position_ids == pruned.keep).all())
    (torch.Size([5, 16]), True)
    """

    def __init__(
        self,
        policy: Callable[[Prompt], Scores],
        grid: Grid | Iterable[Sequence[int]],
        *,
        retention: PerVideo,
        device: torch.device | str | None = None,
        policy_share: float | None = None,
        max_frame_ratio: PerVideo | None = None,
        cached: int = 8,
        reuse_outputs: bool = False,
    ) -> None:
        if cached < 1:
            raise InvalidInputError(f"cached is {cached}; expected at least 1 shape")
        check_policy(policy)
        self.device = device_of(policy, device)
        self.policy = with_weights_on(policy, self.device)
        self.grid, self.retention = Grid.of(grid), retention
        config = getattr(policy, "config", None)
        self.policy_share = first(policy_share, getattr(config, "policy_share", None), 0.5)
        self.max_frame_ratio = first(max_frame_ratio, getattr(config, "max_frame_ratio", None))
        # Refuses settings out of range now, not at the first call.
        select_plan(self.grid, retention, self.policy_share, self.max_frame_ratio)
        self._top_k = getattr(policy, "selection", None) == "top_k"
        self._width: int | None = getattr(config, "hidden_size", None)
        self._has_one_axis = (
            isinstance(policy, SelfAttentionPolicy) and policy.config.mrope_section is None
        )
        self._reuse = reuse_outputs
        self._lock = threading.Lock()
        cuda = self.device.type == "cuda"
        self._guard = Guard(self.device) if cuda else None
        self._done: torch.cuda.Event | None = None
        # Two recorders: graphs of the question run beside graphs of the video.
        self._recorder, question_recorder = self._make_recorder(), self._make_recorder()
        self._shapes: Recent[Repeated] = Recent(cached, self._settle)
        self._buffers: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()
        self._question: QuestionSide | None = None
        if isinstance(self.policy, CrossAttentionPolicy):
            self._question = QuestionSide(
                self.policy,
                torch.cuda.Stream(self.device) if cuda else None,
                question_recorder,
                cached,
                self._settle,
            )

    def __call__(
        self,
        video_embeds: Tensor,
        question_embeds: Tensor | ReadQuestion,
        position_ids: Tensor,
        *,
        grid: Grid | Iterable[Sequence[int]] | None = None,
        retention: PerVideo | None = None,
    ) -> Pruned:
        """Keeps the tokens that the policy and the budget choose.

        Args:
            video_embeds: `[N, D]` float on the session's device, the video tokens' embeddings; what
                `input_buffer` returned is not copied.
            question_embeds: `[L, D]` of the same dtype, or what `read_question` made of it. `L` may
                be 0. For `SelfAttentionPolicy` all text of the prompt belongs here, before and
                after the video, with its positions; the order is nothing to it.
            position_ids: `[N]` or `[3, N]` int64, the video tokens' positions; or those of video
                and question, `[N + L]` or `[3, N + L]`. Without the question's own, a policy that
                reads positions takes those that follow the video's largest, alike on all axes.
            grid: Other grids than the session's.
            retention: Another retention than the session's.

        Raises:
            InvalidInputError: for inputs that do not fit the grid, of a wrong dtype or on another
                device; on the CPU for scores with NaN; on CUDA if such were found in an earlier
                call (see `check`).
            WrongBaseModelError: for another hidden size.
        """
        own_grid = self.grid if grid is None else Grid.of(grid)
        share = self.retention if retention is None else retention
        read = question_embeds if isinstance(question_embeds, ReadQuestion) else None
        question = (
            question_embeds.embeds if isinstance(question_embeds, ReadQuestion) else question_embeds
        )
        self._check_inputs(video_embeds, question, position_ids, own_grid)
        if read is not None and read.owner is not self:
            raise InvalidInputError(
                "the question was read by another session; read it with this one's read_question"
            )
        with torch.no_grad(), self._lock, self._on_device():
            self._begin()
            try:
                if isinstance(self.policy, SelfAttentionPolicy):
                    self.policy.fold()  # into the memory that graphs read, if weights have changed
                fold = self._folded(question, read)
                parts = self._parts(video_embeds, position_ids, question, fold, own_grid)
                budget = own_grid.per_video(share, "retention")
                key = (own_grid.sizes, budget, *((tuple(t.shape), t.dtype) for t in parts))
                shape = self._shapes.get(key, lambda: self._repeated(parts, fold, own_grid, share))
                outputs = shape(parts)
                if shape.recorded and not self._reuse:
                    outputs = tuple(out.clone() for out in outputs)
            finally:  # the next call waits for this one, however far it came
                self._end()
        return Pruned(*outputs)

    def read_question(self, question_embeds: Tensor) -> ReadQuestion:
        """Folds a question ahead of its video, on CUDA beside whatever runs meanwhile.

        Args:
            question_embeds: `[L, D]` float on the session's device.

        Returns:
            In place of `question_embeds` for any number of calls of this session.

        Raises:
            InvalidInputError: for a wrong shape, dtype or device.
            WrongBaseModelError: for another hidden size.
        """
        checks.embeds(question_embeds, "question_embeds", None, self._width, question_embeds)
        checks.same_device(question_embeds, "question_embeds", self.device)
        if self._question is None:
            return ReadQuestion(question_embeds, None, None, self)
        with torch.no_grad(), self._lock, self._on_device():
            fold = self._question.fold(question_embeds, self._done)
            with self._question.context():
                own = fold.with_tensors([tensor.clone() for tensor in fold.tensors])
            ready = None
            if self._guard is not None:
                ready = torch.cuda.Event()
                ready.record(self._question.stream)
        return ReadQuestion(question_embeds, own, ready, self)

    def input_buffer(
        self,
        dtype: torch.dtype,
        *,
        grid: Grid | Iterable[Sequence[int]] | None = None,
        hidden_size: int | None = None,
    ) -> Tensor:
        """The memory that calls read the video from: what is written there is not copied.

        Args:
            dtype: Of the embeddings.
            grid: Other grids than the session's.
            hidden_size: `D`, where the policy does not say it.

        Returns:
            `[N, D]`, not initialised. Write it on the stream that calls the session.

        Raises:
            InvalidInputError: if the hidden size is not known.
        """
        width = self._width if hidden_size is None else hidden_size
        if width is None:
            raise InvalidInputError("the policy says no hidden size; give hidden_size")
        rows = (self.grid if grid is None else Grid.of(grid)).num_tokens
        with self._lock:
            return self._buffer(rows, width, dtype)

    def warm_up(
        self,
        dtype: torch.dtype,
        question_lengths: Sequence[int],
        *,
        position_axes: int = 1,
        with_question_positions: bool = False,
        grid: Grid | Iterable[Sequence[int]] | None = None,
        retention: PerVideo | None = None,
    ) -> None:
        """Compiles and captures beforehand, by two calls on random embeddings for every length.

        Args:
            dtype: Of the embeddings to come.
            question_lengths: Lengths of the questions to come.
            position_axes: 1 or 3.
            with_question_positions: Whether `position_ids` will hold the question's too.
            grid: Other grids than the session's.
            retention: Another retention than the session's.
        """
        own_grid = self.grid if grid is None else Grid.of(grid)
        video = self.input_buffer(dtype, grid=own_grid).normal_()
        for length in question_lengths:
            question = torch.randn(length, video.shape[1], device=self.device).to(dtype)
            count = own_grid.num_tokens + (length if with_question_positions else 0)
            positions = torch.arange(count, device=self.device)
            if position_axes == 3:
                positions = positions.expand(3, -1)
            for _ in range(2):
                self(video, question, positions, grid=own_grid, retention=retention)

    def check(self) -> None:
        """Waits for the device and raises if any call since the last check met broken scores.

        On CUDA such a call cannot raise itself without waiting; its embeddings are NaN throughout,
        so that no answer can be made from them, and the next call after it is known raises too.
        On the CPU calls raise themselves.

        Raises:
            InvalidInputError: if scores held NaN, or frame scores an infinity.
        """
        if self._guard is not None:
            with self._lock:
                self._settle()
                self._guard.raise_if_broken("a call")

    def _check_inputs(self, video: Tensor, question: Tensor, positions: Tensor, grid: Grid) -> None:
        checks.embeds(video, "video_embeds", grid.num_tokens, self._width, video)
        checks.embeds(question, "question_embeds", None, video.shape[1], video)
        checks.positions(positions, grid, question.shape[0])
        named = (
            (video, "video_embeds"),
            (question, "question_embeds"),
            (positions, "position_ids"),
        )
        for value, name in named:
            checks.same_device(value, name, self.device)

    def _folded(self, question: Tensor, read: ReadQuestion | None) -> PackedFolds | None:
        """The question's fold, which the current stream waits for; None for other policies."""
        if self._question is None:
            return None
        current = self._current_stream()
        if read is None or read.fold is None:
            fold = self._question.fold(question, self._done)
            if current is not None and self._question.stream is not None:
                current.wait_stream(self._question.stream)
            return fold
        if current is not None and read.ready is not None:
            current.wait_event(read.ready)
            for value in read.fold.tensors:
                value.record_stream(current)
        return read.fold

    def _parts(
        self,
        video: Tensor,
        positions: Tensor,
        question: Tensor,
        fold: PackedFolds | None,
        grid: Grid,
    ) -> Tensors:
        """What the function of a shape takes."""
        if fold is not None:
            return video, positions[..., : grid.num_tokens], *fold.tensors
        if positions.shape[-1] == grid.num_tokens:
            follow = positions.amax() + torch.arange(1, len(question) + 1, device=self.device)
            positions = torch.cat((positions, follow.expand(*positions.shape[:-1], -1)), dim=-1)
        return video, positions, question

    def _repeated(
        self, parts: Tensors, fold: PackedFolds | None, grid: Grid, retention: PerVideo
    ) -> Repeated:
        video, recorder = parts[0], self._recorder
        if parts[1].dim() == 2 and self._has_one_axis:
            recorder = None  # the policy looks whether the axes agree, and so waits for the device
        static: list[Tensor] = []
        if recorder is not None:
            static = [self._buffer(video.shape[0], video.shape[1], video.dtype)]
            static += [torch.empty_like(part.contiguous()) for part in parts[1:]]

        def run(video: Tensor, positions: Tensor, *question: Tensor) -> Tensors:
            if fold is None:
                scores = self.policy(_prompt(video, question[0], positions, grid))
                if not isinstance(scores, Scores):
                    raise InvalidInputError(
                        f"the policy returned a {type(scores).__name__}; expected cacovid.Scores"
                    )
            else:
                scores = Scores(*ops.score(video, fold.with_tensors(question), grid))
            return self._kept(scores, video, positions, grid, retention)

        return Repeated(run, static, recorder)

    def _kept(
        self, scores: Scores, video: Tensor, positions: Tensor, grid: Grid, retention: PerVideo
    ) -> Tensors:
        broken: Tensor | None = None
        if self._guard is not None:
            scores, broken = self._guard.guarded(scores)
        own_positions = positions[..., : grid.num_tokens]
        if self._top_k:
            if broken is None and bool(scores.token.isnan().any()):
                raise InvalidInputError("the scores have NaN; the policy or its input is broken")
            keep = highest_scores(scores.token, grid, grid.budgets(retention))
            embeds = ops.gather(video, keep)
            kept_positions = own_positions.index_select(-1, keep)
        else:
            keep, embeds, kept_positions = ops.select_and_gather(
                scores.token,
                scores.frame,
                video,
                grid,
                retention,
                position_ids=own_positions,
                policy_share=self.policy_share,
                max_frame_ratio=self.max_frame_ratio,
            )
        if broken is not None:
            embeds = Guard.poisoned(embeds, broken)
        return keep, embeds, kept_positions

    def _buffer(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """One for all shapes that read such embeddings, as calls run one after another."""
        key = (rows, width, dtype)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = torch.empty(rows, width, dtype=dtype, device=self.device)
            self._buffers[key] = buffer
        return buffer

    def _make_recorder(self) -> Recorder | None:
        """None where calls are to run as they are."""
        if self.device.type != "cuda":
            return None
        if TABLE["select_tokens"].choose(self.device, None) == "reference":
            return None  # the reference of the selection waits for the device
        return CudaRecorder(self.device)

    def _current_stream(self) -> torch.cuda.Stream | None:
        return None if self._guard is None else torch.cuda.current_stream(self.device)

    def _on_device(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._guard is None else torch.cuda.device(self.device)

    def _begin(self) -> None:
        """Puts this call behind the last one, whatever stream that was on."""
        if self._guard is None or self._done is None:
            return
        if self._done.query():
            self._guard.raise_if_broken("an earlier call")
        torch.cuda.current_stream(self.device).wait_event(self._done)

    def _end(self) -> None:
        if self._guard is None:
            return
        self._guard.publish()
        if self._done is None:
            self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(self.device))

    def _settle(self) -> None:
        """Waits until no call is under way, so that memory may be given up."""
        if self._done is not None:
            self._done.synchronize()


def _prompt(video: Tensor, question: Tensor, positions: Tensor, grid: Grid) -> Prompt:
    n, total = video.shape[0], video.shape[0] + question.shape[0]
    index = torch.arange(total, device=video.device)
    return Prompt(
        embeds=torch.cat((video, question)),
        position_ids=positions,
        video_index=index[:n],
        question_index=index[n:],
        grid=grid,
    )
