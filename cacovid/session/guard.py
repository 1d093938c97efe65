"""Broken scores on a CUDA device: noticed without waiting, told as soon as it is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import Scores


class Guard:
    """A flag on the device that broken scores raise.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._flag = torch.zeros((), dtype=torch.bool, device=device)
        self._host = torch.zeros((), dtype=torch.bool, pin_memory=device.type == "cuda")

    def guarded(self, scores: Scores) -> tuple[Scores, Tensor]:
        """Scores that the selection takes in any case, and whether those given were broken.

        The op itself stops the device at a NaN, and with it the whole process. Scores without NaN,
        and frame scores that are finite, pass unchanged.

        Args:
            scores: Token scores `[N]` and frame scores `[F]`, or None.

        Returns:
            The scores, all 0 if they were broken, and a bool scalar on the device.
        """
        broken = scores.token.isnan().any()
        if scores.frame is not None:
            broken = broken | ~scores.frame.isfinite().all()
        self._flag.logical_or_(broken)
        frame = None if scores.frame is None else scores.frame.masked_fill(broken, 0.0)
        return Scores(scores.token.masked_fill(broken, 0.0), frame), broken

    @staticmethod
    def poisoned(embeds: Tensor, broken: Tensor) -> Tensor:
        """`embeds`, or NaN throughout, so that nothing can be computed from a broken selection."""
        return embeds.masked_fill(broken, math.nan)

    def publish(self) -> None:
        """Brings the flag to the host, in the order of the current stream."""
        self._host.copy_(self._flag, non_blocking=True)

    def raise_if_broken(self, which: str) -> None:
        """Looks at what was published, and begins anew; to be called when that has arrived.

        Args:
            which: The call that may have been broken, for the message.

        Raises:
            InvalidInputError: if scores were broken.
        """
        if bool(self._host):
            self._flag.zero_()
            self._host.zero_()
            raise InvalidInputError(
                f"{which} of this session met NaN in the scores (or an infinite frame score): the "
                f"policy or its input is broken; its embeddings are NaN and nothing was selected"
            )
