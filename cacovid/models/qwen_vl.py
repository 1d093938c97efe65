"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pixels as rows of patches, positions on three axes.

Qwen3-VL adds features of inner vision layers behind its first decoder layers (deepstack), and
writes a timestamp before each frame; both need nothing more of the adapter than to be told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError
from cacovid.models.base import ImageFeatures, VideoFeatures
from cacovid.models.placeholders import PlaceholderAdapter
from cacovid.types import Grid

#: `mm_token_type_ids` of an image's and a video's tokens.
_IMAGE, _VIDEO = 1, 2


class QwenVLAdapter(PlaceholderAdapter):
    """Positions of the whole prompt come from the model's own `get_rope_index`."""

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    encoded = frozenset(
        {"pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw",
         "second_per_grid_ts", "mm_token_type_ids", "video_metadata"}
    )  # fmt: skip
    takes_features = True
    frame_label = re.compile(r"<\d+(\.\d+)?seconds>$")

    def video_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> VideoFeatures:
        """All videos' tokens after merging; with deepstack, those of the inner layers too."""
        inner = self.inner_model(model)
        sizes = _grid_thw(inputs, "video")
        # By place: the parameters were renamed between releases.
        out = inner.get_video_features(inputs["pixel_values_videos"], sizes, return_dict=True)
        merge = int(inner.config.vision_config.spatial_merge_size)
        grid = Grid([(t, h // merge, w // merge) for t, h, w in sizes.tolist()])
        rows = torch.cat(tuple(out.pooler_output))
        seconds = inputs.get("second_per_grid_ts")
        return VideoFeatures(
            rows, grid, deepstack=_deepstack(out),
            seconds=None if seconds is None else torch.as_tensor(seconds).cpu(),
        )  # fmt: skip

    def image_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> ImageFeatures | None:
        """All images' tokens, alike."""
        if inputs.get("pixel_values") is None:
            return None
        out = self.inner_model(model).get_image_features(
            inputs["pixel_values"], _grid_thw(inputs, "image"), return_dict=True
        )
        return ImageFeatures(torch.cat(tuple(out.pooler_output)), _deepstack(out))

    def positions(
        self, model: nn.Module, inputs: Mapping[str, Any], host_ids: Tensor, host_mask: Tensor,
        features: VideoFeatures,
    ) -> Tensor:  # fmt: skip
        """`[3, B, W]`: time, height and width, as the model itself counts them."""
        given = inputs.get("position_ids")
        if given is not None:
            return _checked_positions(given, host_mask)
        inner = self.inner_model(model)
        config, merge = inner.config, int(inner.config.vision_config.spatial_merge_size)
        kinds = (host_ids == config.image_token_id).int() * _IMAGE
        kinds += (host_ids == config.video_token_id).int() * _VIDEO
        images, sizes = inputs.get("image_grid_thw"), features.grid.sizes
        # On the host: the method reads its grids value by value.
        positions, _ = inner.get_rope_index(
            host_ids,
            mm_token_type_ids=kinds,
            image_grid_thw=images.cpu() if isinstance(images, Tensor) else images,
            video_grid_thw=torch.tensor([(t, h * merge, w * merge) for t, h, w in sizes]),
            second_per_grid_ts=features.seconds,
            attention_mask=host_mask.long(),
        )
        return positions


def _grid_thw(inputs: Mapping[str, Any], kind: str) -> Tensor:
    name = f"{kind}_grid_thw"
    sizes = inputs.get(name)
    if not isinstance(sizes, Tensor) or sizes.dim() != 2 or sizes.shape[1] != 3:
        given = tuple(sizes.shape) if isinstance(sizes, Tensor) else sizes
        raise InvalidInputError(
            f"{name} is {given}; expected an int64 tensor [{kind}s, 3], as the model's processor "
            f"returns"
        )
    return sizes


def _deepstack(out: Any) -> tuple[Tensor, ...]:
    levels = getattr(out, "deepstack_features", None) or ()
    # One tensor per level until 5.17, one per level and video since.
    return tuple(
        level if isinstance(level, Tensor) else torch.cat(tuple(level)) for level in levels
    )


def _checked_positions(given: Tensor, host_mask: Tensor) -> Tensor:
    if given.dim() == 3 and given.shape[0] in (3, 4) and given.shape[1:] == host_mask.shape:
        return given[-3:]
    raise InvalidInputError(
        f"position_ids is {tuple(given.shape)}; expected (3 or 4, {host_mask.shape[0]}, "
        f"{host_mask.shape[1]}): time, height and width, after a text row if there are four"
    )
