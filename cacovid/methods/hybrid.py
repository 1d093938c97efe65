"""`hybrid`: a control, a question-aware policy with a question-blind one as a prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from cacovid.errors import InvalidInputError
from cacovid.methods.policy import PolicyMethod
from cacovid.types import Prompt, Scores


class HybridMethod(PolicyMethod):
    """A control: `log pi(keep)` of a prior, times a weight, added to a policy's scores (*ours*).

    With scores as log-odds this is a prior of its own weight: a token that never surprises needs
    more support from the question. Frame scores, quotas and shares are the policy's. On the
    embedded task it does not help (94.4% from a tenth of the tokens, the policy alone 95.7);
    compare it with both of its parts before it is used.

    Args:
        policy: The question-aware policy, such as `CrossAttentionPolicy`.
        prior: The question-blind policy, such as `SurprisePolicy`.
        weight: Of the prior, at least 0; 0: the policy alone.
        name: How tables call it.

    Raises:
        InvalidInputError: for a weight below 0 or one that is no number.
    """

    def __init__(
        self,
        policy: Callable[[Prompt], Scores],
        prior: Callable[[Prompt], Scores],
        weight: float | str = 1.0,
        name: str = "hybrid",
    ) -> None:
        super().__init__(policy, name=name)
        try:
            self.weight = float(weight)
        except ValueError:
            self.weight = -1.0
        if not 0.0 <= self.weight < float("inf"):
            raise InvalidInputError(
                f"weight of method 'hybrid' is {weight!r}; expected a number of at least 0, as in "
                f"'hybrid:0.5'"
            )
        self.prior = prior

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """The sum, without gradients; the seed changes nothing."""
        with torch.no_grad():
            own, prior = self.policy(prompt), self.prior(prompt)
            return Scores(own.token + self.weight * F.logsigmoid(prior.token), own.frame)
