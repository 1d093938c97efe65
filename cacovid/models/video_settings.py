"""What a processor's JSON says is done to a frame, and doing it without torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cacovid.errors import UnsupportedModelError

#: `resample` of the JSON (Pillow's numbers) in torch's words.
_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class VideoSettings:
    """What is done to a frame, as the processor's JSON says it.

    Args:
        height: Height of the model's frames in pixels.
        width: Width of the model's frames in pixels.
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        resample: `"bicubic"`, `"bilinear"` or `"nearest-exact"`.
        rescale: Factor from uint8 to the range of `mean`.
        num_image_tokens: Patches of a frame before the model's 2 x 2 pooling.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"
    rescale: float = 1 / 255
    num_image_tokens: int = 729

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame after pooling: `ceil(sqrt(num_image_tokens) / 2)^2`."""
        return math.ceil(math.isqrt(self.num_image_tokens) / 2) ** 2

    def resized(self, frames: Tensor, height: int, width: int) -> Tensor:
        """uint8 frames `[F, 3, H, W]` in another size."""
        if tuple(frames.shape[-2:]) == (height, width):
            return frames
        smooth = self.resample != "nearest-exact"
        # In uint8, as torchvision does: torch rounds and clamps inside, with integer weights.
        return functional.interpolate(
            frames, size=(height, width), mode=self.resample,
            antialias=smooth, align_corners=False if smooth else None,
        )  # fmt: skip

    def normalised(self, frames: Tensor) -> Tensor:
        """float32 `[F, 3, H, W]` of uint8 frames: rescaled, by mean and deviation."""
        # One step, with the rescaling inside mean and std, as the fast processor does.
        mean = torch.tensor(self.mean) * (1.0 / self.rescale)
        std = torch.tensor(self.std) * (1.0 / self.rescale)
        return (frames.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def fixed_size_settings(video: Mapping[str, Any], common: Mapping[str, Any]) -> VideoSettings:
    """Settings of a processor whose frames all have one size.

    Args:
        video: Its settings for videos.
        common: Those of the processor as a whole.

    Raises:
        UnsupportedModelError: if they ask for something that is not done here.
    """
    size = video.get("size") or {}
    if "height" not in size or "width" not in size:
        raise UnsupportedModelError(
            f"the processor resizes to {size}; expected a fixed height and width. Install "
            f"torchvision to use the model's own processor"
        )
    tokens = common.get("num_image_tokens") or video.get("num_image_tokens")
    return VideoSettings(
        height=int(size["height"]),
        width=int(size["width"]),
        num_image_tokens=int(tokens or 729),
        **pixel_settings(video),
    )


def pixel_settings(video: Mapping[str, Any], **defaults: tuple[float, ...]) -> dict[str, Any]:
    """`mean`, `std`, `resample` and `rescale` of a processor's JSON.

    Args:
        video: The JSON.
        **defaults: `mean` and `std` of the family, where the JSON says nothing.

    Raises:
        UnsupportedModelError: for settings that are not done here.
    """
    resample = int(video.get("resample", 3))
    wanted = all(video.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize"))
    if resample not in _RESAMPLE or not wanted:
        raise UnsupportedModelError(
            f"the processor's settings (resample={resample}, steps left out: {not wanted}) are not "
            f"done here. Install torchvision to use the model's own processor"
        )
    half = (0.5, 0.5, 0.5)
    return {
        "mean": tuple(video.get("image_mean") or defaults.get("mean", half)),
        "std": tuple(video.get("image_std") or defaults.get("std", half)),
        "resample": _RESAMPLE[resample],
        "rescale": float(video.get("rescale_factor", 1 / 255)),
    }
