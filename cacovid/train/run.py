"""A training run from its configuration: everything that `cacovid train` puts together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cacovid.errors import InvalidInputError
from cacovid.methods import PolicyMethod
from cacovid.models.defaults import model_location, reading_defaults
from cacovid.models.processing import load_processor
from cacovid.models.storage import load_whole
from cacovid.policies import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    SelfAttentionConfig,
    SelfAttentionPolicy,
    StoredPolicy,
    load_policy,
)
from cacovid.train.config import DataSection, EvaluationSection, PolicySection, TrainConfig
from cacovid.train.cpo import CPO
from cacovid.train.data import (
    Samples,
    TrainingSample,
    embedded_samples,
    read_sample_frames,
    read_video_r1,
)
from cacovid.train.encoding import SampleEncoder
from cacovid.train.evaluation import Evaluation, evaluate_greedy
from cacovid.train.imitation import Imitation
from cacovid.train.objective import Objective
from cacovid.train.rewards import LocalReward, freeze
from cacovid.train.trainer import Trainer


@dataclass
class Run:
    """What a configuration stands for.

    Args:
        config: The configuration.
        samples: What is learned from.
        held_out: What it is judged by.
        reward: The frozen model.
        policy: The policy.
    """

    config: TrainConfig
    samples: Samples
    held_out: list[TrainingSample]
    reward: LocalReward
    policy: StoredPolicy

    def trainer(self, **callbacks: Any) -> Trainer:
        """The loop.

        Args:
            **callbacks: `on_step`, `on_warning`.
        """
        pretrained: tuple[str, ...] = ()
        if isinstance(self.policy, SelfAttentionPolicy) and self.config.policy.from_language_model:
            pretrained = ("layers.",)
        if isinstance(self.policy, CrossAttentionPolicy) and not self.policy.config.slots:
            # They start aligned with the word embeddings; at the full rate, noise undoes that.
            pretrained = ("slot_input.", "key.", "query.")
        objective: Objective = CPO(self.reward, self.config.cpo)
        if self.config.objective == "imitation":
            objective = Imitation(self.reward.encoder, self.config.imitation)
        return Trainer(
            self.policy,
            objective,
            self.samples,
            self.config.training,
            Path(self.config.output),
            pretrained=pretrained,
            trackers=self.config.trackers,
            evaluate=self._accuracy if self.held_out else None,
            **callbacks,
        )

    def _accuracy(self) -> float:
        result = self.evaluate()
        assert result is not None
        return result.accuracy

    def evaluate(self) -> Evaluation | None:
        """Greedy selection on the held-out questions; None without any."""
        if not self.held_out:
            return None
        method = PolicyMethod(self.policy)
        return evaluate_greedy(
            method, self.reward, self.held_out, self.config.evaluation.retention
        )


def prepare(config: TrainConfig, on_stage: Callable[[str], None] = lambda name: None) -> Run:
    """Loads the data, the model and the policy.

    Raises:
        InvalidInputError: for data, a model or a policy that cannot be used.
    """
    on_stage("data")
    samples = read_data(config.data)
    held_out = read_held_out(config.evaluation)
    on_stage("model")
    location = model_location(config.model)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype: Any = config.dtype or (
        torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    )
    model = freeze(load_whole(location, dtype).to(device))
    reading = reading_defaults(location)
    frames = config.data.max_frames or reading.max_frames
    fps = config.data.fps or reading.fps
    encoder = SampleEncoder(
        model,
        load_processor(location),
        lambda sample: read_sample_frames(sample, frames, fps),
        config.reward.cached_videos,
        frozenset({config.imitation.extra} if config.objective == "imitation" else ()),
    )
    reward = LocalReward(
        encoder,
        config.reward.kind,
        config.reward.free_text,
        config.reward.max_new_tokens,
        config.reward.batch_tokens,
    )
    torch.manual_seed(config.training.seed)
    policy = make_policy(config.policy, model, config.model).to(device)
    return Run(config, samples, held_out, reward, policy)


def read_data(section: DataSection) -> Samples:
    """The samples of a `data` section."""
    if section.file is None:
        samples = embedded_samples(
            section.split, section.seed, section.scenes, section.per_scene, section.first
        )
    else:
        samples = read_video_r1(
            section.file, section.video_root, max_skipped=section.max_skipped
        )
    if section.kept is not None:
        try:
            ids = json.loads(Path(section.kept).read_text())["kept"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{section.kept} is no list that cacovid filter wrote: {error}"
            ) from error
        samples = samples.only(ids)
    return samples


def read_held_out(section: EvaluationSection) -> list[TrainingSample]:
    """The questions of an `evaluation` section."""
    if not section.questions:
        return []
    if section.file is not None:
        return list(read_video_r1(section.file, section.video_root))[: section.questions]
    scenes = -(-section.questions // 5)
    return list(embedded_samples("validation", section.seed, scenes, 5))[: section.questions]


def make_policy(section: PolicySection, model: Any, name: str) -> StoredPolicy:
    """The policy of a `policy` section, for a model.

    Raises:
        InvalidInputError: for an unknown type or setting.
    """
    if section.start is not None:
        return load_policy(section.start, base_model=model).train()
    settings = {"base_model": name, **section.settings}
    try:
        if section.type == "cross_attention":
            width = model.config.get_text_config().hidden_size
            return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=width, **settings))
        if section.type == "self_attention":
            if section.from_language_model:
                return SelfAttentionPolicy.from_language_model(model, **settings)
            return SelfAttentionPolicy(SelfAttentionConfig(**settings))
    except TypeError as error:
        raise InvalidInputError(f"policy.settings do not fit: {error}") from error
    raise InvalidInputError(
        f"policy.type is {section.type!r}; expected cross_attention or self_attention"
    )
