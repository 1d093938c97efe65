"""Text and frames to the inputs of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, without torchvision.

The sizes, patches and placeholders of transformers' `Qwen2VLVideoProcessor` and
`Qwen3VLVideoProcessor`, and the timestamps of `Qwen3VLProcessor`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.models.processing import VideoProcessor
from cacovid.models.video_settings import VideoSettings, pixel_settings

_START, _END = "<|vision_start|>", "<|vision_end|>"
_VIDEO, _IMAGE = "<|video_pad|>", "<|image_pad|>"

#: Frames a second of frames of which nothing is known, as transformers assumes.
_UNKNOWN_FPS = 24.0

#: Mean and standard deviation of the families, where the files give none.
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@dataclass(frozen=True, kw_only=True)
class PatchSettings(VideoSettings):
    """What is done to a video, as the processor's JSON says it.

    Args:
        min_pixels: Pixels at least: of a frame; with `per_video`, of the video.
        max_pixels: Pixels at most, alike.
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Frames that a patch is deep.
        merge_size: Patches along a side that become one token.
        per_video: Whether the limits are those of a whole video (Qwen3-VL).
        timestamps: Whether every frame stands behind its second (Qwen3-VL).
        seconds: Whether the model is told the seconds between frames (Qwen2.5-VL).
    """

    height: int = 0
    width: int = 0
    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    per_video: bool = False
    timestamps: bool = False
    seconds: bool = False

    def size_of(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width that frames are resized to: multiples of a token's side.

        As near to the video's shape as the limits allow (transformers' `smart_resize`).

        Raises:
            InvalidInputError: for frames 200 times longer than wide, or as much wider.
        """
        factor = self.patch_size * self.merge_size
        deep, exact = 1, 1
        if self.per_video:
            exact = frames
            deep = round(frames / self.temporal_patch_size) * self.temporal_patch_size
            if height < factor or width < factor:
                scale = max(factor / height, factor / width)
                height, width = int(height * scale), int(width * scale)
        if max(height, width) > 200 * min(height, width):
            raise InvalidInputError(
                f"the frames are {width} x {height}; expected sides of a ratio below 200"
            )
        high, wide = round(height / factor) * factor, round(width / factor) * factor
        pixels = exact * height * width
        if deep * high * wide > self.max_pixels:
            shrink = math.sqrt(pixels / self.max_pixels)
            high = max(factor, math.floor(height / shrink / factor) * factor)
            wide = max(factor, math.floor(width / shrink / factor) * factor)
        elif deep * high * wide < self.min_pixels:
            grow = math.sqrt(self.min_pixels / pixels)
            high = math.ceil(height * grow / factor) * factor
            wide = math.ceil(width * grow / factor) * factor
        return high, wide


