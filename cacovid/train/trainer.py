"""The loop that trains a policy, whatever the objective."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import CacovidError, InvalidInputError, MissingDependencyError, VideoReadError
from cacovid.policies import StoredPolicy
from cacovid.policies.storage import CONFIG
from cacovid.train.checkpoint import last_checkpoint, read_checkpoint, write_checkpoint
from cacovid.train.curriculum import Curriculum
from cacovid.train.data import Samples, TrainingSample
from cacovid.train.encoding import PreparedSample
from cacovid.train.monitor import collapse, describe_scores
from cacovid.train.objective import Objective
from cacovid.train.packing import pack_prompts, split_scores
from cacovid.train.provenance import digest, entries
from cacovid.train.run_log import append_entry, cut_after
from cacovid.train.settings import FREE_SETTINGS, TrainerSettings
from cacovid.train.sharding import Lockstep, plain_launch
from cacovid.train.unreadable import Unreadable
from cacovid.types import Grid, Prompt, Scores

#: Called after every step with its number and the log entry (None between entries).
OnStep = Callable[[int, dict[str, float] | None], None]


class TrainingError(CacovidError, RuntimeError):
    """A run that cannot go on; the message names the sample."""


class Trainer:
    """Trains a policy on samples by an objective; the frozen model stays outside.

    A *step* is a group of samples: each is prepared once and gets all its updates. Every sample's
    rollouts hang on the seed and its place in the order only, so that a run gives the same policy
    on any number of processes up to rounding, and a resumed run the same bits.

    Args:
        policy: The policy, on the device of the frozen model. Trained in place.
        objective: How a sample teaches.
        samples: What to learn from, taken in a new order each epoch; or stages of it, whose steps
            are those of the settings.
        settings: Settings.
        folder: Checkpoints, logs and the result go here.
        pretrained: Prefixes of the names of weights that start as the language model's own.
        trackers: Further trackers of Accelerate, e.g. `["tensorboard"]`; a log of JSON lines is
            always written.
        lockstep: Of a sharded frozen model; keeps the processes together.
        on_step: Called after every step.
        on_warning: Called with what should be looked at; on the first process also with the videos
            that another one could not read.
        evaluate: Accuracy of greedy selection now; called every `evaluate_every` steps, and logged
            as `greedy`.
        provenance: What else the result hangs on (the data, the model), by name: numbers, texts,
            None or lists of them. A checkpoint of a run that differs is not resumed.

    Raises:
        InvalidInputError: without samples, for stages of another number of steps than the settings,
            or for a tracker that Accelerate does not know.
        MissingDependencyError: without `accelerate`, or without a tracker's package.
    """

    def __init__(
        self,
        policy: StoredPolicy,
        objective: Objective,
        samples: Samples | Curriculum,
        settings: TrainerSettings,
        folder: Path,
        *,
        pretrained: tuple[str, ...] = (),
        trackers: tuple[str, ...] = (),
        lockstep: Lockstep | None = None,
        on_step: OnStep | None = None,
        on_warning: Callable[[str], None] | None = None,
        evaluate: Callable[[], float] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.curriculum = Curriculum.of(samples, settings.steps)
        if self.curriculum.steps != settings.steps:
            raise InvalidInputError(
                f"the stages have {self.curriculum.steps} steps and the settings {settings.steps}; "
                f"expected the same"
            )
        self.policy = policy
        self.objective = objective
        self.settings = settings
        self.folder = Path(folder)
        self.on_step = on_step
        self.on_warning = on_warning or (lambda text: None)
        self.evaluate = evaluate
        self.log: list[dict[str, float]] = []
        self._collapsed = False
        self._lockstep = lockstep
        on_cpu = next(policy.parameters()).device.type == "cpu"
        self._accelerator = _accelerator(trackers, self.folder, on_cpu)
        self._unreadable = Unreadable(self.folder / "unreadable.json", self.is_main)
        self._tried: set[str] = set()
        self._planned = len(self.curriculum.tried(settings.steps, self._group, settings.seed))
        groups = _parameter_groups(policy, settings, pretrained)
        self._optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        total = settings.steps * objective.updates
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda update: _rate(update, total, settings)
        )
        self._model: Any = self._accelerator.prepare_model(policy)
        self._trackers = trackers
        self._provenance = {
            **_objective_entries(objective),
            **entries(settings, "training.", FREE_SETTINGS),
            "stages": [stage.steps for stage in self.curriculum.stages],
            "samples": [digest(stage.samples) for stage in self.curriculum.stages],
            "pretrained": list(pretrained),
            "processes": self._accelerator.num_processes,
            "device": self._accelerator.device.type,
            **(provenance or {}),
        }

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self._accelerator.is_main_process)

    @property
    def process_index(self) -> int:
        """Number of this process."""
        return int(self._accelerator.process_index)

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """`(id, reason)` of samples whose videos could not be read, on all processes; each once."""
        return self._unreadable.entries

    def catch_up(self) -> None:
        """Waits for the other processes' forwards of a sharded frozen model; all call it."""
        if self._lockstep is not None:
            self._lockstep.catch_up()

    def close(self) -> None:
        """Ends a run with a sharded frozen model, which answers no more; else it has ended."""
        if self._lockstep is not None:
            self._accelerator.end_training()

    def resume(self) -> int:
        """Takes up at the last checkpoint of the folder; returns the steps done (0: none).

        Raises:
            InvalidInputError: if the checkpoint is damaged, or of a run with other settings,
                samples or provenance; what differs is named. `log_every` and what else has no say
                in the result (`cacovid.train.settings.FREE_SETTINGS`) may differ.
        """
        path = last_checkpoint(self.folder / "checkpoints")
        if path is None:
            return 0
        state = read_checkpoint(path, self.policy, self._provenance)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._unreadable.take_up(state["unreadable"])
        cut_after(self.folder / "log.jsonl", state["step"])
        return int(state["step"])

    def train(self, first: int = 0, last: int | None = None) -> None:
        """Runs the steps from `first` on, up to `last` or the end.

        Raises:
            TrainingError: for scores, a loss or a gradient that are no numbers, for too many
                unreadable videos, or if no sample could be read. A run of fewer than 20 samples
                is judged when all of them were tried: before the policy is written.
        """
        steps = self.settings.steps if last is None else min(last, self.settings.steps)
        metrics: list[dict[str, float]] = []
        self._start_trackers(first)
        self._unreadable.add(())
        self._tried = self.curriculum.tried(first, self._group, self.settings.seed)
        for step in range(first, steps):
            metrics += self._step(step)
            every = self.settings.evaluate_every
            if self.evaluate is not None and every and (step + 1) % every == 0:
                self.policy.eval()
                metrics.append({"greedy": self.evaluate()})
                self.catch_up()
                self.policy.train()
            entry = None
            if (step + 1) % self.settings.log_every == 0 or step + 1 == self.settings.steps:
                entry = self._write_log(step + 1, metrics)
                metrics = []
            if (step + 1) % self.settings.checkpoint_every == 0 or step + 1 == self.settings.steps:
                self.save(step + 1)
            if self.on_step is not None:
                self.on_step(step + 1, entry)
        if steps < self.settings.steps:
            return
        # Of a finished run that was taken up again, it may have been moved or deleted since.
        if self.is_main and not (self.folder / "policy" / CONFIG).exists():
            self.policy.save_pretrained(self.folder / "policy")
        if self._lockstep is None:
            self._accelerator.end_training()

    def save(self, step: int) -> None:
        """Writes a checkpoint; after the last step first the policy itself (`folder/policy`)."""
        if self.is_main:
            if step == self.settings.steps:
                # A run that is killed between the two is resumed before this step, and writes both.
                self.policy.save_pretrained(self.folder / "policy")
            state = {
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "unreadable": [list(entry) for entry in self.unreadable],
                "provenance": self._provenance,
            }
            write_checkpoint(
                self.folder / "checkpoints", step, self.policy, state,
                self.settings.keep_checkpoints,
            )  # fmt: skip
        self._accelerator.wait_for_everyone()

    def group(self, step: int) -> list[tuple[int, TrainingSample]]:
        """The samples of a step on this process, each with its place in the whole run."""
        each = self.settings.samples_per_step
        begin = step * self._group + self._accelerator.process_index * each
        return [(place, self._at(place)) for place in range(begin, begin + each)]

    def _at(self, place: int) -> TrainingSample:
        return self.curriculum.at(place, self._group, self.settings.seed)

    @property
    def _group(self) -> int:
        """Samples of a step, over all processes."""
        return self.settings.samples_per_step * int(self._accelerator.num_processes)

    def _step(self, step: int) -> list[dict[str, float]]:
        prepared: list[tuple[int, PreparedSample]] = []
        failed: list[tuple[str, str]] = []
        for place, sample in self.group(step):
            try:
                prepared.append((place, self.objective.prepare(sample)))
            except VideoReadError as error:
                failed.append((sample.id, str(error)))
        self.catch_up()
        count = int(self._reduce(float(len(prepared))))
        if count < self._group:
            self._note_unreadable(failed)
        places = range(step * self._group, (step + 1) * self._group)
        self._tried.update(self._at(place).id for place in places)
        text = self._unreadable.too_many(
            len(self._tried), self._planned, self.settings.max_unreadable
        )
        if text is not None:
            raise TrainingError(text)
        progress = [
            self.objective.begin(p, self.settings.seed * 1_000_003 + place) for place, p in prepared
        ]
        told: list[dict[str, float]] = []
        for number in range(self.objective.updates):
            loss, metrics = self._losses([p for _, p in prepared], progress, count)
            self.catch_up()
            self._accelerator.backward(loss)
            norm = self._accelerator.clip_grad_norm_(
                self._model.parameters(), self.settings.max_grad_norm
            )
            if not math.isfinite(float(norm)):
                names = ", ".join(p.sample.id for _, p in prepared)
                raise TrainingError(
                    f"the gradient is {float(norm)} at step {step + 1}, update {number + 1}, "
                    f"samples {names}; the last checkpoint is as it was"
                )
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad(set_to_none=True)
            told += [{**entry, "gradient_norm": float(norm)} for entry in metrics or [{}]]
        return told

    def _losses(
        self, prepared: list[PreparedSample], progress: list[Any], count: int
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """This process's part of the mean loss, scaled so that DDP's mean over processes fits."""
        if not prepared:
            # The others wait for this process's gradients, and DDP gives none without a forward.
            scores = self._score(_any_prompt(self.policy))
            parts = [scores.token, *self.policy.parameters()]
            parts += [] if scores.frame is None else [scores.frame]
            return torch.stack([part.sum() for part in parts]).sum() * 0.0, []
        prompts = [p.prompt for p in prepared]
        packed = pack_prompts(prompts)
        scores = self._score(packed)
        own_scores = split_scores(scores, prompts)
        _check_finite(scores, own_scores, prepared)
        described = describe_scores(scores, packed.grid)
        self._warn_of_collapse(described)
        losses, metrics = [], []
        for own, state, sample in zip(own_scores, progress, prepared, strict=True):
            update = self.objective.update(own, state)
            if not math.isfinite(float(update.loss.detach())):
                raise TrainingError(
                    f"the loss of sample {sample.sample.id} is {float(update.loss.detach())}; the "
                    f"last checkpoint is as it was. Look at the sample's video and scores "
                    f"({described}), or lower the learning rate"
                )
            losses.append(update.loss)
            metrics.append({**update.metrics, **described, "loss": float(update.loss.detach())})
        world = self._accelerator.num_processes
        return torch.stack(losses).sum() * (world / max(1, count)), metrics

    def _score(self, prompt: Prompt) -> Scores:
        # Not by Accelerate, which would leave the policy changed: evaluations are to be of what is
        # stored, without autocast.
        half = self.settings.mixed_precision == "bf16"
        with torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=half):
            scores: Scores = self._model(prompt)
        return scores

    def _start_trackers(self, first: int) -> None:
        if self._trackers:
            # Entries of the stopped run after its last checkpoint are written again.
            resumed = {"tensorboard": {"purge_step": first + 1}} if first else {}
            self._accelerator.init_trackers("cacovid", init_kwargs=resumed)
            self._trackers = ()

    def _reduce(self, value: float) -> float:
        tensor = torch.tensor(value, device=self._accelerator.device)
        return float(self._accelerator.reduce(tensor, reduction="sum"))

    def _write_log(self, step: int, metrics: list[dict[str, float]]) -> dict[str, float]:
        names = sorted({name for entry in metrics for name in entry})
        entry: dict[str, float] = {"step": step}
        for name in names:
            values = [m[name] for m in metrics if name in m]
            entry[name] = sum(values) / len(values)
        entry["learning_rate"] = float(self._schedule.get_last_lr()[0])
        entry["unreadable"] = float(len(self.unreadable))
        if len(self.curriculum.stages) > 1:
            entry["stage"] = float(self.curriculum.stage_of(step - 1) + 1)
        self.log.append(entry)
        if self.is_main:
            append_entry(self.folder / "log.jsonl", entry)
        self._accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step)
        return entry

    def _warn_of_collapse(self, described: dict[str, float]) -> None:
        text = collapse(described)
        if text is not None and not self._collapsed:
            self.on_warning(text)
        self._collapsed = text is not None

    def _note_unreadable(self, failed: list[tuple[str, str]]) -> None:
        """Lists what all processes failed to read, and tells each sample once; all call it."""
        from accelerate.utils import gather_object

        new = self._unreadable.add(gather_object(failed))
        if self.is_main:
            for name, reason in new:
                self.on_warning(f"skipped {name}: {reason}")


