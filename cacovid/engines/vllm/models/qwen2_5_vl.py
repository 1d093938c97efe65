"""Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from cacovid.engines.vllm import positions
from cacovid.engines.vllm.models.mrope import PrunedMRoPE, QwenProcessor, with_columns
from cacovid.engines.vllm.models.pruning import kept_rows
from cacovid.engines.vllm.models.request import Asked


class CaCoVIDQwen2_5_VLProcessor(QwenProcessor, base.Qwen2_5_VLMultiModalProcessor):
    """Every kept token is one placeholder."""


@MULTIMODAL_REGISTRY.register_processor(
    CaCoVIDQwen2_5_VLProcessor,
    info=base.Qwen2_5_VLProcessingInfo,
    dummy_inputs=base.Qwen2_5_VLDummyInputsBuilder,
)
class CaCoVIDQwen2_5_VLForConditionalGeneration(
    PrunedMRoPE, base.Qwen2_5_VLForConditionalGeneration
):
    """Frames stand apart in time as they did in the video."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.start_pruning(vllm_config)

    def final_rows(
        self, rows: Tensor, size: tuple[int, int, int], number: int, video_input: Any, asked: Asked
    ) -> Tensor:
        """The kept tokens."""
        seconds = video_input.get("second_per_grid_ts")
        places = positions.grid_positions(
            size, self._step(1.0 if seconds is None else float(seconds[number]))
        )
        selection = self.choose(rows, places, positions.extent(places), size, asked)
        kept = places.to(rows.device, non_blocking=True).index_select(1, selection.keep)
        return with_columns(
            kept_rows(rows, selection, rows.shape[1]), positions.columns(kept, lead=0)
        )

    def video_extent(self, data: Any, size: tuple[int, int, int], text: int) -> int:
        """Of a whole grid."""
        seconds = data.get("second_per_grid_ts")
        step = self._step(1.0 if seconds is None else float(seconds.data))
        return positions.extent(positions.grid_positions(size, step))

    def _step(self, seconds: float) -> float:
        return seconds * float(getattr(self.config.vision_config, "tokens_per_second", 1.0))
