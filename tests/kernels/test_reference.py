"""The reference operators against plain loops over segments, in fp64, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import egmf_kernels

WIDTH = 16
# Two modalities of three samples: ordinary, one absent, both absent, a single token.
LENGTHS = [5, 3, 0, 7, 0, 0, 1, 2]
CU = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
BATCH, MODALITIES, EXPERTS, QUERIES = 4, 2, 3, 2


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def tokens() -> torch.Tensor:
    return normal(sum(LENGTHS), WIDTH, seed=0)


def segments(x: torch.Tensor) -> list[torch.Tensor]:
    return [x[CU[i] : CU[i + 1]] for i in range(len(LENGTHS))]


def test_convolution_never_crosses_a_segment(tokens):
    weights = [normal(WIDTH, k, seed=k) for k in (3, 5, 7)]
    bias, mu = normal(3, WIDTH, seed=8), normal(3, seed=9)
    out = egmf_kernels.ms_dwconv(tokens, weights, bias, mu, CU)
    for part, got in zip(segments(tokens), segments(out), strict=True):
        if not len(part):
            continue
        expected = torch.zeros_like(part)
        for s, weight in enumerate(weights):
            convolved = F.conv1d(part.T[None], weight[:, None], bias[s], padding=weight.shape[1] // 2, groups=WIDTH)
            expected += mu[s] * F.gelu(convolved[0].T, approximate="tanh")
        torch.testing.assert_close(got, expected)


def mix_arguments(tokens):
    return {
        "x_TD": tokens,
        "experts": [normal(*tokens.shape, seed=20 + e) for e in range(EXPERTS)],
        "weight_EDD": normal(EXPERTS, WIDTH, WIDTH, seed=30),
        "bias_ED": normal(EXPERTS, WIDTH, seed=31),
        "gate_weight_ED": normal(EXPERTS, WIDTH, seed=32),
        "gate_context_BE": normal(BATCH, EXPERTS, seed=33),
        "cu_segments": CU,
        "modalities": MODALITIES,
        "norm_weight_D": normal(WIDTH, seed=34),
        "temperature": 0.7,
    }


def test_mix_is_gated_projection_plus_residual_normed(tokens):
    arguments = mix_arguments(tokens)
    beta = torch.rand(BATCH, MODALITIES, dtype=torch.float64)
    out, alpha = egmf_kernels.gated_expert_mix(**arguments, modality_weight_BM=beta)
    segment = [s for s, n in enumerate(LENGTHS) for _ in range(n)]
    for t, s in enumerate(segment):
        logits = arguments["gate_weight_ED"] @ tokens[t] + arguments["gate_context_BE"][s // MODALITIES]
        gate = (logits / 0.7).softmax(0)
        torch.testing.assert_close(alpha[t], gate)
        y = tokens[t].clone()
        for e in range(EXPERTS):
            projected = arguments["weight_EDD"][e] @ arguments["experts"][e][t] + arguments["bias_ED"][e]
            y += gate[e] * beta[s // MODALITIES, s % MODALITIES] * projected
        torch.testing.assert_close(out[t], y / (y.pow(2).mean() + 1e-6).sqrt() * arguments["norm_weight_D"])


def test_pool_is_attention_inside_segments_mixed_by_the_present_modalities(tokens):
    queries, logits = normal(QUERIES, WIDTH, seed=40), normal(BATCH, MODALITIES, seed=41)
    pooled, beta = egmf_kernels.ragged_pool_gate(tokens, queries, logits, CU, 0.5)
    parts = segments(tokens)
    for b in range(BATCH):
        present = [m for m in range(MODALITIES) if len(parts[b * MODALITIES + m])]
        weight = dict(zip(present, (logits[b, present] / 0.5).softmax(0), strict=True))
        expected = torch.zeros(QUERIES, WIDTH, dtype=torch.float64)
        for m in present:
            part = parts[b * MODALITIES + m]
            expected += weight[m] * (queries @ part.T / math.sqrt(WIDTH)).softmax(1) @ part
        torch.testing.assert_close(pooled[b], expected)
        torch.testing.assert_close(
            beta[b], torch.stack([weight.get(m, torch.zeros(()).double()) for m in range(MODALITIES)])
        )


def test_gradients_in_fp64(tokens):
    weights = [normal(WIDTH, k, seed=k).requires_grad_() for k in (3, 5)]
    bias, mu = normal(2, WIDTH, seed=8).requires_grad_(), normal(2, seed=9).requires_grad_()
    x = tokens.clone().requires_grad_()

    def convolve(x, bias, mu, *weights):
        return egmf_kernels.ms_dwconv(x, weights, bias, mu, CU)

    assert torch.autograd.gradcheck(convolve, (x, bias, mu, *weights))
    queries, logits = (
        normal(QUERIES, WIDTH, seed=40).requires_grad_(),
        normal(BATCH, MODALITIES, seed=41).requires_grad_(),
    )

    def pool(x, queries, logits):
        return egmf_kernels.ragged_pool_gate(x, queries, logits, CU)[0]

    assert torch.autograd.gradcheck(pool, (x, queries, logits))
    arguments = mix_arguments(tokens)
    names = ("x_TD", "weight_EDD", "bias_ED", "gate_weight_ED", "gate_context_BE", "norm_weight_D")
    leaves = tuple(arguments[n].clone().requires_grad_() for n in names)

    def mix(*values):
        return egmf_kernels.gated_expert_mix(**(arguments | dict(zip(names, values, strict=True))))[0]

    assert torch.autograd.gradcheck(mix, leaves)


def test_nothing_present_gives_zeros_and_finite_gradients():
    cu = torch.zeros(BATCH * MODALITIES + 1, dtype=torch.int32)
    x = torch.zeros(0, WIDTH, requires_grad=True)
    logits = torch.zeros(BATCH, MODALITIES, requires_grad=True)
    pooled, beta = egmf_kernels.ragged_pool_gate(x, torch.ones(QUERIES, WIDTH), logits, cu)
    (pooled.sum() + beta.sum()).backward()
    assert (pooled == 0).all()
    assert (beta == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_extreme_scores_stay_finite(tokens):
    queries = 1e4 * normal(QUERIES, WIDTH, seed=1).float()
    pooled, _ = egmf_kernels.ragged_pool_gate(tokens.float(), queries, 1e4 * torch.ones(BATCH, MODALITIES), CU)
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_EDD": torch.zeros(0)}, "weight has shape .* ZeRO-3"),
        ({"bias_ED": torch.zeros(2, WIDTH)}, r"bias has shape \[2, 16\]; it must be \[3, 16\]"),
        ({"gate_context_BE": None}, "given together"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"x_TD": torch.zeros(18, 20)}, "divisible by 16"),
        ({"norm_weight_D": torch.zeros(8)}, "norm_weight"),
    ],
)
def test_a_wrong_argument_is_named(tokens, change, message):
    with pytest.raises(ValueError, match=message):
        egmf_kernels.gated_expert_mix(**(mix_arguments(tokens) | change))
