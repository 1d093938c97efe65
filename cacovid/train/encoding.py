"""Training samples as embedded prompts; the vision tower runs once per video."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cacovid.models.base import EmbeddedInputs, QuestionSource, VideoFeatures
from cacovid.models.further_prompt import FurtherPrompt
from cacovid.models.inputs import chat_prompt, video_inputs
from cacovid.models.registry import adapter_for
from cacovid.train.data import TrainingSample
from cacovid.train.wording import word_problem
from cacovid.types import Prompt

#: Gives a sample's frames, uint8 `[F, H, W, 3]`, alone or with what processors are told of the file
#: (`cacovid.train.data.read_sample`).
FrameReader = Callable[[TrainingSample], np.ndarray | tuple[np.ndarray, Any]]


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


@dataclass(frozen=True)
class _Encoded:
    """A video that was encoded before.

    Args:
        features: What the vision tower made of it.
        further: Lays out the prompts of further questions on it.
    """

    features: VideoFeatures
    further: FurtherPrompt


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
        self._cache: OrderedDict[str, _Encoded] = OrderedDict()

    @torch.no_grad()
    def __call__(self, sample: TrainingSample) -> PreparedSample:
        """Embeds one sample.

        Raises:
            VideoReadError: if its video cannot be read.
        """
        text, key = word_problem(sample), sample.video_key
        known, prompt = self._cache.get(key), chat_prompt(self.processor, text)
        if known is not None:
            inputs = known.further(prompt)
        else:
            read = self.read_frames(sample)
            frames, told = read if isinstance(read, tuple) else (read, None)
            inputs = video_inputs(self.model, self.processor, frames, text, prompt, told)
        source = QuestionSource(text=text, tokenizer=self.processor.tokenizer, required=True)
        embedded = self._adapter.embed(
            self.model,
            inputs,
            self.needs,
            question=source,
            features=None if known is None else known.features,
        )
        if known is not None:
            self._cache.move_to_end(key)
        elif self.cached_videos and embedded.features is not None:
            further = FurtherPrompt(self.processor.tokenizer, prompt, inputs)
            # In their own precision: a run resumed with a cold cache sees the same numbers.
            self._cache[key] = _Encoded(embedded.features, further)
            if len(self._cache) > self.cached_videos:
                self._cache.popitem(last=False)
        return PreparedSample(sample, embedded.prompt, embedded)
