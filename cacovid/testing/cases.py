"""One table of cases for every op."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from cacovid.reference import ScoreFold
from cacovid.reference.score import HeadWeights
from cacovid.types import Grid, Prompt

#: Grids by a speaking name; tokens per frame run over 1, 7, 63, 196, 729 and 1,000.
GRIDS: dict[str, Grid] = {
    "one_token": Grid([(1, 1, 1)]),
    "frames_of_one": Grid([(9, 1, 1)]),
    "frames_of_7": Grid([(5, 1, 7)]),
    "frames_of_63": Grid([(4, 7, 9)]),
    "frames_of_196": Grid([(8, 14, 14)]),
    "frames_of_729": Grid([(2, 27, 27)]),
    "frames_of_1000": Grid([(3, 25, 40)]),
    "one_frame": Grid([(1, 14, 14)]),
    "many_frames": Grid([(63, 2, 2)]),
    "ragged": Grid([(3, 7, 9), (1, 1, 1), (7, 1, 7), (2, 14, 14)]),
}


#: Ops of which every compiled form gives the reference's result bit for bit.
EXACT = (
    "select_tokens",
    "select_and_gather",
    "ocss_sample",
    "bernoulli_sample",
    "gather",
    "frame_sample",
    "farthest_point",
    "density_peaks",
)


@dataclass(frozen=True)
class Case:
    """Inputs of one op.

    Args:
        op: Name of the op.
        name: What is special about the inputs.
        make: Builds positional and named arguments, the same ones at every call.
    """

    op: str
    name: str
    make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]

    @property
    def id(self) -> str:
        """For pytest: `op-name`."""
        return f"{self.op}-{self.name}"


def cases_of(op: str) -> tuple[Case, ...]:
    """The cases of one op."""
    return tuple(case for case in CASES if case.op == op)


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of an op's result: of a tensor, a tuple, or a dataclass of them."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in tensors_of(part)]
    if is_dataclass(result):
        return tensors_of(tuple(getattr(result, f.name) for f in fields(result)))
    return []


def token_scores(count: int, kind: str, seed: int = 0) -> Tensor:
    """`[count]` float32 scores of one kind, the same ones at every call.

    Args:
        count: How many.
        kind: `normal`, `flat`, `ties`, `peaked`, `huge`, `tiny` or `infinite`.
        seed: Of the underlying normal numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    if kind == "normal":
        return values
    if kind == "flat":
        return torch.zeros(count)
    if kind == "ties":  # few values, and both zeros
        return torch.where(values.abs() < 0.3, values * 0.0, values.round())
    if kind == "peaked":  # softmax masses vanish
        return values * 40.0
    if kind == "huge":  # differences overflow float32
        return values.sign() * torch.finfo(torch.float32).max
    if kind == "tiny":  # subnormal numbers
        return values * 1e-41
    if kind == "infinite":
        values[::3] = -math.inf
        values[1::5] = math.inf
        return values
    raise ValueError(f"no kind of scores is called {kind!r}")


def _select(name: str, grid: str, kind: str, retention: Any, **settings: Any) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = GRIDS[grid]
        frame_kind = settings.get("frames", "normal")
        named = {k: v for k, v in settings.items() if k != "frames"}
        frames = None if frame_kind is None else token_scores(g.num_frames, frame_kind, seed=1)
        return (token_scores(g.num_tokens, kind), frames, g, retention), named

    return Case("select_tokens", name, make)


def _ocss(name: str, grid: str, kind: str, ratio: Any, rollouts: int, **settings: Any) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = GRIDS[grid]
        named = {"seed": 2**63 + 12345, "offset": 3, **settings}
        return (token_scores(g.num_tokens, kind), g, ratio, rollouts), named

    return Case("ocss_sample", name, make)


def _bernoulli(name: str, count: int, kind: str, rollouts: int, **settings: Any) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {"seed": 2**63 + 12345, "offset": 3, **settings}
        return (token_scores(count, kind), rollouts), named

    return Case("bernoulli_sample", name, make)


