"""The cases: every op beside the ways that it replaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cacovid import ops, reference
from cacovid.benchmark import batched, published
from cacovid.benchmark import self_attention as paper
from cacovid.benchmark.cases import Case, Provider, Setting, WrongResult, agree
from cacovid.ops.score import pack_folds
from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.reference import ScoreFold
from cacovid.reference.frame_sample import frame_plan
from cacovid.reference.ocss import ocss_plan, subspace_cap
from cacovid.reference.select_tokens import select_plan
from cacovid.types import Grid, Prompt

FRAME = (14, 14)  # tokens of a frame, as LLaVA-OneVision has them
QUESTION = 48  # tokens
RETENTION = 0.1
RATIO, ROLLOUTS, FRAME_ROLLOUTS = 0.02, 32, 8
CHECKED = 32 * 196  # tokens of which scores are compared with float64
REPLAYED = 5 * 24  # token rollouts of a sample in replay


def grid_of(tokens: int) -> Grid:
    """One video of `tokens` tokens."""
    return Grid([(tokens // (FRAME[0] * FRAME[1]), *FRAME)])


def score(tokens: int, hidden: int, s: Setting) -> Case:
    """K1: all scores of the fused policy."""
    grid, policy, fold = grid_of(tokens), _policy(hidden, s), _fold(hidden, s)
    columns = fold.columns.to(s.dtype).contiguous()
    packed = pack_folds(fold, s.dtype)  # once for a question, as sessions do
    question = s.randn(QUESTION, hidden, seed=1, dtype=s.dtype)

    def unfolded(video: Tensor) -> tuple[Tensor, Tensor]:
        prompt = Prompt(
            embeds=torch.cat((video, question)),
            position_ids=torch.arange(tokens + QUESTION, device=s.device),
            video_index=torch.arange(tokens, device=s.device),
            question_index=torch.arange(tokens, tokens + QUESTION, device=s.device),
            grid=grid,
        )
        scores = policy.plain(prompt)
        assert scores.frame is not None
        return scores.token, scores.frame

    def folded(video: Tensor) -> tuple[Tensor, Tensor]:
        return reference.score(video, fold, grid)

    def check(results: dict[str, Any], inputs: Any) -> None:
        # Of the first frames: frames do not hang on one another, and float64 takes its time.
        some = grid_of(min(tokens, CHECKED))
        exact = reference.score(inputs[0][: some.num_tokens].double(), _double(fold), some)
        for whole, plain, true in zip(
            results["cacovid"], results["eager, folded"], exact, strict=True
        ):
            mine, eager = whole[: len(true)], plain[: len(true)]
            # Half precision of the operands, against the spread of the scores.
            allowed = 2 * (eager - true).abs().max() + 16 * 2**-8 * true.std()
            if float((mine - true).abs().max()) > float(allowed):
                raise WrongResult("score is off by more than its operands' precision")

    providers = (
        Provider("eager, unfolded", "eager", lambda i: unfolded(*i)),
        Provider("eager, folded", "eager", lambda i: folded(*i)),
        *s.compile("torch.compile, folded", folded),
        Provider("bare product", "bare", lambda i: i[0] @ columns),
        Provider("cacovid", "ours", lambda i: ops.score(i[0], packed, grid)),
    )
    size, width = s.dtype.itemsize, columns.shape[1]
    return Case(
        "score",
        tokens,
        hidden,
        f"C = {width}",
        lambda seed: (s.randn(tokens, hidden, seed=seed, dtype=s.dtype),),
        providers,
        least_bytes=tokens * hidden * size + columns.numel() * size + 4 * tokens,
        flops=2 * tokens * hidden * width,
        check=check,
    )


def self_attention(tokens: int, hidden: int, s: Setting) -> Case:
    """The paper's policy: one decoder layer over the whole prompt, and its heads."""
    grid, policy = grid_of(tokens), paper.policy_of(hidden, s.dtype, s.device)
    length = tokens + sum(paper.TEXT)
    floor = paper.bare(policy, tokens)

    def plain(embeds: Tensor) -> tuple[Tensor, ...]:
        scores = policy.plain(paper.prompt_of(grid, embeds))
        assert scores.frame is not None
        return scores.token, scores.frame

    def ours(inputs: Any) -> tuple[Tensor, ...]:
        scores = policy(paper.prompt_of(grid, inputs[0]))
        assert scores.frame is not None
        return scores.token, scores.frame

    def check(results: dict[str, Any], _: Any) -> None:
        for mine, eager in zip(results["cacovid"], results["eager, plain"], strict=True):
            # A dozen roundings to the dtype on the way, in both.
            allowed = 16 * torch.finfo(s.dtype).eps * eager.abs().max()
            if not bool((mine - eager).abs().max() <= allowed):
                raise WrongResult("the policy's two forms differ by more than their precision")

    providers = (
        Provider("eager, plain", "eager", lambda i: plain(*i)),
        *s.compile("torch.compile, plain", plain),
        Provider("bare products", "bare", lambda _: floor()),
        Provider("cacovid", "ours", ours),
    )
    weights = sum(p.numel() for p in policy.parameters())
    return Case(
        "self_attention",
        tokens,
        hidden,
        f"I = {policy.config.intermediate_size}",
        lambda seed: (s.randn(length, hidden, seed=seed, dtype=s.dtype),),
        providers,
        least_bytes=(length * hidden + weights) * s.dtype.itemsize + 4 * tokens,
        flops=paper.flops(policy, tokens),
        check=check,
    )


