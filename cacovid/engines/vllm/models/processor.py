"""What is added to vLLM's processors: the question, the exact budget, and what is hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from cacovid.engines.vllm.models import request
from cacovid.engines.vllm.question import TextTokens, find_text
from cacovid.engines.vllm.settings import PluginSettings, default_retention
from cacovid.errors import InvalidInputError
from cacovid.types import Grid

if TYPE_CHECKING:
    from typing import Any as Base  # a processor of vLLM, which stands behind it among the bases

    from vllm.multimodal.inputs import MultiModalKwargsItem
else:
    Base = object


class QuestionAware(Base):
    """Goes before one of vLLM's processors among the bases of a class.

    A family says in `video_grid` how large a video is, in `placeholder_ids` what stands for it, and
    in `video_token_id` what for each of its tokens.
    """

    def video_grid(self, item: MultiModalKwargsItem) -> tuple[int, int, int]:
        """`(t, h, w)` of a processed video after the model's own merging."""
        raise NotImplementedError

    def placeholder_ids(self) -> Collection[int]:
        """Ids that stand for images and videos in a prompt."""
        raise NotImplementedError

    def marker_ids(self) -> Collection[int]:
        """Ids that stand around them."""
        return ()

    @property
    def video_token_id(self) -> int:
        """The id of a video's placeholder."""
        raise NotImplementedError

    def video_replacement(self, item: MultiModalKwargsItem, kept: int) -> Any:
        """What takes a video's placeholder in the prompt.

        Args:
            item: The processed video.
            kept: Its tokens that are kept.
        """
        return [self.video_token_id] * kept

    @cached_property
    def _settings(self) -> PluginSettings:
        return PluginSettings.of(self.info.get_hf_config(), self.info.model_id)

    @cached_property
    def _reading(self) -> Any:
        return self._settings.reads()

    @cached_property
    def _retention(self) -> float:
        _, ours = request.split_arguments(self.info.ctx.get_mm_config().mm_processor_kwargs or {})
        if ours:
            raise InvalidInputError(
                f"--mm-processor-kwargs holds {', '.join(sorted(ours))}, which are for single "
                f"requests; set the default share by --video-pruning-rate"
            )
        return default_retention(self.info.ctx.get_mm_config())

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As vLLM's, with the question among the arguments of the videos.

        Raises:
            InvalidInputError: for a question that is needed and not found, or a retention outside
                (0, 1].
        """
        if _videos(inputs.mm_data_items):
            inputs = self._with_question(inputs)
        return super().apply(inputs, timing_ctx)

    def _with_question(self, inputs: Any) -> Any:
        theirs, given = request.split_arguments(inputs.hf_processor_mm_kwargs)
        retention = _retention_of(given.get(request.RETENTION, self._retention))
        text = TextTokens()
        if self._reading.question_aware:
            text = find_text(
                inputs.prompt,
                self.info.get_tokenizer(),
                self.video_token_id,
                self.placeholder_ids(),
                markers=self.marker_ids(),
                end_ids=self._end_ids(),
                question=given.get(request.QUESTION),
                whole_prompt=self._reading.whole_prompt,
            )
        # What vLLM would know each video by without us; it stands for the frames from here on, so
        # that they are hashed once.
        alone = replace(
            inputs,
            mm_data_items=inputs.mm_data_items.select({"video"}),
            hf_processor_mm_kwargs=theirs,
        )
        names = super()._get_mm_hashes(alone)["video"]
        ours = request.query_arguments(text, retention, self._settings.policy)
        ours[request.VIDEO_KEYS] = [hashlib.sha256(name.encode()).digest() for name in names]
        return replace(
            inputs,
            mm_uuid_items={**(inputs.mm_uuid_items or {}), "video": names},
            hf_processor_mm_kwargs=request.join_arguments(theirs, ours),
        )

    def _end_ids(self) -> set[int]:
        """Ids that end a turn."""
        config = self.info.get_hf_config()
        given = (
            self.info.get_tokenizer().eos_token_id,
            getattr(config, "eos_token_id", None),
            getattr(config.get_text_config(), "eos_token_id", None),
        )
        return set().union(*map(_as_set, given))

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # The keys say nothing that the videos do not say; each would tell of the other videos.
        theirs, ours = request.split_arguments(inputs.hf_processor_mm_kwargs)
        if ours.pop(request.VIDEO_KEYS, None) is None:
            return super()._get_mm_hashes(inputs)
        arguments = request.join_arguments(theirs, ours)
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=arguments))

    def _get_cache_missing_processor_kwargs(
        self, inputs: Any, mm_is_cached: Mapping[str, Sequence[bool]]
    ) -> Mapping[str, object]:
        arguments = super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)
        theirs, ours = request.split_arguments(arguments)
        if request.VIDEO_KEYS not in ours:
            return arguments
        ours[request.VIDEO_KEYS] = [
            key
            for key, hit in zip(ours[request.VIDEO_KEYS], mm_is_cached["video"], strict=True)
            if not hit
        ]
        return request.join_arguments(theirs, ours)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        theirs, ours = request.split_arguments(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, theirs)
        if videos := _videos(mm_items):
            data.update(request.query_fields(ours, videos))
        return data

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        theirs, _ = request.split_arguments(hf_processor_mm_kwargs)
        return {**super()._get_mm_fields_config(hf_inputs, theirs), **request.field_configs()}

    def _get_prompt_updates(
        self,
        mm_items: Any,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: Any,
    ) -> Sequence[Any]:
        theirs, _ = request.split_arguments(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, theirs, out_mm_kwargs)
        ours = partial(self._video_replacement, out_mm_kwargs)
        return [
            replace(update, replacement=ours) if update.modality == "video" else update
            for update in updates
        ]

    def _video_replacement(self, out_mm_kwargs: Any, number: int) -> Any:
        item = out_mm_kwargs["video"][number]
        retention = float(item[request.SHARE].data)
        (kept,) = Grid([self.video_grid(item)]).budgets(retention)
        return self.video_replacement(item, kept)


def _videos(mm_items: Any) -> int:
    return int(mm_items.get_all_counts().get("video", 0))


def _retention_of(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0:
        raise InvalidInputError(
            f"{request.RETENTION} is {value!r}; expected a number in (0, 1], e.g. 0.1 to keep a "
            f"tenth"
        )
    return float(value)


def _as_set(ids: Any) -> set[int]:
    if ids is None:
        return set()
    return set(ids) if isinstance(ids, Iterable) else {int(ids)}
