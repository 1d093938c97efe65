"""The compressed prompts of many rollouts, in one gather."""

from __future__ import annotations

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry
from cacovid.types import Prompt

_SPEC = _registry.reference_only("pack_rollouts")


def pack_rollouts(prompt: Prompt, rollouts: Tensor, *, backend: str | None = None) -> Prompt:
    """`G` copies of a prompt, each with the video tokens that its rollout keeps.

    Instead of repeating the whole prompt `G` times and indexing it, only the rows that survive
    are copied. Text and position ids stay as they are, tokens keep their order and their original
    positions.

    Args:
        prompt: The uncompressed prompt.
        rollouts: Masks `[G, N]` bool, or flat token indices `[G, K]` int32 or int64, ascending, as
            `ocss_sample` returns them.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        The prompts of all rollouts, packed one after another.

    Raises:
        InvalidInputError: for masks or indices that do not fit the prompt, or a backend that is
            not to be had.
    """
    _SPEC.choose(prompt.embeds.device, backend)
    return reference.pack_rollouts(prompt, rollouts)
