"""The Triton kernels, one operator a file: jitted kernels, then the functions that launch them."""

import os

# Triton 3.10 flips this default; multiply-adds stay fused whatever the version.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from egmf_kernels.triton.interpreter import correct_interpreter, interpreting

INTERPRETED = interpreting()
"""Whether this process interprets the kernels on CPU tensors (``TRITON_INTERPRET=1`` before the first import)."""

if INTERPRETED:
    correct_interpreter()
