"""One question at a time under every condition, as a user would ask it, with the time by stage.

The video is read and goes through the vision tower once; what differs between conditions (choosing
the tokens, reading the shortened prompt, writing the answer) is done and timed for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cacovid.evaluation.choosers import Chooser, Chosen
from cacovid.evaluation.compare import UNCOMPRESSED, keep_all
from cacovid.models.base import QuestionSource
from cacovid.models.defaults import ReadingDefaults
from cacovid.models.generation import DECODE, PREFILL, fixed_settings, generate_timed
from cacovid.models.inputs import video_inputs
from cacovid.models.inside import running
from cacovid.models.registry import adapter_for
from cacovid.models.timing import StageClock
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import PreparedSample
from cacovid.train.wording import word_problem

READ, VISION, COMPRESS = "read", "vision", "compress"

#: In order. `compress` is everything between the vision tower and the language model: extras that
#: a method asks for, scores, selection, and writing the shortened prompt down.
STAGES = (READ, VISION, COMPRESS, PREFILL, DECODE)


def first_token(seconds: Mapping[str, float]) -> float:
    """Time to the first token: all stages but `decode`."""
    return sum(seconds.get(stage, 0.0) for stage in STAGES if stage != DECODE)


@dataclass(frozen=True)
class Trial:
    """A question answered under one condition.

    Args:
        method: The chooser's name, or `"uncompressed"`.
        retention: Share of the tokens asked for.
        chosen: What was kept.
        entering: Tokens that entered the language model.
        answer: The generated answer.
        seconds: By stage.
    """

    method: str
    retention: float
    chosen: Chosen
    entering: int
    answer: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Asked:
    """A question under all conditions.

    Args:
        frames: `[F, H, W, 3]` uint8, as the model saw them.
        timestamps: Seconds of each frame, float64 `[F]`.
        trials: One per condition, the first uncompressed.
    """

    frames: np.ndarray
    timestamps: np.ndarray | None
    trials: list[Trial]


class Trials:
    """Asks questions under all conditions.

    Args:
        model: The model.
        processor: Its processor.
        choosers: What is compared.
        retentions: Shares of the tokens kept, each in (0, 1].
        reading: How many frames are read.
        max_new_tokens: Of an answer.
        on_trial: Called with the method and the retention when a condition begins.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        choosers: Sequence[Chooser],
        retentions: Sequence[float],
        reading: ReadingDefaults,
        max_new_tokens: int = 64,
        on_trial: Callable[[str, float], None] = lambda method, retention: None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.choosers = choosers
        self.retentions = retentions
        self.reading = reading
        self.max_new_tokens = max_new_tokens
        self.on_trial = on_trial
        self._adapter = adapter_for(model)

    @torch.no_grad()
    def __call__(self, sample: TrainingSample, seed: int = 0) -> Asked:
        """All trials of one question; the first condition is uncompressed.

        Raises:
            VideoReadError: if the video cannot be read.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = _file(sample, Path(folder))  # writing a scene's file is no part of reading it
            clock = StageClock(self.model.device)
            with clock(READ):
                frames, timestamps, told = self._frames(path)
                text = word_problem(sample)
                inputs = video_inputs(self.model, self.processor, frames, text, told=told)
        source = QuestionSource(text=text, tokenizer=self.processor.tokenizer, required=True)
        first = self._adapter.embed(self.model, inputs, (), question=source)
        shared = {READ: clock.seconds[READ], VISION: first.vision_seconds}
        trials = []
        places: list[tuple[Chooser | None, float]] = [(None, 1.0)]
        places += [(chooser, float(r)) for chooser in self.choosers for r in self.retentions]
        for chooser, retention in places:
            name = UNCOMPRESSED if chooser is None else chooser.name
            self.on_trial(name, retention)
            clock = StageClock(self.model.device)
            begin = clock.now()
            needs = frozenset() if chooser is None else chooser.needs
            embedded = self._adapter.embed(
                self.model, inputs, needs, question=source, features=first.features
            )
            chosen = Chosen(keep_all(embedded.prompt.grid, embedded.prompt.embeds.device))
            if chooser is not None:
                prepared = PreparedSample(sample, embedded.prompt, embedded)
                (chosen,) = chooser(prepared, [retention], seed)
            shortened = self._adapter.prune(embedded, chosen.selection)
            # A method that asks something of the vision tower made it run once more.
            again = embedded.features is not first.features
            vision = embedded.vision_seconds if again else 0.0
            clock.add(COMPRESS, clock.now() - begin - vision)
            with running(self.model, chosen.hook):
                answer = generate_timed(
                    self.model, self.processor.tokenizer, {**shortened, **fixed_settings()}, clock,
                    self.max_new_tokens,
                )  # fmt: skip
            chosen = replace(chosen, selection=chosen.kept)
            entering = int(shortened["input_ids"].shape[1])
            seconds = {**shared, **clock.seconds}
            if again:
                seconds[VISION] = vision
            trials.append(Trial(name, retention, chosen, entering, answer, seconds))
        return Asked(frames, timestamps, trials)

    def times(self, sample: TrainingSample, seed: int = 0) -> tuple[dict[str, float], ...]:
        """The seconds by stage alone, one dictionary per condition."""
        return tuple(trial.seconds for trial in self(sample, seed).trials)

    def _frames(self, path: Path) -> tuple[np.ndarray, np.ndarray | None, Any]:
        from cacovid.video import FrameSampling, read_frames

        sampling = FrameSampling(max_frames=self.reading.max_frames, fps=self.reading.fps)
        read = read_frames(path, sampling)
        return read.frames, read.timestamps, read.hf()


def _file(sample: TrainingSample, folder: Path) -> Path:
    """The sample's video file; a scene of the embedded task is written into `folder`."""
    if sample.scene is not None:
        return sample.scene.make().write(folder / "clip.mp4")
    assert sample.video is not None
    return sample.video