def select_tokens(tokens: int, hidden: int, s: Setting) -> Case:
    """K3: the kept tokens from the scores."""
    grid = grid_of(tokens)
    (plan,) = select_plan(grid, RETENTION)

    def batch(z: Tensor, f: Tensor) -> Tensor:
        return batched.select_tokens(z.view(plan.frames, plan.tokens), f, plan)

    def loops(inputs: Any) -> Tensor:
        z, f = inputs
        return published.select_tokens(z.view(plan.frames, plan.tokens), f, plan)

    providers = (
        Provider("as published, in loops", "published", loops, captures=False),
        Provider("eager, without a wait", "eager", lambda i: batch(*i)),
        *s.compile("torch.compile", batch),
        Provider("cacovid", "ours", lambda i: ops.select_tokens(i[0], i[1], grid, RETENTION)),
    )
    names = ("cacovid", "eager, without a wait", "as published, in loops")
    return Case(
        "select_tokens",
        tokens,
        0,
        f"T = {plan.frames}, r = {RETENTION}",
        lambda seed: (
            s.randn(tokens, seed=seed),
            s.randn(plan.frames, seed=seed + 1),
        ),
        providers,
        least_bytes=4 * (tokens + plan.frames) + 8 * plan.total,
        check=lambda results, _: agree(results, tuple(n for n in names if n in results)),
    )


def gather(tokens: int, hidden: int, s: Setting) -> Case:
    """Rows of the kept tokens."""
    kept = sum(grid_of(tokens).budgets(RETENTION))

    def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = s.randn(tokens, hidden, seed=seed, dtype=s.dtype)
        keep = torch.randperm(tokens, generator=s.generator(seed), device=s.device)[:kept]
        return rows, keep.sort().values, torch.empty_like(rows[:kept])

    def check(results: dict[str, Any], _: Any) -> None:
        agree(results, ("cacovid", "index_select"))

    providers = (
        Provider("index_select", "eager", lambda i: i[0].index_select(0, i[1])),
        *s.compile("torch.compile", lambda rows, keep, _: rows.index_select(0, keep)),
        Provider("bare copy", "bare", lambda i: i[2].copy_(i[0][:kept])),
        Provider("cacovid", "ours", lambda i: ops.gather(i[0], i[1])),
    )
    moved = 2 * kept * hidden * s.dtype.itemsize + 8 * kept
    return Case("gather", tokens, hidden, f"r = {RETENTION}", inputs, providers, moved, check=check)


