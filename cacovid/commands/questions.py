"""What `eval` and `calibrate` share: which questions, which model, and their loading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import Command, UsageError, check_at_least, tell_left_out
from cacovid.commands.progress import progress
from cacovid.commands.reading import DtypeOption, MaxFramesOption, check_reading

#: Questions on each scene of the embedded task at most.
PER_SCENE = 8
#: From so many scenes they come where there are enough: from fewer there are no intervals.
SCENES = 20
#: Sets of the embedded task that policies have not learned from.
SPLITS = ("test", "shifted", "validation")
SPLITS_LISTED = ", ".join(SPLITS)


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
    max_skipped: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Greatest share of the rows of --data that may be unusable."""
    model: Annotated[str, arg(metavar="tiny|DIR|ID")] = "tiny"
    """"tiny" (embedded), a directory, or a Hub id."""
    seed: int = 0
    """Of the embedded task's scenes, and of methods that draw."""
    limit: int = 2000
    """Questions at most. Few ones of the embedded task are spread over 20 scenes."""
    max_frames: MaxFramesOption = None
    """Frames of a video at most. Default: as the model's directory says, else 32."""
    max_new_tokens: int = 64
    """Longest generated answer, in tokens."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Where the model runs. Default: a GPU if there is one."""
    dtype: DtypeOption = None
    """Of the model's weights, such as bfloat16. Default: float32 on a CPU, bfloat16 elsewhere."""

    def check_questions(self, *splits: str) -> None:
        """Refuses what can be refused before anything is loaded.

        Args:
            *splits: Sets of the embedded task that are asked for.
        """
        if self.embedded == (self.data is not None):
            raise UsageError("give either --embedded or --data FILE")
        check_at_least(self.limit, 1, "--limit")
        check_at_least(self.max_new_tokens, 1, "--max-new-tokens")
        check_reading(self.dtype, self.max_frames)
        for split in splits:
            if split not in SPLITS:
                raise UsageError(f"--split is {split!r}; expected one or more of {SPLITS_LISTED}")
        if self.answers_from not in (None, 0, 1):
            raise UsageError(f"--answers-from is {self.answers_from}; expected 0 or 1")
        if not 0.0 <= self.max_skipped <= 1.0:
            raise UsageError(f"--max-skipped is {self.max_skipped:g}; expected a share in [0, 1]")

    def data_name(self, split: str) -> str:
        """How results call the questions."""
        return str(self.data) if self.data else f"embedded/{split}/{self.seed}"

    @property
    def data_note(self) -> str:
        """What tables say of the questions."""
        return "synthetic task; no public benchmark run" if self.embedded else str(self.data)

    def load(self, device: str | None, *splits: str) -> tuple[Any, list[Any]]:
        """The `VideoQA` and the samples of each set; rows that cannot be used are told."""
        from cacovid.commands.loading import load_model

        with progress(2) as shown:
            shown.stage("data")
            samples = [self._samples(split) for split in splits]
            shown.stage("model", self.model)
            qa = load_model(self.model, None, device, dtype=self.dtype, debug=self.debug)
        if self.max_frames is not None:
            qa.reading = replace(qa.reading, max_frames=self.max_frames)
        return qa, samples

    def _samples(self, split: str) -> Any:
        from cacovid.evaluation.questions import read_questions
        from cacovid.train.data import embedded_samples

        if self.data is None:
            scenes = max(-(-self.limit // PER_SCENE), min(self.limit, SCENES))
            samples = embedded_samples(split, self.seed, scenes, PER_SCENE)
            if self.limit < SCENES * PER_SCENE:
                return _spread(samples, self.limit)
        else:
            samples = read_questions(
                self.data, self.video_root, answers_from=self.answers_from,
                max_skipped=self.max_skipped,
            )  # fmt: skip
            tell_left_out(samples)
        return replace(samples, kept=samples.kept[: self.limit])


def _spread(samples: Any, count: int) -> Any:
    """So many of the samples, in their order, as many on each video as on the others."""
    seen: Counter[str] = Counter()
    turns = []
    for place, sample in enumerate(samples):
        turns.append((seen[sample.video_key], place))
        seen[sample.video_key] += 1
    chosen = sorted(place for _, place in sorted(turns)[:count])
    return replace(samples, kept=tuple(samples[place] for place in chosen))


def policies_of(qa: Any) -> tuple[str, ...]:
    """Names of the policies in the model's directory."""
    from cacovid.methods.beside import policies_beside

    return tuple(policies_beside(Path(qa.model.name_or_path)))
