"""What every public operator asks of its arguments, said before anything runs.

Symbols: T packed tokens, D width, B samples, M modalities, E experts, K queries, S scales of the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """``tensor`` has exactly this shape; a partitioned ZeRO-3 parameter (0 elements) is named as such."""
    if tuple(tensor.shape) == expected:
        return
    hint = ""
    if tensor.numel() == 0 and 0 not in expected:
        hint = "; it has 0 elements: a ZeRO-3 parameter is partitioned outside the forward of the module that owns it"
    raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(expected)}{hint}")


def like(name: str, tensor: torch.Tensor, x_TD: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Shape, dtype, device and unit stride in the last dimension, all as the tokens have them."""
    shape(name, tensor, expected)
    if tensor.dtype != x_TD.dtype:
        raise ValueError(f"{name} is {tensor.dtype}; it must be {x_TD.dtype} as the tokens are, shape {list(expected)}")
    if tensor.device != x_TD.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {x_TD.device} as the tokens are")
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; the last must be 1, shape {list(expected)}")


def parameter(name: str, tensor: torch.Tensor, x_TD: torch.Tensor, expected: tuple[int, ...]) -> None:
    """:func:`like`, and contiguous: kernels index parameters by their shape alone."""
    like(name, tensor, x_TD, expected)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous with shape {list(expected)}")


def tokens(name: str, x_TD: torch.Tensor) -> None:
    """``[T, D]`` of a floating dtype, D a multiple of 16, rows contiguous."""
    if x_TD.dim() != 2 or x_TD.shape[1] % 16 or not x_TD.shape[1]:
        raise ValueError(
            f"{name} has shape {list(x_TD.shape)}; it must be [tokens, width] with a width divisible by 16"
        )
    if x_TD.dtype not in FLOATS:
        raise ValueError(f"{name} is {x_TD.dtype}; it must be float32, bfloat16, float16 or float64")
    if x_TD.stride(1) != 1:
        raise ValueError(f"{name} has strides {x_TD.stride()}; the last must be 1, shape [tokens, width]")


def segment_numbers(segment_T: torch.Tensor, count: int, cu_segments: torch.Tensor) -> None:
    """The segment of each token: ``[T]`` integers on the boundaries' device."""
    shape("segment", segment_T, (count,))
    if segment_T.dtype not in (torch.int32, torch.int64) or segment_T.device != cu_segments.device:
        raise ValueError(
            f"segment is {segment_T.dtype} on {segment_T.device}; it must be [{count}] int32 or int64 on "
            f"{cu_segments.device}"
        )


def boundary_values(cu_segments: torch.Tensor, count: int) -> None:
    """The boundaries ascend from 0 to ``count``, the number of tokens.

    For who has them on the CPU: where this was called, operators need not look at them on a GPU (``checked``).

    Raises:
        ValueError: they do not.
    """
    values = cu_segments.detach().cpu()
    first, last, descending = int(values[0]), int(values[-1]), bool((values.diff() < 0).any())
    if first != 0 or last != count or descending:
        raise ValueError(
            f"cu_segments goes from {first} to {last}{', descending' if descending else ''}; "
            f"its [segments + 1] boundaries must ascend from 0 to {count}, the number of tokens"
        )


def boundaries(
    cu_segments: torch.Tensor, x_TD: torch.Tensor, segments: int | None = None, checked: bool = False
) -> None:
    """``[segments + 1]`` integers on the tokens' device, ascending from 0 to T.

    On a GPU looking at the values waits for all work queued before: ``checked`` says that somebody did on the CPU. A
    plain value, because a mark on the tensor is lost where ZeRO-3's hooks replace what a module is given. Inside
    ``torch.compile`` and while a CUDA graph is captured values cannot be looked at: unsorted boundaries, or ones that
    do not end in T, then leave parts of the result unwritten.
    """
    wanted = "segments + 1" if segments is None else str(segments + 1)
    if (
        cu_segments.dim() != 1
        or cu_segments.numel() < 1
        or cu_segments.dtype not in (torch.int32, torch.int64)
        or (segments is not None and cu_segments.numel() != segments + 1)
    ):
        raise ValueError(
            f"cu_segments is {cu_segments.dtype} of shape {list(cu_segments.shape)}; "
            f"it must be one row [{wanted}] of int32 or int64 boundaries"
        )
    if cu_segments.device != x_TD.device:
        raise ValueError(f"cu_segments is on {cu_segments.device}; it must be on {x_TD.device} as the tokens are")
    unseen = torch.compiler.is_compiling() or (x_TD.is_cuda and torch.cuda.is_current_stream_capturing())
    if not checked and not unseen:
        boundary_values(cu_segments, x_TD.shape[0])


def temperature(value: float) -> None:
    """A softmax's temperature is above 0."""
    if not value > 0:
        raise ValueError(f"temperature is {value}; it must be above 0")


def gate(
    x_TD: torch.Tensor,
    experts: Sequence[torch.Tensor],
    gate_weight_ED: torch.Tensor | None,
    gate_context_BE: torch.Tensor | None,
    modality_weight_BM: torch.Tensor | None,
    cu_segments: torch.Tensor,
    modalities: int,
    tau: float,
    name: str,
) -> None:
    """What the two operators with a gate share, beside tokens and boundaries."""
    segments = cu_segments.numel() - 1
    if modalities < 1 or segments % modalities:
        raise ValueError(
            f"cu_segments has {segments} segments; with {modalities} modalities it must be [batch * {modalities} + 1]"
        )
    if not experts:
        raise ValueError(f"{name} is empty; it must hold at least one [tokens, width] tensor")
    for e, expert in enumerate(experts):
        like(f"{name}[{e}]", expert, x_TD, tuple(x_TD.shape))
    batch, count, width = segments // modalities, len(experts), x_TD.shape[1]
    if (gate_weight_ED is None) != (gate_context_BE is None):
        raise ValueError("gate_weight and gate_context must be given together or both be None")
    if gate_weight_ED is not None and gate_context_BE is not None:
        parameter("gate_weight", gate_weight_ED, x_TD, (count, width))
        like("gate_context", gate_context_BE, x_TD, (batch, count))
    if modality_weight_BM is not None:
        like("modality_weight", modality_weight_BM, x_TD, (batch, modalities))
    temperature(tau)
