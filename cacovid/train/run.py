"""A training run from its configuration: everything that `cacovid train` puts together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cacovid.errors import InvalidInputError
from cacovid.methods import PolicyMethod
from cacovid.models.defaults import model_location, reading_defaults
from cacovid.models.processing import load_processor
from cacovid.models.storage import load_whole, telling_what_fails
from cacovid.policies import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    SelfAttentionConfig,
    SelfAttentionPolicy,
    StoredPolicy,
    SurpriseConfig,
    SurprisePolicy,
    load_policy,
)
from cacovid.synthetic import make_pseudo_videos, read_captioned_images
from cacovid.train.choices import letter_ids
from cacovid.train.config import (
    DataSection,
    EvaluationSection,
    PolicySection,
    TrainConfig,
    check_objective,
)
from cacovid.train.cpo import CPO
from cacovid.train.curriculum import Curriculum, Stage
from cacovid.train.data import (
    Samples,
    TrainingSample,
    apart,
    embedded_samples,
    pseudo_samples,
    read_sample,
)
from cacovid.train.encoding import SampleEncoder
from cacovid.train.evaluation import Evaluation, evaluate_greedy
from cacovid.train.imitation import Imitation
from cacovid.train.marking import check_packages
from cacovid.train.objective import Objective
from cacovid.train.provenance import digest, entries
from cacovid.train.rewards import LocalReward, freeze
from cacovid.train.score import SCORE
from cacovid.train.sharding import Lockstep, launched_with_fsdp, plain_launch, shard_frozen
from cacovid.train.trainer import Trainer
from cacovid.train.video_r1 import read_video_r1
from cacovid.train.wording import put_plainly


@dataclass
class Run:
    """What a configuration stands for.

    Args:
        config: The configuration.
        curriculum: What is learned from.
        held_out: What it is judged by.
        reward: The frozen model.
        policy: The policy.
        lockstep: Of a sharded frozen model.
    """

    config: TrainConfig
    curriculum: Curriculum
    held_out: Samples
    reward: LocalReward
    policy: StoredPolicy
    lockstep: Lockstep | None = None

    @property
    def samples(self) -> Samples:
        """The samples of all stages."""
        return self.curriculum.samples

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
        if self.config.objective == "score":
            objective = SCORE(self.reward, self.config.score)
        return Trainer(
            self.policy,
            objective,
            self.curriculum,
            self.config.training,
            Path(self.config.output),
            pretrained=pretrained,
            trackers=self.config.trackers,
            lockstep=self.lockstep,
            evaluate=self._accuracy if self.held_out else None,
            provenance=self._provenance,
            **callbacks,
        )

    @property
    def _provenance(self) -> dict[str, Any]:
        """What the result hangs on besides the samples and the trainer's own settings."""
        c = self.config
        # Files may be moved: what was read from them counts, not where they lie.
        places = {"file", "video_root", "images", "kept", "max_skipped"}
        found = {
            "model": c.model,
            "dtype": str(next(self.reward.model.parameters()).dtype).removeprefix("torch."),
            **entries(c.data, "data.", places),
            **entries(c.reward, "reward.", {"batch_tokens", "cached_videos"}),
            **entries(c.evaluation, "evaluation.", places),
            "evaluation.samples": digest(self.held_out),
        }
        for number, stage in enumerate(c.stages, 1):
            found |= entries(stage.data, f"stages.{number}.data.", places)
        return found

    def _accuracy(self) -> float:
        result = self.evaluate()
        assert result is not None
        return result.accuracy

    def evaluate(self) -> Evaluation | None:
        """Greedy selection on the held-out questions; None without any."""
        if not self.held_out:
            return None
        method = PolicyMethod(self.policy)
        return evaluate_greedy(method, self.reward, self.held_out, self.config.evaluation.retention)


