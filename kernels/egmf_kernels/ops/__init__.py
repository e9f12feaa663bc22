"""The operators, a folder each: one word finds all of an operator.

``reference.py`` (plain torch: the CPU path, the oracle and the baseline), ``kernels.py`` (Triton), ``operator.py`` (its
registration with torch), ``bytes.py`` (what it must move) and ``call.py`` (the public function, which checks).
"""

import os

# Before Triton is imported: 3.10 flips this default; multiply-adds stay fused whatever the version.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
