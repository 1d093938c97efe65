"""The two optimizers of both training stages: Muon for matrices, AdamW for all else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Optimizers:
    """Muon for a network's matrices, AdamW for the rest (embeddings, norms, biases, heads).

    Muon reached the same accuracy in about 0.6 of AdamW's updates while binding was learned, and
    after 300 updates of the vision stage at 5e-3 named 91% of patterns right where AdamW at 2e-3
    named 82% (one run of each).

    Args:
        weights: All trained parameters.
        matrices: Those of them that Muon takes; two-dimensional.
        decay: Weight decay of both.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], matrices: list[nn.Parameter], decay: float
    ) -> None:
        by_muon = {id(p) for p in matrices}
        rest = [p for p in weights if id(p) not in by_muon]
        self.muon = torch.optim.Muon(
            matrices, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(rest, weight_decay=decay, betas=(0.9, 0.98))

    def set_rate(self, rate: float) -> None:
        """Sets Muon's rate; AdamW's is half of it."""
        for optimizer, factor in ((self.muon, 1.0), (self.adamw, 0.5)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate

    def zero_grad(self) -> None:
        """Drops all gradients."""
        self.muon.zero_grad(set_to_none=True)
        self.adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One update of every weight."""
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up both states."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
