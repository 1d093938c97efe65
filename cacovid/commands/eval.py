"""`cacovid eval`: ways of choosing tokens, compared on the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import (
    Command,
    UsageError,
    check_at_least,
    check_retention,
    show_table,
    tell_left_out,
    write_json,
    write_line,
)
from cacovid.commands.progress import progress, steps_bar

#: What is compared where nothing is said; the oracles are of the embedded task only.
DEFAULT_METHODS = ("random", "uniform", "attention", "attention:2:question")
EMBEDDED_METHODS = (*DEFAULT_METHODS, "blind-oracle", "oracle")


@dataclass
class Eval(Command):
    """Compare ways of choosing tokens on the same questions.

    Examples: cacovid eval --embedded --limit 500

    cacovid eval --data questions.json --model DIR --methods random attention runs/my-policy
    """

    embedded: bool = False
    """The embedded task's test scenes (synthetic; no public benchmark)."""
    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Video-R1-style JSON, in place of --embedded."""
    video_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Where the videos of --data lie. Default: the file's folder."""
    model: Annotated[str, arg(metavar="tiny|DIR|ID")] = "tiny"
    """"tiny" (embedded), a directory, or a Hub id."""
    methods: Annotated[
        tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")
    ] = ()
    """Methods, or directories or Hub ids of policies; "cacovid" is the policy beside the model,
    "cacovid:NAME" another one there; "oracle", "blind-oracle" and "blind-oracle-in-turn" know the
    embedded task's truth. Default: the policies beside the model, random, uniform, attention, and
    the oracles."""
    retention: tuple[float, ...] = (0.25, 0.2, 0.15, 0.1, 0.05)
    """Shares of the tokens to keep."""
    split: Annotated[str, arg(metavar="test|shifted|validation")] = "test"
    """Set of the embedded task."""
    seed: int = 0
    """Of the embedded task's scenes, and of methods that draw."""
    limit: int = 2000
    """Questions at most."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Where the model runs. Default: a GPU if there is one."""

    def run(self) -> None:
        """Compares, and prints the table."""
        self._check()
        from cacovid.commands.loading import load_model
        from cacovid.evaluation.choosers import choosers
        from cacovid.evaluation.compare import compare
        from cacovid.evaluation.results import result_rows, table

        with progress(2) as shown:
            shown.stage("model", self.model)
            qa = load_model(self.model, None, self.device, debug=self.debug)
            shown.stage("data")
            samples = self._samples()
        names = list(self.methods or self._defaults(_policies_beside(qa)))
        chosen = choosers(names, qa.model)
        reward = _reward(qa, frozenset().union(*(c.needs for c in chosen)))
        with steps_bar("Answering", len(samples)) as bar:
            comparison = compare(
                samples, reward, chosen, self.retention, self.seed,
                lambda done: bar.step(done, None),
            )  # fmt: skip
        if self.json:
            write_json(
                {
                    "results": result_rows(comparison),
                    "questions": len(samples),
                    "model": self.model,
                    "data": str(self.data) if self.data else f"embedded/{self.split}/{self.seed}",
                }
            )
            return
        columns, rows = table(comparison, self.retention)
        show_table(columns, rows)
        note = "synthetic task; no public benchmark run" if self.embedded else str(self.data)
        write_line(f"{len(samples):,} questions ({note}); ±: half of the 95% interval")

    def _check(self) -> None:
        if self.embedded == (self.data is not None):
            raise UsageError("give either --embedded or --data FILE")
        for value in self.retention:
            check_retention(value)
        check_at_least(self.limit, 1, "--limit")
        if self.split not in ("test", "shifted", "validation"):
            raise UsageError(f"--split is {self.split!r}; expected test, shifted or validation")

    def _defaults(self, policies: tuple[str, ...]) -> tuple[str, ...]:
        return (*policies, *(EMBEDDED_METHODS if self.embedded else DEFAULT_METHODS))

    def _samples(self) -> Any:
        from cacovid.train.data import embedded_samples
        from cacovid.train.video_r1 import read_video_r1

        if self.data is None:
            per_scene = 8
            scenes = -(-self.limit // per_scene)
            return embedded_samples(self.split, self.seed, scenes, per_scene)[: self.limit]
        samples = read_video_r1(self.data, self.video_root)
        tell_left_out(samples)
        return samples[: self.limit]


def _policies_beside(qa: Any) -> tuple[str, ...]:
    """Names of the policies in the model's directory."""
    from cacovid.models.resolve import policies_beside

    return tuple(policies_beside(Path(qa.model.name_or_path)))


def _reward(qa: Any, needs: frozenset[str]) -> Any:
    from cacovid.train.data import read_sample_frames
    from cacovid.train.encoding import SampleEncoder
    from cacovid.train.rewards import LocalReward, freeze

    reading = qa.reading
    encoder = SampleEncoder(
        freeze(qa.model),
        qa.processor,
        lambda sample: read_sample_frames(sample, reading.max_frames, reading.fps),
        cached_videos=2,
        needs=needs,
    )
    return LocalReward(encoder, free_text="generate")