def _accelerator(trackers: tuple[str, ...], folder: Path, on_cpu: bool) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingDependencyError("training needs accelerate; install cacovid[train]") from error
    _check_trackers(trackers)
    with plain_launch():
        return Accelerator(
            cpu=on_cpu,
            mixed_precision="no",
            log_with=list(trackers) or None,
            project_dir=str(folder),
        )


def _check_trackers(trackers: tuple[str, ...]) -> None:
    """Refuses what Accelerate would leave out without a word."""
    if not trackers:
        return
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted(str(tracker.value) for tracker in LoggerType if tracker != LoggerType.ALL)
    there = {str(tracker.value) for tracker in get_available_trackers()}
    for name in trackers:
        if name not in known:
            raise InvalidInputError(
                f"trackers holds {name!r}; expected names out of {', '.join(known)} (the log of "
                f"JSON lines is always written)"
            )
        if name not in there:
            raise MissingDependencyError(
                f"trackers holds {name!r}, which is not installed: pip install {name}"
            )


def _objective_entries(objective: Objective) -> dict[str, Any]:
    name = type(objective).__name__.lower()
    settings = getattr(objective, "settings", None)
    if not dataclasses.is_dataclass(settings):
        return {"objective": name}
    return {"objective": name, **entries(settings, f"{name}.")}


