"""What earlier questions on the same videos kept, held within a budget."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import PerVideo, Selection


class SelectionMemory:
    """The union of the selections so far, at most `max_retention` of each video.

    A question's own tokens are always kept. Where the union is larger than the budget, the tokens
    that were selected longest ago go, among those of the same question the highest indices first.
    A token that has gone comes back only when it is selected again. Deterministic.

    Args:
        max_retention: `R` in (0, 1], one number or one per video: `max(1, floor(R*N))` tokens at
            most.

    >>> from cacovid import Grid
    >>> memory = SelectionMemory(0.5)
    >>> grid = Grid([(1, 2, 4)])
    >>> memory.merge(Selection(torch.tensor([0, 5]), grid, (2,))).keep.tolist()
    [0, 5]
    >>> memory.merge(Selection(torch.tensor([1, 5]), grid, (2,))).keep.tolist()
    [0, 1, 5]
    >>> memory.merge(Selection(torch.tensor([6, 7]), grid, (2,))).keep.tolist()
    [1, 5, 6, 7]
    """

    def __init__(self, max_retention: PerVideo) -> None:
        self.max_retention = max_retention
        #: How many selections were merged.
        self.questions = 0
        #: The union after the last of them; None before the first.
        self.kept: Selection | None = None
        self._selected_at: Tensor | None = None

    def merge(self, selection: Selection) -> Selection:
        """The union of a new selection and those before it.

        How large the union is, is known to the device alone: this waits for it, once.

        Args:
            selection: What was selected for the new question.

        Returns:
            The tokens to keep, ascending.

        Raises:
            InvalidInputError: for other videos than before, a selection larger than the budget, or
                one with tokens of its own (a method that merges): merged tokens have no union.
        """
        if selection.embeds is not None:
            raise InvalidInputError(
                "the selection holds merged tokens, which have no union with those of another "
                "question; use a method that selects, or mode='fresh'"
            )
        if self.kept is not None and self.kept.grid != selection.grid:
            raise InvalidInputError(
                f"the selection is of videos {selection.grid.sizes}, those before it were of "
                f"{self.kept.grid.sizes}; begin with a new SelectionMemory for other videos"
            )
        limits = selection.grid.budgets(self.max_retention)
        if any(count > limit for count, limit in zip(selection.counts, limits, strict=True)):
            raise InvalidInputError(
                f"the selection has {selection.counts} tokens, max_retention={self.max_retention} "
                f"allows {limits}; give a max_retention of at least the retention"
            )
        seen = self._selected_at
        if seen is None:
            seen = selection.keep.new_zeros(selection.grid.num_tokens)
        self.questions += 1
        # A copy: what a caller holds of earlier selections stays as it is.
        seen = seen.index_fill(0, selection.keep.to(seen.device), self.questions)
        offsets = selection.grid.host_video_offsets
        parts = []
        for begin, end, limit in zip(offsets, offsets[1:], limits, strict=False):
            own = seen[begin:end]
            # Latest first, lowest index first among those of one question.
            order = torch.sort(own, descending=True, stable=True).indices[:limit]
            parts.append(begin + order[own[order] > 0].sort().values)
        keep = torch.cat(parts)
        self._selected_at = seen
        self.kept = Selection(keep, selection.grid, tuple(len(part) for part in parts))
        return self.kept
