"""`visionzip`: tokens that the vision tower attends to, the others merged (VisionZip)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.exact import exact_unit_rows
from cacovid.methods.ranking import best, ranks
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens, even_shares


class VisionZipMethod(PerVideoMethod):
    """Dominant tokens by received attention, contextual ones by merging; each frame on its own.

    A frame's even share of the budget goes to 54/64 (rounded) to the tokens that received the most
    attention in the vision tower's penultimate layer, averaged over heads and queries. Of the other
    `m` tokens the rest of the share, at places `floor(j * m / c)`, are targets; every token left is
    averaged into the target whose key of that layer is most similar, the first of equal ones.
    """

    name = "visionzip"
    needs = frozenset({"vision_attention", "vision_keys"})

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses and merges the tokens; see `PerVideoMethod.choose`."""
        frames = video.frames
        t, n, _ = frames.shape
        device = frames.device
        attention = video.extras["vision_attention"].float().view(t, n)
        keys = exact_unit_rows(video.extras["vision_keys"].float()).view(t, n, -1)
        kept = torch.zeros(t, n, dtype=torch.bool, device=device)
        embeds = frames.clone()
        shares = even_shares(count, t)
        # Shares differ by one at most: two batches of frames.
        for share in sorted(set(shares) - {0}):
            places = torch.tensor([f for f, own in enumerate(shares) if own == share]).to(device)
            dominant = (54 * share + 32) // 64
            targets = share - dominant
            chosen = ranks(attention[places]) < dominant
            if targets:
                others = torch.sort(chosen.to(torch.uint8), dim=1, stable=True).indices
                others = others[:, : n - dominant]
                target, mean = _merge(frames[places], keys[places], others, targets)
                chosen = chosen.scatter(1, target, True)
                rows = embeds[places].scatter(1, target[..., None].expand_as(mean), mean)
                embeds[places] = rows
            kept[places] = chosen
        keep = best(kept.flatten().to(torch.float32), count)
        return Choice(keep, embeds.flatten(0, 1).index_select(0, keep))


def _merge(frames: Tensor, keys: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Targets `[F, c]` among the `others` `[F, m]` of each frame, and their means `[F, c, D]`."""
    m = others.shape[1]
    places = torch.tensor([j * m // count for j in range(count)]).to(others.device)
    target = others.index_select(1, places)
    rows = frames.gather(1, others[..., None].expand(-1, -1, frames.shape[-1]))
    own_keys = keys.gather(1, others[..., None].expand(-1, -1, keys.shape[-1]))
    alike = own_keys @ own_keys.index_select(1, places).transpose(1, 2)
    into = alike.argmax(dim=-1)
    # A target stays with itself, also where another one has the same key.
    into.index_copy_(
        1, places, torch.arange(count, device=into.device).expand(len(into), -1).contiguous()
    )
    sums = rows.new_zeros(len(rows), count, rows.shape[-1]).scatter_add_(
        1, into[..., None].expand_as(rows), rows
    )
    sizes = rows.new_zeros(len(rows), count).scatter_add_(1, into, rows.new_ones(into.shape))
    return target, sums / sizes[..., None]
