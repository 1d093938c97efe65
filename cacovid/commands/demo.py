"""`cacovid demo`: a video made here, three questions, three budgets, a table and an overlay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacovid.commands.common import (
    Command,
    check_at_least,
    check_method,
    draw_overlay,
    show_table,
    write_line,
)
from cacovid.commands.loading import load_model
from cacovid.commands.progress import Progress, progress

RETENTIONS = (1.0, 0.25, 0.1)
QUESTIONS = 3


@dataclass
class Demo(Command):
    """Make a video, ask three questions at 100%, 25% and 10% of its tokens, draw an overlay.

    Everything is embedded: the video is drawn here and nothing is downloaded.
    """

    folder: Path = Path("demo")
    """Where the video and the overlays go."""
    method: str = "attention"
    """What chooses the tokens: attention, uniform or random."""
    seed: int = 0
    """Another seed makes another video with other questions."""
    model: str = "tiny"
    """"tiny" (embedded), or the directory of a model trained on the synthetic task."""

    def run(self) -> None:
        """Makes, asks, prints and draws."""
        check_at_least(self.seed, 0, "--seed")
        check_method(self.method)
        asks = QUESTIONS * len(RETENTIONS)
        with progress(asks + 4) as shown:
            shown.stage("Drawing the video")
            from cacovid import synthetic

            scene = synthetic.make_scene("test", seed=self.seed, index=0)
            self.folder.mkdir(parents=True, exist_ok=True)
            clip = scene.write(self.folder / "clip.mp4")
            questions = synthetic.sample_questions(scene, QUESTIONS, scene.generator(purpose=3))
            shown.stage("load", self.model)
            qa = load_model(self.model, debug=self.debug)
            answers = [self._ask(qa, clip, question, shown) for question in questions]
            pictures = [self.folder / "overlay.png", self.folder / "overlay.mp4"]
            for picture in pictures:
                shown.stage("overlay", picture.name)
                draw_overlay(answers[0][-1], picture)
        self._print(clip, questions, answers, pictures)

    def _ask(self, qa: Any, clip: Path, question: Any, shown: Progress) -> list[Any]:
        answers = []
        for retention in RETENTIONS:
            shown.stage("Asking", f"at {retention:.0%}: {question.text}")
            answers.append(
                qa.ask(clip, question.text, retention=retention, method=self.method, seed=self.seed)
            )
        return answers

    def _print(
        self, clip: Path, questions: list[Any], answers: list[list[Any]], pictures: list[Path]
    ) -> None:
        rows = [
            (
                question.text if number == 0 else "",
                question.answer if number == 0 else "",
                f"{retention:.0%}",
                answer.text,
                f"{answer.tokens['video']} -> {answer.tokens['kept']}",
                f"{1000 * sum(answer.timings.values()):.0f} ms",
            )
            for question, row in zip(questions, answers, strict=True)
            for number, (retention, answer) in enumerate(zip(RETENTIONS, row, strict=True))
        ]
        columns = ("question", "right", "kept", "answer", "tokens", "time")
        write_line()
        show_table(columns, rows, sections=len(RETENTIONS))
        write_line(
            f"Embedded model, method {self.method}. Synthetic task; no public benchmark run."
        )
        write_line(f"Video:    {clip}")
        write_line(f"Overlays: {', '.join(map(str, pictures))} (first question, 10%)")
        write_line(f'Yours:    cacovid ask {clip} "{questions[-1].text}" --retention 0.1')
