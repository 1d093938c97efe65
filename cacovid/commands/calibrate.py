"""`cacovid calibrate`: how many tokens are needed, on people's own questions."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import (
    UsageError,
    check_at_least,
    check_retentions,
    show_table,
    write_json,
    write_line,
)
from cacovid.commands.progress import steps_bar
from cacovid.commands.questions import QuestionsCommand


@dataclass(kw_only=True)
class Calibrate(QuestionsCommand):
    """Choose the smallest share of tokens that keeps a share of the accuracy, or the largest that
    meets a time to the first token, on questions of your own.

    Example: cacovid calibrate --data questions.csv --model DIR --keep 0.99 --write DIR/policy
    """

    keep: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """Share of the uncompressed accuracy to keep, such as 0.99."""
    first_token: Annotated[float | None, arg(metavar="SECONDS", help_behavior_hint="")] = None
    """Greatest time to the first token (median over --timed questions)."""
    certainty: float = 0.9
    """Share of the bootstrap's draws (over videos) in which --keep has to hold."""
    method: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """What chooses the tokens: a method, or a policy's directory or Hub id. Default: the policy
    that --write names, else the one beside the model, else attention."""
    write: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Write the share there: a policy's folder (into config.json, where ask and VideoQA find it),
    or a training configuration (into its evaluation section)."""
    retention: tuple[float, ...] = (
        0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7,
    )  # fmt: skip
    """Shares to choose from."""
    timed: int = 8
    """With --first-token: so many videos' first questions are timed."""
    split: Annotated[str, arg(metavar="test|shifted|validation")] = "validation"
    """Set of the embedded task."""
    limit: int = 500
    """Questions at most."""

    def run(self) -> None:
        """Measures, chooses, writes."""
        wish = self._check()
        from cacovid.evaluation.calibrate import WishNotMetError, calibrate
        from cacovid.evaluation.calibration_target import check_target, write_retention
        from cacovid.evaluation.processes import Processes
        from cacovid.evaluation.session import EvaluationRun

        processes = Processes()
        if processes.count > 1:
            raise UsageError(
                f"calibrate is one of {processes.count} processes; it runs as one: start it "
                f"without accelerate launch or torchrun"
            )
        if self.write is not None:
            check_target(self.write)
        qa, (samples,) = self.load(self.device, self.split)
        self._check_videos(samples, wish)
        name = self._method_name(qa)
        timed = self.timed if self.first_token is not None else 0
        run = EvaluationRun(
            qa, samples, (name,), sorted(self.retention), self.seed, timed, self.max_new_tokens
        )
        run.prepare()
        with steps_bar("Answering", len(run.samples)) as bar:
            comparison = run.run(processes, None, lambda done: bar.step(done, None))
        for id, reason in comparison.unreadable.items():
            sys.stderr.write(f"left out question {id}: {reason}\n")
        questions = len(comparison.kinds)
        try:
            found = calibrate(comparison, name, wish)
        except WishNotMetError as error:
            self._report(error, None, name, questions, None)
            raise
        written = None if self.write is None else write_retention(self.write, found.retention)
        self._report(found, found.retention, name, questions, written)

    def _check(self) -> Any:
        self.check_questions(self.split)
        check_retentions(self.retention)
        check_at_least(self.timed, 1, "--timed")
        from cacovid.errors import InvalidInputError
        from cacovid.evaluation.calibrate import Wish

        if self.keep is None and self.first_token is None:
            raise UsageError("give --keep SHARE, --first-token SECONDS, or both")
        try:
            return Wish(self.keep, self.first_token, self.certainty)
        except InvalidInputError as error:
            raise UsageError(str(error)) from None

    @staticmethod
    def _check_videos(samples: Any, wish: Any) -> None:
        """Refuses questions on too few videos before anything is measured."""
        from cacovid.errors import InvalidInputError
        from cacovid.evaluation.calibrate import too_few

        text = too_few(len({sample.video_key for sample in samples}), wish)
        if text is not None:
            raise InvalidInputError(text)

    def _method_name(self, qa: Any) -> str:
        policy = self.write if self.write is not None and self.write.is_dir() else None
        if policy is None:
            return self.method or str(qa.method.name)
        if self.method is not None and Path(self.method).resolve() != policy.resolve():
            raise UsageError(
                f"--write {policy} is a policy, and --method {self.method} another; a share is "
                f"written into the policy that it was measured with"
            )
        return str(policy)

    def _report(
        self,
        found: Any,
        retention: float | None,
        name: str,
        questions: int,
        written: Path | None,
    ) -> None:
        """Prints what was measured, and the share where one was found."""
        if self.json:
            write_json(
                {
                    "retention": retention,
                    "method": name,
                    "keep": self.keep,
                    "first_token": self.first_token,
                    "certainty": self.certainty,
                    "accuracy": found.accuracy,
                    "candidates": [asdict(candidate) for candidate in found.candidates],
                    "questions": questions,
                    "model": self.model,
                    "data": self.data_name(self.split),
                    "written": None if written is None else str(written),
                }
            )
            return
        cells = [
            [
                f"{100 * c.retention:.4g}%",
                f"{100 * c.accuracy:.1f}",
                "–" if c.kept_accuracy is None else f"{100 * c.kept_accuracy:.1f}%",
                "–" if c.certainty is None else f"{c.certainty:.2f}",
                "–" if c.first_token is None else f"{1000 * c.first_token:.1f}",
                "yes" if c.meets else "no",
            ]
            for c in found.candidates
        ]
        columns = ("kept", "accuracy", "of uncompressed", "certainty", "first token, ms", "meets")
        show_table(columns, cells)
        write_line(
            f"{questions:,} questions ({self.data_note}), method {name}, uncompressed "
            f"{100 * found.accuracy:.1f}"
        )
        if retention is not None:
            write_line(f"retention: {retention:g}")
        if written is not None:
            write_line(f"written: {written}")
