"""A model, questions and methods put together: what `cacovid eval` and `calibrate` run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cacovid import methods
from cacovid.errors import CacovidError, InvalidInputError, VideoReadError
from cacovid.evaluation.answers import Answerer
from cacovid.evaluation.choosers import (
    ORACLES,
    Chooser,
    OracleChooser,
    Runnable,
    check_oracle,
    choosers,
    runnable,
    with_draws,
)
from cacovid.evaluation.compare import Comparison, Evaluator, Result, conditions_of
from cacovid.evaluation.processes import Processes
from cacovid.evaluation.records import Records
from cacovid.evaluation.trials import Trials
from cacovid.methods.beside import BESIDE, POLICY_FOLDER, policies_beside
from cacovid.models.inside import running
from cacovid.train.choices import letter_ids
from cacovid.train.data import Samples, TrainingSample, read_sample
from cacovid.train.encoding import SampleEncoder
from cacovid.train.marking import check_packages
from cacovid.train.provenance import digest, weights_of
from cacovid.train.rewards import freeze
from cacovid.train.wording import put_plainly

#: Stands for every policy beside the model and every registered method.
ALL = "all"


@dataclass
class EvaluationRun:
    """Questions, to be answered by a model under all conditions.

    Args:
        qa: A `cacovid.VideoQA`.
        samples: The questions.
        names: Methods, as `choosers` takes them; `"all"` stands for every one that can run.
        retentions: Shares of the tokens kept.
        seed: Of methods that draw.
        timed: So many videos' first questions are timed.
        max_new_tokens: Of a generated answer.
        embedded: Whether `"all"` holds the oracles of the embedded task.
        draws: Methods in which chance plays are asked so often; their rows are means.
    """

    qa: Any
    samples: Samples
    names: Sequence[str]
    retentions: Sequence[float]
    seed: int = 0
    timed: int = 8
    max_new_tokens: int = 64
    embedded: bool = False
    draws: int = 1
    left_out: dict[str, str] = field(default_factory=dict, init=False)
    choosers: list[Chooser] = field(default_factory=list, init=False)
    _draws: dict[str, list[Chooser]] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Finds the methods; `left_out` says which of `"all"` cannot run, and why.

        Raises:
            InvalidInputError: for an unknown name, no question that could be answered, or an oracle
                for questions of which it does not know the truth.
            MissingDependencyError: if a package for marks is not installed.
        """
        freeze(self.qa.model)
        self.samples = answerable(self.samples, self.qa.processor.tokenizer)
        if not self.qa.reading.closing:
            self.samples = put_plainly(self.samples)
        check_packages(sample.problem_type for sample in self.samples)
        names = list(dict.fromkeys(self.names))
        if ALL in names:
            found = self._all()
            self.left_out = found.left_out
            at = names.index(ALL)
            names[at : at + 1] = found.names
        self._draws = with_draws(choosers(list(dict.fromkeys(names)), self.qa.model), self.draws)
        self.choosers = [chooser for own in self._draws.values() for chooser in own]
        for chooser in self.choosers:
            if isinstance(chooser, OracleChooser):
                check_oracle(chooser.name, self.samples)

    def header(self, data: str) -> dict[str, Any]:
        """What the results depend on.

        Args:
            data: Name of the questions.
        """
        name = str(self.qa.model.name_or_path)
        folders = [Path(name), *(_policy_folder(c.name, Path(name)) for c in self.choosers)]
        return {
            "version": 1,
            "model": name,
            "dtype": str(self.qa.model.dtype),
            "data": data,
            "first questions": digest(self.samples[:100]),
            "conditions": conditions_of(self.choosers, self.retentions),
            "seed": self.seed,
            "timed": self.timed,
            "max_new_tokens": self.max_new_tokens,
            "reading": [self.qa.reading.max_frames, self.qa.reading.fps],
            "weights": weights_of(folders if name else ()),
        }

    def run(
        self,
        processes: Processes,
        records: Records | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Comparison:
        """Answers what is not answered yet, waits for the other processes, and compares.

        Args:
            processes: Of the launch.
            records: Where results are kept; needed with several processes.
            on_progress: Called with how many questions of this process's share are done.

        Raises:
            VideoReadError: if none of the videos can be read.
            InvalidInputError: for several processes without records.
        """
        if records is None and processes.count > 1:
            raise InvalidInputError("several processes share results in a folder; name one")
        done = records.read() if records is not None else {}
        processes.wait()  # nobody appends while another still reads what was there
        if records is not None:
            records.mend()
        fresh = 0

        def keep(result: Result) -> None:
            nonlocal fresh
            fresh += 1
            if records is not None:
                records.add(result)
            on_progress(len(done) + fresh * processes.count)

        ids = {sample.id for sample in self.samples}
        done = {id: result for id, result in done.items() if id in ids}
        on_progress(len(done))
        share = (processes.rank, processes.count)
        found = self._evaluator().run(
            self.samples, done=done, timed=self.timed, share=share, on_result=keep
        )
        processes.wait()
        if records is not None and processes.count > 1:
            found = records.read()
        conditions = conditions_of(self.choosers, self.retentions)
        there = [found[s.id] for s in self.samples if s.id in found]
        names = {name: [chooser.name for chooser in own] for name, own in self._draws.items()}
        return Comparison.of(conditions, there).pooled(names)

    def _evaluator(self) -> Evaluator:
        qa = self.qa
        needs = frozenset[str]().union(*(chooser.needs for chooser in self.choosers))
        trials = Trials(
            qa.model, qa.processor, self.choosers, self.retentions, qa.reading, self.max_new_tokens
        )
        return Evaluator(
            self._encoder(needs),
            Answerer(qa.model, qa.processor.tokenizer, self.max_new_tokens),
            self.choosers,
            self.retentions,
            self.seed,
            trials.times if self.timed else None,
        )

    def _encoder(self, needs: frozenset[str]) -> SampleEncoder:
        reading = self.qa.reading
        return SampleEncoder(
            self.qa.model,
            self.qa.processor,
            lambda sample: read_sample(sample, reading.max_frames, reading.fps),
            cached_videos=2,
            needs=needs,
        )

    def _all(self) -> Runnable:
        """Everything that can choose tokens of these questions, tried on the first that reads."""
        sample = self._first_readable()

        def try_out(chooser: Chooser) -> None:
            (chosen,) = chooser(self._encoder(chooser.needs)(sample), [0.5], self.seed)
            with running(self.qa.model, chosen.hook):
                pass  # refuses a model whose layers it does not know

        place = self.qa.model.name_or_path
        registered = methods.names()
        # A method of that name serves `cacovid:score` already.
        stored = [
            name
            for name in (policies_beside(Path(place)) if place else ())
            if name.removeprefix(f"{BESIDE}:") not in registered or name == BESIDE
        ]
        oracles = tuple(ORACLES) if self.embedded else ()
        names = dict.fromkeys((*stored, *registered, *oracles))
        return runnable(self.qa.model, try_out, list(names))

    def _first_readable(self) -> TrainingSample:
        reading, error = self.qa.reading, None
        for sample in self.samples:
            try:
                read_sample(sample, reading.max_frames, reading.fps)
            except VideoReadError as reason:
                error = reason
            else:
                return sample
        raise VideoReadError(f"none of the videos can be read: {error}")


def answerable(samples: Samples, tokenizer: Any) -> Samples:
    """The samples whose options' letters the tokenizer tells apart; the others are in `skipped`.

    Raises:
        InvalidInputError: if none is left.
    """
    refused: dict[int, str] = {}
    for count in {len(s.options) for s in samples if s.problem_type == "multiple choice"}:
        letters = next(s.letters for s in samples if len(s.options) == count)
        try:
            letter_ids(tokenizer, letters)
        except CacovidError as error:
            refused[count] = str(error)
    if not refused:
        return samples
    out = [s for s in samples if s.problem_type == "multiple choice" and len(s.options) in refused]
    left = {s.id for s in out}
    kept = tuple(s for s in samples if s.id not in left)
    if not kept:
        raise InvalidInputError(f"no question can be answered: {next(iter(refused.values()))}")
    told = tuple((f"sample {s.id!r}", refused[len(s.options)]) for s in out)
    return replace(samples, kept=kept, skipped=samples.skipped + told)


def _policy_folder(name: str, place: Path) -> Path:
    """Where a chooser's weights lie, if they lie in a directory."""
    own, _, variant = name.partition(":")
    if own == BESIDE:
        return place / (f"{POLICY_FOLDER}-{variant}" if variant else POLICY_FOLDER)
    return Path(name)