def _check_finite(scores: Scores, each: list[Scores], prepared: list[PreparedSample]) -> None:
    """Raises:
    TrainingError: naming the samples with scores that are no finite numbers.
    """
    if _finite(scores):
        return
    names = [p.sample.id for own, p in zip(each, prepared, strict=True) if not _finite(own)]
    raise TrainingError(
        f"the scores of sample {', '.join(names)} are no finite numbers; the last checkpoint is as "
        f"it was. Look at the sample's video; if this comes with every sample, the weights have "
        f"diverged: go on from the checkpoint with a lower learning rate in another output folder "
        f"(policy.start)"
    )


def _finite(scores: Scores) -> bool:
    frame = scores.token[:0] if scores.frame is None else scores.frame
    return bool(torch.cat((scores.token.detach(), frame.detach())).isfinite().all())


def _any_prompt(policy: StoredPolicy) -> Prompt:
    """One video token and one word, of no meaning."""
    weight = next(policy.parameters())
    places = torch.arange(2, device=weight.device)
    return Prompt(
        embeds=torch.ones((2, policy.config.hidden_size), device=weight.device),
        position_ids=places,
        video_index=places[:1],
        question_index=places[1:],
        grid=Grid([(1, 1, 1)]),
    )


def _parameter_groups(
    policy: StoredPolicy, settings: TrainerSettings, pretrained: tuple[str, ...]
) -> list[dict[str, Any]]:
    rate = settings.learning_rate
    own = [p for name, p in policy.named_parameters() if not name.startswith(pretrained or "\0")]
    taken = [p for name, p in policy.named_parameters() if name.startswith(pretrained or "\0")]
    groups = [{"params": own, "lr": rate}]
    if taken:
        groups.append({"params": taken, "lr": rate * settings.pretrained_rate_factor})
    return groups


def _rate(update: int, total: int, settings: TrainerSettings) -> float:
    warm = max(1, round(settings.warmup * total))
    if update < warm:
        return (update + 1) / warm
    share = (update - warm) / max(1, total - warm)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return settings.final_rate + (1 - settings.final_rate) * fall
