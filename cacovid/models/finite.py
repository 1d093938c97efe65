"""Answers that are no numbers are told as errors, not taken for answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError


def check_answers(broken: Sequence[bool], prompts: Sequence[str], model: Any) -> None:
    """Refuses logits of which nothing can be chosen.

    Args:
        broken: Whether each prompt's logits hold NaN or infinity; on the host.
        prompts: How errors call each prompt, e.g. `"sample '7'"`.
        model: Whose logits they are, for its precision.

    Raises:
        InvalidInputError: naming the first such prompt, the likely causes, and what to do.
    """
    for prompt, no_answer in zip(prompts, broken, strict=True):
        if no_answer:
            precision = str(getattr(model, "dtype", "unknown")).removeprefix("torch.")
            raise InvalidInputError(
                f"the model's logits for {prompt} are NaN or infinite, so it has no "
                f"answer. Usual causes: float16, which overflows in models made for bfloat16, and "
                f"weights that are damaged or missing. The model runs in {precision}: give dtype "
                f"bfloat16 or float32, or look at the model's files"
            )


class FiniteLogits:
    """A logits processor for `generate` that changes nothing and notes whose logits were broken.

    A logit of minus infinity is none that broke: processors forbid tokens so.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = ~torch.isfinite(scores.amax(dim=-1))  # NaN is greater than every number
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def broken(self) -> list[bool]:
        """For each prompt, whether any of its logits were; waits for the device."""
        return [] if self._broken is None else list(map(bool, self._broken.tolist()))
