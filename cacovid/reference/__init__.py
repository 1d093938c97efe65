"""Every op in plain PyTorch: the specification of the kernels, and the fallback.

Each function has the signature of the op of the same name in `cacovid.ops`. Floating-point ops run
in the dtype of their input, float64 included; discrete ones follow a bit-exact recipe that is
stated in their module (`bernoulli`, `ocss`, `frame_sample`, `select_tokens`; shared arithmetic in
`fixed_point` and `philox`).
"""

from cacovid.reference.bernoulli import bernoulli_sample
from cacovid.reference.clip_max import clip_max
from cacovid.reference.cpo_loss import Loss, cpo_loss
from cacovid.reference.density_peaks import density_peaks
from cacovid.reference.farthest_point import farthest_point
from cacovid.reference.frame_sample import frame_sample
from cacovid.reference.gather import gather
from cacovid.reference.ocss import ocss_sample
from cacovid.reference.pack_rollouts import pack_rollouts
from cacovid.reference.reinforce_loss import reinforce_loss
from cacovid.reference.score import ScoreFold, score
from cacovid.reference.select_and_gather import select_and_gather
from cacovid.reference.select_tokens import select_tokens
from cacovid.reference.subspaces import Subspaces, subspaces

__all__ = [
    "Loss",
    "ScoreFold",
    "Subspaces",
    "bernoulli_sample",
    "clip_max",
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
    "subspaces",
]
