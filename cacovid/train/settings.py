"""Settings of a training run that are the same for every objective."""

from __future__ import annotations

from dataclasses import dataclass

from cacovid.errors import InvalidInputError
from cacovid.train.limits import check_at_least, check_positive, check_share

#: Settings that have no say in what a run ends with: one that is resumed may have others.
FREE_SETTINGS = frozenset(
    {"log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every", "max_unreadable"}
)


@dataclass(frozen=True)
class TrainerSettings:
    """How long, how fast, and what is written down.

    The published rate (1e-6) is for a policy that starts as a layer of a language model of
    billions of parameters; a small policy from nothing needs rates near 1e-3.

    Args:
        steps: Groups of samples; each is one pass of all the updates of a sample.
        samples_per_step: Samples of a group on each process.
        learning_rate: Peak rate of AdamW, cosine schedule.
        pretrained_rate_factor: Rate of layers that start as the language model's own, and of the
            query and key of a `CrossAttentionPolicy` without slots, which start aligned with its
            word embeddings; as a share of `learning_rate`.
        warmup: Share of the updates in which the rate rises.
        final_rate: Rate at the end, as a share of the peak.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        mixed_precision: `"no"`, or `"bf16"` for GPUs: the policy learns under autocast. Weights,
            scores and the loss stay in float32, and evaluations are as without it.
        seed: Of the order of samples and of all rollouts.
        log_every: Steps between log entries.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many are kept.
        evaluate_every: Steps between greedy evaluations on the held-out questions, logged as
            `greedy`; 0: only before and after.
        max_unreadable: Share of samples with unreadable videos that stops the run (after 20
            samples, or all of fewer), over all processes; a sample counts once.
    """

    steps: int = 1000
    samples_per_step: int = 1
    learning_rate: float = 1e-6
    pretrained_rate_factor: float = 0.1
    warmup: float = 0.03
    final_rate: float = 0.0
    weight_decay: float = 0.01
    max_grad_norm: float = 5.0
    mixed_precision: str = "no"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    evaluate_every: int = 0
    max_unreadable: float = 0.05

    def __post_init__(self) -> None:
        check_at_least(
            self, 1, "steps", "samples_per_step", "log_every", "checkpoint_every",
            "keep_checkpoints",
        )  # fmt: skip
        check_at_least(self, 0, "evaluate_every", "weight_decay", "pretrained_rate_factor")
        check_positive(self, "learning_rate", "max_grad_norm")
        check_share(self, "warmup", "final_rate", "max_unreadable", zero=True)
        if self.mixed_precision not in ("no", "bf16"):
            raise InvalidInputError(
                f"mixed_precision is {self.mixed_precision!r}; expected 'no' or 'bf16'"
            )
