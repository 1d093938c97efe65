"""Philox4x32-10, the one source of random numbers (Salmon et al., SC 2011).

**Recipe** (normative for every backend; all integers unsigned 32-bit, products 64-bit):

- multipliers `M0 = 0xD2511F53`, `M1 = 0xCD9E8D57`; Weyl constants `W0 = 0x9E3779B9`,
  `W1 = 0xBB67AE85`;
- key `(k0, k1) = (seed & 0xFFFFFFFF, seed >> 32)`, the seed taken modulo 2**64;
- ten rounds of `(c0, c1, c2, c3) <- (hi(M1*c2) ^ c1 ^ k0, lo(M1*c2), hi(M0*c0) ^ c3 ^ k1,
  lo(M0*c0))`, and between two rounds `(k0, k1) <- (k0 + W0, k1 + W1)`.

**Streams.** A sampler numbers its draws `t = 0, 1, 2, ...` for each (video, frame, rollout). Draw
`t` is word `t & 3` of the block whose counter is

    c0 = (t >> 2) | (op << 24)          t < 2**26
    c1 = frame within its video
    c2 = rollout
    c3 = (offset + index of the video in the call) modulo 2**32

`op` numbers the samplers (`OP_OCSS = 1`, `OP_FRAME = 2`, `OP_BERNOULLI = 4`; 3 is the method
`random`), so that they never share a stream. Item `i` of a batch therefore equals that video alone
at `offset + i`.

**Uniform numbers.** `u = (2*(x >> 9) + 1) / 2**24`: odd multiples of 2**-24, exact in float32,
never 0 and never 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers of the samplers in the top byte of the first counter word.
OP_OCSS = 1
OP_FRAME = 2
OP_BERNOULLI = 4

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def _multiply(value: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    # The int64 product may wrap; its bits are those of the unsigned product, and the mask removes
    # the sign extension of the shift.
    product = value * factor
    return (product >> 32) & _LOW, product & _LOW


def philox4x32(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on counters that broadcast against each other.

    Args:
        c0: int64 tensor holding unsigned 32-bit values; so are `c1`, `c2`, `c3`.
        c1: Second counter word.
        c2: Third counter word.
        c3: Fourth counter word.
        seed: The key, taken modulo 2**64.

    Returns:
        Four int64 tensors of the broadcast shape, each value in [0, 2**32).

    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> [f"{int(word):08x}" for word in philox4x32(zero, zero, zero, zero, 0)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    for _ in range(10):
        hi0, lo0 = _multiply(c0, _M0)
        hi1, lo1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def draw_words(
    op: int,
    frames: Tensor,
    rollouts: Tensor,
    item: int,
    count: int,
    seed: int,
) -> Tensor:
    """The first `count` draws of every (rollout, frame) stream of one video.

    Args:
        op: Number of the sampler.
        frames: `[t]` int64, frame numbers within the video.
        rollouts: `[G]` int64, rollout numbers.
        item: `offset + index of the video`, taken modulo 2**32.
        count: Draws wanted per stream, below 2**26.
        seed: Key, taken modulo 2**64.

    Returns:
        `[G, t, count]` int64, each value in [0, 2**32).
    """
    blocks = (count + 3) // 4
    c0 = torch.arange(blocks, device=frames.device) | (op << 24)
    c3 = torch.tensor(item & _LOW, device=frames.device)
    words = philox4x32(c0[None, None, :], frames[None, :, None], rollouts[:, None, None], c3, seed)
    return torch.stack(words, dim=-1).flatten(2)[..., :count]
