"""Positions on three axes of pruned videos, for the Qwen models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cacovid.engines.vllm import positions
from cacovid.engines.vllm.models import request
from cacovid.engines.vllm.models.processor import QuestionAware
from cacovid.engines.vllm.models.pruning import PruningModel
from cacovid.errors import InvalidInputError


class QwenProcessor(QuestionAware):
    """What the processors of the Qwen families share."""

    def video_grid(self, item: Any) -> tuple[int, int, int]:
        """Of `video_grid_thw`."""
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        t, h, w = item["video_grid_thw"].data.tolist()
        return t, h // merge, w // merge

    def placeholder_ids(self) -> set[int]:
        """Of images and videos."""
        config = self.info.get_hf_config()
        return {config.image_token_id, config.video_token_id}

    def marker_ids(self) -> set[int]:
        """Of the configuration."""
        config = self.info.get_hf_config()
        return {config.vision_start_token_id, config.vision_end_token_id}

    @property
    def video_token_id(self) -> int:
        """Of the configuration."""
        return int(self.info.get_hf_config().video_token_id)

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As `QuestionAware.apply`.

        Raises:
            InvalidInputError: as there, and for images and videos without a token between them:
                each begins one position behind the token before it.
        """
        out = super().apply(inputs, timing_ctx)
        # Memory profiling has nothing but placeholders in its prompt, and asks for no positions.
        if not (self.placeholder_ids() | self.marker_ids()).issuperset(inputs.prompt):
            _refuse_adjacent(out["mm_placeholders"].values())
        return out


class PrunedMRoPE(PruningModel):
    """Goes before one of vLLM's Qwen models; a family says in `final_rows` what a video becomes.

    In place of vLLM's own bookkeeping of pruned positions, which holds them in the model's dtype
    (bfloat16 knows the integers up to 256) and lets the text behind a video depend on whether the
    video is read from the prefix cache.
    """

    def final_rows(
        self, rows: Tensor, size: tuple[int, int, int], number: int, video_input: Any,
        asked: request.Asked,
    ) -> Tensor:  # fmt: skip
        """What stands in a video's place: embeddings with the columns of `positions.columns`.

        Args:
            rows: `[N, C]` of the vision tower.
            size: `(t, h, w)` after merging.
            number: The video's among those of `video_input`.
            video_input: As the model parsed it.
            asked: The question.
        """
        raise NotImplementedError

    def video_extent(self, data: Any, size: tuple[int, int, int], text: int) -> int:
        """Positions that a whole video takes.

        Args:
            data: The video's fields.
            size: `(t, h, w)` after merging.
            text: Text tokens in its place, such as timestamps.
        """
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As vLLM's; of a video the kept tokens only."""
        asked = request.take_asked(kwargs)
        if not asked:
            return super().embed_multimodal(**kwargs)
        video_input = self._parse_and_validate_video_input(**kwargs)
        sizes = [tuple(size) for size in video_input["video_grid_thw"].tolist()]
        rows = self._tower_rows(video_input, sizes, asked)
        return tuple(
            self.final_rows(one, self._merged(size), number, video_input, wish)
            for number, (one, size, wish) in enumerate(zip(rows, sizes, asked, strict=True))
        )

    def _tower_rows(
        self, video_input: Any, sizes: Sequence[Any], asked: Sequence[request.Asked]
    ) -> list[Tensor]:
        if video_input["type"] != "pixel_values_videos":
            return list(self._process_video_input(video_input))
        pixels = video_input["pixel_values_videos"]
        parts = pixels.split([t * h * w for t, h, w in sizes])

        def compute(numbers: list[int]) -> list[Tensor]:
            some = {
                "type": "pixel_values_videos",
                "pixel_values_videos": torch.cat([parts[n] for n in numbers]),
                "video_grid_thw": video_input["video_grid_thw"][numbers],
            }
            return list(self._process_video_input(some))

        return self.held_features([wish.key for wish in asked], self.visual.device, compute)

    def _postprocess_image_embeds_evs(self, image_embeds_split: Any, image_input: Any) -> Any:
        out = []
        for rows, size in zip(
            image_embeds_split, image_input["image_grid_thw"].tolist(), strict=True
        ):
            places = positions.grid_positions(self._merged(size))
            out.append(with_columns(rows, positions.columns(places, lead=0)))
        return tuple(out)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Positions of the text, and where each image and video begins; see `positions`."""
        media = []
        for feature in sorted(mm_features, key=lambda f: f.mm_position.offset):
            offset, rows = feature.mm_position.offset, feature.mm_position.length
            size = self._merged(feature.data[f"{feature.modality}_grid_thw"].data.tolist())
            if feature.modality == "image":
                reach = max(size)
            else:
                place = input_tokens[offset : offset + rows]
                text = rows - place.count(self.config.video_token_id)
                reach = self.video_extent(feature.data, size, text)
            media.append((offset, rows, reach))
        return positions.initial_positions(len(input_tokens), media)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Takes the positions off the embeddings and puts them into the prompt's."""
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        with gpu_sync_allowed():
            ids = input_ids.tolist() if isinstance(input_ids, Tensor) else input_ids
            places, delta = positions.write_positions(
                mrope_positions,
                ids,
                [rows[:, -positions.WIDTH :] for rows in multimodal_embeddings],
                num_computed_tokens,
                {self.config.image_token_id, self.config.video_token_id},
            )
        return [rows[:, : -positions.WIDTH] for rows in multimodal_embeddings], places, delta

    def _merged(self, size: Sequence[int]) -> tuple[int, int, int]:
        merge = self.config.vision_config.spatial_merge_size
        t, h, w = size
        return t, h // merge, w // merge


def with_columns(rows: Tensor, columns: Tensor) -> Tensor:
    """Rows with their positions behind them, in the rows' dtype."""
    return torch.cat((rows, columns.to(rows)), dim=1)


def _refuse_adjacent(ranges: Iterable[Sequence[Any]]) -> None:
    places = sorted((place.offset, place.length) for group in ranges for place in group)
    for (offset, length), (following, _) in pairwise(places):
        if offset + length == following:
            raise InvalidInputError(
                f"the prompt holds two images or videos without a token between them (at "
                f"{following} of the expanded prompt); put the model's markers around each"
            )
