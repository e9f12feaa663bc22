"""The operators inside torch: ``opcheck``, ``torch.compile(fullgraph=True)``, selection, and what bad input is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import egmf_kernels
from egmf_kernels import select, tiles
from egmf_kernels.ops.common.launch import watching

WIDTH, MODALITIES = 16, 3
LENGTHS = [2, 0, 3, 0, 0, 0]
CU = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
TOKENS, BATCH, EXPERTS, QUERIES = sum(LENGTHS), 2, 3, 2


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def arguments() -> dict[str, Any]:
    return {
        "x": normal(TOKENS, WIDTH, seed=0),
        "streams": [normal(TOKENS, WIDTH, seed=1 + e) for e in range(EXPERTS)],
        "weight": normal(EXPERTS, WIDTH, WIDTH, seed=5),
        "bias": normal(EXPERTS, WIDTH, seed=6),
        "gate": normal(EXPERTS, WIDTH, seed=7),
        "context": normal(BATCH, EXPERTS, seed=8),
        "beta": normal(BATCH, MODALITIES, seed=9),
        "gamma": normal(WIDTH, seed=10),
        "queries": normal(QUERIES, WIDTH, seed=11),
        "logits": normal(BATCH, MODALITIES, seed=12),
        "taps": [normal(WIDTH, k, seed=k) for k in (3, 5)],
        "taps_bias": normal(2, WIDTH, seed=13),
        "mu": normal(2, seed=14),
    }


def segment() -> torch.Tensor:
    return egmf_kernels.segment_ids(CU, TOKENS).int()


def raw(name: str) -> tuple[Any, ...]:
    a = arguments()
    if name == "ragged_pool_gate":
        return a["x"], a["queries"], a["logits"], CU, 0.7
    if name == "ms_dwconv":
        return a["x"], a["taps"], a["taps_bias"], a["mu"], segment()
    small = (a["gate"], a["context"], a["beta"], segment(), CU, MODALITIES)
    if name == "hier_gate_mix_norm":
        return a["x"], a["streams"], *small, a["gamma"], 0.7, 1e-6
    if name == "rms_norm":
        return a["x"], [], None, None, None, segment(), CU, MODALITIES, a["gamma"], 1.0, 1e-6
    return a["x"], a["streams"], a["weight"], a["bias"], *small, 0.7


def public(name: str, a: dict[str, Any], implementation: str) -> torch.Tensor:
    if name == "ragged_pool_gate":
        return egmf_kernels.ragged_pool_gate(a["x"], a["queries"], a["logits"], CU, 0.7, implementation=implementation)[
            0
        ]
    if name == "ms_dwconv":
        return egmf_kernels.ms_dwconv(a["x"], a["taps"], a["taps_bias"], a["mu"], CU, implementation=implementation)
    mixed = egmf_kernels.gated_expert_mix(
        a["x"], a["streams"], a["weight"], a["bias"], a["gate"], a["context"], CU, MODALITIES, a["gamma"], 0.7,
        a["beta"], implementation=implementation,
    )  # fmt: skip
    return mixed[0]


@pytest.mark.parametrize("name", ["ragged_pool_gate", "ms_dwconv", "hier_gate_mix_norm", "rms_norm", "gated_tri_proj"])
def test_opcheck(name: str) -> None:
    """Schema, fake tensors, autograd registration and ahead-of-time autograd, by torch's own checker."""
    operator = getattr(torch.ops.egmf, "hier_gate_mix_norm" if name == "rms_norm" else name)
    results = torch.library.opcheck(operator.default, raw(name))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["ragged_pool_gate", "ms_dwconv", "gated_expert_mix"])
