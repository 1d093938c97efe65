"""Packed prompts without the dropped video tokens, written down as padded rows again.

The same for every model: which rows stay is known from the selection, how many from the budget, so
nothing is read back from the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.models.base import EmbeddedInputs, Positions
from cacovid.models.deepstack import DEEPSTACK
from cacovid.types import Selection


@dataclass(frozen=True)
class ShortRows:
    """Where everything of a shortened batch comes from and goes to.

    Dimensions: `B` prompts, `W` tokens of the longest shortened prompt, `R` tokens without padding.

    Args:
        kept: `[R]` int64, ascending: packed tokens that stay.
        target: `[R]` int64: their places in the rows `[B * W]`, padded on the left.
        lengths: Tokens of each shortened prompt (host integers).
        width: `W`.
    """

    kept: Tensor
    target: Tensor
    lengths: tuple[int, ...]
    width: int

    def lay_out(self, packed: Tensor, fill: float) -> Tensor:
        """Rows `[B, W, ...]` of packed values `[S, ...]`, `fill` in the padding."""
        flat = packed.new_full((len(self.lengths) * self.width, *packed.shape[1:]), fill)
        flat.index_copy_(0, self.target, packed.index_select(0, self.kept))
        return flat.view(len(self.lengths), self.width, *packed.shape[1:])


def shorten(embedded: EmbeddedInputs, selection: Selection) -> ShortRows:
    """Plans the shortened rows of a batch.

    Raises:
        InvalidInputError: if the selection is of other grids than the prompts.
    """
    grid = embedded.prompt.grid
    if selection.grid != grid:
        raise InvalidInputError(
            f"the selection is of videos {selection.grid.sizes}, the prompts hold {grid.sizes}; "
            f"select on the prompt that embed returned"
        )
    lengths = list(embedded.row_lengths)
    for row, tokens, count in zip(
        embedded.video_rows, grid.tokens_per_video, selection.counts, strict=True
    ):
        lengths[row] -= tokens - count
    video = embedded.prompt.video_index.index_select(0, selection.keep)
    kept = torch.cat((embedded.other_index, video)).sort().values
    width = max(lengths)
    places = [
        torch.arange((row + 1) * width - length, (row + 1) * width)
        for row, length in enumerate(lengths)
    ]
    return ShortRows(kept, torch.cat(places).to(kept.device), tuple(lengths), width)


def rewrite(
    embedded: EmbeddedInputs,
    selection: Selection,
    positions: Positions,
    *,
    with_embeds: bool = True,
) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `position_ids` `[B, W]` and `inputs_embeds` `[B, W, D]`.

    Where prompts have features for deeper layers, they stand behind each row's embedding,
    `[B, W, (1 + levels) * D]`, which the decoder takes while `cacovid.models.running` lasts only.

    Positions of several axes become `[1 + axes, B, W]`: a text row without gaps in front, by which
    decoders tell packed sequences apart.

    Args:
        embedded: The prompts.
        selection: The kept tokens; its own embeddings, where a method merged tokens, go in.
        positions: Whether the kept tokens keep their position ids. Compact ones are numbered
            anew within each prompt, over all axes: order and equality stay, gaps go.
        with_embeds: Whether `inputs_embeds` is wanted.

    Raises:
        InvalidInputError: for an unknown `positions`, or a selection of other grids.
    """
    if positions not in get_args(Positions):
        raise InvalidInputError(
            f"positions is {positions!r}; expected 'original' (tokens keep their positions) or "
            f"'compact' (no gaps)"
        )
    rows = shorten(embedded, selection)
    prompt = embedded.prompt
    ids = embedded.input_ids.flatten().index_select(0, embedded.source)
    mask = rows.lay_out(torch.ones_like(ids), 0)
    counted = (mask.cumsum(-1) - 1).clamp_(min=0)
    if prompt.position_ids.dim() == 2:
        axes = rows.lay_out(prompt.position_ids.T, 0).permute(2, 0, 1)
        if positions == "compact":
            axes = _without_gaps(axes, mask)
        position_ids = torch.cat((counted[None], axes))
    else:
        kept = rows.lay_out(prompt.position_ids, 0)
        position_ids = counted if positions == "compact" else kept
    out = {
        "input_ids": rows.lay_out(ids, embedded.pad_id),
        "attention_mask": mask,
        "position_ids": position_ids,
    }
    if with_embeds:
        embeds = prompt.embeds
        if selection.embeds is not None:
            video = prompt.video_index.index_select(0, selection.keep)
            embeds = embeds.index_copy(0, video, selection.embeds.to(embeds))
        parts = (embeds, *prompt.extras.get(DEEPSTACK, ()))
        out["inputs_embeds"] = torch.cat([rows.lay_out(part, 0.0) for part in parts], dim=-1)
    return out


def _without_gaps(axes: Tensor, mask: Tensor) -> Tensor:
    """Positions `[A, B, W]` numbered by rank among all that a prompt uses on any axis, from 0."""
    shown = mask.bool().expand_as(axes)
    used = axes.masked_fill(~shown, torch.iinfo(axes.dtype).max).transpose(0, 1).flatten(1)
    ordered, order = used.sort(dim=1)
    step = torch.zeros_like(ordered)
    step[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ranks = torch.empty_like(ordered).scatter_(1, order, step.cumsum(1))
    return ranks.view(axes.shape[1], axes.shape[0], -1).transpose(0, 1).masked_fill(~shown, 0)


def shorten_like_ids(
    embedded: EmbeddedInputs, selection: Selection, name: str, value: Tensor
) -> Tensor:
    """A further input of the prompt's shape `[B, W, ...]` (labels, token types), shortened alike.

    Labels are padded with -100, everything else with 0.
    """
    packed = value.flatten(0, 1).index_select(0, embedded.source.to(value.device))
    return shorten(embedded, selection).lay_out(packed, -100 if name == "labels" else 0)
