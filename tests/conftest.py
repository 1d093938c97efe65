"""Triton's interpreter serves where there is no GPU.

It has to be chosen before Triton is imported for the first time, by whichever test. On a machine
with a GPU the same tests run the compiled kernels on it.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
