"""LLaVA-OneVision (`model_type` "llava_onevision") of transformers 5.4 to 5.23.

The shortened prompt goes to `generate` as `inputs_embeds` beside its `input_ids`: all releases of
that range take the embeddings for the prefill and the ids for everything else (streamers, logits
processors, the returned sequences), repeat both for beams and returned sequences, and force the
cache on. `mm_encoder_outputs`, there since 5.18, is not used: with several prompts it pairs
features with the wrong beams unless every video keeps the same number of tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.base import EmbeddedInputs, Positions, QuestionSource, VideoFeatures
from cacovid.models.question import locate_questions
from cacovid.models.repack import rewrite, shorten_like_ids
from cacovid.models.vision_extras import Caught, fill_extras, has_extras, pooled, watch_vision
from cacovid.types import Grid, Prompt, Selection

#: Inputs that are turned into embeddings and do not go on to `generate`.
_ENCODED = frozenset(
    {"pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos",
     "batch_num_images", "vision_feature_layer", "vision_feature_select_strategy",
     "vision_aspect_ratio"}
)  # fmt: skip
_VISION_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy")
_IMAGE_SETTINGS = (*_VISION_SETTINGS, "vision_aspect_ratio", "batch_num_images")


class LlavaOnevisionAdapter:
    """Several videos per prompt, batches padded on either side, images beside the videos.

    The newline embedding after a video is no video token: never scored, never dropped. Videos of
    different lengths may come as a list of `[F, 3, H, W]` tensors.
    """

    model_types: tuple[str, ...] = ("llava_onevision",)

    def inner_model(self, model: nn.Module) -> Any:
        """`LlavaOnevisionModel`: merges features into the prompt. Looked for below wrappers."""
        for module in model.modules():
            if hasattr(module, "get_video_features") and "language_model" in module._modules:
                return module
        raise UnsupportedModelError(
            f"{type(model).__name__} holds no LlavaOnevisionModel; pass the model that "
            f"from_pretrained returned"
        )

    def text_model(self, model: nn.Module) -> Any:
        """The decoder."""
        return self.inner_model(model).language_model

    def has_video(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the inputs hold pixels of a video."""
        return inputs.get("pixel_values_videos") is not None

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
            model: A `LlavaOnevisionForConditionalGeneration`, or its inner model.
            inputs: `input_ids` `[B, W]`, `pixel_values_videos` `[V, F, 3, H, W]` (or a list of
                `[F, 3, H, W]`), and what else the processor returned.
            needs: Names of `Prompt.extras`: `received_attention/{layer}/{last|question}`,
                `vision_attention`, `vision_keys`, `vision_pooling_attention`; one with a question
                mark behind it is left out where this model does not give it.
            question: Where to find the question tokens.
            features: The videos' features from an earlier call (`EmbeddedInputs.features`); the
                vision tower does not run then, and `pixel_values_videos` is not looked at, unless
                a method needs what the earlier call was not asked for.

        Raises:
            InvalidInputError: if an input is missing, of a wrong shape, or if placeholders and
                features differ in number.
            UnsupportedModelError: for an extra that this model does not give, or features that
                are not laid out as one grid per frame and a newline.
        """
        config = self.inner_model(model).config
        video_id, image_id = int(config.video_token_id), int(config.image_token_id)
        input_ids = _checked_ids(inputs, needs_video=features is None)
        mask = _checked_mask(inputs, input_ids)
        # The only read from the device: ids and mask, at the prompt's beginning.
        host_mask = mask.cpu()
        host_rows = [ids[row].tolist() for ids, row in zip(input_ids.cpu(), host_mask, strict=True)]
        if not all(host_rows):
            raise InvalidInputError("a prompt of the batch is empty: its attention_mask is all 0")

        device = input_ids.device
        source = host_mask.flatten().nonzero().flatten().to(device)
        packed_ids = input_ids.flatten().index_select(0, source)
        embeds = self.inner_model(model).get_input_embeddings()(packed_ids)

        begin = _now(device)
        if features is None or (self.has_video(inputs) and not has_extras(features, needs)):
            with watch_vision(self.inner_model(model).vision_tower, needs) as caught:
                features = self._video_features(model, inputs)
            features = replace(features, extras=self._extras(model, caught))
        grid = features.grid
        images = self._image_features(model, inputs)
        seconds = _now(device) - begin

        host_ids = torch.cat([torch.tensor(row) for row in host_rows])
        places = (host_ids == video_id).nonzero().flatten()
        video_rows = _match_videos([row.count(video_id) for row in host_rows], grid)
        video_places, other = _split_places(places, grid, len(host_ids))
        embeds = embeds.index_copy(0, places.to(device), features.rows.to(embeds))
        if images is not None:
            image_places = (host_ids == image_id).nonzero().flatten()
            embeds = _put_images(embeds, image_places, images)

        source_of = question or QuestionSource()
        questions = locate_questions(
            host_rows,
            source_of,
            placeholders=(video_id, image_id),
            end_ids=_end_ids(model),
            masks=_cut_mask(source_of.mask, host_mask),
        )
        question_index, question_offsets = _per_video(questions, host_rows, video_rows)
        prompt = Prompt(
            embeds=embeds,
            position_ids=_positions(inputs, host_mask, source),
            video_index=video_places.to(device),
            question_index=torch.tensor(question_index, dtype=torch.int64, device=device),
            grid=grid,
            prompt_offsets=_offsets(host_rows),
            question_offsets=question_offsets,
        )
        fill_extras(model, prompt, needs, features)
        return EmbeddedInputs(
            prompt=prompt,
            inputs=inputs,
            input_ids=input_ids,
            source=source,
            row_lengths=tuple(len(row) for row in host_rows),
            video_rows=video_rows,
            other_index=other.to(device),
            pad_id=_pad_id(model),
            vision_seconds=seconds,
            features=features,
        )

    @torch.no_grad()
    def prune(
        self, embedded: EmbeddedInputs, selection: Selection, positions: Positions = "original"
    ) -> dict[str, Any]:
        """Keyword arguments of `model.generate` for the prompts with the kept video tokens only.

        Args:
            embedded: What `embed` returned.
            selection: The kept tokens.
            positions: `"original"` keeps each token's position id, and decoding goes on from the
                uncompressed prompt's next position; `"compact"` leaves no gaps.

        Returns:
            `input_ids`, `attention_mask`, `position_ids` `[B, W]` and `inputs_embeds`
            `[B, W, D]`, padded on the left, and the inputs that are not about vision; those of
            the prompt's shape (labels) are shortened alike.
        """
        out: dict[str, Any] = dict(rewrite(embedded, selection, positions))
        shape = embedded.input_ids.shape
        for name, value in embedded.inputs.items():
            if name in out or name in _ENCODED or value is None:
                continue
            if isinstance(value, Tensor) and value.shape[:2] == shape:
                value = shorten_like_ids(embedded, selection, name, value)
            out[name] = value
        return out

    def _video_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> VideoFeatures:
        """All videos' tokens, each video followed by its newline."""
        inner: Any = self.inner_model(model)
        clips = _clips(inputs.get("pixel_values_videos"))
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

    def _extras(self, model: nn.Module, caught: Caught) -> dict[str, Tensor]:
        """What was caught of patches, pooled as the features are."""
        inner: Any = self.inner_model(model)
        vision = inner.config.vision_config
        return pooled(caught, inner.apply_pooling, (vision.image_size // vision.patch_size) ** 2)

    def _image_features(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
        if inputs.get("pixel_values") is None:
            return None
        settings = {k: inputs[k] for k in _IMAGE_SETTINGS if inputs.get(k) is not None}
        out = self.inner_model(model).get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], return_dict=True, **settings
        )
        return torch.cat(list(out.pooler_output))


def _clips(pixels: Any) -> list[Tensor]:
    """Videos as `[V, F, 3, H, W]` tensors, each of one length."""
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


def _checked_ids(inputs: Mapping[str, Any], needs_video: bool) -> Tensor:
    for name in ("inputs_embeds", "past_key_values", "mm_encoder_outputs"):
        if inputs.get(name) is not None:
            raise InvalidInputError(
                f"{name} cannot be pruned; pass input_ids and pixel_values_videos as the processor "
                f"returned them"
            )
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        given = tuple(ids.shape) if isinstance(ids, Tensor) else ids
        raise InvalidInputError(f"input_ids is {given}; expected an int64 tensor [B, W]")
    if needs_video and inputs.get("pixel_values_videos") is None:
        raise InvalidInputError(
            "the inputs hold no video (pixel_values_videos is missing); there is nothing to prune"
        )
    return ids


def _checked_mask(inputs: Mapping[str, Any], input_ids: Tensor) -> Tensor:
    mask = inputs.get("attention_mask")
    if mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidInputError(
            f"attention_mask is {given}; expected the shape of input_ids, {tuple(input_ids.shape)}"
        )
    return mask.bool()


def _match_videos(placeholders: Sequence[int], grid: Grid) -> tuple[int, ...]:
    """The prompt of each video, from each prompt's placeholders: they are used up in order."""
    lengths = [tokens + 1 for tokens in grid.tokens_per_video]
    owners: list[int] = []
    for number, left in enumerate(placeholders):
        while len(owners) < len(lengths) and lengths[len(owners)] <= left:
            left -= lengths[len(owners)]
            owners.append(number)
        if left:
            break
    if len(owners) != len(lengths) or sum(lengths) != sum(placeholders):
        raise InvalidInputError(
            f"video placeholders and features do not match: the prompts hold {list(placeholders)} "
            f"placeholders, the videos have {lengths} rows (tokens and a newline). Use the "
            f"processor's own input_ids, not truncated"
        )
    return tuple(owners)


def _split_places(places: Tensor, grid: Grid, total: int) -> tuple[Tensor, Tensor]:
    """Packed places of the video tokens, and of everything else (newlines among it)."""
    is_token = torch.ones(len(places), dtype=torch.bool)
    newlines = [end + number for number, end in enumerate(grid.host_video_offsets[1:])]
    is_token[newlines] = False
    other = torch.ones(total, dtype=torch.bool)
    other[places[is_token]] = False
    return places[is_token], other.nonzero().flatten()


def _put_images(embeds: Tensor, places: Tensor, images: Tensor) -> Tensor:
    if len(places) != images.shape[0]:
        raise InvalidInputError(
            f"image placeholders and features do not match: {len(places)} placeholders, "
            f"{images.shape[0]} features. Use the processor's own input_ids, not truncated"
        )
    return embeds.index_copy(0, places.to(embeds.device), images.to(embeds))


def _per_video(
    questions: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], owners: Sequence[int]
) -> tuple[list[int], tuple[int, ...]]:
    """Packed places of each video's question, and where each begins."""
    begins = _offsets(rows)
    index: list[int] = []
    offsets = [0]
    for owner in owners:
        index.extend(begins[owner] + place for place in questions[owner])
        offsets.append(len(index))
    return index, tuple(offsets)


