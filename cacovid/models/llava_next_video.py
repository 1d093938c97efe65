"""LLaVA-NeXT-Video (`model_type` "llava_next_video"): a pooled square of tokens per frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import UnsupportedModelError
from cacovid.models.base import ImageFeatures, VideoFeatures
from cacovid.models.llava_onevision import as_clips, tiled_image_features
from cacovid.models.placeholders import PlaceholderAdapter
from cacovid.models.vision_extras import Caught, pooled
from cacovid.types import Grid

_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy")


class LlavaNextVideoAdapter(PlaceholderAdapter):
    """No separators; videos of different lengths may come as a list of `[F, 3, H, W]` tensors."""

    model_types = ("llava_next_video",)
    encoded = frozenset({"pixel_values", "pixel_values_videos", "image_sizes", *_SETTINGS})

    def video_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> VideoFeatures:
        """All videos' tokens after pooling."""
        inner = self.inner_model(model)
        config = inner.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        side //= config.spatial_pool_stride
        settings = {k: inputs[k] for k in _SETTINGS if inputs.get(k) is not None}
        clips = as_clips(inputs.get("pixel_values_videos"))
        # By place: the parameter was renamed between releases. One piece per video, in frames or
        # flat, as the release has it.
        pieces = [
            piece.reshape(-1, piece.shape[-1])
            for clip in clips
            for piece in inner.get_video_features(clip, return_dict=True, **settings).pooler_output
        ]
        grid = Grid([(clip.shape[1], side, side) for clip in clips for _ in range(clip.shape[0])])
        if tuple(len(piece) for piece in pieces) != grid.tokens_per_video:
            raise UnsupportedModelError(
                f"the vision tower gave {[len(piece) for piece in pieces]} features; expected "
                f"{list(grid.tokens_per_video)} ({side} x {side} a frame)"
            )
        return VideoFeatures(torch.cat(pieces), grid)

    def vision_tower(self, model: nn.Module) -> nn.Module | None:
        """CLIP."""
        tower: nn.Module = self.inner_model(model).vision_tower
        return tower

    def pooled_extras(self, model: nn.Module, caught: Caught) -> dict[str, Tensor]:
        """What was caught of patches, pooled as the features are."""
        inner = self.inner_model(model)
        vision = inner.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return pooled(caught, inner.vision_resampler, patches)

    def image_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> ImageFeatures | None:
        """All images' tokens and line ends."""
        return tiled_image_features(self.inner_model(model), inputs, _SETTINGS)
