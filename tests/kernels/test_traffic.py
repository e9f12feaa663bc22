"""The bytes that the kernels ask for, counted in the interpreter, are those of the formulas."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import egmf_kernels
from egmf_kernels import select, tiles
from egmf_kernels.ops.common.launch import watching
from egmf_kernels.tools import formulas, traffic
from egmf_kernels.tools.formulas import DIRECTIONS, Direction, Sizes

EXPERTS, MODALITIES, QUERIES = 3, 3, 4
KERNEL_SIZES = (3, 5, 7)
SHORT = (5, 3, 0, 40, 0, 0, 1, 2, 9)
LONG = (130, 0, 61, 33, 250, 1, 0, 97, 17, 203, 64, 144)
TALL: dict[str, dict[str, int]] = {
    "ragged_pool_gate_forward": {"CHUNK": 256},
    "ragged_pool_gate_backward": {"CHUNK": 256},
    "mix_norm_forward": {"BT": 64},
    "mix_norm_backward": {"BT": 64},
    "norm_forward": {"BT": 64},
    "norm_backward": {"BT": 64},
    "ms_dwconv_forward": {"length": 128, "CHUNKS": 8, "BC": 128},
    "ms_dwconv_backward": {"length": 128, "CHUNKS": 8, "BC": 128},
}
"""Blocks tall enough that parameters and halo weigh what they weigh in a long run of tokens."""


def table_with(changes: dict[str, dict[str, int]]) -> dict[str, Any]:
    table = copy.deepcopy(tiles.load("interpreted"))
    for kernel, change in changes.items():
        for by_width in table["kernels"][kernel].values():
            for entry in by_width.values():
                entry |= change
    return table


@dataclass
class Call:
    """An operator's inputs; running it yields its traffic forward, then backward."""

    operator: str
    lengths: tuple[int, ...]
    width: int
    dtype: torch.dtype
    table: dict[str, Any]
    gated: bool = True
    weighed: bool = True

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            tokens=sum(self.lengths),
            width=self.width,
            element=self.dtype.itemsize,
            batch=len(self.lengths) // MODALITIES,
            table=self.table,
            experts=EXPERTS,
            queries=QUERIES,
            kernel_sizes=KERNEL_SIZES,
            gated=self.gated,
            weighed=self.weighed,
            lengths=self.lengths,
        )

    def function(self) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
        """The call itself, its large inputs and its small ones, all with gradients."""
        s = self.sizes
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int) -> torch.Tensor:
            return (0.3 * torch.randn(shape, generator=generator)).to(self.dtype).requires_grad_()

        cu = torch.tensor([0, *torch.tensor(self.lengths).cumsum(0).tolist()], dtype=torch.int32)
        x = make(s.tokens, s.width)
        if self.operator == "ragged_pool_gate":
            small = [make(QUERIES, s.width), make(s.batch, MODALITIES)]
            return lambda: egmf_kernels.ragged_pool_gate(x, *small, cu)[0], [x], small
        if self.operator == "ms_dwconv":
            weights = [make(s.width, size) for size in KERNEL_SIZES]
            small = [make(len(weights), s.width), make(len(weights))]
            return lambda: egmf_kernels.ms_dwconv(x, weights, *small, cu), [x], [*weights, *small]
        streams = [make(s.tokens, s.width) for _ in range(EXPERTS)]
        gain, beta = make(s.width), make(s.batch, MODALITIES) if self.weighed else None
        gate, context = (make(EXPERTS, s.width), make(s.batch, EXPERTS)) if self.gated else (None, None)
        weight, bias = make(EXPERTS, s.width, s.width), make(EXPERTS, s.width)
        small = [t for t in (gate, context, beta) if t is not None]
        rest = (gate, context, cu, MODALITIES)
        if self.operator == "hier_gate_mix_norm":
            return lambda: egmf_kernels.hier_gate_mix_norm(x, streams, *rest, gain, 0.7, beta)[0], [x, *streams], small
        small += [weight, bias]
        if self.operator == "gated_tri_proj":
            projected = (x, streams, weight, bias, *rest, 0.7, beta)
            return lambda: egmf_kernels.gated_tri_proj(*projected)[0], [x, *streams], small
        mixed = (x, streams, weight, bias, *rest, gain, 0.7, beta)
        return lambda: egmf_kernels.gated_expert_mix(*mixed)[0], [x, *streams], small

    def run(self) -> Iterator[tuple[Direction, Counter[tuple[str, str]]]]:
        call, large, small = self.function()
        with tiles.using(self.table), egmf_kernels.using("triton"):
            with traffic.counting() as forward:
                out = call()
            yield "forward", forward.requested
            with traffic.counting() as backward:
                torch.autograd.grad(out, large + small, torch.randn_like(out))
            yield "backward", backward.requested

    def terms(self, direction: Direction) -> list[formulas.Term]:
        """Those of the kernels; torch's sums of partials and its matrix products are not interpreted."""
        found = formulas.terms(self.operator, direction, self.sizes)
        return [term for term in found if term.kernel not in ("sum", "cublas")]


