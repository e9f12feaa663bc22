"""What the public functions share: which implementation runs, and arguments as the registered operators take them.

Symbols in all of them: T packed tokens, D width, B samples, M modalities, E experts, K queries, S scales of the
convolution. Every operator takes ``implementation`` (``auto``, ``reference``, ``triton``; None for the surrounding
:func:`egmf_kernels.using`), ``segment_T`` (int32 segment of each token; computed where it is not given) and
``checked`` (the boundaries' values were looked at already, :func:`egmf_kernels.boundary_values`; looking at them on a
GPU waits for it), and checks every argument before any implementation runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from egmf_kernels import select
from egmf_kernels.ops.common import checks
from egmf_kernels.ops.common.arguments import Gate
from egmf_kernels.ops.common.segments import segment_ids


def operators() -> Any:
    """``torch.ops.egmf``; importing the library registers it, and only a process that uses it pays for Triton."""
    from egmf_kernels.ops import library  # noqa: F401

    return torch.ops.egmf


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def in_torch(function: Callable[..., Any], choice: select.Choice) -> Callable[..., Any]:
    """The reference, compiled where that was chosen."""
    return _compiled(function) if choice == "compile" else function


def segments(cu_segments: torch.Tensor, tokens: int, segment_T: torch.Tensor | None) -> torch.Tensor:
    if segment_T is None:
        return segment_ids(cu_segments, tokens).int()
    checks.segment_numbers(segment_T, tokens, cu_segments)
    return segment_T.int().contiguous()


def gate(
    x_TD: torch.Tensor,
    weight_ED: torch.Tensor | None,
    context_BE: torch.Tensor | None,
    beta_BM: torch.Tensor | None,
    segment_T: torch.Tensor | None,
    cu_segments: torch.Tensor,
    modalities: int,
) -> Gate:
    """The gate's arguments, checked before, as the kernels index them: whole rows, and every token's segment."""
    numbers = segments(cu_segments, len(x_TD), segment_T)
    return Gate(weight_ED, _rows(context_BE), _rows(beta_BM), numbers, cu_segments, modalities)


def _rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
