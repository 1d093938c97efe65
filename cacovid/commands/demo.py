"""`cacovid demo`: a video made here, three questions, three budgets, a table and an overlay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import join
from textwrap import shorten
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.asking import named_as_given
from cacovid.commands.common import (
    Command,
    UsageError,
    check_at_least,
    check_method,
    show_table,
    write_line,
)
from cacovid.commands.loading import load_model
from cacovid.commands.progress import Progress, progress

RETENTIONS = (1.0, 0.25, 0.1)
QUESTIONS = 3
#: What the answers are set beside.
OTHERS = ("attention", "uniform", "random")
#: An answer to these questions is a word or a letter; the table stays small whatever comes.
_LONGEST_ANSWER, _SHOWN_ANSWER = 8, 12


@dataclass
class Demo(Command):
    """Make a video, ask three questions at 100%, 25% and 10% of its tokens, draw an overlay.

    The answers stand beside those of training-free methods. Everything is embedded: the video is
    drawn here and nothing is downloaded.
    """

    folder: Annotated[Path, arg(metavar="DIR")] = Path("demo")
    """Where the video and the overlays go."""
    method: Annotated[
        str | None,
        arg(metavar="NAME|DIR|ID", help_behavior_hint="(default: the policy, else attention)"),
    ] = None
    """What chooses the tokens: any of cacovid.methods, with settings after colons, or a policy's
    directory or Hub id."""
    seed: int = 0
    """Another seed makes another video with other questions."""
    model: Annotated[str, arg(metavar="tiny|DIR")] = "tiny"
    """"tiny" (embedded), or the directory of a model trained on the synthetic task."""

    def run(self) -> None:
        """Makes, asks, prints and draws."""
        check_at_least(self.seed, 0, "--seed")
        if self.method is not None:
            check_method(self.method)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--folder: {self.folder} is a file; give the name of a folder")
        asks = QUESTIONS * (len(RETENTIONS) + len(OTHERS) * (len(RETENTIONS) - 1))
        with progress(asks + 5) as shown:
            shown.stage("Drawing the video")
            from cacovid import synthetic

            scene = synthetic.make_scene("test", seed=self.seed, index=0)
            self.folder.mkdir(parents=True, exist_ok=True)
            clip = scene.write(self.folder / "clip.mp4")
            questions = synthetic.sample_questions(scene, QUESTIONS, scene.generator(purpose=3))
            shown.stage("load", self.model)
            qa = load_model(self.model, debug=self.debug)
            # The first question of a process also pays for allocations and lazy imports.
            shown.stage("Warming up")
            self._ask_once(qa, clip, questions[0], RETENTIONS[0], self.method)
            answers = [self._ask(qa, clip, question, shown) for question in questions]
            others = self._others(qa, clip, questions, shown)
            pictures = [self.folder / "overlay.png", self.folder / "overlay.mp4"]
            for picture in pictures:
                shown.stage("overlay", picture.name)
                answers[0][-1].overlay(picture)
        self._print(clip, questions, answers, others, pictures)

    def _ask(self, qa: Any, clip: Path, question: Any, shown: Progress) -> list[Any]:
        answers = []
        for retention in RETENTIONS:
            shown.stage("Asking", f"at {retention:.0%}: {question.text}")
            answers.append(self._ask_once(qa, clip, question, retention, self.method))
        return answers

    def _others(
        self, qa: Any, clip: Path, questions: list[Any], shown: Progress
    ) -> dict[str, dict[tuple[int, float], Any]]:
        """Answers of the methods beside, by question and retention."""
        own = self.method or qa.method.name
        answers: dict[str, dict[tuple[int, float], Any]] = {}
        for method in OTHERS:
            if method == own:
                continue
            answers[method] = {}
            for number, question in enumerate(questions):
                for retention in RETENTIONS[1:]:
                    shown.stage("Asking", f"{method} at {retention:.0%}: {question.text}")
                    answer = self._ask_once(qa, clip, question, retention, method)
                    answers[method][number, retention] = answer
        return answers

    def _ask_once(
        self, qa: Any, clip: Path, question: Any, retention: float, method: str | None
    ) -> Any:
        return qa.ask(
            clip,
            question.text,
            retention=retention,
            method=method,
            max_new_tokens=_LONGEST_ANSWER,
            seed=self.seed,
        )

    def _print(
        self,
        clip: Path,
        questions: list[Any],
        answers: list[list[Any]],
        others: dict[str, dict[tuple[int, float], Any]],
        pictures: list[Path],
    ) -> None:
        method = named_as_given(answers[0][0], self.method).method
        rows = [
            (
                str(asked + 1) if number == 0 else "",
                question.answer if number == 0 else "",
                f"{retention:.0%}",
                f"{answer.tokens.get('layer_average', answer.tokens['kept'])}",
                f"{1000 * sum(answer.timings.values()):.0f} ms",
                _shown(answer),
                *(_shown(given.get((asked, retention))) for given in others.values()),
            )
            for asked, (question, row) in enumerate(zip(questions, answers, strict=True))
            for number, (retention, answer) in enumerate(zip(RETENTIONS, row, strict=True))
        ]
        columns = ("", "truth", "kept", "tokens", "time", method, *others)
        write_line()
        for asked, question in enumerate(questions, start=1):
            write_line(f"{asked}. {' '.join(question.text.split())}")
        show_table(columns, rows, sections=len(RETENTIONS), keys=3)
        model = "Embedded model" if self.model == "tiny" else f"Model {self.model}"
        write_line(f"{model}, method {method}. Synthetic task; no public benchmark run.")
        write_line(f"Video:    {clip}")
        write_line(f"Overlays: {', '.join(map(str, pictures))} (first question, 10%)")
        own = ["cacovid", "ask", str(clip), questions[-1].text, "--retention", "0.1"]
        if self.model != "tiny":
            own += ["--model", self.model]
        if self.method is not None:
            own += ["--method", self.method]
        write_line(f"Yours:    {join(own)}")


def _shown(answer: Any) -> str:
    return "" if answer is None else shorten(answer.text, _SHOWN_ANSWER, placeholder=" …")