def prune(tokens: int, hidden: int, s: Setting) -> Case:
    """K1 and K3 together: from embeddings to kept embeddings and positions, the question folded."""
    grid, fold = grid_of(tokens), _fold(hidden, s)
    packed = pack_folds(fold, s.dtype)
    (plan,) = select_plan(grid, RETENTION)

    def eager(video: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        token, frame = reference.score(video, fold, grid)
        keep = batched.select_tokens(token.view(plan.frames, plan.tokens), frame, plan)
        return keep, video.index_select(0, keep), positions.index_select(0, keep)

    def ours(inputs: Any) -> tuple[Tensor, ...]:
        video, positions = inputs
        token, frame = ops.score(video, packed, grid)
        return ops.select_and_gather(token, frame, video, grid, RETENTION, position_ids=positions)

    providers = (
        Provider("eager, folded", "eager", lambda i: eager(*i)),
        *s.compile("torch.compile", eager),
        Provider("cacovid", "ours", ours),
    )
    size, width = s.dtype.itemsize, fold.columns.shape[1]
    return Case(
        "prune",
        tokens,
        hidden,
        f"C = {width}, r = {RETENTION}",
        lambda seed: (
            s.randn(tokens, hidden, seed=seed, dtype=s.dtype),
            torch.arange(tokens, device=s.device),
        ),
        providers,
        least_bytes=(tokens + 2 * plan.total) * hidden * size + 24 * plan.total,
        flops=2 * tokens * hidden * width,
    )


def ocss_sample(tokens: int, hidden: int, s: Setting) -> Case:
    """K2: the token rollouts of one update."""
    grid = grid_of(tokens)
    (plan,) = ocss_plan(grid, RATIO, 2.0, None)
    cap = subspace_cap(plan.subspaces, None)
    shape = (plan.frames, plan.tokens)

    def batch(z: Tensor) -> Tensor:
        return batched.ocss_sample(z.view(shape), plan, ROLLOUTS, cap)

    def check(results: dict[str, Any], inputs: Any) -> None:
        mine, eager = results["cacovid"], results["eager, batched"]
        if mine.shape != eager.shape or not torch.equal(mine[0], eager[0]):
            raise WrongResult("the greedy rollouts differ; nothing was timed")
        masks = results.get("as published, frame by frame")
        if masks is not None and not torch.equal(masks[0].nonzero().flatten().int(), mine[0]):
            raise WrongResult("the greedy rollout of the procedure as published differs")

    providers = (
        Provider(
            "as published, frame by frame",
            "published",
            lambda i: published.ocss_sample(i[0].view(shape), plan, ROLLOUTS, cap),
            captures=False,
        ),
        Provider("eager, batched", "eager", lambda i: batch(*i)),
        *s.compile("torch.compile", batch),
        Provider("cacovid", "ours", lambda i: ops.ocss_sample(i[0], grid, RATIO, ROLLOUTS, seed=1)),
    )
    return Case(
        "ocss_sample",
        tokens,
        0,
        f"T = {plan.frames}, r = {RATIO}, G = {ROLLOUTS}",
        lambda seed: (s.randn(tokens, seed=seed),),
        providers,
        least_bytes=4 * tokens + 4 * ROLLOUTS * plan.frames * plan.keep,
        check=check,
    )


def frame_sample(tokens: int, hidden: int, s: Setting) -> Case:
    """The frame rollouts of one update."""
    grid = grid_of(tokens)
    (plan,) = frame_plan(grid, RATIO, FRAME_ROLLOUTS)

    def check(results: dict[str, Any], _: Any) -> None:
        mine, eager = results["cacovid"], results["eager, batched"]
        if not torch.equal(mine[0], eager[0]) or not torch.equal(mine.sum(1), eager.sum(1)):
            raise WrongResult("the greedy rollouts or the numbers of frames differ")

    def ours(inputs: Any) -> Tensor:
        return ops.frame_sample(inputs[0], grid, RATIO, FRAME_ROLLOUTS, seed=1)

    providers = (
        Provider(
            "eager, batched",
            "eager",
            lambda i: batched.frame_sample(i[0], plan.choose, FRAME_ROLLOUTS),
        ),
        Provider("cacovid", "ours", ours),
    )
    return Case(
        "frame_sample",
        tokens,
        0,
        f"T = {plan.frames}, G = {FRAME_ROLLOUTS}",
        lambda seed: (s.randn(plan.frames, seed=seed),),
        providers,
        least_bytes=(4 + FRAME_ROLLOUTS) * plan.frames,
        check=check,
    )


def pack_rollouts(tokens: int, hidden: int, s: Setting) -> Case:
    """The compressed prompts of all rollouts."""
    grid, length = grid_of(tokens), tokens + QUESTION

    def inputs(seed: int) -> tuple[Prompt, Tensor]:
        prompt = Prompt(
            embeds=s.randn(length, hidden, seed=seed, dtype=s.dtype),
            position_ids=torch.arange(length, device=s.device),
            video_index=torch.arange(tokens, device=s.device),
            question_index=torch.arange(tokens, length, device=s.device),
            grid=grid,
        )
        scores = s.randn(tokens, seed=seed)
        return prompt, ops.ocss_sample(scores, grid, RATIO, ROLLOUTS, seed=seed)

    def repeat_and_index(inputs: Any) -> Tensor:
        prompt, drawn = inputs
        text = prompt.question_index.expand(ROLLOUTS, -1)
        index = torch.cat((prompt.video_index[drawn.long()], text), dim=1)
        whole = prompt.embeds.repeat(ROLLOUTS, 1, 1)
        groups = torch.arange(ROLLOUTS, device=s.device)[:, None]
        return whole[groups, index].flatten(0, 1)

    def check(results: dict[str, Any], _: Any) -> None:
        if not torch.equal(results["cacovid"].embeds, results["repeat and index"]):
            raise WrongResult("the packed prompts differ; nothing was timed")

    providers = (
        Provider("repeat and index", "published", repeat_and_index),
        Provider("cacovid", "ours", lambda i: ops.pack_rollouts(*i)),
    )
    (plan,) = ocss_plan(grid, RATIO, 2.0, None)
    rows = ROLLOUTS * (plan.frames * plan.keep + QUESTION)
    return Case(
        "pack_rollouts",
        tokens,
        hidden,
        f"G = {ROLLOUTS}",
        inputs,
        providers,
        least_bytes=2 * rows * hidden * s.dtype.itemsize,
        check=check,
    )


def cpo_loss(tokens: int, hidden: int, s: Setting) -> Case:
    """The loss and its gradient over the replay of one sample."""
    grid = grid_of(tokens)
    frames = grid.num_frames

    def inputs(seed: int) -> tuple[Tensor, ...]:
        scores = [s.randn(n, seed=seed + i) for i, n in enumerate((tokens, frames) * 2)]
        masks = [s.randn(REPLAYED, n, seed=seed + 4) > 2.0 for n in (tokens, frames)]
        rewards = [s.randn(REPLAYED, seed=seed + 5) for _ in range(2)]
        return (*(z.requires_grad_(i < 2) for i, z in enumerate(scores)), *masks, *rewards)

    def gradients(loss: Any, values: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(*values).total, values[:2])

    def check(results: dict[str, Any], _: Any) -> None:
        for mine, eager in zip(results["cacovid"], results["eager"], strict=True):
            if not torch.allclose(mine, eager, rtol=1e-4, atol=1e-7):
                raise WrongResult("the gradients differ; nothing was timed")

    providers = (
        Provider("eager", "eager", lambda i: gradients(reference.cpo_loss, i)),
        Provider("cacovid", "ours", lambda i: gradients(ops.cpo_loss, i)),
    )
    return Case(
        "cpo_loss",
        tokens,
        0,
        f"G = {REPLAYED}, forward and backward",
        inputs,
        providers,
        least_bytes=REPLAYED * (tokens + frames) // 8 + 12 * (tokens + frames),
        check=check,
    )


def farthest_point(tokens: int, hidden: int, s: Setting) -> Case:
    """A tenth of the tokens, each the farthest from those before."""
    kept = tokens // 10
    providers = (
        Provider(
            "as published, O(k²N)",
            "published",
            lambda i: published.farthest_point(i[0], kept),
            captures=False,
        ),
        Provider(
            "eager, running minimum",
            "eager",
            lambda i: reference.farthest_point(i[0], kept),
            captures=False,
        ),
        # A launch for each row: a graph holds them, fifty of them at once would be too many nodes.
        Provider("cacovid", "ours", lambda i: ops.farthest_point(i[0], kept), captures=False),
    )
    return Case(
        "farthest_point",
        tokens,
        hidden,
        f"k = {kept}",
        lambda seed: (s.randn(tokens, hidden, seed=seed, dtype=s.dtype),),
        providers,
        least_bytes=tokens * hidden * s.dtype.itemsize,
        # The published form rounds otherwise: it multiplies matrices.
        check=lambda results, _: agree(results, ("cacovid", "eager, running minimum")),
    )


def density_peaks(tokens: int, hidden: int, s: Setting) -> Case:
    """The tokens of the drawn eighth of the frames."""
    rows, kept = tokens // 8, 4 * tokens // 196
    providers = (
        Provider("eager", "eager", lambda i: reference.density_peaks(i[0], kept), captures=False),
        Provider("cacovid", "ours", lambda i: ops.density_peaks(i[0], kept)),
    )
    return Case(
        "density_peaks",
        tokens,
        hidden,
        f"{kept} of {rows}",
        lambda seed: (s.randn(rows, hidden, seed=seed, dtype=s.dtype),),
        providers,
        least_bytes=rows * hidden * s.dtype.itemsize,
        flops=2 * rows * rows * hidden,
        check=lambda results, _: agree(results, ("cacovid", "eager")),
    )


MAKERS: dict[str, Callable[[int, int, Setting], Case]] = {
    maker.__name__: maker
    for maker in (
        score,
        self_attention,
        select_tokens,
        gather,
        prune,
        ocss_sample,
        frame_sample,
        pack_rollouts,
        cpo_loss,
        farthest_point,
        density_peaks,
    )
}

#: Ops that read no embeddings: measured once for each number of tokens.
WITHOUT_HIDDEN = frozenset({"select_tokens", "ocss_sample", "frame_sample", "cpo_loss"})

#: Where the ways that are replaced take minutes, or more memory than there is.
MOST_TOKENS = {
    "self_attention": 12_544,
    "pack_rollouts": 12_544,
    "farthest_point": 6_272,
    "density_peaks": 12_544,
}

#: Tokens times hidden size on the CPU, where more takes minutes, or more memory than there may be.
MOST_ON_CPU = {
    "self_attention": 6_272 * 896,
    "score": 50_176 * 3_584,
    "prune": 50_176 * 3_584,
    "gather": 50_176 * 3_584,
}


def cases(
    names: tuple[str, ...],
    tokens: tuple[int, ...],
    hidden: tuple[int, ...],
    s: Setting,
    known: frozenset[tuple[str, int, int]] = frozenset(),
) -> Iterator[Callable[[], Case]]:
    """The cases of a run, each made when it is its turn: all of the first size, then the next.

    So a run that is stopped has measured every op, and lacks the sizes that take longest.
    """
    for n in tokens:
        for name in (name for name in names if n <= MOST_TOKENS.get(name, n)):
            for d in (0,) if name in WITHOUT_HIDDEN else hidden:
                if s.device.type == "cpu" and n * d > MOST_ON_CPU.get(name, n * d):
                    continue
                if (name, n, d) in known:
                    continue
                yield lambda name=name, n=n, d=d: MAKERS[name](n, d, s)  # type: ignore[misc]


def _policy(hidden: int, s: Setting) -> CrossAttentionPolicy:
    torch.manual_seed(0)
    policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=hidden))
    return policy.requires_grad_(False).to(s.device)


def _fold(hidden: int, s: Setting) -> ScoreFold:
    question = s.randn(QUESTION, hidden, seed=1, dtype=s.dtype)
    return _policy(hidden, s).fold(question)


def _double(fold: ScoreFold) -> ScoreFold:
    return dataclasses.replace(
        fold,
        columns=fold.columns.double(),
        values=fold.values.double(),
        token=type(fold.token)(*(w.double() for w in fold.token)),
        frame=type(fold.frame)(*(w.double() for w in fold.frame)),
    )
