"""The arithmetic that every backend must reproduce bit for bit.

**Recipe** (normative). Floating point is IEEE binary32, round to nearest even, no fused
multiply-add, no flush to zero; `trunc` is conversion to an integer toward zero. Everything else is
integer arithmetic (64-bit unless said otherwise), `//` on non-negative integers.

1. `sort_key(z)`: the bits `b` of the float32 score, with -0.0 first replaced by +0.0; the key is
   `~b` when the sign bit is set, else `b | 0x80000000` (unsigned 32-bit). Larger key = larger
   score. Ranking is by descending key, ties to the lowest index.
2. `exp32(d)` for `d <= 0`, as a pair `(p, k)` that stands for `p * 2**k`:

       d = max(d, -80);  y = d * 1.44269502 (0x3FB8AA3B);  k = trunc(y - 0.5);  f = float(k)
       r = (d - f * 0.693359375) - f * (-2.12194440e-4)           (0x3F318000, 0xB95E8083)
       p = 1/720; then for c in 1/120, 1/24, 1/6, 1/2, 1, 1:  p = p * r + c

   each product and sum rounded on its own. Constants as float32: 1/720 = 0x3AB60B61, 1/120 =
   0x3C088889, 1/24 = 0x3D2AAAAB, 1/6 = 0x3E2AAAAB.
3. `mass(d) = trunc(p * 2**(k + 22) + 0.5)`: exp(d) in 22-bit fixed point, `mass(0) = 2**22`. The
   power of two is made from its exponent bits and the product with it is exact.
4. `neg_log(x)` of a random word `x`, `-log(u)` with `u = (2*(x >> 9) + 1) / 2**24`: let `b` be the
   bits of float32 `u`, `k = (b >> 23) - 127`, `m` the float with the mantissa bits of `b` and
   exponent 0 (in [1, 2)). If `b & 0x7FFFFF > 0x3504F3` (sqrt 2): `m = m * 0.5`, `k = k + 1`. Then

       f = m - 1;  s = f / (2 + f);  t = s * s;  a = s + s
       q = 1/9; then for c in 1/7, 1/5, 1/3:  q = q * t + c;   q = q * t
       neg_log = -(float(k) * 0.693147182 (0x3F317218) + (a + a * q))

   with 1/9 = 0x3DE38E39, 1/7 = 0x3E124925, 1/5 = 0x3E4CCCCD, 1/3 = 0x3EAAAAAB. (`a + a*q` is
   log m by the series of artanh.) The result is positive.
5. Probabilities are fixed point with `ONE = 2**26`. `clip_max(M, cap, floor)` of the masses
   `M_j` (int64, sum `S > 0`, each `M_j < 2**37`), the form of `reference.clip_max` in integers:

       v_j = (M_j * ONE) // S;  rest = ONE;  fixed = {}
       repeat:
           v_j = max(v_j, floor), and 0 for j in fixed;  s = sum of v;  v_j = (v_j * ONE) // s
           b = lowest index of the largest v
           if all but one are fixed, or v_b <= cap:
               out_j = max(1, (rest * v_j) >> 26) for j not in fixed;  stop
           out_b = (rest * cap) >> 26;  rest = rest - out_b;  fixed += {b}
           cap = min((cap * ONE) // (ONE - cap), CAP_LIMIT)

   with `CAP_LIMIT = 67041755` (0.999). The first `cap` comes from `fixed_cap`, computed on the
   host in float64. `floor` is `max(1, ONE // len**2)`. The outputs need not sum to `ONE`: a draw
   uses their own sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Bits of a mass, and of a probability.
MASS_BITS = 22
PROB_BITS = 26
ONE = 1 << PROB_BITS
#: 0.999 in fixed point: no level of `clip_max` gives more to one entry.
CAP_LIMIT = 67041755
#: Entries (tokens of a frame, frames of a video) for which no integer overflows.
MAX_ENTRIES = 32767

_LOG2E = 1.44269502162933349609375
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_LN2 = 0.693147182464599609375
_EXP_COEFFICIENTS = (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def _f32(value: float, like: Tensor) -> Tensor:
    # A 0-dim float32 tensor: a Python number would be held in float64 by some kernels.
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)


def sort_key(scores: Tensor) -> Tensor:
    """Order-preserving unsigned 32-bit keys of float32 scores (recipe 1).

    Args:
        scores: Any shape, float32, no NaN.

    Returns:
        int64 of the same shape, each value in [0, 2**32).
    """
    positive_zero = scores.masked_fill(scores == 0, 0.0)
    bits = positive_zero.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


def rank(scores: Tensor) -> Tensor:
    """Indices by descending score along the last dimension, ties to the lowest index (int64)."""
    return torch.sort(sort_key(scores), dim=-1, descending=True, stable=True).indices


def exp32(d: Tensor) -> tuple[Tensor, Tensor]:
    """`exp(d)` of float32 `d <= 0` as `(p, k)`, standing for `p * 2**k` (recipe 2)."""
    d = torch.maximum(d, _f32(-80.0, d))
    k = (d * _f32(_LOG2E, d) - _f32(0.5, d)).to(torch.int64)
    f = k.to(torch.float32)
    r = (d - f * _f32(_LN2_HIGH, d)) - f * _f32(_LN2_LOW, d)
    p = _f32(1 / 720, d).expand_as(d)
    for coefficient in _EXP_COEFFICIENTS:
        p = p * r
        p = p + _f32(coefficient, d)
    return p, k


def mass(d: Tensor) -> Tensor:
    """`exp(d)` of float32 `d <= 0` in 22-bit fixed point, int64 in [0, 2**22] (recipe 3)."""
    p, k = exp32(d)
    return (p * _power_of_two(k + MASS_BITS) + _f32(0.5, d)).to(torch.int64)


def exp_value(d: Tensor) -> Tensor:
    """`exp(d)` of float32 `d <= 0` as a float32 (`d` below -80 counts as -80)."""
    p, k = exp32(d)
    return p * _power_of_two(k)


def neg_log(words: Tensor) -> Tensor:
    """Exponentially distributed float32 numbers from random words (recipe 4).

    Args:
        words: int64 of any shape, each value in [0, 2**32).
    """
    u = ((words >> 9) * 2 + 1).to(torch.float32) * _f32(2.0**-24, words)
    bits = u.view(torch.int32).to(torch.int64)
    k, mantissa = (bits >> 23) - 127, bits & 0x7FFFFF
    above = mantissa > 0x3504F3
    exponent = torch.where(above, -1, 0)
    m = (mantissa | ((exponent + 127) << 23)).to(torch.int32).view(torch.float32)
    f = m - _f32(1.0, words)
    s = f / (_f32(2.0, words) + f)
    t, a = s * s, s + s
    q = _f32(1 / 9, words).expand_as(t)
    for coefficient in (1 / 7, 1 / 5, 1 / 3):
        q = q * t
        q = q + _f32(coefficient, words)
    q = q * t
    log_m = a + a * q
    return -((k + above.to(torch.int64)).to(torch.float32) * _f32(_LN2, words) + log_m)


def fixed_cap(cap: float) -> int:
    """`cap` (limited to 0.999) in fixed point, rounded half to even, at least 1."""
    return max(1, round(min(cap, 0.999) * ONE))


def fixed_floor(entries: int) -> int:
    """The floor `1 / entries**2` in fixed point, at least 1."""
    return max(1, ONE // (entries * entries))


def clip_max_fixed(masses: Tensor, cap: int, floor: int) -> Tensor:
    """Cap the largest probabilities of integer masses (recipe 5).

    Args:
        masses: `[R, l]` int64, non-negative, each row with a positive sum.
        cap: First cap, fixed point with `ONE`; `ONE` itself disables capping.
        floor: Least probability, fixed point.

    Returns:
        `[R, l]` int64 weights, each at least 1, about `ONE` in sum.
    """
    rows, entries = masses.shape
    v = masses * ONE // masses.sum(1, keepdim=True)
    fixed = torch.zeros_like(v, dtype=torch.bool)
    out = torch.zeros_like(v)
    # Every row still in the loop has fixed the same number of entries, so that `cap` and `rest`
    # are the same for all of them.
    rest = ONE
    active = torch.ones(rows, dtype=torch.bool, device=v.device)
    for level in range(entries):
        v = v.clamp(min=floor).masked_fill(fixed, 0)
        v = v * ONE // v.sum(1, keepdim=True)
        index = v.argmax(1, keepdim=True)  # the first of equals, as documented
        largest = v.gather(1, index)[:, 0]
        stop = active if level == entries - 1 else active & (largest <= cap)
        final = ((rest * v) >> PROB_BITS).clamp(min=1)
        out = torch.where(stop[:, None] & ~fixed, final, out)
        active = active & ~stop
        if not bool(active.any()):
            break
        share = (rest * cap) >> PROB_BITS
        here = torch.zeros_like(fixed).scatter_(1, index, True) & active[:, None]
        out = torch.where(here, share, out)
        fixed = fixed | here
        rest -= share
        cap = min(cap * ONE // (ONE - cap), CAP_LIMIT)
    return out
