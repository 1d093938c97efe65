"""The language stage's curriculum: what is asked, of how many tokens, for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cacovid.synthetic.questions import QUESTION_TYPES
from cacovid.synthetic.tiny.model import LATE_LAYERS

EVERY_TYPE = tuple(QUESTION_TYPES)


@dataclass(frozen=True)
class LanguageStage:
    """One step of the curriculum.

    Args:
        steps: Updates.
        types: Question types asked.
        questions: Questions on each clip.
        multiple_choice: Share of questions that carry options.
        others: Least and greatest share of the tokens beside the evidence that are kept; one
            share per batch, log-uniform.
        served: Share of a clip's questions whose evidence is kept (at least one).
        full_share, random_share: Shares of batches that keep all tokens, or that many at random
            without regard to the evidence.
        auxiliary_weight: Of the video tokens' own losses.
        mention_weight: Of the losses of the words that name an object.
        word_weight: Of the answer's word before the last layer, which then finds its letter.
        asleep: Decoder layers that are not trained yet, of `LATE_LAYERS`.
        rate: Of Muon; AdamW's is half of it. Warm-up over 50 steps, then a half cosine.
        final: The rate at the end, as a share of `rate`.
    """

    steps: int
    types: tuple[str, ...]
    questions: int
    multiple_choice: float
    others: tuple[float, float]
    served: float = 1.0
    full_share: float = 0.0
    random_share: float = 0.0
    auxiliary_weight: float = 0.0
    mention_weight: float = 0.0
    word_weight: float = 0.0
    asleep: tuple[int, ...] = LATE_LAYERS
    rate: float = 4e-3
    final: float = 1.0

    def rate_at(self, step: int) -> float:
        """The rate of an update of this stage."""
        warm = min(1.0, (step + 1) / 50)
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * warm * (self.final + (1 - self.final) * fall)


#: Two attributes must single out an object: nothing else teaches the model to bind them. The type
#: `big_colour`, which one attribute answers, waits: beside it binding took more than three times
#: as many updates.
BINDING = ("colour", "shape", "pattern")

STAGES = (
    LanguageStage(1300, BINDING, 6, 0.0, (0.02, 0.02)),
    LanguageStage(1700, BINDING, 8, 0.5, (0.01, 0.1)),
    LanguageStage(800, EVERY_TYPE, 12, 0.4, (0.01, 0.15), auxiliary_weight=0.2),
    LanguageStage(
        1400,
        EVERY_TYPE,
        12,
        0.5,
        (0.01, 0.15),
        auxiliary_weight=0.2,
        mention_weight=0.3,
        asleep=(6,),
    ),
    LanguageStage(
        1500,
        EVERY_TYPE,
        14,
        0.5,
        (0.01, 1.0),
        served=0.6,
        full_share=0.3,
        random_share=0.15,
        auxiliary_weight=0.1,
        mention_weight=0.2,
        word_weight=0.3,
        asleep=(),
        rate=3e-3,
        final=0.02,
    ),
)


@dataclass
class LanguageRecipe:
    """Settings of the language model's training.

    Args:
        stages: The curriculum.
        batch: Clips of an update.
        weight_decay: Of both optimizers.
        compile: Whether the decoder goes through `torch.compile` (needs a C++ compiler).
        checkpoint_every: Steps.
        seed: Of clips, questions and dropped tokens.
    """

    stages: tuple[LanguageStage, ...] = STAGES
    batch: int = 8
    weight_decay: float = 0.05
    compile: bool = True
    checkpoint_every: int = 500
    seed: int = 0
