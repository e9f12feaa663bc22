"""The operators of EGMF's fusion block: one public function each, checked, over interchangeable implementations.

Layout that all of them share: the tokens of a batch are packed without padding, sample after sample and, inside a
sample, modality after modality. ``cu_segments [B * M + 1]`` holds where each (sample, modality) segment begins; a
segment of zero length is an absent modality.
"""

from egmf_kernels.ops.common.checks import boundary_values
from egmf_kernels.ops.common.segments import segment_ids
from egmf_kernels.ops.gated_expert_mix.call import gated_expert_mix
from egmf_kernels.ops.gated_tri_proj.call import gated_tri_proj
from egmf_kernels.ops.hier_gate_mix_norm.call import hier_gate_mix_norm
from egmf_kernels.ops.ms_dwconv.call import ms_dwconv
from egmf_kernels.ops.ragged_pool_gate.call import modality_gate, ragged_pool_gate
from egmf_kernels.select import (
    IMPLEMENTATIONS,
    MAX_KERNEL_SIZE,
    MAX_QUERIES,
    MAX_QUERY_ELEMENTS,
    MAX_WIDTH,
    describe,
    query_elements,
    using,
)

__all__ = [
    "IMPLEMENTATIONS",
    "MAX_KERNEL_SIZE",
    "MAX_QUERIES",
    "MAX_QUERY_ELEMENTS",
    "MAX_WIDTH",
    "boundary_values",
    "describe",
    "gated_expert_mix",
    "gated_tri_proj",
    "hier_gate_mix_norm",
    "modality_gate",
    "ms_dwconv",
    "query_elements",
    "ragged_pool_gate",
    "segment_ids",
    "using",
]
