"""Where everything stands in a batch of prompts: checks, placeholders, prompts, questions.

Host integers throughout: ids and mask are read from the device once, when a prompt begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError
from cacovid.types import Grid


def checked_ids(inputs: Mapping[str, Any], pixels: str | None) -> Tensor:
    """`input_ids` `[B, W]` of inputs that can be pruned; `pixels` names the input of the videos.

    Raises:
        InvalidInputError: if they hold no ids, no video, or a prompt that is embedded already.
    """
    for name in ("inputs_embeds", "past_key_values", "mm_encoder_outputs"):
        if inputs.get(name) is not None:
            raise InvalidInputError(
                f"{name} cannot be pruned; pass input_ids and pixel_values_videos as the processor "
                f"returned them"
            )
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        given = tuple(ids.shape) if isinstance(ids, Tensor) else ids
        raise InvalidInputError(f"input_ids is {given}; expected an int64 tensor [B, W]")
    if pixels is not None and inputs.get(pixels) is None:
        raise InvalidInputError(
            f"the inputs hold no video ({pixels} is missing); there is nothing to prune"
        )
    return ids


def checked_mask(inputs: Mapping[str, Any], input_ids: Tensor) -> Tensor:
    """`[B, W]` bool, False in the padding.

    Raises:
        InvalidInputError: if `attention_mask` is not of the ids' shape.
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidInputError(
            f"attention_mask is {given}; expected the shape of input_ids, {tuple(input_ids.shape)}"
        )
    return mask.bool()


def match_videos(placeholders: Sequence[int], grid: Grid, separators: int) -> tuple[int, ...]:
    """The prompt of each video, from each prompt's placeholders: they are used up in order.

    Args:
        placeholders: Video placeholders of each prompt.
        grid: The videos.
        separators: Rows after each video that are no tokens of it.

    Raises:
        InvalidInputError: if placeholders and features differ in number.
    """
    lengths = [tokens + separators for tokens in grid.tokens_per_video]
    owners: list[int] = []
    for number, left in enumerate(placeholders):
        while len(owners) < len(lengths) and lengths[len(owners)] <= left:
            left -= lengths[len(owners)]
            owners.append(number)
        if left:
            break
    if len(owners) != len(lengths) or sum(lengths) != sum(placeholders):
        raise InvalidInputError(
            f"video placeholders and features do not match: the prompts hold {list(placeholders)} "
            f"placeholders, the videos have {lengths} rows"
            f"{' (tokens and a newline)' if separators else ''}. Use the processor's own "
            f"input_ids, not truncated"
        )
    return tuple(owners)


def split_places(
    places: Tensor, grid: Grid, total: int, separators: int
) -> tuple[Tensor, Tensor]:
    """Packed places of the video tokens, and of everything else (separators among it).

    Args:
        places: `[P]` int64 on the CPU: places of all placeholders, separators included.
        grid: The packed videos.
        total: Tokens of all prompts.
        separators: Rows after each video that are no video tokens.

    Returns:
        `[N]` and `[total - N]` int64, ascending.
    """
    is_token = torch.ones(len(places), dtype=torch.bool)
    for number, end in enumerate(grid.host_video_offsets[1:]):
        is_token[end + number * separators : end + (number + 1) * separators] = False
    other = torch.ones(total, dtype=torch.bool)
    other[places[is_token]] = False
    return places[is_token], other.nonzero().flatten()


def check_images(placeholders: int, features: int) -> None:
    """Refuses another number of image features than of image placeholders.

    Raises:
        InvalidInputError: naming both numbers.
    """
    if placeholders != features:
        raise InvalidInputError(
            f"image placeholders and features do not match: {placeholders} placeholders, "
            f"{features} features. Use the processor's own input_ids, not truncated"
        )


def per_video(
    questions: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], owners: Sequence[int]
) -> tuple[list[int], tuple[int, ...]]:
    """Packed places of each video's question, and where each begins."""
    begins = offsets(rows)
    index: list[int] = []
    bounds = [0]
    for owner in owners:
        index.extend(begins[owner] + place for place in questions[owner])
        bounds.append(len(index))
    return index, tuple(bounds)


def counted_positions(inputs: Mapping[str, Any], host_mask: Tensor) -> Tensor:
    """Positions `[B, W]` of a model with one axis: those given, else tokens counted.

    Raises:
        InvalidInputError: if given ones are of another shape.
    """
    given = inputs.get("position_ids")
    if given is None:
        return host_mask.long().cumsum(-1) - 1
    if given.shape != host_mask.shape:
        raise InvalidInputError(
            f"position_ids is {tuple(given.shape)}; expected {tuple(host_mask.shape)}"
        )
    return given


def cut_mask(mask: Tensor | None, host_mask: Tensor) -> list[list[bool]] | None:
    """A question mask `[B, W]` without padding, prompt by prompt.

    Raises:
        InvalidInputError: if it is not of the ids' shape.
    """
    if mask is None:
        return None
    if mask.shape != host_mask.shape:
        raise InvalidInputError(
            f"the question mask is {tuple(mask.shape)}; expected the shape of input_ids, "
            f"{tuple(host_mask.shape)}"
        )
    return [m[row].bool().tolist() for m, row in zip(mask.cpu(), host_mask, strict=True)]


def end_ids(model: nn.Module) -> frozenset[int]:
    """The ids that end a turn."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    return frozenset(ids if isinstance(ids, (list, tuple)) else [ids] if ids is not None else [])


def pad_id(model: nn.Module) -> int:
    """What rows are padded with."""
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        ids = getattr(config, "pad_token_id", None)
        if isinstance(ids, int):
            return ids
    # Padding is masked: any id of the vocabulary serves.
    return 0


def offsets(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Where each row begins, packed, and the end."""
    sums = [0]
    for row in rows:
        sums.append(sums[-1] + len(row))
    return tuple(sums)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
