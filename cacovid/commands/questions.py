"""What `eval` and `calibrate` share: which questions, which model, and their loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import Command, UsageError, check_at_least, tell_left_out
from cacovid.commands.progress import progress

#: Questions on each scene of the embedded task.
PER_SCENE = 8


@dataclass(kw_only=True)
class QuestionsCommand(Command):
    """Options of commands that ask a model many questions."""

    embedded: bool = False
    """Scenes of the embedded task (synthetic; no public benchmark)."""
    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Questions in place of --embedded: JSON, JSON lines, CSV or TSV, in the Video-R1 form or
    multiple choice with columns for question, video, options and answer (docs/evaluation.md)."""
    video_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Where the videos of --data lie. Default: the file's folder."""
    answers_from: Annotated[int | None, arg(metavar="0|1", help_behavior_hint="")] = None
    """Answers of --data that are numbers of options count from here. Default: told from the
    data."""
    model: Annotated[str, arg(metavar="tiny|DIR|ID")] = "tiny"
    """"tiny" (embedded), a directory, or a Hub id."""
    split: Annotated[str, arg(metavar="test|shifted|validation")] = "test"
    """Set of the embedded task."""
    seed: int = 0
    """Of the embedded task's scenes, and of methods that draw."""
    limit: int = 2000
    """Questions at most."""
    max_new_tokens: int = 64
    """Longest generated answer, in tokens."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Where the model runs. Default: a GPU if there is one."""

    def check_questions(self) -> None:
        """Refuses what can be refused before anything is loaded."""
        if self.embedded == (self.data is not None):
            raise UsageError("give either --embedded or --data FILE")
        check_at_least(self.limit, 1, "--limit")
        check_at_least(self.max_new_tokens, 1, "--max-new-tokens")
        if self.split not in ("test", "shifted", "validation"):
            raise UsageError(f"--split is {self.split!r}; expected test, shifted or validation")
        if self.answers_from not in (None, 0, 1):
            raise UsageError(f"--answers-from is {self.answers_from}; expected 0 or 1")

    @property
    def data_name(self) -> str:
        """How results call the questions."""
        return str(self.data) if self.data else f"embedded/{self.split}/{self.seed}"

    @property
    def data_note(self) -> str:
        """What tables say of the questions."""
        return "synthetic task; no public benchmark run" if self.embedded else str(self.data)

    def load(self, device: str | None) -> tuple[Any, Any]:
        """The `VideoQA` and the samples; rows that cannot be used are told."""
        from cacovid.commands.loading import load_model

        with progress(2) as shown:
            shown.stage("data")
            samples = self._samples()
            shown.stage("model", self.model)
            qa = load_model(self.model, None, device, debug=self.debug)
        return qa, samples

    def _samples(self) -> Any:
        from dataclasses import replace

        from cacovid.evaluation.questions import read_questions
        from cacovid.train.data import embedded_samples

        if self.data is None:
            scenes = -(-self.limit // PER_SCENE)
            samples = embedded_samples(self.split, self.seed, scenes, PER_SCENE)
        else:
            samples = read_questions(self.data, self.video_root, answers_from=self.answers_from)
            tell_left_out(samples)
        return replace(samples, kept=samples.kept[: self.limit])


def policies_of(qa: Any) -> tuple[str, ...]:
    """Names of the policies in the model's directory."""
    from cacovid.methods.beside import policies_beside

    return tuple(policies_beside(Path(qa.model.name_or_path)))
