"""Text and frames to the inputs of LLaVA-NeXT-Video and InternVL3, without torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cacovid.errors import UnsupportedModelError
from cacovid.models.processing import VideoProcessor
from cacovid.models.video_settings import VideoSettings, pixel_settings

_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclass(frozen=True, kw_only=True)
class CroppedSettings(VideoSettings):
    """As `VideoSettings`, of frames that keep their shape and lose their margins.

    Args:
        shortest_edge: What the shorter side is resized to before the margins go.
        patch_size: Side of a patch in pixels.
    """

    shortest_edge: int
    patch_size: int


class LlavaNextVideoProcessor(VideoProcessor):
    """LLaVA-NeXT-Video's processor for text and videos: the middle of each frame."""

    processor_classes: ClassVar[tuple[str, ...]] = ("LlavaNextVideoProcessor",)
    settings: CroppedSettings

    @classmethod
    def settings_of(cls, video: Mapping[str, Any], common: Mapping[str, Any]) -> CroppedSettings:
        """The settings that the files give.

        Raises:
            UnsupportedModelError: without a patch size, or for frames that are not cropped.
        """
        crop, size = video.get("crop_size") or {}, video.get("size") or {}
        patch = common.get("patch_size")
        if "height" not in crop or "shortest_edge" not in size or not patch:
            raise UnsupportedModelError(
                f"the processor resizes to {size}, crops to {crop} and has patches of {patch}; "
                f"expected a shortest_edge, a height and width, and a number. Install torchvision "
                f"to use the model's own processor"
            )
        return CroppedSettings(
            height=int(crop["height"]),
            width=int(crop["width"]),
            shortest_edge=int(size["shortest_edge"]),
            patch_size=int(patch),
            **pixel_settings(video, **_CLIP),
        )

    def pixels(self, frames: Tensor) -> Tensor:
        """`[F, 3, S, S]` float32 of uint8 frames `[F, 3, H, W]`."""
        settings = self.settings
        height, width = frames.shape[-2:]
        short = settings.shortest_edge
        # As torchvision has it: the shorter side exactly, the longer one cut off to a whole number.
        high = short if height <= width else int(short * height / width)
        wide = short if width <= height else int(short * width / height)
        frames = settings.resized(frames, high, wide)
        top = round((high - settings.height) / 2)
        left = round((wide - settings.width) / 2)
        if top < 0 or left < 0:
            raise UnsupportedModelError(
                f"frames of {high} x {wide} are to be cropped to {settings.height} x "
                f"{settings.width}, which is larger; install torchvision to use the model's own "
                f"processor"
            )
        frames = frames[..., top : top + settings.height, left : left + settings.width]
        return settings.normalised(frames)

    def _placeholders(self, frames: int) -> int:
        patch = self.settings.patch_size
        each = (self.settings.height // patch) * (self.settings.width // patch)
        # Pooled two by two.
        return each // 4 * frames


class InternVLVideoProcessor(VideoProcessor):
    """InternVL3's processor for text and videos: every frame an image behind its number."""

    processor_classes: ClassVar[tuple[str, ...]] = ("InternVLProcessor",)

    def __init__(
        self,
        tokenizer: Any,
        settings: VideoSettings,
        *,
        video_token: str = "<video>",
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, settings, video_token=video_token, chat_template=chat_template)
        begin = getattr(tokenizer, "start_image_token", "<img>")
        token = getattr(tokenizer, "context_image_token", "<IMG_CONTEXT>")
        end = getattr(tokenizer, "end_image_token", "</img>")
        self._picture = f"{begin}{token * settings.num_image_tokens}{end}"

    @classmethod
    def settings_of(cls, video: Mapping[str, Any], common: Mapping[str, Any]) -> VideoSettings:
        """The settings that the files give."""
        size = video.get("size") or {"height": 384, "width": 384}
        return VideoSettings(
            height=int(size["height"]),
            width=int(size["width"]),
            num_image_tokens=int(common.get("image_seq_length", 256)),
            **pixel_settings(video, **_CLIP),
        )

    def prepare(
        self, clips: Sequence[Tensor], told: Sequence[Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """`pixel_values` `[F, 3, S, S]` of all videos, and the placeholders of each.

        Args:
            clips: uint8 `[F, 3, H, W]` each.
            told: Not looked at.
        """
        shown = [
            "\n".join(f"Frame{i + 1}: {self._picture}" for i in range(len(clip))) for clip in clips
        ]
        return {"pixel_values": torch.cat([self.pixels(clip) for clip in clips])}, shown
