"""What a training run tells of the scores: spread, entropy, and whether they have collapsed."""

from __future__ import annotations

import math

import torch

from cacovid.types import Grid, Scores

#: Scores of a spread below this are all alike.
COLLAPSED_SPREAD = 1e-3


@torch.no_grad()
def describe_scores(scores: Scores, grid: Grid) -> dict[str, float]:
    """Spread and entropy of the token scores, and the spread of the frame scores.

    Args:
        scores: Of packed videos.
        grid: Their grids.

    Returns:
        `token_spread`: standard deviation over all tokens. `token_entropy`: mean over frames of
        the entropy of the frame's softmax, as a share of the greatest possible one.
        `frame_spread`: standard deviation over frames.
    """
    token = scores.token.float()
    entropies = []
    for frame in token.split(list(grid.tokens_per_frame)):
        if len(frame) > 1:
            log = torch.log_softmax(frame, dim=0)
            entropies.append(-float((log.exp() * log).sum()) / math.log(len(frame)))
    told = {
        "token_spread": float(token.std(correction=0)),
        "token_entropy": sum(entropies) / len(entropies) if entropies else 1.0,
    }
    if scores.frame is not None:
        told["frame_spread"] = float(scores.frame.float().std(correction=0))
    return told


def collapse(told: dict[str, float]) -> str | None:
    """Says that scores have collapsed, if they have."""
    if told.get("token_spread", 1.0) >= COLLAPSED_SPREAD:
        return None
    return (
        f"the token scores are all alike (standard deviation {told['token_spread']:.2g}): the "
        f"policy chooses nothing. Raise the learning rate, or look at the share of samples with "
        f"zero reward variance: those teach nothing"
    )
