"""LLaVA-OneVision (`model_type` "llava_onevision") of transformers 5.4 to 5.23.

`mm_encoder_outputs`, there since 5.18, is not used: its features are one tensor of all videos,
which has to be of equal lengths, and which old releases repeat for beams video by video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.base import ImageFeatures, VideoFeatures
from cacovid.models.placeholders import PlaceholderAdapter
from cacovid.models.vision_extras import Caught, pooled
from cacovid.types import Grid

_VISION_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy")
_IMAGE_SETTINGS = (*_VISION_SETTINGS, "vision_aspect_ratio", "batch_num_images")


class LlavaOnevisionAdapter(PlaceholderAdapter):
    """The newline embedding after a video is no video token: never scored, never dropped.

    Videos of different lengths may come as a list of `[F, 3, H, W]` tensors.
    """

    model_types = ("llava_onevision",)
    encoded = frozenset(
        {"pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos",
         *_IMAGE_SETTINGS}
    )  # fmt: skip
    separators = 1

    def video_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> VideoFeatures:
        """All videos' tokens, each video followed by its newline."""
        inner = self.inner_model(model)
        clips = as_clips(inputs.get("pixel_values_videos"))
        vision = inner.config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        settings = {k: inputs[k] for k in _VISION_SETTINGS if inputs.get(k) is not None}
        features = []
        for clip in clips:
            # By place: the parameter was renamed between releases.
            out = inner.get_video_features(clip, return_dict=True, **settings).pooler_output
            tokens = clip.shape[1] * side * side
            if out.dim() != 3 or out.shape[1] not in (tokens, tokens + 1):
                raise UnsupportedModelError(
                    f"the vision tower gave features {tuple(out.shape)} for {clip.shape[1]} "
                    f"frames; expected {tokens} tokens ({side} x {side} a frame) and a newline"
                )
            if out.shape[1] == tokens:
                # The model's forward appended the newline until it moved into the features.
                newline = inner.image_newline.to(out).expand(out.shape[0], 1, -1)
                out = torch.cat((out, newline), dim=1)
            features.append(out.flatten(0, 1))
        grid = Grid([(clip.shape[1], side, side) for clip in clips for _ in range(clip.shape[0])])
        return VideoFeatures(torch.cat(features), grid)

    def vision_tower(self, model: nn.Module) -> nn.Module | None:
        """SigLIP."""
        tower: nn.Module = self.inner_model(model).vision_tower
        return tower

    def pooled_extras(self, model: nn.Module, caught: Caught) -> dict[str, Tensor]:
        """What was caught of patches, pooled as the features are."""
        inner = self.inner_model(model)
        vision = inner.config.vision_config
        return pooled(caught, inner.apply_pooling, (vision.image_size // vision.patch_size) ** 2)

    def image_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> ImageFeatures | None:
        """All images' tokens and line ends."""
        return tiled_image_features(self.inner_model(model), inputs, _IMAGE_SETTINGS)


def tiled_image_features(
    inner: Any, inputs: Mapping[str, Any], settings: Sequence[str]
) -> ImageFeatures | None:
    """All images' tokens and line ends `[I, D]` of a LLaVA that cuts images into tiles.

    Args:
        inner: The model without its language-model head.
        inputs: What the processor returned; None comes back without images.
        settings: Names of the inputs that say how features are made.
    """
    if inputs.get("pixel_values") is None:
        return None
    given = {name: inputs[name] for name in settings if inputs.get(name) is not None}
    out = inner.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True, **given
    )
    return ImageFeatures(torch.cat(list(out.pooler_output)))


def as_clips(pixels: Any) -> list[Tensor]:
    """Videos as `[V, F, 3, H, W]` tensors, each of one length.

    Raises:
        InvalidInputError: for anything but such a tensor, or a list of `[F, 3, H, W]`.
    """
    if isinstance(pixels, Tensor) and pixels.dim() == 5:
        return [pixels]
    listed = pixels if isinstance(pixels, (list, tuple)) else ()
    if listed and all(isinstance(clip, Tensor) and clip.dim() == 4 for clip in listed):
        return [clip.unsqueeze(0) for clip in listed]
    given = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
    raise InvalidInputError(
        f"pixel_values_videos is {given}; expected [V, F, 3, H, W], or a list of [F, 3, H, W] "
        f"tensors, as the model's processor returns"
    )
