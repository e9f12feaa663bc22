"""Attention over packed tokens against the padded reference; torch's kernel, which needs a GPU, has a stand-in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import egmf_kernels
from egmf_dist.config import ModelConfig
from egmf_dist.data.others import OtherModalities
from egmf_dist.model.fusion import attention
from egmf_dist.model.fusion.experts import AttentionExperts

# All modalities; one alone; two; none at all; one token each.
LENGTHS = np.array([[3, 5, 2], [0, 4, 0], [2, 0, 3], [0, 0, 0], [1, 1, 1]])


def sequences(query, key, value, cu_query, cu_key, longest_query, longest_key):
    """``varlen_attn`` as a loop; queries always have keys."""
    assert ((cu_query.diff() == 0) | (cu_key.diff() > 0)).all()
    assert max(cu_query.diff()) <= longest_query
    assert max(cu_key.diff()) <= longest_key
    out = []
    for s in range(len(cu_query) - 1):
        q = query[cu_query[s] : cu_query[s + 1]].transpose(0, 1)
        k, v = (t[cu_key[s] : cu_key[s + 1]].transpose(0, 1) for t in (key, value))
        out.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("lengths_BM", [LENGTHS, np.array([[0, 0, 4]]), LENGTHS[:1]], ids=["ragged", "alone", "whole"])
def test_packed_is_padded(monkeypatch, lengths_BM):
    """Outputs and the gradients of x and of the projection, in fp64."""
    cu = torch.from_numpy(np.concatenate([[0], lengths_BM.reshape(-1).cumsum()]).astype(np.int32))
    tokens = int(cu[-1])
    longest, others = int(lengths_BM.sum(1).max()), OtherModalities.of(lengths_BM)
    batch = SimpleNamespace(cu_segments=cu, modalities=lengths_BM.shape[1], joint_length=longest, others=others)
    torch.manual_seed(0)
    experts = AttentionExperts(ModelConfig(width=16, heads=2)).double()
    segment_T = egmf_kernels.segment_ids(cu, tokens)
    weights = [torch.randn(tokens, 16, dtype=torch.float64) for _ in range(2)]
    start = torch.randn(tokens, 16, dtype=torch.float64)
    found = []
    for packed in (False, True):
        monkeypatch.setattr(attention, "packs", lambda heads, packed=packed: packed)
        monkeypatch.setattr(attention, "varlen_attn", sequences)
        x = start.clone().requires_grad_()
        streams = experts(x, segment_T, batch)
        loss = sum((w * stream).sum() for w, stream in zip(weights, streams, strict=True))
        found.append([*streams, *torch.autograd.grad(loss, [x, *experts.parameters()])])
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-12)


def test_a_kernel_that_disagrees_is_not_taken(monkeypatch):
    """One that computes something else, or no numbers, or nothing at all as on another device."""
    asked = torch.device("cpu"), torch.bfloat16, 2, 8
    monkeypatch.setattr(attention, "varlen_attn", sequences)
    before = torch.random.get_rng_state()
    assert attention.agrees.__wrapped__(*asked)
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr(attention, "varlen_attn", lambda *arguments: 1.1 * sequences(*arguments))
    assert not attention.agrees.__wrapped__(*asked)
    monkeypatch.setattr(attention, "varlen_attn", lambda *arguments: sequences(*arguments) * float("nan"))
    assert not attention.agrees.__wrapped__(*asked)

    def none(*arguments):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(attention, "varlen_attn", none)
    assert not attention.agrees.__wrapped__(*asked)


def test_rows_of_other_modalities():
    others = OtherModalities.of(np.array([[2, 1, 0], [0, 0, 3]]))
    # Text of the first sample looks at its audio, audio at its text; the second sample has nothing else.
    assert others.row_R.tolist() == [2, 0, 1, 3, 4, 5]
    assert others.cu_segments.tolist() == [0, 1, 3, 3, 3, 3, 6]
    assert others.place_TN.tolist() == [[1, 6], [2, 6], [0, 6], [3, 6], [4, 6], [5, 6]]
    assert others.alone_S.tolist() == [False] * 5 + [True]
    assert others.longest == 3
