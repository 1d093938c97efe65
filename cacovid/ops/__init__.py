"""The ops that any video-LLM stack can call: score, sample, select, pack.

Each has the signature of its namesake in `cacovid.reference`, the specification, and `backend=`
besides (see `cacovid.backends`). Importing this package defines `torch.ops.cacovid.*`, loads the
compiled part where it is there, and needs no GPU.
"""

from cacovid.ops.bernoulli_sample import bernoulli_sample
from cacovid.ops.cpo_loss import cpo_loss
from cacovid.ops.density_peaks import density_peaks
from cacovid.ops.farthest_point import farthest_point
from cacovid.ops.frame_sample import frame_sample
from cacovid.ops.gather import gather
from cacovid.ops.ocss_sample import ocss_sample
from cacovid.ops.pack_rollouts import pack_rollouts
from cacovid.ops.reinforce_loss import reinforce_loss
from cacovid.ops.score import score
from cacovid.ops.select_and_gather import select_and_gather
from cacovid.ops.select_tokens import select_tokens

__all__ = [
    "bernoulli_sample",
    "cpo_loss",
    "density_peaks",
    "farthest_point",
    "frame_sample",
    "gather",
    "ocss_sample",
    "pack_rollouts",
    "reinforce_loss",
    "score",
    "select_and_gather",
    "select_tokens",
]
