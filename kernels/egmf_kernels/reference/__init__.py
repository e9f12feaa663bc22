"""Plain torch implementations: the CPU path, the oracle of the tests and the baseline of the benchmarks, all in one."""

from egmf_kernels.reference.dwconv import ms_dwconv
from egmf_kernels.reference.expert_mix import gated_expert_mix, gated_tri_proj, hier_gate_mix_norm
from egmf_kernels.reference.pool import modality_gate, ragged_pool_gate

__all__ = [
    "gated_expert_mix",
    "gated_tri_proj",
    "hier_gate_mix_norm",
    "modality_gate",
    "ms_dwconv",
    "ragged_pool_gate",
]