def test_compiles_whole_and_agrees(name: str) -> None:
    def step(a: dict[str, Any]) -> torch.Tensor:
        return public(name, a, "triton").sin()

    def leaves(a: dict[str, Any]) -> list[torch.Tensor]:
        return [t for v in a.values() for t in (v if isinstance(v, list) else [v])]

    plain, compiled = arguments(), arguments()
    wanted = step(plain)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    grads = [
        torch.autograd.grad(out.sum(), leaves(a), allow_unused=True) for out, a in ((wanted, plain), (found, compiled))
    ]
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_default_on_the_cpu_is_the_reference_and_launches_nothing() -> None:
    seen: list[str] = []
    with watching(lambda kernel, *rest: bool(seen.append(kernel.__name__)) or True):
        for name in ("ragged_pool_gate", "ms_dwconv", "gated_expert_mix"):
            public(name, arguments(), "auto")
        assert seen == []
        with egmf_kernels.using("triton"):
            egmf_kernels.ms_dwconv(*(arguments()[k] for k in ("x", "taps", "taps_bias", "mu")), CU)
    assert seen == ["ms_dwconv_forward"]


def test_selection_names_what_is_wrong() -> None:
    a = arguments()
    with pytest.raises(ValueError, match=r"implementation is 'cuda'; it must be one of auto, reference, triton"):
        public("ms_dwconv", a, "cuda")
    wide = [normal(WIDTH, 9, seed=1)]
    with pytest.raises(ValueError, match="a convolution is 9 wide; the kernels take up to 7"):
        egmf_kernels.ms_dwconv(a["x"], wide, normal(1, WIDTH, seed=2), normal(1, seed=3), CU, implementation="triton")
    many = normal(9, WIDTH, seed=1)
    with pytest.raises(ValueError, match="9 queries; the kernels take up to 8"):
        egmf_kernels.ragged_pool_gate(a["x"], many, a["logits"], CU, implementation="triton")
    # auto serves the same calls, by the reference.
    egmf_kernels.ragged_pool_gate(a["x"], many, a["logits"], CU, implementation="auto")


def test_describe_is_one_line_that_says_what_each_operator_runs() -> None:
    line = egmf_kernels.describe("triton", torch.zeros(1, 64), 3, 4, 7)
    assert line.startswith("kernels triton: triton (ms_dwconv, gated_expert_mix, ragged_pool_gate) [width 64, float32")
    assert "mix by gated_tri_proj and norm" in line
    wide = egmf_kernels.describe("triton", torch.zeros(1, 1024), 3, 4, 7)
    assert "mix by cuBLAS and hier_gate_mix_norm" in wide
    assert "\n" not in line + wide
    assert "reference" in egmf_kernels.describe("auto", torch.zeros(1, 64), 3, 4, 7)


class CudaTokens:
    """What selection reads of tokens on a GPU."""

    class OnCuda:
        type = "cuda"

        def __str__(self) -> str:
            return "cuda"

    shape, dtype, is_cuda, device = (5, 1024), torch.bfloat16, True, OnCuda()

    @staticmethod
    def element_size() -> int:
        return 2


def test_each_operator_has_its_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU under auto: too many queries move the pooling alone to the reference, a table's choice the mix."""
    monkeypatch.setattr(tiles, "capability", lambda device: 90)
    assert "triton (ms_dwconv, gated_expert_mix); reference (ragged_pool_gate)" in select.describe(
        "auto",
        CudaTokens(),
        3,
        9,
        7,  # type: ignore[arg-type]
    )
    with tiles.using(tiles.load("sm_90") | {"choices": {"gated_expert_mix": {"16": {"2048": "compile"}}}}):
        assert "compile (gated_expert_mix)" in select.describe("auto", CudaTokens(), 3, 4, 7)  # type: ignore[arg-type]
    monkeypatch.setattr(tiles, "capability", lambda device: 75)
    assert "triton" not in select.describe("auto", CudaTokens(), 3, 4, 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"compute capability 7.5; the kernels need 8.0"):
        select.describe("triton", CudaTokens(), 3, 4, 7)  # type: ignore[arg-type]


