"""A trained policy as a method: its scores, then the selection that it was trained for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cacovid.errors import InvalidInputError
from cacovid.methods.base import ScoredMethod
from cacovid.methods.top_k import top_k
from cacovid.types import PerVideo, Prompt, Scores, Selection

#: Share of the budget that the scores choose, where the policy's configuration says nothing.
DEFAULT_POLICY_SHARE = 0.5


class PolicyMethod(ScoredMethod):
    """Keeps what a policy scores highest, within quotas per frame, and an even share of the rest.

    A policy whose `selection` is `"top_k"` (`SurprisePolicy`) has neither quotas nor a share: the
    highest scores of a whole video are kept.

    Args:
        policy: Any callable `policy(prompt) -> Scores`, such as those of `cacovid.policies`.
        policy_share: Share of the budget that the scores choose; default: the policy's own
            configuration, else 0.5 (published).
        max_frame_ratio: Limit on the share of one frame; default: the policy's own configuration,
            else `1.5 * retention` (published).
        name: How tables call it; default: the policy's `name`, else `"policy"`.
    """

    def __init__(
        self,
        policy: Callable[[Prompt], Scores],
        *,
        policy_share: float | None = None,
        max_frame_ratio: PerVideo | None = None,
        name: str | None = None,
    ) -> None:
        self.policy = policy
        config = getattr(policy, "config", None)
        self.policy_share: float = _first(
            policy_share, getattr(config, "policy_share", None), DEFAULT_POLICY_SHARE
        )
        self.max_frame_ratio: PerVideo | None = _first(
            max_frame_ratio, getattr(config, "max_frame_ratio", None)
        )
        self.name = _first(name, getattr(policy, "name", None), "policy")
        self.question_aware = bool(getattr(policy, "question_aware", True))
        self.needs = frozenset(getattr(policy, "needs", ()))

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """The policy's scores, without gradients; the seed changes nothing.

        Raises:
            InvalidInputError: for a policy that returns something else than `Scores`.
        """
        with torch.no_grad():
            scores = self.policy(prompt)
        if not isinstance(scores, Scores):
            raise InvalidInputError(
                f"the policy {self.name!r} returned a {type(scores).__name__}; expected "
                f"cacovid.Scores: Scores(token) with token [N] float32, and frame [F] where there "
                f"are frame scores"
            )
        return scores

    def select(self, scores: Scores, prompt: Prompt, retention: PerVideo) -> Selection:
        """The kept tokens by `cacovid.ops.select_tokens`, or by one top-k over each video."""
        if getattr(self.policy, "selection", None) == "top_k":
            return top_k(scores.token, prompt.grid, retention)
        from cacovid.ops import select_tokens

        keep = select_tokens(
            scores.token,
            scores.frame,
            prompt.grid,
            retention,
            policy_share=self.policy_share,
            max_frame_ratio=self.max_frame_ratio,
        )
        return Selection(keep, prompt.grid, prompt.grid.budgets(retention))


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
