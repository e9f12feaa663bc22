"""Every kernel, interpreted on the CPU, against the fp64 reference: forward and all gradients.

The interpreter sees neither out-of-bounds stores nor unwritten outputs, so every allocation of the kernels' outputs
lies between bands of NaN that must survive, and begins as NaN itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import egmf_kernels
from egmf_kernels.ops.gated_tri_proj import kernels as projection
from egmf_kernels.ops.hier_gate_mix_norm import kernels as mix
from egmf_kernels.ops.ms_dwconv import kernels as dwconv
from egmf_kernels.ops.ragged_pool_gate import kernels as pool

MODALITIES = 3
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (sample, modality) lengths: all present; a one-token and an absent modality; all absent; a segment over several tiles.
LENGTHS = {
    0: [0, 0, 0],
    1: [0, 1, 0],
    3: [1, 0, 2],
    37: [5, 3, 0, 0, 0, 0, 1, 20, 8],
    130: [40, 0, 17, 9, 9, 9, 0, 0, 46],
}


@dataclass
class Case:
    """An operator's arguments and which of them have gradients."""

    call: Callable[..., torch.Tensor]
    """``call(implementation, *tensors)`` gives the output that has gradients."""
    tensors: list[torch.Tensor]


def seeded(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def make(
    operator: str,
    tokens: int,
    width: int,
    *,
    experts: int = 3,
    queries: int = 3,
    options: str = "gate beta",
    draw: int = 0,
) -> Case:
    """Random arguments of an operator in fp64; another ``draw``, other numbers."""

    def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
        return seeded(*shape, seed=seed + 1000 * draw, scale=scale)

    cu = boundaries(LENGTHS[tokens])
    batch = len(LENGTHS[tokens]) // MODALITIES
    x = normal(tokens, width, seed=1)
    if operator == "ragged_pool_gate":

        def pooled(implementation: str, x: torch.Tensor, q: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            return egmf_kernels.ragged_pool_gate(x, q, logits, cu, 0.7, implementation=implementation)[0]

        return Case(pooled, [x, normal(queries, width, seed=2), normal(batch, MODALITIES, seed=3)])
    if operator == "ms_dwconv":
        sizes = (3, 5, 7)

        def convolved(
            implementation: str, x: torch.Tensor, bias: torch.Tensor, mu: torch.Tensor, *w: Any
        ) -> torch.Tensor:
            return egmf_kernels.ms_dwconv(x, w, bias, mu, cu, implementation=implementation)

        weights = [normal(width, k, seed=10 + k, scale=k**-0.5) for k in sizes]
        return Case(convolved, [x, normal(3, width, seed=4), normal(3, seed=5), *weights])

    streams = [normal(tokens, width, seed=20 + e) for e in range(experts)]
    gate = (
        [normal(experts, width, seed=30, scale=width**-0.5), normal(batch, experts, seed=31)]
        if "gate" in options
        else []
    )
    beta = [normal(batch, MODALITIES, seed=32).sigmoid()] if "beta" in options else []
    gamma = normal(width, seed=33)
    weight = [normal(experts, width, width, seed=34, scale=width**-0.5), normal(experts, width, seed=35)]

    def small(rest: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        left = list(rest)
        w, c = (left.pop(0), left.pop(0)) if gate else (None, None)
        return w, c, left.pop(0) if beta else None, left

    def mixed(implementation: str, x: torch.Tensor, gamma: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        w, c, b, h = small(rest)
        return egmf_kernels.hier_gate_mix_norm(
            x, h, w, c, cu, MODALITIES, gamma, 0.7, b, implementation=implementation
        )[0]

    def projected(implementation: str, x: torch.Tensor, w3: torch.Tensor, b3: torch.Tensor, *rest: Any) -> torch.Tensor:
        w, c, b, a = small(rest)
        return egmf_kernels.gated_tri_proj(x, a, w3, b3, w, c, cu, MODALITIES, 0.7, b, implementation=implementation)[0]

    def whole(
        implementation: str, x: torch.Tensor, gamma: torch.Tensor, w3: torch.Tensor, b3: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        w, c, b, a = small(rest)
        return egmf_kernels.gated_expert_mix(
            x, a, w3, b3, w, c, cu, MODALITIES, gamma, 0.7, b, implementation=implementation
        )[0]

    if operator == "hier_gate_mix_norm":
        return Case(mixed, [x, gamma, *gate, *beta, *streams])
    if operator == "gated_tri_proj":
        return Case(projected, [x, *weight, *gate, *beta, *streams])
    return Case(whole, [x, gamma, *weight, *gate, *beta, *streams])


def run(case: Case, implementation: str, dtype: torch.dtype, held: torch.dtype | None = None) -> list[torch.Tensor]:
    """Output and every gradient, for one random output gradient that ``held`` (or the dtype) can hold."""
    leaves = [t.to(dtype).requires_grad_() for t in case.tensors]
    out = case.call(implementation, *leaves)
    gradient = seeded(*out.shape, seed=99).to(held or dtype).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient, materialize_grads=True)]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """``||found - exact|| / ||exact||``; 0 where both are empty or zero, infinite where anything is not a number."""
    assert found.shape == exact.shape
    difference = (found.double() - exact.double()).norm()
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return 0.0 if difference == 0 else float(difference / exact.double().norm())


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The same arguments, as the dtype holds them: the exact answer is the reference's in fp64 on these."""
    return Case(case.call, [t.to(dtype).double() for t in case.tensors])


class Canaries:
    """Every ``new_empty`` of the kernels' modules lies between bands of NaN and starts as NaN."""

    BAND = 64

    def __init__(self) -> None:
        self.made: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.plain = torch.Tensor.new_empty

    def new_empty(self, like: torch.Tensor, *shape: Any, dtype: torch.dtype | None = None, **rest: Any) -> torch.Tensor:
        size = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        dtype = dtype or like.dtype
        if not dtype.is_floating_point:
            return self.plain(like, size, dtype=dtype)
        count = 1
        for n in size:
            count *= n
        whole = torch.full((count + 2 * self.BAND,), float("nan"), dtype=dtype)
        inner = whole[self.BAND : self.BAND + count].view(size)
        self.made.append((whole, inner))
        return inner

    def broken(self) -> int:
        """How many allocations were written outside."""
        return sum(
            not bool(torch.isnan(whole[: self.BAND]).all() and torch.isnan(whole[whole.numel() - self.BAND :]).all())
            for whole, _ in self.made
        )


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> Any:
    keeper = Canaries()
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda like, *s, **k: keeper.new_empty(like, *s, **k))
    yield keeper
    assert keeper.broken() == 0


OPERATORS = ["ragged_pool_gate", "ms_dwconv", "hier_gate_mix_norm", "gated_tri_proj", "gated_expert_mix"]


ENOUGH = 48
"""A ratio of two errors over fewer numbers than this is luck; such gradients are compared over many draws instead."""


def assert_close_to_exact(case: Case, dtype: torch.dtype) -> None:
    """Within the dtype's tolerance, and no worse than 1.5 times what eager torch loses in that dtype."""
    given = Case(case.call, [t.to(dtype).double() for t in case.tensors])
    exact = run(given, "reference", torch.float64, held=dtype)
    eager = run(given, "reference", dtype)
    fused = run(given, "triton", dtype)
    for number, (found, other, wanted) in enumerate(zip(fused, eager, exact, strict=True)):
        assert found.dtype == dtype
        mine, theirs = error(found, wanted), error(other, wanted)
        what = "output" if number == 0 else f"gradient {number - 1}"
        assert mine <= TOLERANCE[dtype], f"{what}: {mine:.2e}"
        if wanted.numel() < ENOUGH:
            continue
        # Whoever stores in this dtype rounds once: eager may be luckier than that, nobody can be better.
        least = error(wanted.to(dtype), wanted)
        assert mine <= 1.5 * max(theirs, least), f"{what}: {mine:.2e}, eager {theirs:.2e}, one rounding {least:.2e}"


SHAPES = (
    [(37, 48, d) for d in DTYPES]
    + [(130, 16, d) for d in DTYPES]
    + [(37, 128, torch.float16), (37, 512, torch.bfloat16)]
)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("tokens", "width", "dtype"), SHAPES, ids=lambda v: str(v).removeprefix("torch."))
def test_output_and_every_gradient(operator: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    assert_close_to_exact(make(operator, tokens, width), dtype)


@pytest.mark.parametrize("operator", ["ragged_pool_gate", "ms_dwconv", "hier_gate_mix_norm", "gated_tri_proj"])
def test_small_gradients_lose_no_more_than_eager(operator: str) -> None:
    """Gradients of a few numbers (logits, mu, context, beta), their errors added up over draws, in fp32."""
    lost: dict[int, list[float]] = {}
    for draw in range(12):
        case = make(operator, 37, 16, draw=draw)
        given = Case(case.call, [t.float().double() for t in case.tensors])
        exact = run(given, "reference", torch.float64, held=torch.float32)
        eager, fused = run(given, "reference", torch.float32), run(given, "triton", torch.float32)
        for number, wanted in enumerate(exact):
            if wanted.numel() < ENOUGH:
                sums = lost.setdefault(number, [0.0, 0.0])
                for place, found in enumerate((fused[number], eager[number])):
                    sums[place] += float((found.double() - wanted).norm() / wanted.norm()) ** 2
    assert lost
    for number, (mine, theirs) in lost.items():
        assert mine**0.5 <= 1.5 * theirs**0.5, f"gradient {number - 1}: {mine**0.5:.2e}, eager {theirs**0.5:.2e}"


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one_token(operator: str, tokens: int) -> None:
    case = make(operator, tokens, 32)
    exact, fused = run(case, "reference", torch.float64, held=torch.float32), run(case, "triton", torch.float32)
    for found, wanted in zip(fused, exact, strict=True):
        assert error(found, wanted) <= 5e-6


@pytest.mark.parametrize("operator", ["hier_gate_mix_norm", "gated_tri_proj", "gated_expert_mix"])
@pytest.mark.parametrize(
    ("experts", "options"), [(3, "gate"), (3, ""), (3, "beta"), (2, "gate beta"), (1, "gate"), (1, "")]
)
def test_every_switch_of_the_gate(operator: str, experts: int, options: str) -> None:
    assert_close_to_exact(make(operator, 37, 32, experts=experts, options=options), torch.float32)


@pytest.mark.parametrize("queries", [1, 2, 5, 8])
def test_any_number_of_queries(queries: int) -> None:
    assert_close_to_exact(make("ragged_pool_gate", 37, 32, queries=queries), torch.bfloat16)


@pytest.mark.parametrize("sizes", [(1,), (3,), (3, 5), (5, 7, 3, 1)])
def test_any_kernel_sizes_up_to_seven(sizes: tuple[int, ...]) -> None:
    cu, width = boundaries(LENGTHS[37]), 16

    def call(implementation: str, x: torch.Tensor, bias: torch.Tensor, mu: torch.Tensor, *w: Any) -> torch.Tensor:
        return egmf_kernels.ms_dwconv(x, w, bias, mu, cu, implementation=implementation)

    weights = [seeded(width, k, seed=i) for i, k in enumerate(sizes)]
    case = Case(
        call, [seeded(37, width, seed=7), seeded(len(sizes), width, seed=8), seeded(len(sizes), seed=9), *weights]
    )
    assert_close_to_exact(case, torch.float32)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_same_bits_again(operator: str) -> None:
    case = make(operator, 130, 32)
    first, second = run(case, "triton", torch.bfloat16), run(case, "triton", torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradcheck_in_fp64(operator: str) -> None:
    tokens, width = 3, 16
    case = make(operator, tokens, width, queries=2)
    leaves = [t.double().requires_grad_() for t in case.tensors]
    assert torch.autograd.gradcheck(lambda *t: case.call("triton", *t), leaves, fast_mode=True)


@pytest.mark.parametrize("operator", OPERATORS)
def test_rows_may_lie_apart_and_gradients_be_expanded(operator: str) -> None:
    """Tokens that are columns of a wider matrix, and an output gradient with stride 0."""
    case = make(operator, 37, 32)
    tokens = seeded(37, 32, seed=1).shape
    results = []
    for apart in (False, True):
        leaves = []
        for t in case.tensors:
            leaf = t.float()
            if apart and leaf.shape == tokens:
                wide = torch.zeros(leaf.shape[0], leaf.shape[1] + 16)
                wide[:, : leaf.shape[1]] = leaf
                leaf = wide[:, : leaf.shape[1]]
                assert not leaf.is_contiguous()
            leaves.append(leaf.requires_grad_())
        out = case.call("triton", *leaves)
        results.append([out.detach(), *torch.autograd.grad(out.sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_same_tensor_as_residual_and_two_streams() -> None:
    case = make("hier_gate_mix_norm", 37, 32, options="gate")
    shared = Case(lambda i, x, gamma, w, c, h: case.call(i, x, gamma, w, c, x, x, h), case.tensors[:5])
    assert_close_to_exact(shared, torch.float32)


@pytest.mark.parametrize("operator", ["ragged_pool_gate", "hier_gate_mix_norm", "gated_tri_proj"])
def test_extreme_logits_stay_finite(operator: str) -> None:
    case = make(operator, 37, 32)
    # Queries and gates scaled until the softmaxes are one-hot; tokens far from the unit scale.
    large = Case(case.call, [t * (1e3 if t.shape[-1] == 32 and t.shape[0] <= 3 else 1.0) for t in case.tensors])
    for found in run(large, "triton", torch.float32):
        assert bool(torch.isfinite(found).all())


def test_k2_and_k4_are_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mix by projection kernel and norm, and by cuBLAS and hier_gate_mix_norm, agree: output and every gradient."""
    case = make("gated_expert_mix", 37, 64)
    results = []
    for boundary in (512, 16):
        monkeypatch.setattr(egmf_kernels.select, "PROJECTION_WIDTH", boundary)
        results.append(run(case, "triton", torch.float32))
    for narrow, wide in zip(*results, strict=True):
        assert error(narrow, wide) <= 5e-6
        assert narrow.shape == wide.shape


def test_the_canaries_sing(canaries: Any) -> None:
    """A store outside an allocation is seen."""
    inside = torch.zeros(1).new_empty(4)
    assert canaries.broken() == 0
    whole, _ = canaries.made[-1]
    whole[Canaries.BAND - 1] = 1.0
    assert canaries.broken() == 1
    whole[Canaries.BAND - 1] = float("nan")
    assert bool(torch.isnan(inside).all())


def test_modules_are_interpreted() -> None:
    """Without this every test above would have compared the reference with itself."""
    for module in (pool, mix, dwconv, projection):
        kernels = [v for n, v in vars(module).items() if n.endswith(("_forward", "_backward"))]
        assert kernels
        assert all(type(k).__name__ == "InterpretedFunction" for k in kernels)
