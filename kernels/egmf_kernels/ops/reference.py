"""Plain torch implementations: the CPU path, the oracle of the tests and the baseline of the benchmarks, all in one."""

from egmf_kernels.ops.gated_expert_mix.reference import gated_expert_mix
from egmf_kernels.ops.gated_tri_proj.reference import gated_tri_proj
from egmf_kernels.ops.hier_gate_mix_norm.reference import hier_gate_mix_norm
from egmf_kernels.ops.ms_dwconv.reference import ms_dwconv
from egmf_kernels.ops.ragged_pool_gate.reference import modality_gate, ragged_pool_gate

__all__ = [
    "gated_expert_mix",
    "gated_tri_proj",
    "hier_gate_mix_norm",
    "modality_gate",
    "ms_dwconv",
    "ragged_pool_gate",
]