def expected(terms: list[formulas.Term]) -> Counter[tuple[str, str]]:
    wanted: Counter[tuple[str, str]] = Counter()
    for term in terms:
        wanted[term.kernel, term.argument] += term.requested
    return wanted


def stream_bytes(requested: Counter[tuple[str, str]], terms: list[formulas.Term]) -> int:
    streams = {(term.kernel, term.argument) for term in terms if term.passes}
    return sum(requested[key] for key in streams)


SWITCHES = [(True, True), (True, False), (False, True), (False, False)]
CASES = [
    *[("ragged_pool_gate", dtype, (True, False)) for dtype in (torch.float32, torch.bfloat16)],
    ("ms_dwconv", torch.bfloat16, (True, False)),
    *[("hier_gate_mix_norm", torch.bfloat16, switch) for switch in SWITCHES],
    *[("gated_tri_proj", torch.float32, switch) for switch in SWITCHES],
    *[("gated_expert_mix", dtype, (True, True)) for dtype in (torch.float32, torch.bfloat16)],
]


@pytest.mark.parametrize(("operator", "dtype", "switch"), CASES)
def test_every_argument_of_every_kernel(operator: str, dtype: torch.dtype, switch: tuple[bool, bool]) -> None:
    """Tiles that straddle everything, a width that fills no tile."""
    call = Call(operator, SHORT, 48, dtype, tiles.load("interpreted"), *switch)
    for direction, requested in call.run():
        assert requested == expected(call.terms(direction)), direction


@pytest.mark.parametrize(
    ("operator", "width", "architecture"),
    [("ragged_pool_gate", 1024, 80), ("hier_gate_mix_norm", 1024, 90), ("gated_expert_mix", 128, 90)],
)
def test_the_shipped_tiles(operator: str, width: int, architecture: int) -> None:
    call = Call(operator, SHORT, width, torch.bfloat16, tiles.load(f"sm_{architecture}"))
    for direction, requested in call.run():
        assert requested == expected(call.terms(direction)), direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", ["ragged_pool_gate", "ms_dwconv", "hier_gate_mix_norm"])
def test_at_most_a_twentieth_above_the_roofline(operator: str, dtype: torch.dtype) -> None:
    """All that these kernels ask for against every byte once; and the passes over one stream."""
    call = Call(operator, LONG, 128, dtype, table_with(TALL))
    limits = {
        "ragged_pool_gate": {"forward": 1, "backward": 2},
        "ms_dwconv": {"forward": 2.1, "backward": 3.2},
        "hier_gate_mix_norm": {"forward": 5, "backward": 9},
    }[operator]
    for direction, requested in call.run():
        terms = call.terms(direction)
        compulsory = sum(term.compulsory for term in terms)
        assert compulsory <= sum(requested.values()) <= 1.05 * compulsory, direction
        passes = stream_bytes(requested, terms) / call.sizes.stream
        assert sum(term.passes for term in terms) <= passes <= limits[direction], direction


def test_the_projection_with_one_column_tile_asks_for_each_stream_once() -> None:
    """Forward 6 passes: the gate reads x; the product reads x and three a_e and writes y."""
    wide = {"BM": 32, "BN": 64, "BK": 32}
    table = table_with({"gated_tri_proj_forward": wide, "gated_tri_proj_backward_a": wide})
    call = Call("gated_tri_proj", (32, 0, 64, 0, 32, 32), 64, torch.bfloat16, table)
    (_, forward), (_, backward) = call.run()
    assert stream_bytes(forward, call.terms("forward")) == 6 * call.sizes.stream
    # da_e asks for dy once an expert, dW_e for dy once an expert and column tile and for a_e once a row tile.
    again = (EXPERTS - 1) + (EXPERTS * 2 - 1) + EXPERTS * (2 - 1)
    assert stream_bytes(backward, call.terms("backward")) == (3 * EXPERTS + 5 + again) * call.sizes.stream


