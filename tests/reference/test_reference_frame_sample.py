"""The recipe of the frame rollouts, once more in plain numbers, as a kernel would go about it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from cacovid.reference import frame_sample
from cacovid.testing.cases import token_scores

ONE = 1 << 26
F = np.float32


def bits(value: np.float32) -> int:
    (word,) = struct.unpack("<I", struct.pack("<f", value))
    return int(word)


def from_bits(word: int) -> np.float32:
    return F(struct.unpack("<f", struct.pack("<I", word))[0])


def philox(counter: list[int], seed: int) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xCD9E8D57 * c2, 0xD2511F53 * c0
        c0, c1, c2, c3 = a >> 32 ^ c1 ^ k0, a & 0xFFFFFFFF, b >> 32 ^ c3 ^ k1, b & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def mass(d: np.float32) -> int:
    d = max(d, F(-80))
    k = int(d * from_bits(0x3FB8AA3B) - F(0.5))
    r = (d - F(k) * from_bits(0x3F318000)) - F(k) * from_bits(0xB95E8083)
    p = from_bits(0x3AB60B61)
    for c in (0x3C088889, 0x3D2AAAAB, 0x3E2AAAAB, 0x3F000000, 0x3F800000, 0x3F800000):
        p = F(p * r) + from_bits(c)
    return int(p * F(2.0 ** (k + 22)) + F(0.5))


def clip_max(masses: list[int], cap: int, floor: int) -> list[int]:
    v = [m * ONE // sum(masses) for m in masses]
    out: dict[int, int] = {}
    rest = ONE
    while True:
        v = [0 if j in out else max(x, floor) for j, x in enumerate(v)]
        total = sum(v)
        v = [x * ONE // total for x in v]
        best = v.index(max(v))
        if len(out) == len(v) - 1 or v[best] <= cap:
            return [out.get(j, max(1, rest * x >> 26)) for j, x in enumerate(v)]
        out[best] = rest * cap >> 26
        rest -= out[best]
        cap = min(cap * ONE // (ONE - cap), 67041755)


def neg_log(word: int) -> np.float32:
    b = bits(F((2 * (word >> 9) + 1) / 2**24))
    k, m = (b >> 23) - 127, from_bits(b & 0x7FFFFF | 0x3F800000)
    if b & 0x7FFFFF > 0x3504F3:
        m, k = m * F(0.5), k + 1
    f = m - F(1)
    s = f / (F(2) + f)
    t, a = s * s, s + s
    q = from_bits(0x3DE38E39)
    for c in (0x3E124925, 0x3E4CCCCD, 0x3EAAAAAB):
        q = F(q * t) + from_bits(c)
    q = q * t
    return -(F(k) * from_bits(0x3F317218) + (a + a * q))


def plain_frames(scores: list[np.float32], rollouts: int, seed: int, item: int) -> list[list[int]]:
    t = len(scores)
    choose = (t + 7) // 8
    cap = max(1, round(min(3 / t, 0.999) * ONE))
    with np.errstate(over="ignore"):
        masses = [mass(F(z - max(scores))) for z in scores]
    weights = clip_max(masses, cap, max(1, ONE // t**2))
    rows = [sorted(sorted(range(t), key=lambda f: (-scores[f], f))[:choose])]
    for g in range(1, rollouts):
        words = [philox([2 << 24, f, g, item & 0xFFFFFFFF], seed)[0] for f in range(t)]
        times = [neg_log(x) / F(c) for x, c in zip(words, weights, strict=True)]
        rows.append(sorted(sorted(range(t), key=lambda f: (times[f], f))[:choose]))
    return rows


@pytest.mark.parametrize("kind", ["normal", "flat", "ties", "peaked", "huge", "tiny"])
@pytest.mark.parametrize("frames", [1, 2, 7, 33])
def test_frames_equal_the_recipe(frames: int, kind: str) -> None:
    scores = token_scores(frames, kind, seed=frames)
    seed, offset = 2**64 - 3, 2**32 - 1
    mask = frame_sample(scores, [(frames, 1, 2)], 0.5, 6, seed=seed, offset=offset)
    expected = plain_frames([F(z) for z in scores.tolist()], 6, seed, offset)
    assert [row.nonzero().flatten().tolist() for row in mask] == expected


def test_seed_and_offset_move_the_draws_and_repeat() -> None:
    scores = token_scores(40, "normal")

    def draw(seed: int, offset: int = 0) -> torch.Tensor:
        return frame_sample(scores, [(40, 1, 1)], 0.1, 6, seed=seed, offset=offset)

    assert torch.equal(draw(1), draw(1 + 2**64))
    assert torch.equal(draw(1, offset=2**32 + 3), draw(1, offset=3))
    assert not torch.equal(draw(1)[1:], draw(2)[1:])
    assert not torch.equal(draw(1)[1:], draw(1, offset=1)[1:])
    assert torch.equal(draw(1)[0], draw(2)[0])
