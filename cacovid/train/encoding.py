"""Training samples as embedded prompts; the vision tower runs once per video."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cacovid.models.base import EmbeddedInputs, QuestionSource, VideoFeatures
from cacovid.models.registry import adapter_for
from cacovid.train.data import TrainingSample
from cacovid.train.wording import word_problem
from cacovid.types import Prompt

#: Gives a sample's frames, uint8 `[F, H, W, 3]`.
FrameReader = Callable[[TrainingSample], np.ndarray]


@dataclass(frozen=True)
class PreparedSample:
    """A sample on the device of the frozen model, ready for rollouts.

    Args:
        sample: The sample.
        prompt: Its uncompressed prompt, one video.
        embedded: What the adapter returned.
    """

    sample: TrainingSample
    prompt: Prompt
    embedded: EmbeddedInputs


class SampleEncoder:
    """Reads, words and embeds samples.

    Features of the last videos are kept, so that further questions on a video, and further epochs,
    cost no vision tower.

    Args:
        model: The frozen model.
        processor: Its processor.
        read_frames: Gives a sample's frames.
        cached_videos: How many videos' features are kept in memory (0: none).
        needs: Names of `Prompt.extras` that a method asks for.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        read_frames: FrameReader,
        cached_videos: int = 64,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.model: Any = model
        self.processor = processor
        self.read_frames = read_frames
        self.cached_videos = cached_videos
        self.needs = needs
        self._adapter = adapter_for(model)
        self._cache: OrderedDict[str, tuple[VideoFeatures, int]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, sample: TrainingSample) -> PreparedSample:
        """Embeds one sample.

        Raises:
            VideoReadError: if its video cannot be read.
        """
        text = word_problem(sample)
        key = sample.video_key
        if key in self._cache:
            self._cache.move_to_end(key)
            features, placeholders = self._cache[key]
            inputs, cached = self._text_inputs(text, placeholders), features
        else:
            inputs, cached = self._inputs(self.read_frames(sample), text), None
        source = QuestionSource(text=text, tokenizer=self.processor.tokenizer, required=True)
        embedded = self._adapter.embed(
            self.model, inputs, self.needs, question=source, features=cached
        )
        if cached is None:
            self._remember(key, embedded)
        return PreparedSample(sample, embedded.prompt, embedded)

    def _remember(self, key: str, embedded: EmbeddedInputs) -> None:
        if self.cached_videos == 0 or embedded.features is None:
            return
        # In their own precision: a run resumed with a cold cache sees the same numbers.
        self._cache[key] = (embedded.features, embedded.features.rows.shape[0])
        while len(self._cache) > self.cached_videos:
            self._cache.popitem(last=False)

    def _prompt(self, text: str) -> str:
        content = [{"type": "video"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )

    def _inputs(self, frames: np.ndarray, text: str) -> dict[str, Any]:
        batch = self.processor(
            text=[self._prompt(text)], videos=[frames], return_tensors="pt", padding=True
        )
        pixels = batch["pixel_values_videos"].to(self.model.dtype)
        return {
            name: value.to(self.model.device) if isinstance(value, Tensor) else value
            for name, value in {**batch, "pixel_values_videos": pixels}.items()
        }

    def _text_inputs(self, text: str, placeholders: int) -> dict[str, Any]:
        token = self.processor.video_token
        prompt = self._prompt(text).replace(token, token * placeholders, 1)
        batch = self.processor.tokenizer([prompt], return_tensors="pt")
        return {
            name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")
        }
