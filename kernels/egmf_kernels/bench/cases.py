"""What is checked and timed: inputs of every operator at a width, a layout and a dtype, and the ways to run it.

Symbols: T packed tokens, D width, B samples, M modalities, E experts, K queries, S scales of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import egmf_kernels
from egmf_kernels.ops import reference
from egmf_kernels.ops.common.segments import segment_ids
from egmf_kernels.select import PROJECTION_WIDTH

OPERATORS = ("ragged_pool_gate", "hier_gate_mix_norm", "ms_dwconv", "gated_tri_proj", "gated_expert_mix")
WIDTHS = (256, 512, 1024)
BLOCK = ("ragged_pool_gate", "ms_dwconv", "gated_expert_mix")
"""What the fusion block calls once a step, at every width: these operators are every kernel of it."""
MODEL_SHAPES = (
    (128, 8192, 16), (128, 2048, 16), (256, 16384, 32), (512, 8192, 16), (512, 24576, 64), (128, 32768, 64)
)  # fmt: skip
"""Width, tokens and samples of steps as the model makes them: the default width, short and long batches."""
KERNEL_SIZES = (3, 5, 7)
TEMPERATURE = 0.7
EPS = 1e-6

Runner = Callable[["Inputs"], tuple[torch.Tensor, torch.Tensor | None]]
"""Runs an operator: its differentiable output, and the gate's weights (None for the convolution)."""


