"""InternVL3 (`model_type` "internvl"): frames are images, each between markers of its own.

Its inputs do not tell a video's frames from images: both are `pixel_values` and the same
placeholder. All pictures of a prompt are therefore taken as the frames of one video.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cacovid.errors import InvalidInputError
from cacovid.models.base import VideoFeatures
from cacovid.models.placeholders import PlaceholderAdapter
from cacovid.types import Grid


class InternVLAdapter(PlaceholderAdapter):
    """One video per prompt: all of its pictures, in order. Tiles of an image count as frames."""

    model_types = ("internvl",)
    pixels = "pixel_values"
    encoded = frozenset(
        {"pixel_values", "vision_feature_layer", "vision_feature_select_strategy"}
    )
    frame_label = re.compile(r"Frame-?\d+:$", re.IGNORECASE)

    def video_token_id(self, config: Any) -> int:
        """The placeholder of both."""
        return int(config.image_token_id)

    def markers(self, config: Any, rows: Sequence[Sequence[int]]) -> set[int]:
        """The ids around the placeholders, which the configuration does not name."""
        token = self.video_token_id(config)
        return {
            row[near]
            for row in rows
            for place, current in enumerate(row)
            if current == token
            for near in (place - 1, place + 1)
            if 0 <= near < len(row) and row[near] != token
        }

    def video_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> VideoFeatures:
        """All pictures' tokens; prompts in order."""
        inner = self.inner_model(model)
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        settings = {k: inputs[k] for k in names if inputs.get(k) is not None}
        out = inner.get_image_features(inputs["pixel_values"], return_dict=True, **settings)
        pictures, each, width = out.pooler_output.shape
        side = int(each**0.5)
        found = (inputs["input_ids"] == self.video_token_id(inner.config)).sum(-1).tolist()
        if sum(found) != pictures * each or any(count % each for count in found):
            raise InvalidInputError(
                f"video placeholders and features do not match: the prompts hold {found} "
                f"placeholders, {pictures} pictures have {each} each. Use the processor's own "
                f"input_ids, not truncated"
            )
        grid = Grid([(count // each, side, side) for count in found if count])
        return VideoFeatures(out.pooler_output.reshape(-1, width), grid)
