"""`cacovid report`: one HTML page on a video and a question, methods side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.asking import PictureCommand, check_pillow
from cacovid.commands.common import (
    UsageError,
    check_method,
    check_output,
    check_retentions,
    write_json,
    write_line,
)
from cacovid.commands.progress import progress, steps_bar
from cacovid.commands.questions import policies_of

DEFAULT_METHODS = ("attention:2:question", "attention", "uniform", "random")


@dataclass
class Report(PictureCommand):
    """Write one HTML page that needs no network: frames with scores and kept tokens, a slider over
    the shares kept, methods side by side, answers and times.

    Example: cacovid report clip.mp4 "What colour is the striped ring?" report.html --methods all
    """

    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()
    """Methods, or directories or Hub ids of policies; "all" is every method that can run on the
    model. Default: the policies beside the model, attention, uniform and random."""
    retention: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5)
    """Shares of the tokens to keep."""

    def run(self) -> None:
        """Asks under all conditions, and writes the page."""
        self._check()
        from cacovid.evaluation.session import EvaluationRun
        from cacovid.evaluation.trials import Trials
        from cacovid.models.video_qa import with_options
        from cacovid.train.data import Samples, TrainingSample
        from cacovid.viz.report import write_report

        asked = with_options(self.question, self.options or None)
        # Put as it stands; there is no solution to mark by.
        sample = TrainingSample("question", asked, "-", "exact", video=self.video, worded=True)
        with progress(1) as shown:
            shown.stage("load", self.model)
            qa = self.load()
        names = self.methods or (*policies_of(qa), *DEFAULT_METHODS)
        run = EvaluationRun(qa, Samples((sample,)), names, self.retention, self.seed)
        run.prepare()
        for name, reason in run.left_out.items():
            sys.stderr.write(f"left out method {name}: {reason}\n")
        done = 0
        retentions = sorted(self.retention)
        with steps_bar("Asking", 1 + len(run.choosers) * len(retentions)) as bar:

            def step(method: str, retention: float) -> None:
                nonlocal done
                bar.step(done, None)
                done += 1

            trials = Trials(
                qa.model, qa.processor, run.choosers, retentions, qa.reading, self.max_new_tokens,
                step,
            )  # fmt: skip
            found = trials(sample, self.seed)
            bar.step(done, None)
        write_report(self.output, self._page(asked, found, len(retentions)))
        facts = {
            "report": str(self.output),
            "uncompressed": found.trials[0].answer,
            "answers": [
                {"method": t.method, "retention": t.retention, "answer": t.answer}
                for t in found.trials[1:]
            ],
        }
        if self.json:
            write_json(facts)
            return
        same = sum(t.answer == found.trials[0].answer for t in found.trials[1:])
        write_line(f"uncompressed: {found.trials[0].answer}")
        write_line(f"the same answer under {same} of {len(found.trials) - 1} conditions")
        write_line(f"report: {self.output}")

    def _check(self) -> None:
        from cacovid.errors import InvalidInputError
        from cacovid.viz.report import check_report_path

        self.check_asking()
        check_retentions(self.retention)
        for name in self.methods:
            if name != "all":
                check_method(name, "--methods")
        parent = self.output.parent
        if not parent.is_dir():
            raise UsageError(f"FILE: {self.output} cannot be written: there is no folder {parent}")
        check_output(self.output, "FILE", self.video)
        check_pillow("reports")
        try:
            check_report_path(self.output)
        except InvalidInputError as error:
            raise UsageError(f"FILE: {error}") from None

    def _page(self, asked: str, found: Any, per_method: int) -> Any:
        from cacovid.viz.report import Report as Page
        from cacovid.viz.report import ReportCondition, ReportMethod

        def condition(trial: Any) -> ReportCondition:
            kept = trial.chosen.selection.mask().cpu().numpy()
            return ReportCondition(
                trial.retention, kept, trial.answer, trial.entering, trial.seconds
            )

        first, *rest = found.trials
        methods = []
        for begin in range(0, len(rest), per_method):
            own = rest[begin : begin + per_method]
            scores = own[0].chosen.scores
            token = None if scores is None else scores.token.float().cpu().numpy()
            methods.append(ReportMethod(own[0].method, token, [condition(t) for t in own]))
        return Page(
            question=asked,
            video=self.video.name,
            model=self.model,
            grid=first.chosen.selection.grid.sizes[0],
            frames=found.frames,
            timestamps=found.timestamps,
            uncompressed=condition(first),
            methods=methods,
        )
