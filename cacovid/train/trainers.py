"""The two ways to train a policy, each by one name; the loop itself is `cacovid.train.trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cacovid.policies import StoredPolicy
from cacovid.train.cpo import CPO, CPOSettings
from cacovid.train.curriculum import Curriculum
from cacovid.train.data import Samples
from cacovid.train.rewards import RewardBackend, TargetBackend
from cacovid.train.score import SCORE, SCORESettings
from cacovid.train.settings import TrainerSettings
from cacovid.train.trainer import Trainer


class CPOTrainer(Trainer):
    """Trains by combinatorial policy optimisation (CaCoVID, arXiv 2602.01649).

    Args:
        policy: The policy, on the device of the frozen model. Trained in place.
        reward: Marks rollouts.
        samples: What to learn from, or stages of it.
        settings: Of the loop.
        folder: Checkpoints, logs and the result go here.
        cpo: Of the objective.
        **options: Further arguments of `Trainer`.
    """

    def __init__(
        self,
        policy: StoredPolicy,
        reward: RewardBackend,
        samples: Samples | Curriculum,
        settings: TrainerSettings,
        folder: Path,
        cpo: CPOSettings | None = None,
        **options: Any,
    ) -> None:
        objective = CPO(reward, cpo or CPOSettings())
        super().__init__(policy, objective, samples, settings, folder, **options)


class SCORETrainer(Trainer):
    """Trains by REINFORCE with split advantages (SCORE, arXiv 2603.26365).

    Args:
        policy: The policy, usually a `SurprisePolicy`. Trained in place.
        reward: Tells the cross-entropy of a sample's answer from kept tokens.
        samples: What to learn from, or stages of it: pseudo-videos first, then videos.
        settings: Of the loop.
        folder: Checkpoints, logs and the result go here.
        score: Of the objective.
        **options: Further arguments of `Trainer`.
    """

    def __init__(
        self,
        policy: StoredPolicy,
        reward: TargetBackend,
        samples: Samples | Curriculum,
        settings: TrainerSettings,
        folder: Path,
        score: SCORESettings | None = None,
        **options: Any,
    ) -> None:
        objective = SCORE(reward, score or SCORESettings())
        super().__init__(policy, objective, samples, settings, folder, **options)
