"""The compressed prompts of many rollouts, in one gather.

The reference serves on every device: what it moves is one `index_select` of the rows that survive,
and the arithmetic on their numbers is small beside the prefills that follow (csrc/README.md).
"""

from __future__ import annotations

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry
from cacovid.types import Prompt

_SPEC = _registry.reference_only("pack_rollouts")


def pack_rollouts(prompt: Prompt, rollouts: Tensor, *, backend: str | None = None) -> Prompt:
    """`G` copies of a prompt, each with the video tokens that its rollout keeps.

    Instead of repeating the whole prompt `G` times and indexing it, only the rows that survive
    are copied. Everything that is no video token stays, tokens keep their order and their original
    position ids. Exact and deterministic; gradients flow to `prompt.embeds`. Rollouts given as
    indices of one video are packed without reading anything back from the device.

    Args:
        prompt: The uncompressed prompt, or several packed ones, which together are one rollout.
        rollouts: Masks `[G, N]` bool, or flat token indices `[G, K]` int32 or int64, ascending in
            each row, as `ocss_sample` returns them. Every rollout keeps at least one token of
            every video.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        The prompts of all rollouts, packed one after another, rollout by rollout;
        `prompt_offsets` says where each begins, as attention kernels take it (`cu_seqlens`). The
        grid of a pruned video is `(1, 1, kept)`, and each video has its own question
        (`question_offsets`). `extras` are left out.

    Raises:
        InvalidInputError: for masks or indices that do not fit the prompt, a rollout that keeps
            nothing of a video, or a backend that is not to be had.

    >>> import torch
    >>> from cacovid.types import Grid
    >>> prompt = Prompt(
    ...     embeds=torch.arange(10.0).view(5, 2),
    ...     position_ids=torch.arange(5),
    ...     video_index=torch.tensor([1, 2, 3]),
    ...     question_index=torch.tensor([4]),
    ...     grid=Grid([(1, 1, 3)]),
    ... )
    >>> packed = pack_rollouts(prompt, torch.tensor([[0, 2], [1, 2]]))
    >>> packed.position_ids.tolist(), packed.prompt_offsets
    ([0, 1, 3, 4, 0, 2, 3, 4], (0, 4, 8))
    """
    _SPEC.choose(prompt.embeds.device, backend)
    return reference.pack_rollouts(prompt, rollouts)