@pytest.mark.parametrize("operator", ["ragged_pool_gate", "norm", "hier_gate_mix_norm", "ms_dwconv"])
@pytest.mark.parametrize("architecture", tiles.architectures())
def test_the_shipped_tiles_too_ask_for_at_most_a_twentieth_more(operator: str, architecture: int) -> None:
    """Streams of 64 MiB, at which a GPU's rate is measured, three modalities of 128 tokens a sample; by the formulas,
    which the tests above hold to the count."""
    for width in (256, 512, 1024):
        if operator == "hier_gate_mix_norm" and width <= select.PROJECTION_WIDTH:
            continue
        sizes = formulas.sizes_of(
            tokens=2**25 // width,
            width=width,
            element=2,
            batch=2**25 // width // 384,
            weighed=True,
            table=tiles.load(f"sm_{architecture}"),
        )
        for direction in DIRECTIONS:
            terms = formulas.terms(operator, direction, sizes)
            requested, compulsory = sum(t.requested for t in terms), sum(t.compulsory for t in terms)
            assert requested <= 1.05 * compulsory, f"{direction} at {width}: {requested / compulsory:.3f}"


def test_the_formulas_say_the_passes_they_are_known_by() -> None:
    sizes = {"tokens": 4096, "width": 512, "element": 2, "batch": 16}
    passes = {op: [formulas.stream_passes(op, d, **sizes) for d in DIRECTIONS] for op in formulas.OPERATORS}
    assert passes == {
        "ragged_pool_gate": [1, 2],
        "hier_gate_mix_norm": [5, 9],
        "norm": [2, 3],
        "ms_dwconv": [2, 3],
        "gated_tri_proj": [6, 14],
        "gated_expert_mix": [8, 17],
    }
    wide = sizes | {"width": 1024}
    assert [formulas.stream_passes("gated_expert_mix", d, **wide) for d in DIRECTIONS] == [5 + 6, 9 + 15]
    with pytest.raises(ValueError, match="operator is 'conv'; it must be one of ragged_pool_gate"):
        formulas.bytes_moved("conv", "forward", **sizes)


def kept_for_backward(implementation: str) -> tuple[int, int]:
    """Bytes of ``[T, D]`` and of other tensors that ``gated_tri_proj`` keeps and was not given."""
    call = Call("gated_tri_proj", SHORT, 64, torch.float32, tiles.load("interpreted"))
    function, large, small = call.function()
    given = {tensor.untyped_storage().data_ptr() for tensor in large + small}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in given:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with egmf_kernels.using(implementation), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = function()
    assert out.requires_grad
    whole = [t.nbytes for t in kept.values() if t.shape == out.shape]
    return sum(whole), sum(t.nbytes for t in kept.values()) - sum(whole)


def test_the_projection_keeps_no_experts_output() -> None:
    tokens = sum(SHORT)
    streams, rest = kept_for_backward("triton")
    assert streams == 0
    # alpha, w, the segment numbers and the boundaries
    assert rest <= 2 * tokens * EXPERTS * 4 + tokens * 4 + (len(SHORT) + 1) * 4
    assert kept_for_backward("reference")[0] >= EXPERTS * tokens * 64 * 4


def test_the_projection_launches_with_no_room_for_an_experts_output() -> None:
    """What its kernels are given of the shape ``[T, D]``: inputs, output and gradients, nothing between."""
    call = Call("gated_tri_proj", SHORT, 48, torch.float32, tiles.load("interpreted"))
    function, large, small = call.function()
    seen: set[int] = set()

    def look(kernel: Any, grid: tuple[int, ...], arguments: Any, keywords: dict[str, Any]) -> bool:
        flat = [t for a in arguments for t in (a if isinstance(a, tuple) else (a,)) if isinstance(t, torch.Tensor)]
        seen.update(t.data_ptr() for t in flat if t.shape == large[0].shape)
        return True

    with egmf_kernels.using("triton"), watching(look):
        out = function()
        assert len(seen) == 1 + EXPERTS + 1  # x, a_e, y
        seen.clear()
        torch.autograd.grad(out, large + small, torch.ones_like(out))
        assert len(seen) == 2 + EXPERTS + 1 + EXPERTS  # dy, x, a_e, dx, da_e


def test_a_read_outside_of_the_arguments_is_found() -> None:
    call = Call("ms_dwconv", SHORT, 48, torch.float32, tiles.load("interpreted"))
    function, large, _ = call.function()
    with egmf_kernels.using("triton"), traffic.counting():
        function()

    def shorten(kernel: Any, grid: tuple[int, ...], arguments: Any, keywords: dict[str, Any]) -> bool:
        large[0].data = large[0].data[:-1]
        return True

    with (
        egmf_kernels.using("triton"),
        pytest.raises(Exception, match="ms_dwconv_forward touches memory outside"),
        watching(shorten),
        traffic.counting(),
    ):
        function()
