"""`attention`: the LLM's own attention to the video tokens, without training."""

from __future__ import annotations

import torch

from cacovid.errors import InvalidInputError
from cacovid.methods.base import ScoredMethod, required_extra
from cacovid.types import Prompt, Scores

QUERIES = ("last", "question")


class AttentionMethod(ScoredMethod):
    """Keeps the tokens that receive the most attention in one layer of the LLM.

    The scores are the attention probabilities that a video token receives in that layer, averaged
    over heads and queries; later layers are not run. The adapter computes them and hands them over
    as `prompt.extras["received_attention/{layer}/{queries}"]`, `[N]`.

    Args:
        layer: Layer of the LLM, from 0. The default is *ours*: `fastv` ranks by layer 1, too.
        queries: `"last"`: the last prompt token asks. `"question"`: all question tokens ask.

    Raises:
        InvalidInputError: for a layer below 0 or other queries.

    >>> AttentionMethod(2, "question").needs
    frozenset({'received_attention/2/question'})
    """

    question_aware = True

    def __init__(self, layer: int | str = 1, queries: str = "last") -> None:
        try:
            self.layer = int(layer)
        except ValueError:
            self.layer = -1
        if self.layer < 0:
            raise InvalidInputError(
                f"layer of method 'attention' is {layer!r}; expected the number of an LLM layer, "
                f"from 0, as in 'attention:2:question'"
            )
        if queries not in QUERIES:
            raise InvalidInputError(
                f"queries of method 'attention' are {queries!r}; expected one of "
                f"{', '.join(QUERIES)}, as in 'attention:2:question'"
            )
        self.queries = queries
        self.key = f"received_attention/{self.layer}/{queries}"
        self.needs = frozenset({self.key})
        default = (self.layer, queries) == (1, "last")
        self.name = "attention" if default else f"attention:{self.layer}:{queries}"

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """The received attention, float32 `[N]`; see `ScoredMethod.scores`."""
        received = required_extra(prompt, self.key, self.name)
        return Scores(received.detach().to(torch.float32))
