"""Every op in plain PyTorch: the specification of the kernels, and the fallback.

Each function has the signature of the op of the same name in `cacovid.ops`. Floating-point ops run
in the dtype of their input, float64 included; discrete ones follow a bit-exact recipe that is
stated in their module (`ocss`, `frame_sample`, `select_tokens`; shared arithmetic in `fixed_point`
and `philox`).
"""

from cacovid.reference.cpo_loss import Loss, cpo_loss
from cacovid.reference.density_peaks import density_peaks
from cacovid.reference.farthest_point import farthest_point
from cacovid.reference.ocss import ocss_sample
from cacovid.reference.select_tokens import select_tokens

__all__ = ["Loss", "cpo_loss", "density_peaks", "farthest_point", "ocss_sample", "select_tokens"]
