"""The colours of the overlays, and how scores become colours."""

from __future__ import annotations

import numpy as np

#: Ten equally spaced colours of the viridis map: even in brightness, safe for colour-blind eyes.
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 74, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (109, 205, 89),
        (180, 222, 44),
        (253, 231, 37),
    ],
    dtype=np.float32,
)

BACKGROUND = (18, 20, 26)
PANEL = (30, 33, 42)
TEXT = (236, 238, 243)
MUTED = (150, 156, 170)
ACCENT = (255, 205, 84)
OUTLINE = (255, 255, 255)
HALO = (8, 8, 10)
BAR = (92, 98, 114)
CURRENT = (58, 62, 76)
KEPT = (104, 128, 158)
DROPPED_SCORED = (49, 78, 104)
DROPPED_PLAIN = (52, 54, 60)

#: Percentiles between which the colours run; what lies outside gets the end's colour, so that one
#: extreme score does not turn the rest dark.
_PERCENTILES = (1.0, 99.0)


def viridis(values: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1].

    Args:
        values: Any shape; clipped to [0, 1].

    Returns:
        float32 of the same shape with 3 more at the end, in [0, 255].
    """
    position = np.clip(values, 0.0, 1.0) * (len(_VIRIDIS) - 1)
    return np.stack(
        [np.interp(position, np.arange(len(_VIRIDIS)), _VIRIDIS[:, c]) for c in range(3)], axis=-1
    ).astype(np.float32)


def score_range(scores: np.ndarray) -> tuple[float, float]:
    """The scores at the two ends of the colour map, `low <= high`.

    Args:
        scores: `[N]` float; infinite ones are left aside.
    """
    finite = scores[np.isfinite(scores)]
    if finite.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(finite.astype(np.float64), _PERCENTILES)
    return float(low), float(high)


def normalised(scores: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """`(score - low) / (high - low)` in [0, 1]; 0.5 everywhere if all scores are equal."""
    low, high = limits
    if not high > low:
        return np.full(scores.shape, 0.5)
    with np.errstate(invalid="ignore"):
        return np.clip((scores.astype(np.float64) - low) / (high - low), 0.0, 1.0)
