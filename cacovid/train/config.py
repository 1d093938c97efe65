"""The configuration of a training run: a YAML or JSON file as nested dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.policies import CrossAttentionConfig, SelfAttentionConfig, SurpriseConfig
from cacovid.policies.config import PolicyConfig
from cacovid.train.cpo import CPOSettings
from cacovid.train.imitation import ImitationSettings
from cacovid.train.limits import check_at_least, check_positive, check_share
from cacovid.train.rewards import FreeText, RewardKind
from cacovid.train.score import SCORESettings
from cacovid.train.settings import TrainerSettings

T = TypeVar("T")

#: What `policy.type` may be, and what `policy.settings` are of.
_POLICIES: dict[str, type[PolicyConfig]] = {
    "cross_attention": CrossAttentionConfig,
    "self_attention": SelfAttentionConfig,
    "surprise": SurpriseConfig,
}


@dataclass(frozen=True)
class PolicySection:
    """What is trained.

    Args:
        type: `"cross_attention"`, `"self_attention"` or `"surprise"`.
        settings: Settings of the policy's configuration; the hidden size is the model's. For a
            start from the language model: `policy_share`, `max_frame_ratio`, `retention` and
            `base_model` alone, the shape is the layer's.
        from_language_model: For `self_attention`: start as layer 0 of the language model.
        exchange_roles: For that start: with the layer's queries and keys exchanged, so that video
            tokens attend to the words that ask for them (`cacovid.policies.exchanged_roles`).
        start: Directory or Hub id of a policy to go on from, in place of all the above.

    Raises:
        InvalidInputError: for an unknown type or setting (with the nearest known one), or a
            setting of the wrong kind.
    """

    type: str = "cross_attention"
    settings: dict[str, Any] = field(default_factory=dict)
    from_language_model: bool = True
    exchange_roles: bool = False
    start: str | None = None

    def __post_init__(self) -> None:
        starts = self.type == "self_attention" and self.from_language_model and self.start is None
        if self.exchange_roles and not starts:
            raise InvalidInputError(
                f"policy.exchange_roles is for a self_attention policy that starts as the language "
                f"model's layer; got type {self.type!r}, from_language_model "
                f"{self.from_language_model} and start {self.start!r}. Leave it out"
            )
        if self.type not in _POLICIES:
            raise InvalidInputError(
                f"policy.type is {self.type!r}{_nearest(self.type, _POLICIES)}; expected one of "
                f"{', '.join(_POLICIES)}"
            )
        object.__setattr__(self, "settings", self._checked_settings())

    def _checked_settings(self) -> dict[str, Any]:
        """The settings, numbers that YAML reads as text made numbers."""
        kind, shape, whose = _POLICIES[self.type], {"hidden_size"}, "of the model"
        layer = self.type == "self_attention"
        if layer and self.from_language_model:
            shape = _names(kind) - _names(PolicyConfig)
            kind, whose = PolicyConfig, "of the language model's layer, where the policy starts"
        elif layer:
            shape = set()
        for name in self.settings:
            if name in shape:
                raise InvalidInputError(
                    f"policy.settings: {name!r} is that {whose}; leave it out"
                    + (", or set policy.from_language_model: false" if kind is PolicyConfig else "")
                )
        # Whatever the model's size is, it is no setting's concern.
        model = {"hidden_size": 16} if shape == {"hidden_size"} else {}
        settings = build(kind, {**model, **self.settings}, "policy.settings", hidden=model)
        return {name: getattr(settings, name) for name in self.settings}


@dataclass(frozen=True)
class DataSection:
    """What is learned from: a Video-R1-style file, captioned images, or the embedded task's scenes.

    Args:
        file: JSON or JSON lines; None: the embedded task.
        video_root: Where its videos lie; None: the file's folder.
        images: Folder of images with captions, of which static pseudo-videos are made.
        stills: Images of a static pseudo-video; 0: moving scenes (of `images`: 4).
        frames_per_image: How long an image of `images` is held; the embedded task's clips have
            frames of their own number.
        kept: List of ids that `cacovid filter` wrote.
        split: Of the embedded task.
        seed: Of the embedded task's scenes.
        scenes: How many, or how many pseudo-videos of `images`.
        per_scene: Questions on each.
        first: Index of the first scene.
        max_frames: Frames of a video at most; None: as the model says.
        fps: Frames a second at most; None: as the model says.
        max_skipped: Greatest share of unusable rows.
    """

    file: str | None = None
    video_root: str | None = None
    images: str | None = None
    stills: int = 0
    frames_per_image: int = 4
    kept: str | None = None
    split: str = "train"
    seed: int = 0
    scenes: int = 1000
    per_scene: int = 4
    first: int = 0
    max_frames: int | None = None
    fps: float | None = None
    max_skipped: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(
            self, 1, "scenes", "per_scene", "frames_per_image", "max_frames", section="data."
        )
        check_at_least(self, 0, "first", section="data.")
        check_positive(self, "fps", section="data.")
        check_share(self, "max_skipped", section="data.", zero=True)


@dataclass(frozen=True)
class StageSection:
    """One stage of a curriculum.

    Args:
        steps: How many.
        data: What is learned from meanwhile; how many frames a video has stands in the run's own
            `data`.
        name: For messages.
    """

    steps: int
    data: DataSection = field(default_factory=DataSection)
    name: str = ""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", section="stages: ")


@dataclass(frozen=True)
class RewardSection:
    """How answers are marked; see `cacovid.train.rewards.LocalReward`."""

    kind: RewardKind = "correct"
    free_text: FreeText = "generate"
    max_new_tokens: int = 64
    batch_tokens: int = 32_768
    cached_videos: int = 64

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_new_tokens", "batch_tokens", section="reward.")
        check_at_least(self, 0, "cached_videos", section="reward.")


@dataclass(frozen=True)
class EvaluationSection:
    """Greedy selection on held-out questions, before and after.

    Args:
        questions: How many; 0: none.
        retention: Share of the tokens kept.
        file: As in `data`; None: the embedded task's validation scenes.
        video_root: As in `data`.
        seed: Of the embedded task's scenes.
        max_skipped: As in `data`.
    """

    questions: int = 200
    retention: float = 0.1
    file: str | None = None
    video_root: str | None = None
    seed: int = 0
    max_skipped: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, 0, "questions", section="evaluation.")
        check_share(self, "retention", section="evaluation.")
        check_share(self, "max_skipped", section="evaluation.", zero=True)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        output: Folder of the checkpoints, the log and the policy.
        model: `"tiny"`, a directory, or a Hub id: the frozen model.
        device: Where to run; None: CUDA where there is one.
        dtype: Of the frozen model; None: float32 on a CPU, bfloat16 elsewhere.
        shard_frozen: Shard the frozen model's layers over all processes, for one that no GPU holds;
            an FSDP configuration of `accelerate launch` does so too.
        policy: What is trained.
        data: What is learned from.
        stages: A curriculum: stages one after another, each with its data and steps, in place of
            `data` (of which `max_frames` and `fps` hold for all) and of `training.steps`.
        reward: How answers are marked.
        objective: `"cpo"`, `"score"` (for the policy `surprise`), or `"imitation"` of attention (a
            control).
        cpo: Settings of CPO.
        score: Settings of SCORE.
        imitation: Settings of imitation.
        training: The loop.
        evaluation: What it is judged by.
        trackers: Accelerate's trackers besides the log of JSON lines, e.g. `[tensorboard]`.
    """

    output: str
    model: str = "tiny"
    device: str | None = None
    dtype: str | None = None
    shard_frozen: bool = False
    policy: PolicySection = field(default_factory=PolicySection)
    data: DataSection = field(default_factory=DataSection)
    stages: tuple[StageSection, ...] = ()
    reward: RewardSection = field(default_factory=RewardSection)
    objective: Literal["cpo", "score", "imitation"] = "cpo"
    cpo: CPOSettings = field(default_factory=CPOSettings)
    score: SCORESettings = field(default_factory=SCORESettings)
    imitation: ImitationSettings = field(default_factory=ImitationSettings)
    training: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_output(self.output)
        if self.policy.start is None:
            check_objective(self, has_frames=self.policy.type != "surprise")
        if not self.stages:
            return
        reading = {"max_frames": self.data.max_frames, "fps": self.data.fps}
        if self.data != DataSection(**reading):  # type: ignore[arg-type]
            raise InvalidInputError(
                "data and stages are both given; expected the data of each stage in its own "
                "section, and in data max_frames and fps alone"
            )
        for number, stage in enumerate(self.stages, 1):
            if stage.data.max_frames is not None or stage.data.fps is not None:
                raise InvalidInputError(
                    f"stage {number} has max_frames or fps of its own; give them in data, for all "
                    f"stages"
                )
        steps = sum(stage.steps for stage in self.stages)
        object.__setattr__(self, "training", replace(self.training, steps=steps))