class QwenVideoProcessor(VideoProcessor):
    """The Qwen families' processor for text and videos, without torchvision.

    Args:
        tokenizer: The model's tokenizer, with a pad token, `padding_side="left"` and the video
            token as a token of its own.
        settings: What is done to a video.
        video_token: The placeholder of a video in a text.
        chat_template: Jinja template; the tokenizer's own when omitted.
    """

    processor_classes: ClassVar[tuple[str, ...]] = (
        "Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Any,
        settings: PatchSettings,
        *,
        video_token: str = _VIDEO,
        chat_template: str | None = None,
    ) -> None:
        # The files of these families name no placeholder; the default of others is not theirs.
        video_token = _VIDEO if video_token == "<video>" else video_token
        super().__init__(tokenizer, settings, video_token=video_token, chat_template=chat_template)
        self.settings: PatchSettings = settings

    @classmethod
    def settings_of(cls, video: Mapping[str, Any], common: Mapping[str, Any]) -> PatchSettings:
        """The settings that the files give, with the defaults of the family."""
        kind = common["processor_class"]
        third = kind == "Qwen3VLProcessor"
        patch = int(video.get("patch_size", 16 if third else 14))
        merge = int(video.get("merge_size", 2))
        size = video.get("size") or {}
        least = video.get("min_pixels") or size.get("shortest_edge") or 128 * (patch * merge) ** 2
        most = video.get("max_pixels") or size.get("longest_edge") or 768 * (patch * merge) ** 2
        return PatchSettings(
            min_pixels=int(least),
            max_pixels=int(most),
            patch_size=patch,
            temporal_patch_size=int(video.get("temporal_patch_size", 2)),
            merge_size=merge,
            per_video=third,
            timestamps=third,
            seconds=kind == "Qwen2_5_VLProcessor",
            **pixel_settings(video, **(_HALF if third else _CLIP)),
        )

    def prepare(
        self, clips: Sequence[Tensor], told: Sequence[Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """Patches of all videos `[P, 3 * depth * side * side]`, their grids, and the placeholders.

        Args:
            clips: uint8 `[F, 3, H, W]` each.
            told: A `VideoMetadata` or None each.
        """
        patches, grids, shown, seconds = [], [], [], []
        depth = self.settings.temporal_patch_size
        for clip, about in zip(clips, told, strict=True):
            rows, grid = self.patches(clip)
            patches.append(rows)
            grids.append(grid)
            times = _times(clip.shape[0], about)
            shown.append(self._shown(grid, times))
            seconds.append(depth / _sampled_fps(clip.shape[0], about))
        if not clips:
            return {}, []
        data: dict[str, Any] = {
            "pixel_values_videos": torch.cat(patches),
            "video_grid_thw": torch.tensor(grids),
        }
        if self.settings.seconds:
            data["second_per_grid_ts"] = torch.tensor(seconds)
        return data, shown

    def patches(self, frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Rows of patches in the order in which they are merged, and `(t, h, w)` in patches."""
        settings = self.settings
        depth, side, merge = settings.temporal_patch_size, settings.patch_size, settings.merge_size
        height, width = settings.size_of(len(frames), *frames.shape[-2:])
        pixels = settings.normalised(settings.resized(frames, height, width))
        if missing := -len(pixels) % depth:
            pixels = torch.cat((pixels, pixels[-1:].expand(missing, -1, -1, -1)))
        grid = (len(pixels) // depth, height // side, width // side)
        t, h, w = grid
        cut = pixels.view(t, depth, 3, h // merge, merge, side, w // merge, merge, side)
        rows = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
        return rows, grid

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        """`mm_token_type_ids`: 1 for an image's tokens, 2 for a video's."""
        image = self.tokenizer.convert_tokens_to_ids(_IMAGE)
        kinds = 2 * (ids == self.video_token_id).int()
        return {"mm_token_type_ids": kinds if image is None else kinds + (ids == image).int()}

    def _shown(self, grid: tuple[int, int, int], times: Sequence[float]) -> str:
        t, h, w = grid
        frame = self.video_token * (h * w // self.settings.merge_size**2)
        if not self.settings.timestamps:
            return frame * t
        depth = self.settings.temporal_patch_size
        times = [*times, *[times[-1]] * (-len(times) % depth)]
        # Of a patch several frames deep, the middle between its first and last one.
        middles = [(times[i * depth] + times[(i + 1) * depth - 1]) / 2 for i in range(t)]
        return "".join(f"<{second:.1f} seconds>{_START}{frame}{_END}" for second in middles)

    def _expand(self, texts: Sequence[str], shown: Sequence[str]) -> list[str]:
        if self.settings.timestamps:
            # Every frame has markers of its own; those around the whole video go.
            whole = f"{_START}{self.video_token}{_END}"
            texts = [text.replace(whole, self.video_token) for text in texts]
        return super()._expand(texts, shown)


def _times(frames: int, about: Any) -> list[float]:
    """Seconds of each frame."""
    places = getattr(about, "frames_indices", None)
    fps = getattr(about, "fps", None) or _UNKNOWN_FPS
    places = range(frames) if places is None else places
    return [float(place) / fps for place in places]


def _sampled_fps(frames: int, about: Any) -> float:
    """Frames a second of those that are shown."""
    total, fps = getattr(about, "total_num_frames", None), getattr(about, "fps", None)
    if not total or not fps:
        return float(fps or _UNKNOWN_FPS)
    return float(frames / total * fps)
