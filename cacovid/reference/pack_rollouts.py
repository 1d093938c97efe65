"""The compressed prompts of many rollouts, in one gather.

Only the rows that survive are copied: `G` rollouts of `K` of the `N` video tokens beside `T` tokens
of text cost `G*(T + K)` rows, where repeating the whole prompt and indexing it costs `G*(T + N)`
besides.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Prompt


def pack_rollouts(prompt: Prompt, rollouts: Tensor) -> Prompt:
    """`G` copies of a prompt, each with the video tokens that its rollout keeps.

    Everything that is no video token stays (text, separators); tokens keep their order and their
    original position ids (ALGORITHMS 1.2 item 5). Exact and deterministic; gradients flow to
    `prompt.embeds`. Rollouts given as indices of one video are packed without reading anything
    back from the device; masks, whose counts are ragged, and packs of several videos cost one
    read of the counts.

    Args:
        prompt: The uncompressed prompt, or several packed ones, which together are one rollout.
        rollouts: Masks `[G, N]` bool, or flat token indices `[G, K]` int32 or int64, ascending in
            each row, as `ocss_sample` returns them. Every rollout keeps at least one token of
            every video.

    Returns:
        The prompts of all rollouts, packed one after another, rollout by rollout:
        `prompt_offsets` says where each begins, as attention kernels take it (`cu_seqlens`). A
        pruned video has no frames of equal size any more, so that its grid is `(1, 1, kept)`;
        `video_index` and `question_index` point into the new rows, and `question_offsets` give
        each video of each rollout its own question. `extras`, which describe the tokens of the
        uncompressed video, are left out.

    Raises:
        InvalidInputError: for masks or indices whose shape, dtype or device does not fit the
            prompt, for a rollout that keeps nothing of a video, and (found on the CPU, outside of
            torch.compile) for indices that are out of range or not ascending, or a question among
            the video tokens.

    >>> prompt = Prompt(
    ...     embeds=torch.arange(10.0).view(5, 2),
    ...     position_ids=torch.arange(5),
    ...     video_index=torch.tensor([1, 2, 3]),
    ...     question_index=torch.tensor([4]),
    ...     grid=Grid([(1, 1, 3)]),
    ... )
    >>> packed = pack_rollouts(prompt, torch.tensor([[0, 2], [1, 2]]))
    >>> packed.position_ids.tolist(), packed.prompt_offsets, packed.question_index.tolist()
    ([0, 1, 3, 4, 0, 2, 3, 4], (0, 4, 8), [3, 7])
    """
    _check(prompt, rollouts)
    grid, device = prompt.grid, prompt.embeds.device
    total, groups = prompt.embeds.shape[0], rollouts.shape[0]
    counts, owner, token = _kept(grid, rollouts)

    # Everything that stays, as (rollout, row) in one integer: text first, then the kept tokens.
    is_text = torch.ones(total, dtype=torch.bool, device=device)
    is_text.index_fill_(0, prompt.video_index, False)  # an assigned False would be waited for
    texts = total - grid.num_tokens  # known here, so that no count is read back
    text = torch.sort((~is_text).to(torch.uint8), stable=True).indices[:texts]
    begins = torch.arange(groups, device=device) * total
    kept = begins[owner] + prompt.video_index[token]
    keys = torch.cat([(begins[:, None] + text).flatten(), kept])
    keys, order = keys.sort()
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=device))
    rows = keys % total

    question, question_offsets = _questions(prompt)
    if _values_are_read(question) and not bool(is_text[question].all()):
        raise InvalidInputError(
            "question_index points at video tokens; expected the places of the question's text"
        )
    number = is_text.to(torch.int64).cumsum(0) - 1  # of each text token among the text
    text_begins = torch.arange(groups, device=device) * texts
    question_index = place[(text_begins[:, None] + number[question]).flatten()]
    lengths = question.shape[0]
    return Prompt(
        embeds=prompt.embeds.index_select(0, rows),
        position_ids=prompt.position_ids.index_select(-1, rows),
        video_index=place[groups * texts :],
        question_index=question_index,
        grid=Grid([(1, 1, count) for row in counts for count in row]),
        prompt_offsets=_prompt_offsets(prompt, counts),
        question_offsets=(
            0,
            *(g * lengths + end for g in range(groups) for end in question_offsets[1:]),
        ),
    )


def _check(prompt: Prompt, rollouts: Tensor) -> None:
    tokens = prompt.grid.num_tokens
    if rollouts.dim() != 2 or rollouts.dtype not in (torch.bool, torch.int32, torch.int64):
        raise InvalidInputError(
            f"rollouts are {tuple(rollouts.shape)} {rollouts.dtype}; expected masks [G, N] bool or "
            f"token indices [G, K] int32 or int64"
        )
    if rollouts.shape[0] < 1 or rollouts.shape[1] < 1:
        raise InvalidInputError(
            f"rollouts have the shape {tuple(rollouts.shape)}; expected at least one rollout that "
            f"keeps at least one token"
        )
    if rollouts.dtype == torch.bool and rollouts.shape[1] != tokens:
        raise InvalidInputError(
            f"the masks are of {rollouts.shape[1]} tokens; the prompt's videos have {tokens}"
        )
    if rollouts.device != prompt.embeds.device:
        raise InvalidInputError(
            f"the prompt is on {prompt.embeds.device} and rollouts on {rollouts.device}; move them "
            f"to one device"
        )
    if rollouts.dtype != torch.bool and _values_are_read(rollouts):
        if bool(((rollouts < 0) | (rollouts >= tokens)).any()):
            raise InvalidInputError(
                f"rollouts hold indices from {int(rollouts.min())} to {int(rollouts.max())}; the "
                f"prompt's videos have {tokens} tokens"
            )
        if bool((rollouts.diff(dim=1) <= 0).any()):
            raise InvalidInputError(
                "the indices of a rollout do not ascend; sort each row, every token once"
            )


def _values_are_read(tensor: Tensor) -> bool:
    """Whether values are checked: a GPU would have to be waited for, a compiled graph would end."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _kept(grid: Grid, rollouts: Tensor) -> tuple[list[list[int]], Tensor, Tensor]:
    """Kept tokens per rollout and video (host), and for each kept token its rollout and index."""
    groups, device = rollouts.shape[0], rollouts.device
    if rollouts.dtype == torch.bool:
        ends = rollouts.to(torch.int64).cumsum(1)[:, grid.video_offsets(device)[1:] - 1]
        counts = torch.nn.functional.pad(ends, (1, 0)).diff(dim=1).tolist()
        owner, token = rollouts.nonzero().unbind(1)
    else:
        kept = rollouts.shape[1]
        if grid.num_videos == 1:
            counts = [[kept]] * groups
        else:
            bounds = grid.video_offsets(device).expand(groups, -1).contiguous()
            counts = torch.searchsorted(rollouts.long().contiguous(), bounds).diff(dim=1).tolist()
        owner = torch.arange(groups, device=device)[:, None].expand(-1, kept).flatten()
        token = rollouts.long().flatten()
    for g, row in enumerate(counts):
        if min(row) < 1:
            raise InvalidInputError(
                f"rollout {g} keeps no token of video {row.index(min(row))}; expected at least one"
            )
    return counts, owner, token


