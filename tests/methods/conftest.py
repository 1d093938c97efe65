"""Packed prompts with features, a question and every extra that a method may ask for."""

from __future__ import annotations

import pytest
import torch

from cacovid.types import Grid, Prompt

WIDTH = 12
KEYS = 6

#: Extras `[N]` or `[N, D_v]`, and their width (0: one number).
EXTRAS = {
    "received_attention/1/last": 0,
    "vision_attention": 0,
    "vision_keys": KEYS,
    "evidence": 0,
}


def pack(videos, questions, extras=None, dtype=torch.float32) -> Prompt:
    """A packed prompt of videos `[t, h, w, D]`, each with its question `[L, D]`."""
    grid = Grid([tuple(video.shape[:3]) for video in videos])
    rows, places, words, offsets, question_offsets = [], [], [], [0], [0]
    for video, question in zip(videos, questions, strict=True):
        begin = offsets[-1] + 1
        flat = video.flatten(0, 2)
        rows += [torch.zeros(1, video.shape[-1]), flat, question]
        places.append(torch.arange(begin, begin + len(flat)))
        words.append(torch.arange(begin + len(flat), begin + len(flat) + len(question)))
        offsets.append(begin + len(flat) + len(question))
        question_offsets.append(question_offsets[-1] + len(question))
    embeds = torch.cat(rows).to(dtype)
    return Prompt(
        embeds=embeds,
        position_ids=torch.arange(len(embeds)),
        video_index=torch.cat(places),
        question_index=torch.cat(words),
        grid=grid,
        prompt_offsets=tuple(offsets),
        question_offsets=tuple(question_offsets),
        extras=dict(extras or {}),
    )


def random_video(size, seed):
    """Features that drift from frame to frame, with a cut in the middle, and the extras."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = size
    still = torch.randn(h, w, WIDTH, generator=generator)
    other = torch.randn(h, w, WIDTH, generator=generator)
    noise = torch.randn(t, h, w, WIDTH, generator=generator)
    moving = torch.rand(t, h, w, 1, generator=generator) < 0.4
    base = torch.where(torch.arange(t)[:, None, None, None] < (t + 1) // 2, still, other)
    video = base + noise * (0.05 + 1.5 * moving)
    extras = {
        name: torch.rand(t * h * w, *([width] if width else []), generator=generator)
        for name, width in EXTRAS.items()
    }
    extras["evidence"] = extras["evidence"] < 0.1
    return video, torch.randn(3, WIDTH, generator=generator), extras


def random_prompt(sizes, seeds, dtype=torch.float32) -> Prompt:
    """A packed prompt of random videos; video `i` depends on `seeds[i]` and its size alone."""
    made = [random_video(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    videos, questions, extras = zip(*made, strict=True)
    return pack(
        videos, questions, {name: torch.cat([e[name] for e in extras]) for name in EXTRAS}, dtype
    )


def kept_of_each(selection) -> list[list[int]]:
    """Kept tokens of each video, counted from its own first."""
    begins = selection.grid.host_video_offsets[:-1]
    parts = selection.keep.split(selection.counts)
    return [(part - begin).tolist() for part, begin in zip(parts, begins, strict=True)]


@pytest.fixture(scope="session")
def make():
    """What tests make prompts with."""
    from types import SimpleNamespace

    return SimpleNamespace(
        pack=pack, random_prompt=random_prompt, kept_of_each=kept_of_each, width=WIDTH
    )
