"""The exact global top-k of each packed video, shared by the methods that rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.policies.ranking import highest_scores
from cacovid.types import Grid, PerVideo, Selection


def top_k(
    token_scores: Tensor, grid: Grid | Iterable[Sequence[int]], retention: PerVideo
) -> Selection:
    """The `max(1, floor(r*N))` tokens of highest score of each video, over all its frames.

    Deterministic: the same scores give the same tokens on every device, ties to the lowest index
    (0.0 and -0.0 tie). Infinite scores are allowed and rank first or last. PyTorch's stable sort
    does it: on a GPU a radix sort, which takes its few passes over a million scores whatever they
    are, where `torch.topk` breaks ties as it likes. Nothing waits for the device.

    Args:
        token_scores: `[N]`, floating point, on any device.
        grid: The grids of the packed videos.
        retention: Share of tokens to keep, in (0, 1]; one number, or one per video.

    Returns:
        The kept tokens, ascending, on the device of the scores.

    Raises:
        InvalidInputError: scores of a wrong shape or dtype, NaN scores, or a retention outside
            (0, 1]. On a GPU NaN scores stop the device, and the next synchronisation raises.

    >>> scores = torch.tensor([0.5, 2.0, 0.5, 1.0])
    >>> top_k(scores, [(1, 2, 2)], 0.75).keep
    tensor([0, 1, 3])
    """
    grid = Grid.of(grid)
    counts = grid.budgets(retention)
    if token_scores.dim() != 1 or token_scores.numel() != grid.num_tokens:
        raise InvalidInputError(
            f"token_scores has shape {tuple(token_scores.shape)}; the grid {grid.sizes} asks for "
            f"[{grid.num_tokens}]"
        )
    if not token_scores.is_floating_point():
        raise InvalidInputError(
            f"token_scores is {token_scores.dtype}; expected floating point scores"
        )
    scores = token_scores.detach()
    if scores.is_cuda:  # a look at the values would wait for the device
        torch._assert_async(
            ~torch.isnan(scores).any(), "token_scores has NaN; the method or its input is broken"
        )
    elif bool(torch.isnan(scores).any()):
        first = int(torch.isnan(scores).to(torch.int8).argmax())
        raise InvalidInputError(
            f"token_scores has NaN (first at {first}); the method or its input is broken, nothing "
            f"was selected"
        )
    return Selection(highest_scores(scores, grid, counts), grid, counts)
