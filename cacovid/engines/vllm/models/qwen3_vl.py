"""Qwen3-VL: timestamps between frames, rows of several vision layers (deepstack)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen3_vl as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from cacovid.engines.vllm import positions
from cacovid.engines.vllm.models.mrope import PrunedMRoPE, QwenProcessor
from cacovid.engines.vllm.models.pruning import kept_rows
from cacovid.engines.vllm.models.request import Asked


class CaCoVIDQwen3VLProcessor(QwenProcessor, base.Qwen3VLMultiModalProcessor):
    """All timestamps stay; the kept tokens' placeholders stand in the first frame.

    In which frame they belong is not known yet: the model writes the whole place anew.
    """

    def video_replacement(self, item: Any, kept: int) -> Any:
        """Timestamps and markers of all frames, and the placeholders."""
        config = self.info.get_hf_config()
        times = item["timestamps"].data
        return self.get_video_repl(
            tokens_per_frame=[kept] + [0] * (len(times) - 1),
            timestamps=times,
            tokenizer=self.info.get_tokenizer(),
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
        )


@MULTIMODAL_REGISTRY.register_processor(
    CaCoVIDQwen3VLProcessor,
    info=base.Qwen3VLProcessingInfo,
    dummy_inputs=base.Qwen3VLDummyInputsBuilder,
)
class CaCoVIDQwen3VLForConditionalGeneration(PrunedMRoPE, base.Qwen3VLForConditionalGeneration):
    """The policy reads the last vision layer's rows; the inner layers' follow its choice."""

    # vLLM's other method would be contradicted, not used: it refuses it.
    supported_video_pruning_methods = ("evs",)

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.start_pruning(vllm_config)

    def final_rows(
        self, rows: Tensor, size: tuple[int, int, int], number: int, video_input: Any, asked: Asked
    ) -> Tensor:
        """Timestamps, markers and the kept tokens of each frame."""
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        times = video_input["timestamps"][number]
        times = times.tolist() if isinstance(times, Tensor) else list(times)
        between = self._between(times)
        places = positions.frame_positions(size, self._leads(between))
        selection = self.choose(
            rows[:, : self.visual_dim], places.video, places.extent, size, asked,
            inside=(torch.tensor(between), places.text),
        )  # fmt: skip
        with gpu_sync_allowed():  # the frames' lengths, by which the timestamps are put between
            counts = selection.per_frame().tolist()
        merge = self.config.vision_config.spatial_merge_size
        t, h, w = size
        return self._create_final_video_embeddings(
            video_embeddings=kept_rows(rows, selection, self.visual_dim),
            num_tokens_per_frame=counts,
            timestamps=times,
            video_grid_thw=[t, h * merge, w * merge],
            retention_mask=selection.mask(),
        )

    def _get_expanded_positions(
        self,
        device: torch.device,
        seq_len: int,
        video_grid_thw: list[int],
        num_tokens_per_frame: list[int],
        timestamps: list[float],
        is_video_embed: Tensor,
        is_vision_start: Tensor,
        retention_mask: Tensor,
    ) -> Tensor:
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        leads = self._leads(self._between(timestamps))
        places = positions.frame_positions(self._merged(video_grid_thw), leads)
        out = torch.empty(3, seq_len, dtype=torch.int64, device=device)
        with gpu_sync_allowed():
            out[:, is_video_embed] = places.video.to(device)[:, retention_mask]
            out[:, ~is_video_embed] = places.text.to(device)
        # Integers, so that the caller's concatenation takes the embeddings' dtype.
        return positions.columns(out, lead=leads[0])

    def video_extent(self, data: Any, size: tuple[int, int, int], text: int) -> int:
        """Each frame as an image, and the text around it."""
        t, h, w = size
        return text + t * max(h, w)

    def _between(self, timestamps: list[float]) -> list[int]:
        """Ids of a video's timestamps and markers."""
        empty: list[int] = base.Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[0] * len(timestamps),
            timestamps=timestamps,
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        ).full
        return empty

    def _leads(self, between: list[int]) -> list[int]:
        """Text tokens before each frame's tokens: its timestamp and the begin marker."""
        end = self.config.vision_end_token_id
        ends = [place for place, token in enumerate(between) if token == end]
        return [here - before - 1 for before, here in pairwise([-1, *ends])]