def test_a_suspect_compilers_products_must_have_been_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    tokens: Any = SimpleNamespace(is_cuda=True, device="cuda:0", shape=(4, 512), element_size=lambda: 2)
    monkeypatch.setattr(tiles, "capability", lambda device: 90)
    passed = {"hammer": {"triton": "3.6.0", "runs": 60, "equal": True}}
    for version, table, trusted in (
        ("3.6.0", {}, False),
        ("3.6.1", passed, True),
        ("3.5.0", passed, False),
        ("3.6.0", {"hammer": {"triton": "3.6.0", "runs": 60, "equal": False}}, False),
        ("3.3.1", {}, True),
        ("3.7.0", {}, False),
        ("3.7.1", {}, True),
        ("3.9.0", {}, True),
    ):
        monkeypatch.setattr(triton, "__version__", version)
        with tiles.using(table):
            assert select.products_trusted(tokens) is trusted, version
            assert select.projects_inside(tokens) is trusted, version
    monkeypatch.setattr(tiles, "capability", lambda device: 80)
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    assert select.projects_inside(tokens), "wgmma is of Hopper alone"
    tokens.element_size = lambda: 4
    assert not select.projects_inside(tokens), "cuBLAS multiplies fp32"


def test_boundaries_and_segments_may_be_strided_and_are_typed() -> None:
    a = arguments()
    strided = torch.stack([CU, torch.zeros_like(CU)], 1)[:, 0]
    assert not strided.is_contiguous()
    found = egmf_kernels.ragged_pool_gate(a["x"], a["queries"], a["logits"], strided, implementation="triton")[0]
    wanted = egmf_kernels.ragged_pool_gate(a["x"], a["queries"], a["logits"], CU, implementation="reference")[0]
    torch.testing.assert_close(found, wanted)
    numbers = torch.stack([segment(), segment() + 7], 1)[:, 0]
    rest = (a["x"], a["taps"], a["taps_bias"], a["mu"], CU)
    found = egmf_kernels.ms_dwconv(*rest, segment_T=numbers, implementation="triton")
    torch.testing.assert_close(found, egmf_kernels.ms_dwconv(*rest, implementation="reference"))
    with pytest.raises(ValueError, match=r"segment is torch.float32 on cpu; it must be \[5\] int32 or int64 on cpu"):
        egmf_kernels.ms_dwconv(*rest, segment_T=segment().float(), implementation="triton")


def test_a_second_derivative_is_an_error_not_a_zero() -> None:
    a = arguments()
    with pytest.raises(RuntimeError, match="egmf::ms_dwconv has no second derivative"):
        torch.autograd.grad(public("ms_dwconv", a, "triton").sum(), [a["x"]], create_graph=True)


