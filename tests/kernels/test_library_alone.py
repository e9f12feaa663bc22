"""The operators without an interpreter or a GPU, and one of somebody's own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

WITHOUT_INTERPRETER = """
import sys
sys.path.insert(0, sys.argv[1])
import pytest, torch, egmf_kernels.ops.library
import test_library as t

assert not egmf_kernels.select.interpreted()
a = t.arguments()
with pytest.raises(ValueError, match="Triton needs CUDA, or TRITON_INTERPRET=1"):
    t.public("ms_dwconv", a, "triton")
# The library operators themselves compute the reference here, values and gradients.
for name in ("ragged_pool_gate", "ms_dwconv", "hier_gate_mix_norm", "rms_norm", "gated_tri_proj"):
    operator = getattr(torch.ops.egmf, "hier_gate_mix_norm" if name == "rms_norm" else name)
    given = t.raw(name)
    out = operator(*given)
    out = out if isinstance(out, torch.Tensor) else out[0]
    (found,) = torch.autograd.grad(out.sin().sum(), [given[0]])
    assert torch.isfinite(found).all() and found.abs().sum() > 0
    torch.library.opcheck(operator.default, given)
print("ok")
"""


def test_without_interpreter_or_gpu_the_operators_compute_the_reference() -> None:
    from pathlib import Path

    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_INTERPRETER, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().endswith("ok")


def test_an_operator_of_ones_own_is_registered_as_ours_are() -> None:
    """From outside the package: opcheck, gradients, one graph."""
    from egmf_kernels.ops.common.registration import define, differentiable, register

    define("toy(Tensor x, Tensor[] parts) -> Tensor", "toy_backward(Tensor dout, Tensor x, Tensor[] parts) -> Tensor")
    register("toy", lambda x, parts: x.sin() + sum(parts), lambda x, parts: torch.empty_like(x))
    register("toy_backward", lambda dout, x, parts: dout * x.cos(), lambda dout, x, parts: torch.empty_like(x))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[1])

    def gradients(ctx: Any, dout: torch.Tensor) -> tuple[Any, ...]:
        x, *parts = ctx.saved_tensors
        return torch.ops.egmf.toy_backward(dout, x, parts), [dout] * len(parts)

    differentiable("toy", setup, gradients, sequence=1)
    torch.manual_seed(1)
    x, *parts = (torch.randn(5, requires_grad=True) for _ in range(3))
    torch.library.opcheck(torch.ops.egmf.toy.default, (x, parts))
    compiled = torch.compile(torch.ops.egmf.toy, fullgraph=True, backend="aot_eager")
    for run in (torch.ops.egmf.toy, compiled):
        found = torch.autograd.grad(run(x, parts).sum(), [x, *parts])
        torch.testing.assert_close(found, (x.cos(), torch.ones(5), torch.ones(5)))