def _questions(prompt: Prompt) -> tuple[Tensor, tuple[int, ...]]:
    """The question's rows for each video, one after another, and where each begins."""
    if prompt.question_offsets is not None:
        return prompt.question_index, prompt.question_offsets
    videos, length = prompt.grid.num_videos, prompt.question_index.shape[0]
    return prompt.question_index.repeat(videos), tuple(length * b for b in range(videos + 1))


def _prompt_offsets(prompt: Prompt, counts: list[list[int]]) -> tuple[int, ...]:
    """Where each prompt of each rollout begins, and the number of all rows at the end."""
    offsets = prompt.prompt_offsets or (0, prompt.embeds.shape[0])
    owners = _prompt_of_each_video(prompt, offsets)
    lengths = []
    for row in counts:
        left = [end - begin for begin, end in pairwise(offsets)]
        for owner, tokens, count in zip(owners, prompt.grid.tokens_per_video, row, strict=True):
            left[owner] -= tokens - count
        lengths += left
    return tuple(accumulate(lengths, initial=0))


def _prompt_of_each_video(prompt: Prompt, offsets: tuple[int, ...]) -> list[int]:
    if len(offsets) == 2:
        return [0] * prompt.grid.num_videos
    device = prompt.video_index.device
    first = prompt.video_index[prompt.grid.video_offsets(device)[:-1]]
    ends = torch.tensor(offsets[1:], device=device)
    owners: list[int] = torch.searchsorted(ends, first, right=True).tolist()
    return owners