def check_objective(config: TrainConfig, has_frames: bool) -> None:
    """Refuses an objective that the policy cannot learn by.

    Args:
        config: The configuration.
        has_frames: Whether the policy scores frames.

    Raises:
        InvalidInputError: for frame rollouts of a policy without frame scores.
    """
    count = config.cpo.rollouts.frame_rollouts
    if config.objective == "cpo" and count and not has_frames:
        raise InvalidInputError(
            f"objective is cpo with {count} frame rollouts, and a policy of type surprise has no "
            f"frame scores to draw them by; expected objective: score, or "
            f"cpo.rollouts.frame_rollouts: 0"
        )


def _check_output(output: str) -> None:
    """Refuses what cannot become a run's folder."""
    if not output.strip():
        raise InvalidInputError(f"output is {output!r}; expected the name of a folder")
    for place in (Path(output), *Path(output).parents):
        if place.exists() and not place.is_dir():
            raise InvalidInputError(
                f"output is {output!r}, but {str(place)!r} is a file; expected the name of a folder"
            )


def read_config(path: str | PathLike[str]) -> TrainConfig:
    """Reads a configuration file.

    Args:
        path: YAML (`.yaml`, `.yml`) or JSON. Paths in it are relative to the working folder.

    Raises:
        InvalidInputError: for a file that cannot be read, an entry that is not known (with the
            nearest known one) or there twice, or a value of the wrong kind.
        MissingDependencyError: for YAML without pyyaml.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path} is no text; expected a configuration in YAML or JSON"
        ) from error
    return build(TrainConfig, _parse(text, path), str(path))


def _parse(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path))
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{path} is not JSON: {error}") from error
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError(
            "YAML configurations need pyyaml; install cacovid[train]"
        ) from error
    try:
        twice = _entered_twice(yaml.compose(text, Loader=yaml.SafeLoader))
        if twice is not None:
            raise InvalidInputError(
                f"{path} has {twice.value!r} twice in one section, again in line "
                f"{twice.start_mark.line + 1}; expected each entry once"
            )
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from error


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object, of which the reader would take the last of two entries with one name."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(
            f"{path} has {twice!r} twice in one section; expected each entry once"
        )
    return entries


def _entered_twice(node: Any) -> Any:
    """The first key of a YAML document that its section has already, or None."""
    if node is None or isinstance(node.value, str):
        return None
    seen = set()
    for part in node.value:
        key, value = part if isinstance(part, tuple) else (None, part)
        if key is not None:
            # Sections that are merged (`<<`) give defaults, which are there to be overruled.
            if isinstance(key.value, str) and key.value != "<<" and key.value in seen:
                return key
            seen.add(key.value if isinstance(key.value, str) else id(key))
        found = _entered_twice(value)
        if found is not None:
            return found
    return None


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def build(cls: type[T], values: Any, where: str, hidden: Container[str] = ()) -> T:
    """A dataclass from nested dictionaries, every entry checked.

    Args:
        cls: The dataclass.
        values: What the file says.
        where: For messages: the file, and the section.
        hidden: Entries that are not offered where an unknown one is told.

    Raises:
        InvalidInputError: naming the entry, what it was, and what was expected.
    """
    if not isinstance(values, dict):
        raise InvalidInputError(f"{where} is {values!r}; expected entries with names")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in fields]
    if unknown:
        known = [name for name in fields if name not in hidden]
        raise InvalidInputError(
            f"{where}: {unknown[0]!r} is not known{_nearest(unknown[0], known)}; expected "
            f"{', '.join(known)}"
        )
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InvalidInputError(f"{where}: {missing[0]!r} is missing")
    given = {name: _value(hints[name], v, f"{where}: {name}") for name, v in values.items()}
    return cls(**given)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InvalidInputError(
                f"{where} is {value!r}; expected one of {', '.join(map(str, arguments))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InvalidInputError(f"{where} is {value!r}; expected a list")
        if arguments[-1] is Ellipsis:
            return tuple(_value(arguments[0], v, where) for v in value)
        if len(value) != len(arguments):
            raise InvalidInputError(
                f"{where} is {value!r}; expected a list of {len(arguments)} entries"
            )
        return tuple(_value(kind, v, where) for kind, v in zip(arguments, value, strict=True))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise InvalidInputError(f"{where} is {value!r}; expected entries with names")
        return value
    if hint is float and isinstance(value, str):
        try:  # YAML reads 1e-6 as text
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InvalidInputError(f"{where} is {value!r}; expected {hint.__name__}")
    return value
