"""What all families share whose videos stand in a prompt as placeholder tokens.

A family says how pixels become features and how positions are counted; finding prompts, videos and
questions, and writing the shortened prompt down, is done here. The shortened prompt goes to
`generate` in one of two ways:

- As `inputs_embeds` beside its `input_ids`: all releases from 5.4 take the embeddings for the
  prefill and the ids for everything else (streamers, logits processors, the returned sequences),
  repeat both for beams and returned sequences, and force the cache on. Features for deeper layers
  stand behind the embeddings then, and are taken apart while `running` lasts.
- As `mm_encoder_outputs` beside its `input_ids`, from 5.18 on, for families whose forward takes one
  row of features per prompt. The model itself puts the features in, into deeper layers too
  (Qwen3-VL), and since 5.23 chunk by chunk.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models import layout
from cacovid.models.base import (
    EmbeddedInputs,
    ImageFeatures,
    Positions,
    QuestionSource,
    VideoFeatures,
)
from cacovid.models.deepstack import DEEPSTACK, decoder_inputs
from cacovid.models.generation import release
from cacovid.models.question import locate_questions
from cacovid.models.repack import rewrite, shorten_like_ids
from cacovid.models.vision_extras import Caught, fill_extras, has_extras, watch_vision
from cacovid.types import Prompt, Selection

#: Settings of a model's configuration that are ids around the placeholders.
_MARKERS = ("vision_start_token_id", "vision_end_token_id")


class PlaceholderAdapter:
    """An adapter that needs `model_types`, `encoded` and `video_features`.

    Several videos and images per prompt, batches padded on either side.
    """

    model_types: ClassVar[tuple[str, ...]]
    #: Inputs that are turned into embeddings or positions and do not go on to `generate`.
    encoded: ClassVar[frozenset[str]]
    #: The input that holds the videos' pixels.
    pixels: ClassVar[str] = "pixel_values_videos"
    #: Rows after each video that are no video tokens: never scored, never dropped.
    separators: ClassVar[int] = 0
    #: Whether the model's forward takes features of whole prompts as `mm_encoder_outputs`.
    takes_features: ClassVar[bool] = False
    #: What the processor writes before each frame's placeholders, without spaces.
    frame_label: ClassVar[re.Pattern[str] | None] = None

    def video_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> VideoFeatures:
        """Runs the vision tower on the videos; what a family has to say."""
        raise NotImplementedError

    def image_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> ImageFeatures | None:
        """Runs the vision tower on the images, if there are any."""
        return None

    def vision_tower(self, model: nn.Module) -> nn.Module | None:
        """The tower whose attention and keys methods may ask for; None: not to be had."""
        return None

    def pooled_extras(self, model: nn.Module, caught: Caught) -> dict[str, Tensor]:
        """What was caught of the tower's patches, `[N]` or `[N, C]` for the video tokens."""
        return {}

    def positions(
        self, model: nn.Module, inputs: Mapping[str, Any], host_ids: Tensor, host_mask: Tensor,
        features: VideoFeatures,
    ) -> Tensor:  # fmt: skip
        """Position ids `[B, W]`, or `[3, B, W]` (time, height, width), of the whole prompts.

        Args:
            model: The model.
            inputs: The inputs as they were given.
            host_ids: `input_ids` on the CPU.
            host_mask: `[B, W]` bool on the CPU, False in the padding.
            features: Of the videos, whose grids positions may hang on.
        """
        return layout.counted_positions(inputs, host_mask)

    def video_token_id(self, config: Any) -> int:
        """The id of a video's placeholders."""
        return int(config.video_token_id)

    def markers(self, config: Any, rows: Sequence[Sequence[int]]) -> set[int]:
        """Ids that stand around placeholders: no part of a question."""
        found = (getattr(config, name, None) for name in _MARKERS)
        return {int(marker) for marker in found if marker is not None}

    def inner_model(self, model: nn.Module) -> Any:
        """The module that merges features into the prompt; looked for below wrappers."""
        for module in model.modules():
            if hasattr(module, "get_image_features") and "language_model" in module._modules:
                return module
        raise UnsupportedModelError(
            f"{type(model).__name__} holds no module with get_image_features and a language_model; "
            f"pass the model that from_pretrained returned"
        )

    def text_model(self, model: nn.Module) -> Any:
        """The decoder."""
        return self.inner_model(model).language_model

    def text_inputs(self, prompt: Prompt, begin: int, end: int) -> dict[str, Any]:
        """What the decoder takes beside embeddings, mask and positions of packed tokens."""
        deepstack = prompt.extras.get(DEEPSTACK)
        return {} if deepstack is None else decoder_inputs(deepstack[:, None, begin:end])

    def has_video(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the inputs hold pixels of a video."""
        return inputs.get(self.pixels) is not None

    @property
    def hands_over_features(self) -> bool:
        """Whether shortened prompts go to the installed transformers as `mm_encoder_outputs`."""
        return self.takes_features and release() >= (5, 18)

    @property
    def reads_chunks(self) -> bool:
        """Whether the installed transformers prefills shortened prompts in chunks."""
        return self.hands_over_features and release() >= (5, 23)

    @torch.no_grad()
    def embed(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        needs: Collection[str] = (),
        *,
        question: QuestionSource | None = None,
        features: VideoFeatures | None = None,
    ) -> EmbeddedInputs:
        """Runs the vision tower once and embeds the prompts.

        Args:
            model: The model, or its inner model.
            inputs: `input_ids` `[B, W]`, `pixel_values_videos`, and what else the processor
                returned.
            needs: Names of `Prompt.extras`: `received_attention/{layer}/{last|question}`, and what
                the family gives of `vision_attention`, `vision_keys`, `vision_pooling_attention`;
                one with a question mark behind it is left out where it is not to be had.
            question: Where to find the question tokens.
            features: The videos' features from an earlier call (`EmbeddedInputs.features`); the
                vision tower does not run then, and `pixel_values_videos` is not looked at, unless
                a method needs what the earlier call was not asked for.

        Raises:
            InvalidInputError: if an input is missing, of a wrong shape, or if placeholders and
                features differ in number.
            UnsupportedModelError: for an extra that this model does not give, or features that
                are laid out in another way.
        """
        inner = self.inner_model(model)
        video_id, image_id = self.video_token_id(inner.config), int(inner.config.image_token_id)
        input_ids = layout.checked_ids(inputs, self.pixels if features is None else None)
        mask = layout.checked_mask(inputs, input_ids)
        # The only read from the device: ids and mask, at the prompt's beginning.
        host_mask, host_ids = mask.cpu(), input_ids.cpu()
        host_rows = [ids[row].tolist() for ids, row in zip(host_ids, host_mask, strict=True)]
        if not all(host_rows):
            raise InvalidInputError("a prompt of the batch is empty: its attention_mask is all 0")

        device = input_ids.device
        source = host_mask.flatten().nonzero().flatten().to(device)
        packed_ids = input_ids.flatten().index_select(0, source)
        embeds = inner.get_input_embeddings()(packed_ids)

        begin = layout.now(device)
        if features is None or (self.has_video(inputs) and not has_extras(features, needs)):
            features = self._watched_features(model, inputs, needs)
        images = self.image_features(model, inputs)
        seconds = layout.now(device) - begin

        grid = features.grid
        flat = torch.cat([torch.tensor(row) for row in host_rows])
        places = (flat == video_id).nonzero().flatten()
        video_rows = layout.match_videos(
            [row.count(video_id) for row in host_rows], grid, self.separators
        )
        video_places, other = layout.split_places(places, grid, len(flat), self.separators)
        embeds = embeds.index_copy(0, places.to(device), features.rows.to(embeds))
        deepstack = _deepstack(features.deepstack, embeds, places)
        if images is not None:
            image_places = (flat == image_id).nonzero().flatten()
            layout.check_images(len(image_places), images.rows.shape[0])
            embeds = embeds.index_copy(0, image_places.to(device), images.rows.to(embeds))
            deepstack = deepstack + _deepstack(images.deepstack, embeds, image_places)

        source_of = question or QuestionSource()
        markers = self.markers(inner.config, host_rows)
        questions = locate_questions(
            host_rows,
            source_of,
            placeholders=(video_id, image_id, *markers),
            end_ids=layout.end_ids(model),
            masks=layout.cut_mask(source_of.mask, host_mask),
            frame_label=self.frame_label,
        )
        question_index, question_offsets = layout.per_video(questions, host_rows, video_rows)
        positions = self.positions(model, inputs, host_ids, host_mask, features)
        prompt = Prompt(
            embeds=embeds,
            position_ids=positions.to(device).flatten(-2).index_select(-1, source),
            video_index=video_places.to(device),
            question_index=torch.tensor(question_index, dtype=torch.int64, device=device),
            grid=grid,
            prompt_offsets=layout.offsets(host_rows),
            question_offsets=question_offsets,
        )
        if len(deepstack):
            prompt.extras[DEEPSTACK] = deepstack
        fill_extras(model, prompt, needs, features)
        return EmbeddedInputs(
            prompt=prompt,
            inputs=inputs,
            input_ids=input_ids,
            source=source,
            row_lengths=tuple(len(row) for row in host_rows),
            video_rows=video_rows,
            other_index=other.to(device),
            pad_id=layout.pad_id(model),
            vision_seconds=seconds,
            features=features,
            image_counts=tuple(row.count(image_id) if images else 0 for row in host_rows),
            image_index=None if images is None else image_places.to(device),
        )

    @torch.no_grad()
    def prune(
        self, embedded: EmbeddedInputs, selection: Selection, positions: Positions = "original"
    ) -> dict[str, Any]:
        """Keyword arguments of `model.generate` for the prompts with the kept video tokens only.

        Args:
            embedded: What `embed` returned.
            selection: The kept tokens.
            positions: `"original"` keeps each token's position ids, and decoding goes on from the
                uncompressed prompt's next position; `"compact"` leaves no gaps.

        Returns:
            `input_ids`, `attention_mask` `[B, W]`, `position_ids` `[B, W]` or `[4, B, W]` (a text
            row, then time, height and width), and either `inputs_embeds` `[B, W, D]` (wider with
            deepstack, see `rewrite`) or `mm_encoder_outputs`; padded on the left. Beside them the
            inputs that are not about vision; those of the prompt's shape (labels) are shortened
            alike.
        """
        by_features = self.hands_over_features
        out: dict[str, Any] = dict(
            rewrite(embedded, selection, positions, with_embeds=not by_features)
        )
        if by_features:
            out["mm_encoder_outputs"] = _encoder_outputs(embedded, selection)
        shape = embedded.input_ids.shape
        for name, value in embedded.inputs.items():
            if name in out or name in self.encoded or value is None:
                continue
            if isinstance(value, Tensor) and value.shape[:2] == shape:
                value = shorten_like_ids(embedded, selection, name, value)
            out[name] = value
        return out

    def _watched_features(
        self, model: nn.Module, inputs: Mapping[str, Any], needs: Collection[str]
    ) -> VideoFeatures:
        tower = self.vision_tower(model)
        if tower is None:
            return self.video_features(model, inputs)
        with watch_vision(tower, needs) as caught:
            features = self.video_features(model, inputs)
        return replace(features, extras=self.pooled_extras(model, caught))


def _deepstack(levels: Sequence[Tensor], embeds: Tensor, places: Tensor) -> Tensor:
    """`[levels, S, D]`: each level's rows at their places, zeros elsewhere."""
    out = embeds.new_zeros(len(levels), *embeds.shape)
    for number, rows in enumerate(levels):
        out[number].index_copy_(0, places.to(embeds.device), rows.to(embeds))
    return out


def _encoder_outputs(embedded: EmbeddedInputs, selection: Selection) -> dict[str, Any]:
    """`mm_encoder_outputs` of the kept tokens: one piece of features per prompt.

    One piece per prompt, not per video: beams and returned sequences repeat a prompt's pieces, and
    how `generate` repeats several of them differs between releases.
    """
    prompt = embedded.prompt
    counts = [0] * embedded.batch_size
    for row, count in zip(embedded.video_rows, selection.counts, strict=True):
        counts[row] += count
    video = prompt.video_index.index_select(0, selection.keep)
    rows = prompt.embeds.index_select(0, video)
    if selection.embeds is not None:
        rows = selection.embeds.to(rows)
    out = {"video": _pieces(prompt, rows, video, counts)}
    if embedded.image_index is not None:
        rows = prompt.embeds.index_select(0, embedded.image_index)
        out["image"] = _pieces(prompt, rows, embedded.image_index, embedded.image_counts)
    return out


def _pieces(prompt: Prompt, rows: Tensor, places: Tensor, counts: Sequence[int]) -> Any:
    """The encoder output of one kind: `rows` of the packed `places`, `counts` in each prompt."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    sizes = [count for count in counts if count]
    deepstack = prompt.extras.get(DEEPSTACK)
    levels = None
    if deepstack is not None:
        levels = [list(level.index_select(0, places).split(sizes)) for level in deepstack]
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=list(rows.split(sizes)), deepstack_features=levels
    )
