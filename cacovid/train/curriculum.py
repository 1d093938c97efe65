"""Which samples a run learns from when: one set all along, or stages one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cacovid.errors import InvalidInputError
from cacovid.train.data import Samples, TrainingSample


@dataclass(frozen=True)
class Stage:
    """Some steps on some samples.

    Args:
        samples: Taken in a new order each epoch.
        steps: How many.
        name: For messages.
    """

    samples: Samples
    steps: int
    name: str = ""


class Curriculum:
    """Stages, one after another, as one run: one schedule of rates, one numbering of steps.

    Args:
        stages: At least one.

    Raises:
        InvalidInputError: without stages, or for a stage without samples or steps.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise InvalidInputError("a curriculum needs at least one stage")
        for stage in stages:
            where = f"stage {stage.name!r}: " if stage.name else ""
            if not len(stage.samples):
                raise InvalidInputError(f"{where}there is no sample to train on")
            if stage.steps < 1:
                raise InvalidInputError(f"{where}steps is {stage.steps}; expected at least 1")
        self.stages = tuple(stages)

    @classmethod
    def of(cls, samples: Samples | Curriculum, steps: int) -> Curriculum:
        """A curriculum of one stage, or the one that was given."""
        return samples if isinstance(samples, Curriculum) else cls([Stage(samples, steps)])

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def samples(self) -> Samples:
        """The samples of all stages, with all that was left out."""
        parts = [stage.samples for stage in self.stages]
        if len(parts) == 1:
            return parts[0]
        named = [(stage.name, stage.samples) for stage in self.stages]
        return Samples(
            tuple(sample for part in parts for sample in part),
            tuple((f"{name}: {row}", why) for name, part in named for row, why in part.skipped),
            tuple((f"{name}: {row}", new) for name, part in named for row, new in part.renamed),
        )

    def stage_of(self, step: int) -> int:
        """Number of a step's stage, from 0; steps beyond the end belong to the last one."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number
            step -= stage.steps
        return len(self.stages) - 1

    def tried(self, steps: int, group: int, seed: int) -> set[str]:
        """The ids of the samples that the first steps took.

        Args:
            steps: How many.
            group: Samples of a step, over all processes.
            seed: Of the order.
        """
        found: set[str] = set()
        for stage in self.stages:
            order = stage.samples.order(seed, 0)[: min(steps, stage.steps) * group]
            found.update(stage.samples[index].id for index in order)
            steps = max(0, steps - stage.steps)
        return found

    def at(self, place: int, group: int, seed: int) -> TrainingSample:
        """The sample at a place of the whole run.

        Args:
            place: From 0, over all stages and processes.
            group: Samples of a step, over all processes.
            seed: Of the order.
        """
        number = self.stage_of(place // group)
        place -= group * sum(stage.steps for stage in self.stages[:number])
        samples = self.stages[number].samples
        epoch, index = divmod(place, len(samples))
        found: TrainingSample = samples[samples.order(seed, epoch)[index]]
        return found
