"""LLaVA-OneVision: positions on one axis, one newline behind a video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava_onevision as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from cacovid.engines.vllm.models import request
from cacovid.engines.vllm.models.processor import QuestionAware
from cacovid.engines.vllm.models.pruning import PruningModel, kept_rows


class CaCoVIDLlavaOnevisionProcessor(QuestionAware, base.LlavaOnevisionMultiModalProcessor):
    """One placeholder for each kept token, and one for the newline, which is never dropped."""

    def video_grid(self, item: Any) -> tuple[int, int, int]:
        """Square frames, after pooling."""
        frames, _, height, width = item["pixel_values_videos"].data.shape
        tokens = self.info._get_num_frame_tokens(image_width=width, image_height=height)
        side = round(tokens**0.5)
        return frames, side, side

    def placeholder_ids(self) -> set[int]:
        """Of images and videos."""
        config = self.info.get_hf_config()
        return {config.image_token_index, config.video_token_index}

    @property
    def video_token_id(self) -> int:
        """Of the configuration."""
        return int(self.info.get_hf_config().video_token_index)

    def video_replacement(self, item: Any, kept: int) -> list[int]:
        """Placeholders of the kept tokens and the newline."""
        return [self.video_token_id] * (kept + 1)


@MULTIMODAL_REGISTRY.register_processor(
    CaCoVIDLlavaOnevisionProcessor,
    info=base.LlavaOnevisionProcessingInfo,
    dummy_inputs=base.LlavaOnevisionDummyInputsBuilder,
)
class CaCoVIDLlavaOnevisionForConditionalGeneration(
    PruningModel, base.LlavaOnevisionForConditionalGeneration
):
    """The language model counts positions anew: this family's are compact in vLLM."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.start_pruning(vllm_config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As vLLM's; of a video the kept tokens and the newline."""
        asked = request.take_asked(kwargs)
        if not asked:
            return super().embed_multimodal(**kwargs)
        clips = self._parse_and_validate_video_input(**kwargs)["pixel_values_videos"]

        def compute(numbers: list[int]) -> list[Tensor]:
            return [
                self._process_video_pixels({"pixel_values_videos": clips[number][None]})[0]
                for number in numbers
            ]

        keys = [wish.key for wish in asked]
        rows = self.held_features(keys, self.image_newline.device, compute)
        return tuple(
            self._final_rows(one, clip.shape[0], wish)
            for one, clip, wish in zip(rows, clips, asked, strict=True)
        )

    def _final_rows(self, rows: Tensor, frames: int, asked: request.Asked) -> Tensor:
        video, newline = rows[:-1], rows[-1:]
        side = round((video.shape[0] // frames) ** 0.5)
        places = torch.arange(video.shape[0])
        selection = self.choose(
            video, places, video.shape[0] + 1, (frames, side, side), asked, newline
        )
        return torch.cat((kept_rows(video, selection, video.shape[1]), newline))
