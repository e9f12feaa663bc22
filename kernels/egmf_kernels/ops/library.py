"""Importing this registers every operator; only a process that uses them pays for Triton."""

import egmf_kernels.ops.gated_tri_proj.operator
import egmf_kernels.ops.hier_gate_mix_norm.operator
import egmf_kernels.ops.ms_dwconv.operator
import egmf_kernels.ops.ragged_pool_gate.operator  # noqa: F401
