"""A video's rows and a question in, the kept tokens out; the same in every worker."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods import Method
from cacovid.models.prune import select
from cacovid.types import Grid, Prompt, Selection


class VideoPruner:
    """Chooses tokens by a policy or method.

    Every worker of a tensor-parallel group chooses for itself, from equal rows: scores in float32,
    ties to the lowest index, nothing drawn but from the seed. So no worker talks to another.

    Args:
        method: On the CPU; goes to the rows' device at its first use.
        seed: Of methods that draw.
    """

    def __init__(self, method: Method, seed: int = 0) -> None:
        self.method = method
        self.seed = seed

    @torch.no_grad()
    def choose(
        self,
        rows: Tensor,
        positions: Tensor,
        grid: Grid,
        retention: float,
        text: Tensor,
        text_positions: Tensor,
        asking: Tensor,
        separators: Tensor | None = None,
    ) -> Selection:
        """The kept tokens of one video.

        Args:
            rows: `[N, D]` of the vision tower, after projection.
            positions: `[N]` or `[3, N]` int64 from the video's beginning, on the host.
            grid: Of the one video.
            retention: Share to keep, in (0, 1].
            text: `[L, D]`: embeddings of the text that is read.
            text_positions: `[L]` or `[3, L]` int64, negative before the video and there first; on
                the host.
            asking: `[L]` bool: which of the text is the question; on the host.
            separators: `[E, D]`: rows right behind the video that are never dropped (with
                positions of one axis).

        Returns:
            Exactly `max(1, floor(retention * N))` tokens, ascending, on the rows' device.

        Raises:
            InvalidInputError: for NaN scores, or another number of tokens than the budget.
        """
        device = rows.device
        self._move(device)
        if separators is None:
            separators = rows[:0]
        count, more = rows.shape[0], separators.shape[0]
        axis = text_positions if text_positions.dim() == 1 else text_positions[0]
        before = int((axis < 0).sum())
        behind = (torch.arange(count, count + more)).expand(*positions.shape[:-1], -1)
        # As in the prompt: text, the video with what stands behind it, text.
        embeds = torch.cat((text[:before], rows, separators, text[before:]))
        places = torch.cat(
            (text_positions[..., :before], positions, behind, text_positions[..., before:]), dim=-1
        )
        question = asking.nonzero().flatten()
        question = torch.where(question < before, question, question + count + more)
        prompt = Prompt(
            embeds=embeds,
            # From 0: rotary embeddings tell differences, and readers expect no negative places.
            position_ids=(places - places.min()).to(device, non_blocking=True),
            video_index=torch.arange(before, before + count, device=device),
            question_index=question.to(device, non_blocking=True),
            grid=grid,
        )
        selection, _ = select(self.method, prompt, retention, seed=self.seed)
        return selection

    def _move(self, device: torch.device) -> None:
        policy = getattr(self.method, "policy", None)
        if isinstance(policy, torch.nn.Module):
            parameter = next(policy.parameters(), None)
            if parameter is not None and parameter.device != device:
                # Weights made in inference mode would have no version, by which a policy knows that
                # what it has folded is still right.
                with torch.inference_mode(False):
                    policy.to(device)