def test_auto_inside_a_graph_does_not_look_into_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU auto asks the tile table whether compile was faster; inside torch.compile that would break the graph."""

    def never(*rest: Any) -> bool:
        raise AssertionError("the table was looked at inside a graph")

    monkeypatch.setattr(tiles, "capability", lambda device: 90)
    monkeypatch.setattr(tiles, "prefers_compile", never)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert select.choose("ms_dwconv", "auto", CudaTokens()) == "triton"  # type: ignore[arg-type]


def test_inference_tensors_and_a_later_change() -> None:
    with torch.inference_mode():
        cu = CU.clone()
        out = egmf_kernels.ms_dwconv(*(arguments()[k] for k in ("x", "taps", "taps_bias", "mu")), cu)
    assert out.shape == (TOKENS, WIDTH)


Change = Callable[[dict[str, Any]], Any]
BAD: dict[str, tuple[str, Change, str]] = {
    "width": ("mix", lambda a: a | {"x": normal(5, 20, seed=0)}, r"x has shape \[5, 20\]; .*divisible by 16"),
    "dtype": (
        "mix",
        lambda a: a | {"gate": a["gate"].double()},
        r"gate_weight is torch.float64; it must be torch.float32 .*\[3, 16\]",
    ),
    "stream": (
        "mix",
        lambda a: a | {"streams": [*a["streams"][:2], normal(4, WIDTH, seed=0)]},
        r"experts\[2\] has shape \[4, 16\]; it must be \[5, 16\]",
    ),
    "partitioned": (
        "mix",
        lambda a: a | {"weight": torch.empty(0)},
        r"weight has shape \[0\]; it must be \[3, 16, 16\]; it has 0 elements: a ZeRO-3 parameter is partitioned",
    ),
    "batch": (
        "mix",
        lambda a: a | {"context": normal(3, EXPERTS, seed=0)},
        r"gate_context has shape \[3, 3\]; it must be \[2, 3\]",
    ),
    "beta": (
        "mix",
        lambda a: a | {"beta": normal(BATCH, 2, seed=0)},
        r"modality_weight has shape \[2, 2\]; it must be \[2, 3\]",
    ),
    "integer": (
        "mix",
        lambda a: a | {"x": torch.zeros(TOKENS, WIDTH, dtype=torch.int64)},
        r"x is torch.int64; it must be float32",
    ),
    "stride": ("mix", lambda a: a | {"x": normal(WIDTH, 16, seed=0).detach().t()}, r"x has strides \(1, 16\)"),
    "queries": (
        "pool",
        lambda a: a | {"queries": torch.empty(0)},
        r"queries has shape \[0\]; it must be \[1, 16\]; it has 0 elements",
    ),
    "logits": ("pool", lambda a: a | {"logits": normal(3, 3, seed=0)}, r"cu_segments .*must be one row \[10\]"),
    "taps": (
        "conv",
        lambda a: a | {"taps": [torch.empty(0), a["taps"][1]]},
        r"weights\[0\] has shape \[0\]; .*0 elements",
    ),
    "even": (
        "conv",
        lambda a: a | {"taps": [normal(WIDTH, 4, seed=0), a["taps"][1]]},
        r"weights\[0\] has shape \[16, 4\]; .*odd",
    ),
    "mu": ("conv", lambda a: a | {"mu": normal(3, seed=0)}, r"mu has shape \[3\]; it must be \[2\]"),
}


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize(("operator", "change", "message"), list(BAD.values()), ids=list(BAD))
def test_bad_input_is_named_before_any_launch(operator: str, change: Change, message: str, implementation: str) -> None:
    names = {"mix": "gated_expert_mix", "pool": "ragged_pool_gate", "conv": "ms_dwconv"}
    seen: list[str] = []
    with (
        watching(lambda kernel, *rest: bool(seen.append(kernel.__name__)) or True),
        pytest.raises(ValueError, match=message),
    ):
        public(names[operator], change(arguments()), implementation)
    assert seen == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 3, 2, 5, 5, 5, 5], r"cu_segments goes from 0 to 5, descending; .*ascend from 0 to 5"),
        ([0, 2, 2, 5, 5, 5, 9], r"cu_segments goes from 0 to 9; .*ascend from 0 to 5"),
        ([-2, 2, 2, 5, 5, 5, 5], r"cu_segments goes from -2 to 5; .*ascend from 0 to 5"),
        ([0, 2, 5], r"2 segments; with 3 modalities it must be \[batch \* 3 \+ 1\]"),
    ],
)
def test_bad_boundaries_are_named(values: list[int], message: str) -> None:
    a = arguments()
    cu = torch.tensor(values, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        egmf_kernels.hier_gate_mix_norm(
            a["x"], a["streams"], a["gate"], a["context"], cu, MODALITIES, a["gamma"], implementation="triton"
        )


def test_boundaries_are_looked_at_again_after_a_change() -> None:
    a, cu = arguments(), CU.clone()
    for _ in range(2):
        egmf_kernels.ms_dwconv(a["x"], a["taps"], a["taps_bias"], a["mu"], cu)
    cu[1] = 7
    with pytest.raises(ValueError, match="descending"):
        egmf_kernels.ms_dwconv(a["x"], a["taps"], a["taps_bias"], a["mu"], cu)


def test_temperature_and_width_limits() -> None:
    a = arguments()
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature is"):
            egmf_kernels.ragged_pool_gate(a["x"], a["queries"], a["logits"], CU, bad)
    assert select.MAX_WIDTH == 2048


@pytest.mark.parametrize("name", ["gated_expert_mix", "ragged_pool_gate"])
def test_strided_boundaries_give_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's sums over segments read the boundaries in backward only."""
    results = []
    for boundaries in (CU, torch.stack([CU, CU + 7], 1)[:, 0]):
        monkeypatch.setitem(globals(), "CU", boundaries)
        a = arguments()
        wanted = [a["context"], a["beta"]] if name == "gated_expert_mix" else [a["x"], a["logits"]]
        results.append(torch.autograd.grad(public(name, a, "triton").sin().sum(), wanted))
    for plain, strided in zip(*results, strict=True):
        torch.testing.assert_close(strided, plain, rtol=0, atol=0)
