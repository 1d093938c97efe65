"""The control: the same network taught to imitate the model's attention, without any reward.

CaCoVID's claim (arXiv 2602.01649) is that contribution to a right answer is another thing than
attention; a policy of the same shape that imitates attention tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import PreparedSample, SampleEncoder
from cacovid.train.limits import check_at_least
from cacovid.train.objective import Progress, Update
from cacovid.types import Scores


@dataclass(frozen=True)
class ImitationSettings:
    """Whose attention is imitated.

    Args:
        layer: Layer of the language model, from 0.
        queries: `"last"`: the last prompt token asks; `"question"`: all question tokens.
        updates: Updates of a sample.
    """

    layer: int = 1
    queries: Literal["last", "question"] = "last"
    updates: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 0, "layer", section="imitation.")
        check_at_least(self, 1, "updates", section="imitation.")

    @property
    def extra(self) -> str:
        """Name of the `Prompt.extras` entry."""
        return f"received_attention/{self.layer}/{self.queries}"


@dataclass
class ImitationProgress(Progress):
    """The targets of one sample."""

    prepared: PreparedSample
    token: Tensor
    frame: Tensor


class Imitation:
    """Cross-entropy between the attention that tokens receive and the softmax of the scores.

    Over a video's tokens for the token scores, over its frames (sums) for the frame scores.

    Args:
        encoder: Embeds samples; its `needs` hold `settings.extra`.
        settings: Settings.
    """

    def __init__(self, encoder: SampleEncoder, settings: ImitationSettings) -> None:
        if settings.extra not in encoder.needs:
            raise InvalidInputError(
                f"the encoder gives {sorted(encoder.needs)}; imitation needs {settings.extra!r}"
            )
        self.encoder = encoder
        self.settings = settings

    @property
    def updates(self) -> int:
        """Updates of a sample."""
        return self.settings.updates

    def prepare(self, sample: TrainingSample) -> PreparedSample:
        """Reads and embeds a sample, with the attention that its tokens receive."""
        return self.encoder(sample)

    def begin(self, prepared: PreparedSample, seed: int) -> Progress:
        """The sample's targets."""
        received = prepared.prompt.extras[self.settings.extra].float()
        frames = torch.stack(
            [part.sum() for part in received.split(list(prepared.prompt.grid.tokens_per_frame))]
        )
        return ImitationProgress(prepared, _share(received), _share(frames))

    def update(self, scores: Scores, progress: Progress) -> Update:
        """The loss of one update."""
        assert isinstance(progress, ImitationProgress)
        loss = F.cross_entropy(scores.token.float()[None], progress.token[None])
        if scores.frame is not None:
            loss = loss + F.cross_entropy(scores.frame.float()[None], progress.frame[None])
        return Update(loss, {"cross_entropy": float(loss.detach())})


def _share(values: Tensor) -> Tensor:
    return values / values.sum().clamp(min=1e-12)
