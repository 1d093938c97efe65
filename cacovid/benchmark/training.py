"""A whole training step: rollouts, rewards, loss and update, on a model's real shapes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cacovid.benchmark.timing import host_clock
from cacovid.models.defaults import model_location, reading_defaults
from cacovid.synthetic import world
from cacovid.train.config import (
    DataSection,
    EvaluationSection,
    PolicySection,
    RewardSection,
    TrainConfig,
)
from cacovid.train.cpo import CPOSettings
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import FrameReader
from cacovid.train.run import prepare
from cacovid.train.settings import TrainerSettings
from cacovid.video import FrameSampling, sample_indices


@dataclass(frozen=True)
class TrainingSpeed:
    """How fast a policy is trained.

    Args:
        model: The frozen model.
        tokens: Video tokens of a sample.
        hidden: Width of their embeddings.
        rollouts: Token rollouts and frame rollouts of an update.
        updates: Updates of a step.
        samples: Samples of a step.
        seconds: Of each measured step, ascending; the first step, which loads, is not among them.
        reward_share: Share of that time that the frozen model takes to mark rollouts.
        clock: `"host"` or `"processor"`, see `timing.host_clock`.
        h264: Whether the clips passed through H.264, which needs PyAV; the tokens are as many.
    """

    model: str
    tokens: int
    hidden: int
    rollouts: int
    updates: int
    samples: int
    seconds: tuple[float, ...]
    reward_share: float
    clock: str
    h264: bool = True

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return self.seconds[len(self.seconds) // 2]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "tokens": self.tokens,
            "hidden": self.hidden,
            "rollouts": self.rollouts,
            "updates_per_step": self.updates,
            "samples_per_step": self.samples,
            "steps": len(self.seconds),
            "seconds_per_step": round(self.median, 4),
            "p20_seconds": round(self.seconds[len(self.seconds) // 5], 4),
            "p80_seconds": round(self.seconds[4 * len(self.seconds) // 5], 4),
            "steps_per_second": round(1.0 / self.median, 4),
            "reward_share": round(self.reward_share, 3),
            "clock": self.clock,
            "h264": self.h264,
        }


class _Timed:
    """A reward that knows how long it took."""

    def __init__(self, reward: Any, device: torch.device, now: Callable[[], float]) -> None:
        self._reward, self._device, self._now = reward, device, now
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def __call__(self, *arguments: Any) -> Any:
        begin = self._now()
        rewards = self._reward(*arguments)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds += self._now() - begin
        return rewards


def measure(model: str, device: torch.device, steps: int) -> TrainingSpeed:
    """Trains a `CrossAttentionPolicy` for a few steps on the embedded task.

    Args:
        model: `"tiny"`, a directory or a Hub id.
        device: Where.
        steps: How many are measured; one more is run before them.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=str(Path(folder) / "run"),
            model=model,
            device=str(device),
            policy=PolicySection(settings={"slots": 0}),
            data=DataSection(scenes=1, per_scene=4),
            reward=RewardSection(kind="probability", free_text="forced"),
            cpo=CPOSettings(),
            training=TrainerSettings(
                steps=steps + 1, learning_rate=1e-4, checkpoint_every=steps + 2, log_every=steps + 2
            ),
            evaluation=EvaluationSection(questions=0),
        )
        run = prepare(config)
        h264 = find_spec("av") is not None
        if not h264:  # as on a GPU machine that has torch and little else
            run.reward.encoder.read_frames = _as_drawn(
                reading_defaults(model_location(model)).max_frames
            )
        clock, now = host_clock(device)
        timed = _Timed(run.reward, device, now)
        run.reward = timed  # type: ignore[assignment]
        trainer = run.trainer()
        seconds, rewarding = [], 0.0
        trainer.train(0, 1)
        for step in range(1, steps + 1):
            before, begin = timed.seconds, now()
            trainer.train(step, step + 1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(now() - begin)
            rewarding += timed.seconds - before
        prompt = run.reward.prepare(run.samples[0]).prompt
    own = config.cpo.rollouts
    return TrainingSpeed(
        model=model,
        tokens=prompt.grid.num_tokens,
        hidden=prompt.embeds.shape[1],
        rollouts=own.token_rollouts + own.frame_rollouts,
        updates=config.cpo.updates,
        samples=config.training.samples_per_step,
        seconds=tuple(sorted(seconds)),
        reward_share=rewarding / sum(seconds),
        clock=clock,
        h264=h264,
    )


def _as_drawn(max_frames: int) -> FrameReader:
    """Reads the embedded task's scenes as `train.data.read_sample` does, but without H.264."""

    def read(sample: TrainingSample) -> np.ndarray:
        assert sample.scene is not None
        frames = sample.scene.make().rendering.frames
        sampling = FrameSampling(max_frames, fps=world.CLIP_FPS)
        return frames[sample_indices(len(frames), len(frames) / world.CLIP_FPS, sampling)]

    return read