def _reinforce(count: int, rollouts: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        masks = token_scores(rollouts * count, "normal", seed=4).view(rollouts, count) > 0.5
        return (token_scores(count, "normal"), masks, token_scores(rollouts, "normal", 5)), {}

    return Case("reinforce_loss", f"{rollouts}_of_{count}", make)


def _gather(name: str, length: int, width: int, dtype: torch.dtype, keep: list[int]) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = torch.arange(length * width, dtype=torch.float64).view(length, width)
        return (rows.remainder(251.0).to(dtype), torch.tensor(keep, dtype=torch.int64)), {}

    return Case("gather", name, make)


def _select_and_gather(grid: str, width: int, dtype: torch.dtype, axes: int | None) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = GRIDS[grid]
        rows = token_scores(g.num_tokens * width, "normal", seed=2).view(-1, width).to(dtype)
        frames = token_scores(g.num_frames, "normal", seed=1) if width % 2 else None
        positions = torch.arange(g.num_tokens * (axes or 1)) * 7
        named = {} if axes is None else {"position_ids": positions.view(*(axes,) * (axes > 1), -1)}
        return (token_scores(g.num_tokens, "ties"), frames, rows, g, 0.3), named

    kind = "no" if axes is None else str(axes)
    name = f"{grid}_{width}_{str(dtype).removeprefix('torch.')}_{kind}_positions"
    return Case("select_and_gather", name, make)


def _frame_sample(name: str, grid: str, kind: str, rollouts: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = GRIDS[grid]
        return (token_scores(g.num_frames, kind), g, 0.1, rollouts), {"seed": 7, "offset": 1}

    return Case("frame_sample", name, make)


def _rows(op: str, count: int, kind: str, k: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (token_scores(count * 6, kind).view(count, 6), k), {}

    return Case(op, f"{k}_of_{count}_{kind}", make)


def _loss(grid: str, rollouts: int, kl_weight: float) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = GRIDS[grid]
        scores = [
            token_scores(count, "normal", seed)
            for seed, count in enumerate((g.num_tokens, g.num_frames, g.num_tokens, g.num_frames))
        ]
        masks = [
            token_scores(rollouts * count, "normal", seed=4).view(rollouts, count) > 0.5
            for count in (g.num_tokens, g.num_frames)
        ]
        rewards = [token_scores(rollouts, "ties", seed) for seed in (5, 6)]
        return (*scores, *masks, *rewards), {"kl_weight": kl_weight}

    return Case("cpo_loss", f"{grid}_kl_{kl_weight}", make)


def _pack(form: str) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = Grid([(3, 3, 3)])
        length = g.num_tokens + 9  # four tokens of text before the video, five after it
        prompt = Prompt(
            embeds=token_scores(length * 4, "normal").view(length, 4),
            position_ids=torch.arange(length),
            video_index=torch.arange(4, 4 + g.num_tokens),
            question_index=torch.arange(4 + g.num_tokens, length),
            grid=g,
        )
        indices = torch.tensor([[0, 9, 18], [2, 10, 26], [8, 17, 20]], dtype=torch.int32)
        masks = torch.zeros(3, g.num_tokens, dtype=torch.bool).scatter_(1, indices.long(), True)
        return (prompt, masks if form == "masks" else indices), {}

    return Case("pack_rollouts", form, make)


def _score(
    grid: str, slots: int, inter_frame: bool, own_folds: bool = False, key_width: int = 0
) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        g = GRIDS[grid]
        video = token_scores(g.num_tokens * 24, "normal").view(-1, 24)
        folds = [_fold(slots + i, inter_frame, i, key_width) for i in range(g.num_videos)]
        return (video, folds if own_folds else folds[0], g), {}

    kind = ("inter_frame" if inter_frame else "plain") + ("_keys" if key_width else "")
    return Case("score", f"{grid}_{slots}_slots_{kind}_{'own' if own_folds else 'one'}", make)


def _fold(slots: int, inter_frame: bool, seed: int, key_width: int) -> ScoreFold:
    def draw(*shape: int) -> Tensor:
        return token_scores(math.prod(shape), "normal", seed).view(shape) * 0.3

    heads, width = 2, 8
    columns = heads * (key_width or slots) + 2 * width * (2 if inter_frame else 1)
    token, frame = (
        HeadWeights(draw(width), draw(width, width), draw(width), draw(1, width), draw(1))
        for _ in range(2)
    )
    keys = draw(heads * slots, key_width) if key_width else None
    values = draw(heads * slots, 2 * width)
    return ScoreFold(draw(24, columns), values, heads, token, frame, keys=keys)


_SELECT = (
    *(_select(f"{grid}_at_{r}", grid, "normal", r) for grid in GRIDS for r in (0.1, 0.37, 1.0)),
    *(
        _select(f"{kind}_scores", "ragged", kind, 0.25)
        for kind in ("flat", "ties", "peaked", "huge", "tiny", "infinite")
    ),
    *(
        _select(f"{kind}_frames", "many_frames", "ties", 0.4, frames=kind)
        for kind in ("flat", "ties", "peaked", "huge", "tiny", None)
    ),
    _select("budget_of_its_own", "ragged", "ties", [0.02, 0.9, 0.3, 1.0]),
    _select("fewer_tokens_than_frames", "many_frames", "normal", 0.02, frames="ties"),
    _select("no_policy_share", "frames_of_63", "normal", 0.2, policy_share=0.0),
    _select("policy_share_alone", "frames_of_63", "ties", 0.2, policy_share=1.0),
    _select("tight_frame_ratio", "frames_of_196", "normal", 0.3, max_frame_ratio=0.01),
    _select("loose_frame_ratio", "ragged", "normal", 0.3, max_frame_ratio=[5.0, 0.2, 1.0, 0.9]),
)

_OCSS = (
    *(_ocss(f"{grid}_at_{r}", grid, "normal", r, 4) for grid in GRIDS for r in (0.02, 0.3, 1.0)),
    *(
        _ocss(f"{kind}_scores", "ragged", kind, 0.1, 7)
        for kind in ("flat", "ties", "peaked", "huge", "tiny")
    ),
    _ocss("greedy_alone", "ragged", "ties", 0.1, 1),
    _ocss("ratio_of_its_own", "ragged", "normal", [0.02, 1.0, 0.5, 0.2], 5),
    _ocss("narrow_subspaces", "frames_of_196", "normal", 0.05, 5, subspace_factor=9.0),
    _ocss("one_subspace", "frames_of_196", "peaked", 0.5, 5, subspace_factor=1.0),
    _ocss("low_cap", "frames_of_63", "peaked", 0.02, 9, max_subspace_prob=0.03),
    _ocss("no_cap", "frames_of_63", "peaked", 0.02, 9, max_subspace_prob=1.0),
    _ocss("offset_wraps", "ragged", "normal", 0.1, 3, offset=2**32 - 2, seed=2**64 - 1),
)

_BERNOULLI = (
    *(_bernoulli(f"{n}_tokens", n, "normal", 5) for n in (1, 7, 63, 64, 65, 196, 729, 1000)),
    *(
        _bernoulli(f"{kind}_logits", 127, kind, 4)
        for kind in ("flat", "ties", "peaked", "huge", "tiny")
    ),
    _bernoulli("packed", GRIDS["ragged"].num_tokens, "normal", 3, grid=GRIDS["ragged"]),
    _bernoulli("one_rollout", 500, "normal", 1),
    _bernoulli("many_rollouts", 5, "ties", 70),
    _bernoulli(
        "offset_wraps", 631, "normal", 3, grid=GRIDS["ragged"], offset=2**32 - 2, seed=2**64 - 1
    ),
)

_REINFORCE = tuple(_reinforce(n, g) for n, g in ((1, 1), (7, 5), (196, 3), (1000, 16)))

_GATHER = (
    *(
        _gather(f"width_{width}_{str(dtype).removeprefix('torch.')}", 63, width, dtype, [0, 7, 62])
        for width in (1, 7, 63, 196)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
    ),
    _gather("repeated_and_unordered", 7, 5, torch.float32, [6, 0, 0, 3, 6]),
    _gather("nothing_kept", 7, 5, torch.float32, []),
    _gather("everything_kept", 1000, 3, torch.float32, list(range(1000))),
)

_SELECT_AND_GATHER = (
    *(
        _select_and_gather(grid, width, dtype, axes)
        for grid in ("frames_of_63", "ragged")
        for width, dtype, axes in (
            (5, torch.float32, None),
            (7, torch.bfloat16, 1),
            (64, torch.bfloat16, 3),
            (300, torch.float32, 1),
        )
    ),
    _select_and_gather("many_frames", 6, torch.float16, 1),
    _select_and_gather("frames_of_1000", 3, torch.int64, 3),
)

_FRAME_SAMPLE = (
    *(_frame_sample(f"{grid}", grid, "normal", 5) for grid in GRIDS),
    *(
        _frame_sample(f"{kind}_scores", "many_frames", kind, 9)
        for kind in ("flat", "ties", "peaked", "huge", "tiny")
    ),
)

_REPRESENTATIVES = tuple(
    _rows(op, count, kind, k)
    for op in ("density_peaks", "farthest_point")
    for count, k in ((1, 1), (7, 3), (63, 63), (196, 20))
    for kind in ("normal", "ties")
)

_LOSS = tuple(
    _loss(grid, rollouts, kl)
    for grid, rollouts, kl in (("frames_of_7", 7, 0.0), ("ragged", 3, 0.1))
)

_PACK = tuple(_pack(form) for form in ("masks", "indices"))

_SCORE = (
    *(_score(grid, 4, inter) for grid in GRIDS for inter in (False, True)),
    _score("ragged", 3, True, own_folds=True),
    _score("ragged", 7, True, own_folds=True, key_width=3),
    _score("one_token", 5, False, key_width=2),
    _score("one_token", 1, False),
)

#: Every case of every op.
CASES: tuple[Case, ...] = (
    *_SELECT,
    *_OCSS,
    *_BERNOULLI,
    *_REINFORCE,
    *_GATHER,
    *_SELECT_AND_GATHER,
    *_FRAME_SAMPLE,
    *_REPRESENTATIVES,
    *_LOSS,
    *_PACK,
    *_SCORE,
)