def _positions(inputs: Mapping[str, Any], host_mask: Tensor, source: Tensor) -> Tensor:
    given = inputs.get("position_ids")
    if given is None:
        counted = host_mask.long().cumsum(-1) - 1
        return counted.flatten().to(source.device).index_select(0, source)
    if given.shape != host_mask.shape:
        raise InvalidInputError(
            f"position_ids is {tuple(given.shape)}; expected {tuple(host_mask.shape)}"
        )
    return given.flatten().to(source.device).index_select(0, source)


def _cut_mask(mask: Tensor | None, host_mask: Tensor) -> list[list[bool]] | None:
    if mask is None:
        return None
    if mask.shape != host_mask.shape:
        raise InvalidInputError(
            f"the question mask is {tuple(mask.shape)}; expected the shape of input_ids, "
            f"{tuple(host_mask.shape)}"
        )
    return [m[row].bool().tolist() for m, row in zip(mask.cpu(), host_mask, strict=True)]


def _end_ids(model: nn.Module) -> frozenset[int]:
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    return frozenset(ids if isinstance(ids, (list, tuple)) else [ids] if ids is not None else [])


def _pad_id(model: nn.Module) -> int:
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        ids = getattr(config, "pad_token_id", None)
        if isinstance(ids, int):
            return ids
    # Padding is masked: any id of the vocabulary serves.
    return 0


def _offsets(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    sums = [0]
    for row in rows:
        sums.append(sums[-1] + len(row))
    return tuple(sums)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