def prepare(config: TrainConfig, on_stage: Callable[[str], None] = lambda name: None) -> Run:
    """Loads the data, the model and the policy.

    Raises:
        InvalidInputError: for data, a model or a policy that cannot be used.
    """
    on_stage("data")
    held_out = read_held_out(config.evaluation)
    curriculum = read_curriculum(config, held_out)
    on_stage("model")
    location = model_location(config.model)
    reading = reading_defaults(location)
    if not reading.closing:
        held_out = put_plainly(held_out)
        curriculum = Curriculum(
            [replace(stage, samples=put_plainly(stage.samples)) for stage in curriculum.stages]
        )
    device = training_device(config.device)
    # Launched otherwise, transformers may give all processes but the first empty weights.
    with plain_launch(), telling_what_fails(config.model):
        model = freeze(load_whole(location, reading_dtype(config.dtype, device)))
        processor = load_processor(location)
    sharded = config.shard_frozen or launched_with_fsdp()
    if sharded and config.objective == "imitation":
        raise InvalidInputError(
            "objective: imitation reads weights of the frozen model, which cannot be sharded; "
            "launch it without FSDP and with shard_frozen: false"
        )
    if not sharded:
        model = model.to(device)
    check_answerable(curriculum.samples, processor.tokenizer)
    check_answerable(held_out, processor.tokenizer)
    frames = config.data.max_frames or reading.max_frames
    fps = config.data.fps or reading.fps
    encoder = SampleEncoder(
        model,
        processor,
        lambda sample: read_sample(sample, frames, fps),
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
    check_objective(config, has_frames=not isinstance(policy, SurprisePolicy))
    # After the policy, which may start as a layer of the model.
    lockstep = shard_frozen(model, torch.device(device)) if sharded else None
    return Run(config, curriculum, held_out, reward, policy, lockstep)


def training_device(name: str | None) -> str:
    """The device of this process.

    Args:
        name: Of the configuration; None: CUDA where there is one.

    Returns:
        `name`, or with CUDA and several processes the GPU of this process's number.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def reading_dtype(name: str | None, device: str) -> torch.dtype:
    """The dtype of the frozen model.

    Args:
        name: Of the configuration; None: float32 on a CPU, bfloat16 elsewhere.
        device: Where it will run.

    Raises:
        InvalidInputError: for a name that is no floating dtype of torch.
    """
    if name is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidInputError(
            f"dtype is {name!r}; expected a floating dtype such as float32 or bfloat16"
        )
    return dtype


def check_answerable(samples: Sequence[TrainingSample], tokenizer: Any) -> None:
    """Refuses data that could not be marked, before a run begins.

    Args:
        samples: The data.
        tokenizer: The frozen model's.

    Raises:
        InvalidInputError: if the tokenizer cannot tell the letters of a choice apart.
        MissingDependencyError: if a package for marks is not installed.
    """
    check_packages(sample.problem_type for sample in samples)
    choices = [s.letters for s in samples if s.problem_type == "multiple choice"]
    if choices:
        letter_ids(tokenizer, max(choices, key=len))


def read_curriculum(config: TrainConfig, held_out: Samples) -> Curriculum:
    """What a configuration learns from, stage by stage.

    Args:
        config: The configuration.
        held_out: Questions whose videos are left out.
    """
    if not config.stages:
        return Curriculum.of(apart(read_data(config.data), held_out), config.training.steps)
    return Curriculum(
        [
            Stage(apart(read_data(stage.data), held_out), stage.steps, stage.name or f"stage {n}")
            for n, stage in enumerate(config.stages, 1)
        ]
    )


def read_data(section: DataSection) -> Samples:
    """The samples of a `data` section.

    Raises:
        InvalidInputError: for a file or folder that cannot be used, or for both.
    """
    if section.file is not None and section.images is not None:
        raise InvalidInputError("data has both file and images; give one of them")
    if section.stills < 0:
        raise InvalidInputError(f"data.stills is {section.stills}; expected at least 0")
    if section.images is not None:
        videos = make_pseudo_videos(
            read_captioned_images(section.images),
            section.scenes,
            images_per_video=section.stills or 4,
            frames_per_image=section.frames_per_image,
            seed=section.seed,
        )
        samples = pseudo_samples(videos)
    elif section.file is not None:
        samples = read_video_r1(section.file, section.video_root, max_skipped=section.max_skipped)
    else:
        samples = embedded_samples(
            section.split, section.seed, section.scenes, section.per_scene, section.first,
            section.stills,
        )  # fmt: skip
    if section.kept is not None:
        samples = samples.only(_read_kept(section.kept))
    return samples


def _read_kept(path: str) -> list[str]:
    """The ids of a list that `cacovid filter` wrote."""
    expected = (
        'expected the list that cacovid filter writes, {"kept": [ids of the questions, as texts]}'
    )
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise InvalidInputError(f"data.kept: {path} cannot be read: {error}") from error
    except ValueError as error:
        raise InvalidInputError(f"data.kept: {path} is not JSON ({error}); {expected}") from error
    ids = found.get("kept") if isinstance(found, dict) else None
    if not isinstance(ids, list):
        what = f"a {type(found).__name__} without 'kept'"
        if isinstance(found, dict) and "kept" in found:
            what = f"'kept' as {ids!r:.80}"
        raise InvalidInputError(f"data.kept: {path} holds {what}; {expected}")
    wrong = [id for id in ids if not isinstance(id, str)]
    if wrong:
        raise InvalidInputError(f"data.kept: {path} holds the id {wrong[0]!r}; {expected}")
    return ids


def read_held_out(section: EvaluationSection) -> Samples:
    """The questions of an `evaluation` section."""
    if not section.questions:
        return Samples(())
    if section.file is not None:
        samples = read_video_r1(section.file, section.video_root, max_skipped=section.max_skipped)
    else:
        scenes = -(-section.questions // 5)
        samples = embedded_samples("validation", section.seed, scenes, 5)
    return replace(samples, kept=samples.kept[: section.questions])


def make_policy(section: PolicySection, model: Any, name: str) -> StoredPolicy:
    """The policy of a `policy` section, for a model.

    Raises:
        InvalidInputError: for a setting that does not fit the model.
        UnsupportedModelError: for a model whose layer is no start (`from_language_model`).
    """
    if section.start is not None:
        return load_policy(section.start, base_model=model).train()
    settings = {"base_model": name, **section.settings}
    if section.type == "self_attention":
        if section.from_language_model:
            return SelfAttentionPolicy.from_language_model(
                model, exchange_roles=section.exchange_roles, **settings
            )
        return SelfAttentionPolicy(SelfAttentionConfig(**settings))
    width = model.config.get_text_config().hidden_size
    if section.type == "surprise":
        return SurprisePolicy(SurpriseConfig(hidden_size=width, **settings))
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=width, **settings))
