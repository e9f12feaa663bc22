"""Which implementation of an operator runs: by argument, by context manager, by ``EGMF_KERNELS``, else ``auto``.

``auto`` runs the Triton kernels on CUDA tensors and the reference elsewhere. On CUDA it steps aside where the kernels
do not serve (a width above 2048, more than 3 experts ...) and where the architecture's tile table says that
``torch.compile`` of the reference was measured faster for that width and number of tokens. ``triton`` never steps
aside: it raises.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, cast

import torch

from egmf_kernels import tiles

Implementation = Literal["auto", "reference", "triton"]
Choice = Literal["reference", "triton", "compile"]
IMPLEMENTATIONS = ("auto", "reference", "triton")

MAX_WIDTH = 2048
MAX_EXPERTS = 3
MAX_QUERIES = 8
MAX_QUERY_ELEMENTS = 8192
"""Queries times width, both as the next power of two, that a program of the pooling holds in registers."""
MAX_KERNEL_SIZE = 7
MIN_CAPABILITY = 80
"""The oldest compute capability with a tile table (Ampere: bfloat16, asynchronous copies)."""
PROJECTION_WIDTH = 512
"""Up to here the experts' projections run inside gated_tri_proj; above, cuBLAS projects and hier_gate_mix_norm
mixes."""


SUSPECT_TRITON = ((3, 4, 0), (3, 7, 1))
"""From the first to before the second, Triton's matrix products on Hopper lack a fence, or reorder, in some kernels of
others (triton #9610, flash-linear-attention #640 and #826): there ours must have been hammered."""


def _named(name: str, where: str) -> Implementation:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{where} is {name!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    return cast(Implementation, name)


_default: list[Implementation] = [_named(os.environ.get("EGMF_KERNELS", "auto"), "EGMF_KERNELS")]


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Operators called inside without an ``implementation`` of their own run this one."""
    _default.append(_named(implementation, "implementation"))
    try:
        yield
    finally:
        _default.pop()


def interpreted() -> bool:
    """Whether this process runs the kernels in Triton's interpreter, on CPU tensors."""
    from egmf_kernels.ops.common.interpreter import INTERPRETED

    return INTERPRETED


def query_elements(queries: int, width: int) -> int:
    """What K queries of a width take in registers: both padded to a power of two."""
    return int(2 ** (math.ceil(math.log2(queries)) + math.ceil(math.log2(width))))


def _cannot(x_TD: torch.Tensor, experts: int, queries: int, kernel_size: int) -> str:
    """Why the Triton kernels cannot serve this call, or an empty string."""
    if x_TD.device.type != "cuda" and not interpreted():
        return f"the tokens are on {x_TD.device.type}; Triton needs CUDA, or TRITON_INTERPRET=1 before the first import"
    if x_TD.is_cuda and tiles.capability(x_TD.device) < MIN_CAPABILITY:
        return f"the device has compute capability {tiles.capability(x_TD.device) / 10}; the kernels need 8.0"
    if x_TD.dtype == torch.float64 and x_TD.is_cuda:
        return "the tokens are float64; the kernels take float32, bfloat16 and float16"
    if x_TD.shape[1] > MAX_WIDTH:
        return f"the width is {x_TD.shape[1]}; the kernels take up to {MAX_WIDTH}"
    if experts > MAX_EXPERTS:
        return f"there are {experts} experts; the kernels take up to {MAX_EXPERTS}"
    if not 0 <= queries <= MAX_QUERIES:
        return f"there are {queries} queries; the kernels take up to {MAX_QUERIES}"
    if queries and query_elements(queries, x_TD.shape[1]) > MAX_QUERY_ELEMENTS:
        return f"{queries} queries of width {x_TD.shape[1]} are more than {MAX_QUERY_ELEMENTS} numbers, padded"
    if kernel_size > MAX_KERNEL_SIZE:
        return f"a convolution is {kernel_size} wide; the kernels take up to {MAX_KERNEL_SIZE}"
    return ""


def choose(
    operator: str,
    implementation: str | None,
    x_TD: torch.Tensor,
    experts: int = 1,
    queries: int = 0,
    kernel_size: int = 1,
) -> Choice:
    """The implementation that this call runs.

    Raises:
        ValueError: the name is unknown, or ``triton`` was asked for and cannot serve.
    """
    wanted = _default[-1] if implementation is None else _named(implementation, "implementation")
    if wanted == "reference" or (wanted == "auto" and x_TD.device.type != "cuda"):
        return "reference"
    reason = _cannot(x_TD, experts, queries, kernel_size)
    if not reason:
        # Inside torch.compile the table cannot be looked at, and compiling is under way already.
        compiling = torch.compiler.is_compiling()
        if wanted == "auto" and not compiling and tiles.prefers_compile(operator, x_TD, x_TD.shape[1], x_TD.shape[0]):
            return "compile"
        if wanted == "auto" and operator == "gated_tri_proj" and not products_trusted(x_TD):
            return "reference"
        return "triton"
    if wanted == "triton":
        raise ValueError(f"{operator}: implementation 'triton' cannot run here: {reason}")
    return "reference"


def products_trusted(x_TD: torch.Tensor) -> bool:
    """Whether gated_tri_proj may run on the tokens' device unasked: a suspect Triton has passed the hammer there.

    Inside ``torch.compile``, where the table cannot be looked at, it may.
    """
    if torch.compiler.is_compiling() or not x_TD.is_cuda or tiles.capability(x_TD.device) // 10 != 9:
        return True
    import triton

    return not _suspect(triton.__version__) or tiles.hammered(x_TD.device, triton.__version__)


@cache
def _suspect(version: str) -> bool:
    """Whether a Triton is of :data:`SUSPECT_TRITON`; cached, because every call of the mix asks."""
    first, fixed = SUSPECT_TRITON
    return first <= tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:3]) < fixed