@dataclass(frozen=True)
class Inputs:
    """One draw of an operator's arguments."""

    leaves: dict[str, torch.Tensor]
    """Everything that receives a gradient."""
    cu_segments: torch.Tensor
    segment_T: torch.Tensor
    """int32; the model computes it once per batch and every fused operator reads it."""
    gradient: torch.Tensor
    """dL/d output."""

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another dtype, as new leaves."""
        leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in self.leaves.items()}
        return replace(self, leaves=leaves, gradient=self.gradient.to(dtype))

    def listed(self, prefix: str) -> list[torch.Tensor]:
        """The leaves ``prefix0, prefix1, ...`` in order."""
        return [t for name, t in self.leaves.items() if name.rstrip("0123456789") == prefix]


@dataclass(frozen=True)
class Case:
    """One operator on one batch."""

    operator: str
    width: int
    dtype: torch.dtype
    layout: str
    lengths: tuple[int, ...]
    """Tokens of every (sample, modality) segment."""
    modalities: int = 3
    experts: int = 3
    queries: int = 4
    row_stride: int = 1
    """Distance between token rows, in widths: above 1 the streams are column slices of wider matrices."""
    expanded_gradient: bool = False
    """The incoming gradient is one row for all (stride 0), as from a sum."""
    shape: str = "stream"
    """"model": a batch as training makes it; "stream": one whose streams do not fit the caches."""

    @property
    def name(self) -> str:
        """``ms_dwconv d=256 T=8192 ragged bfloat16``."""
        return f"{self.operator} d={self.width} T={self.tokens} {self.layout} {dtype_name(self.dtype)}"

    @property
    def tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @property
    def batch(self) -> int:
        """B."""
        return len(self.lengths) // self.modalities

    def make(self, device: torch.device | str, seed: int) -> Inputs:
        """Normal random inputs; weights are scaled so that sums over D keep the size of their terms.

        Up to 2^21 numbers a stream are drawn on the CPU, so that a small case is the same on every device.
        """
        source = device if self.tokens * self.width > 1 << 21 else torch.device("cpu")
        generator = torch.Generator(source).manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            made = torch.randn(shape, generator=generator, device=source) * scale
            return made.to(device, self.dtype).requires_grad_()

        def stream() -> torch.Tensor:
            if self.row_stride == 1:
                return draw(self.tokens, width)
            wide = draw(self.tokens, width * self.row_stride).detach()
            return wide[:, :width].requires_grad_()

        width, small = self.width, 1.0 / math.sqrt(self.width)
        leaves = {"x": stream()}
        output: tuple[int, ...] = (self.tokens, width)
        if self.operator == "ragged_pool_gate":
            leaves |= {"queries": draw(self.queries, width), "logits": draw(self.batch, self.modalities)}
            output = (self.batch, self.queries, width)
        elif self.operator == "ms_dwconv":
            leaves |= {f"weight{s}": draw(width, k, scale=k**-0.5) for s, k in enumerate(KERNEL_SIZES)}
            leaves |= {"bias": draw(len(KERNEL_SIZES), width), "mu": draw(len(KERNEL_SIZES))}
        else:
            leaves |= {f"stream{e}": stream() for e in range(self.experts)}
            if self.operator != "hier_gate_mix_norm":
                leaves["weight"] = draw(self.experts, width, width, scale=small)
                leaves["bias"] = draw(self.experts, width)
            leaves["gate"] = draw(self.experts, width, scale=small)
            leaves["context"] = draw(self.batch, self.experts)
            leaves["beta"] = draw(self.batch, self.modalities).detach().sigmoid().requires_grad_()
            if self.operator != "gated_tri_proj":
                leaves["norm_weight"] = draw(width)
        cu = torch.tensor([0, *torch.tensor(self.lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
        gradient = draw(*output).detach()
        if self.expanded_gradient and output[0]:
            gradient = gradient[:1].expand(output)
        return Inputs(leaves, cu, segment_ids(cu, self.tokens).int(), gradient)

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        """The positional arguments that the public function and the reference share."""
        leaves, cu, modalities = inputs.leaves, inputs.cu_segments, self.modalities
        if self.operator == "ragged_pool_gate":
            return leaves["x"], leaves["queries"], leaves["logits"], cu, TEMPERATURE
        if self.operator == "ms_dwconv":
            return leaves["x"], inputs.listed("weight"), leaves["bias"], leaves["mu"], cu
        first = (leaves["x"], inputs.listed("stream"))
        gate = (leaves["gate"], leaves["context"], cu, modalities)
        if self.operator == "hier_gate_mix_norm":
            return *first, *gate, leaves["norm_weight"], TEMPERATURE, leaves["beta"], EPS
        projection = (leaves["weight"], leaves["bias"])
        if self.operator == "gated_tri_proj":
            return *first, *projection, *gate, TEMPERATURE, leaves["beta"]
        return *first, *projection, *gate, leaves["norm_weight"], TEMPERATURE, leaves["beta"], EPS

    def eager(self) -> Runner:
        """The reference, operator by operator."""
        function = getattr(reference, self.operator)
        return lambda inputs: _pair(function(*self.arguments(inputs)))

    def compiled(self, backend: str = "inductor") -> Runner:
        """``torch.compile`` of the reference for any shape, as ``auto`` runs it; compiled at its first call."""
        function = torch.compile(getattr(reference, self.operator), dynamic=True, backend=backend)
        return lambda inputs: _pair(function(*self.arguments(inputs)))

    def fused(self) -> Runner:
        """The public function with the Triton kernels."""

        def run(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
            shared = {} if self.operator == "ragged_pool_gate" else {"segment_T": inputs.segment_T}
            function = getattr(egmf_kernels, self.operator)
            return _pair(function(*self.arguments(inputs), implementation="triton", **shared))

        return run


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _pair(result: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def gradients(output: torch.Tensor, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The gradient of every leaf for ``inputs.gradient``."""
    found = torch.autograd.grad(output, list(inputs.leaves.values()), inputs.gradient)
    return dict(zip(inputs.leaves, found, strict=True))


