"""Stage 1: the vision tower and projector, by dense supervision of every token.

Each pooled token is told what it shows: colour, shape and pattern of its object against the
*word embeddings* of those words (so that vision and language are aligned from the start), where
the object's centre lies, and whether the object is brief, big or absent. Then features of all
clips are computed once; the language model is trained on those.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.synthetic import world
from cacovid.synthetic.tiny.checkpoint import load_checkpoint, save_checkpoint
from cacovid.synthetic.tiny.data import Clip, clip_frames
from cacovid.synthetic.tiny.model import TEXT_WIDTH
from cacovid.synthetic.tiny.optimizers import Optimizers


class DenseHeads(nn.Module):
    """Heads of stage 1; thrown away after it, except for the word embeddings they shape."""

    def __init__(self, embedding: nn.Embedding, tokenizer: Any) -> None:
        super().__init__()
        self.embedding = embedding
        for name, words in (
            ("colour", world.COLOUR_NAMES),
            ("shape", world.SHAPES),
            ("pattern", world.PATTERNS),
        ):
            ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(words)))
            self.register_buffer(name, ids, persistent=False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.kind = nn.Linear(TEXT_WIDTH, 3)
        self.column = nn.Linear(TEXT_WIDTH, world.CELLS)
        self.row = nn.Linear(TEXT_WIDTH, world.CELLS)
        self.offset = nn.Linear(TEXT_WIDTH, 2)

    def words(self, features: Tensor, name: str) -> Tensor:
        """Logits `[T, words]` of features `[T, D]` over the words of one attribute."""
        table = self.embedding.weight[getattr(self, name)]
        return self.scale * features @ table.T


def targets(clips: list[Clip]) -> dict[str, Tensor]:
    """Per token, flat over clips: colour, shape, pattern (-100 if none), kind, offset."""
    owner = np.stack([clip.owner for clip in clips])
    tables = [np.concatenate([clip.items, np.full((1, 8), -100)]) for clip in clips]
    rows = np.stack([table[o] for table, o in zip(tables, owner, strict=True)])
    none = owner < 0
    kind = np.where(none, 0, np.where(rows[..., 7] == 1, 1, 2))
    offset = np.stack([clip.offset for clip in clips]).astype(np.float32)
    return {
        "colour": torch.from_numpy(rows[..., 0].reshape(-1).astype(np.int64)),
        "shape": torch.from_numpy(rows[..., 1].reshape(-1).astype(np.int64)),
        "pattern": torch.from_numpy(rows[..., 2].reshape(-1).astype(np.int64)),
        "kind": torch.from_numpy(kind.reshape(-1)),
        "offset": torch.from_numpy(offset.reshape(-1, 2)),
    }


def pixels(frames: np.ndarray) -> Tensor:
    """uint8 `[..., H, W, 3]` to the model's `[..., 3, H, W]`, (x / 255 - 0.5) / 0.5."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1.0


def video_features(model: Any, frames: np.ndarray) -> Tensor:
    """Projected, pooled features of clips, `[clips * F * 36, D]` (without the newline token)."""
    clips, count = frames.shape[:2]
    out = model.model.get_video_features(
        pixels(frames), vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    out = getattr(out, "pooler_output", out)
    return out.reshape(clips, -1, out.shape[-1])[:, : count * world.CELLS**2].flatten(0, 1)


def train_vision(
    model: Any,
    tokenizer: Any,
    clips: list[Clip],
    frames: list[np.ndarray],
    folder: Path,
    steps: int,
    batch: int = 4,
    rate: float = 5e-3,
    seed: int = 0,
) -> None:
    """Trains tower, projector and the attribute words' embeddings; resumable.

    Args:
        rate: Of Muon; AdamW's is half of it. Warm-up over a tenth of the steps, then a half
            cosine to nothing.
    """
    heads = DenseHeads(model.get_input_embeddings(), tokenizer)
    parts = [model.model.vision_tower, model.model.multi_modal_projector, heads]
    weights = [w for part in parts for w in part.parameters()]
    layers = model.model.vision_tower.encoder.layers
    optimizers = Optimizers(weights, [p for p in layers.parameters() if p.ndim == 2], 0.05)
    modules = {"model": model, "heads": heads}
    start = load_checkpoint(folder / "vision.pt", modules, optimizers)
    began = time.monotonic()
    for step in range(start, steps):
        warm = min(1.0, (step + 1) / (0.1 * steps))
        optimizers.set_rate(rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps)))
        rng = np.random.default_rng([seed, 1, step])
        chosen = rng.integers(0, len(clips), batch)
        truth = targets([clips[i] for i in chosen])
        with torch.autocast("cpu", torch.bfloat16):
            features = video_features(model, clip_frames(frames, chosen)).float()
        losses = dense_losses(heads, features, truth)
        optimizers.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizers.step()
        if step % 50 == 49:
            with torch.no_grad():
                right = {
                    n: accuracy(heads, features, truth, n) for n in ("colour", "shape", "pattern")
                }
            said = " ".join(f"{name} {value:.3f}" for name, value in right.items())
            print(f"vision {step + 1}/{steps} {time.monotonic() - began:.0f}s {said}", flush=True)
        if step % 500 == 499 or step == steps - 1:
            save_checkpoint(folder / "vision.pt", step + 1, modules, optimizers)


def dense_losses(
    heads: DenseHeads, features: Tensor, truth: dict[str, Tensor]
) -> dict[str, Tensor]:
    """One loss, a scalar, per thing that a token is told; features `[T, D]`, `targets` of them."""
    cell = torch.arange(features.shape[0]) % world.CELLS**2
    brief = truth["kind"] == 1
    # Big objects cover most labelled tokens; questions ask for brief ones.
    weight = torch.where(brief, 1.0, 0.4)
    losses = {}
    for name in ("colour", "shape", "pattern"):
        each = F.cross_entropy(heads.words(features, name), truth[name], reduction="none")
        seen = (truth[name] >= 0) * weight
        losses[name] = (each * seen).sum() / seen.sum().clamp(min=1)
    losses["kind"] = F.cross_entropy(heads.kind(features), truth["kind"])
    losses["column"] = 0.3 * F.cross_entropy(heads.column(features), cell % world.CELLS)
    losses["row"] = 0.3 * F.cross_entropy(heads.row(features), cell // world.CELLS)
    away = (heads.offset(features) - truth["offset"]).square().sum(dim=1)
    losses["offset"] = (away * brief).sum() / brief.sum().clamp(min=1)
    return losses


def accuracy(heads: DenseHeads, features: Tensor, truth: dict[str, Tensor], name: str) -> float:
    """Share of brief objects' tokens whose attribute is named rightly; features `[T, D]`."""
    brief = truth["kind"] == 1
    right = heads.words(features, name).argmax(dim=1) == truth[name]
    return float(right[brief].float().mean())


@torch.no_grad()
def compute_features(model: Any, frames: list[np.ndarray], count: int, chunk: int = 8) -> Tensor:
    """Features of `count` clips, `[count, 576, D]` float16."""
    model.eval()
    out = torch.empty(count, world.CLIP_TOKENS, TEXT_WIDTH, dtype=torch.float16)
    for begin in range(0, count, chunk):
        indices = range(begin, min(begin + chunk, count))
        with torch.autocast("cpu", torch.bfloat16):
            part = video_features(model, clip_frames(frames, indices))
        out[begin : begin + len(indices)] = part.reshape(len(indices), -1, TEXT_WIDTH).half()
    model.train()
    return out