def projects_inside(x_TD: torch.Tensor) -> bool:
    """Whether gated_expert_mix projects inside gated_tri_proj: up to :data:`PROJECTION_WIDTH` columns, and on a GPU in
    16 bits alone, because a product in fp32 has no tensor cores there and cuBLAS is at its best."""
    fits = x_TD.shape[1] <= PROJECTION_WIDTH and (not x_TD.is_cuda or x_TD.element_size() == 2)
    return fits and products_trusted(x_TD)


def describe(implementation: str, x_TD: torch.Tensor, experts: int, queries: int, kernel_size: int) -> str:
    """One line for a log: what each operator of the fusion block runs for tokens like ``x_TD``.

    Raises:
        ValueError: as :func:`choose`.
    """
    chosen = {
        "ms_dwconv": choose("ms_dwconv", implementation, x_TD, kernel_size=kernel_size),
        "gated_expert_mix": choose("gated_expert_mix", implementation, x_TD, experts=experts),
        "ragged_pool_gate": choose("ragged_pool_gate", implementation, x_TD, queries=queries),
    }
    kinds = dict.fromkeys(chosen.values())
    parts = [f"{kind} ({', '.join(name for name, own in chosen.items() if own == kind)})" for kind in kinds]
    how = f"width {x_TD.shape[1]}, {str(x_TD.dtype).removeprefix('torch.')}, {x_TD.device.type}"
    if chosen["gated_expert_mix"] == "triton":
        fused = projects_inside(x_TD)
        how += f", mix by {'gated_tri_proj and norm' if fused else 'cuBLAS and hier_gate_mix_norm'}"
    varied = [name for name in chosen if implementation == "auto" and tiles.varies(name, x_TD, x_TD.shape[1])]
    if varied and x_TD.device.type == "cuda":
        how += f", triton or compile by the number of tokens: {', '.join(varied)}"
    if "triton" in kinds:
        how += f", tiles {tiles.current(x_TD.device)['architecture']}"
    return f"kernels {implementation}: {'; '.join(parts)} [{how}]"