def padded_lengths(segments: int, tokens: int) -> tuple[int, ...]:
    """Equal segments; ``tokens`` must be a multiple of ``segments``."""
    if tokens % segments:
        raise ValueError(f"{tokens} tokens cannot be cut into {segments} equal segments")
    return (tokens // segments,) * segments


def ragged_lengths(batch: int, modalities: int, tokens: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths spread log-uniformly over a factor of 64, a fifth of the segments absent, summing to ``tokens``."""
    generator = torch.Generator().manual_seed(seed)
    share_BM = 64.0 ** torch.rand(batch, modalities, generator=generator, dtype=torch.float64)
    absent_BM = torch.rand(batch, modalities, generator=generator) < 0.2
    # A sample always keeps its longest modality.
    absent_BM[torch.arange(batch), share_BM.argmax(1)] = False
    share_S = share_BM.masked_fill(absent_BM, 0.0).flatten()
    lengths = (share_S / share_S.sum() * tokens).long()
    missing = tokens - int(lengths.sum())
    lengths[share_S.nonzero()[:missing, 0]] += 1
    return tuple(lengths.tolist())


def benchmark_cases(
    stream_bytes: int,
    widths: Sequence[int] = WIDTHS,
    segment: int = 128,
    shapes: Sequence[tuple[int, int, int]] = MODEL_SHAPES,
) -> list[Case]:
    """What is timed, in bfloat16: the model's shapes first, then every width at streams of ``stream_bytes`` or more.

    The operators of the fusion block are timed everywhere, ragged. gated_tri_proj is timed by itself at the largest
    width it serves inside gated_expert_mix, hier_gate_mix_norm at the largest of all (the model calls it above 512
    only), both on large streams. The padded layout is timed for the pooling, whose rivals pad; there both layouts have
    the same T and B. ``segment`` is the mean number of tokens of a segment.
    """
    bf16, modalities = torch.bfloat16, 3
    found = [
        Case(operator, width, bf16, "ragged", ragged_lengths(batch, modalities, tokens), shape="model")
        for width, tokens, batch in shapes
        for operator in BLOCK
    ]
    projected = max((width for width in widths if width <= PROJECTION_WIDTH), default=0)
    for width in widths:
        batch = max(2, -(-stream_bytes // (2 * width * segment * modalities)))
        tokens = batch * modalities * segment
        ragged = ragged_lengths(batch, modalities, tokens)
        alone = [("gated_tri_proj", projected), ("hier_gate_mix_norm", max(widths))]
        operators = [*BLOCK, *(operator for operator, at in alone if at == width)]
        found += [Case(operator, width, bf16, "ragged", ragged) for operator in operators]
        found.append(Case("ragged_pool_gate", width, bf16, "padded", padded_lengths(batch * modalities, tokens)))
    return found


def padded_pool(case: Case) -> Runner:
    """ragged_pool_gate as research code writes it: pad every segment to the longest, mask, softmax, mix.

    The padding itself is not timed: the padded batch is made once, as a loader that pads would hand it over. Its
    output equals ragged_pool_gate's; the gradient of ``x`` is that of the padded tensor.
    """
    longest = max(max(case.lengths), 1)

    def run(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_SLD, queries_KD, logits_BM = (inputs.leaves[n] for n in ("x", "queries", "logits"))
        lengths_S = inputs.cu_segments.diff()
        inside_SL = torch.arange(longest, device=x_SLD.device) < lengths_S[:, None]
        scores_SKL = queries_KD @ x_SLD.transpose(1, 2) / math.sqrt(case.width)
        # A finite floor: a row of -inf alone would be NaN.
        scores_SKL = scores_SKL.masked_fill(~inside_SL[:, None], torch.finfo(scores_SKL.dtype).min)
        attention_SKL = scores_SKL.softmax(-1).masked_fill(~inside_SL[:, None], 0.0)
        presence_BM = (lengths_S > 0).view(case.batch, case.modalities)
        beta_BM = reference.modality_gate(logits_BM, presence_BM, TEMPERATURE)
        parts_BMKD = (attention_SKL @ x_SLD).view(case.batch, case.modalities, case.queries, case.width)
        return (beta_BM[:, :, None, None] * parts_BMKD).sum(1), beta_BM.detach()

    return run


def pad(case: Case, inputs: Inputs) -> Inputs:
    """The same batch with ``x`` as ``[segments, longest, D]``, zeros behind each segment's end."""
    longest = max(max(case.lengths), 1)
    segment_T = inputs.segment_T.long()
    place_T = torch.arange(case.tokens, device=segment_T.device) - inputs.cu_segments[segment_T]
    x_SLD = inputs.leaves["x"].new_zeros(len(case.lengths), longest, case.width)
    x_SLD[segment_T, place_T] = inputs.leaves["x"].detach()
    return replace(inputs, leaves=inputs.leaves | {"x": x_SLD.requires_grad_()})
