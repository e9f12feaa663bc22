"""The correctness gate: outputs and every gradient of the fused operators against the reference in fp64.

The inputs of a dtype are upcast, so both sides compute the same function of the same numbers. An error is
``||d|| / ||ref||``, and every tensor's is at most the dtype's limit. None is worse than 1.5 times what the eager
reference loses in that dtype. In 16 bits that holds tensor by tensor (or 1.5 times one rounding of the exact result,
where eager was luckier; and only for tensors with enough numbers for a ratio to be more than luck). In fp32 both sides
err by a few units in the last place and the order of the sums decides which tensor gets them: there it holds for the
tensors of a case that have enough numbers, all together, as the root of their mean square, and only above
:data:`FEW_ROUNDINGS`. NaN never passes. Memory that the fused run allocates is filled with NaN first, and a second run
must give the same bits.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from egmf_kernels import tiles
from egmf_kernels.bench import processes
from egmf_kernels.bench.cases import OPERATORS, Case, Inputs, Runner, dtype_name, gradients, ragged_lengths

LIMITS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
EAGER_FACTOR = 1.5
ENOUGH = 48
"""Below this many numbers the limit alone holds."""
FEW_ROUNDINGS = 5e-7
"""An error in fp32, about eight roundings of 6e-8, that no comparison with eager makes red.

On an H100 eager's root mean square is 6e-8 to 2e-7 and the fused operators' 1e-7 to 4e-7; where a case has few tokens
eager is now and then exact, and 1.5 times nothing would then be allowed. The limit of 5e-6 a tensor stays.
"""
WIDTHS = (48, 128, 256, 512, 1024)

# Twenty samples' three segments, the first sample empty. 1037 and 77 tokens end inside every tile, and neither is a
# multiple of 16, so one compiled kernel serves both. Fewer samples would leave gradients of a handful of numbers, whose
# cancellation no kernel decides.
RAGGED = (0, 0, 0, *ragged_lengths(19, 3, 1037, seed=1))
FEW = (0, 0, 0, *ragged_lengths(19, 3, 77, seed=2))
EMPTY = (0,) * 60
TINY = (0, 0, 0, *ragged_lengths(3, 3, 21, seed=3))


@dataclass(frozen=True)
class Verdict:
    """What the gate found about one case."""

    name: str
    operator: str
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    """Tensor -> ``fused``, ``eager``, ``allowed``: norm ratios."""
    complaints: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Nothing to complain about, and something was compared."""
        return not self.complaints and bool(self.errors)

    def line(self) -> str:
        """One line: the worst tensor, or every complaint."""
        if not self.correct:
            return f"RED   {self.name}: {'; '.join(self.complaints) or 'nothing was compared'}"
        worst = max(self.errors, key=lambda n: self.errors[n]["fused"])
        return f"green {self.name}: worst {worst} {self.errors[worst]['fused']:.1e}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Every tensor allocated without a value holds NaN (the largest number where it is an integer)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def full_precision() -> Iterator[None]:
    """No tf32 in a reference's products, and bf16 products that accumulate in fp32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    before_half = matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_tf32 = matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before
        matmul.allow_fp16_reduced_precision_reduction = before_half


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """``||found - exact|| / ||exact||`` in fp64; where the exact value is all zeros, 0 or infinity."""
    size = exact.norm()
    distance = (found.detach().to(exact.dtype) - exact).norm()
    if size == 0:
        return 0.0 if distance == 0 else (float("nan") if distance.isnan() else float("inf"))
    return float(distance / size)


def results(run: Runner, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Output, gate weights where there are any, and every leaf's gradient, by name."""
    output, weights = run(inputs)
    found = {"output": output.detach()}
    if weights is not None:
        found["gate weights"] = weights.detach()
    return found | {f"d {name}": g for name, g in gradients(output, inputs).items()}


def check(case: Case, inputs: Inputs) -> Verdict:
    """Compare the fused operator with the reference on one draw of inputs."""
    with full_precision():
        exact = results(case.eager(), inputs.to(torch.float64))
        eager = {name: error(t, exact[name]) for name, t in results(case.eager(), inputs).items()}
        with poisoned():
            first = results(case.fused(), inputs)
        second = results(case.fused(), inputs)
    errors: dict[str, dict[str, float]] = {}
    complaints = []
    for name, tensor in first.items():
        if tensor.shape != exact[name].shape:
            complaints.append(f"{name} has shape {list(tensor.shape)}; it must be {list(exact[name].shape)}")
            continue
        allowed = LIMITS[case.dtype]
        if case.dtype != torch.float32 and tensor.numel() >= ENOUGH:
            least = error(exact[name].to(case.dtype), exact[name])
            allowed = min(allowed, EAGER_FACTOR * max(eager[name], least))
        fused = error(tensor, exact[name])
        errors[name] = {"fused": fused, "eager": eager[name], "allowed": allowed}
        if not fused <= allowed:
            complaints.append(f"{name} {fused:.1e} > {allowed:.1e} (eager {eager[name]:.1e})")
        if not torch.equal(tensor, second[name]):
            complaints.append(f"{name} differs between two runs")
    if case.dtype == torch.float32:
        large = [e for name, e in errors.items() if first[name].numel() >= ENOUGH]
        ours, theirs = (_root_mean_square([e[side] for e in large]) for side in ("fused", "eager"))
        if not ours <= max(EAGER_FACTOR * theirs, FEW_ROUNDINGS):
            complaints.append(f"all together {ours:.1e} > {EAGER_FACTOR} x {theirs:.1e} of eager")
    return Verdict(case.name, case.operator, errors, tuple(complaints))


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else 0.0


@dataclass(frozen=True)
class Group:
    """The edge cases of one operator at one width: one worker's task."""

    operator: str
    width: int
    dtypes: tuple[torch.dtype, ...]
    device: str
    table: dict[str, Any] | None = None
    rehearse: bool = False

    def __str__(self) -> str:
        return f"{self.operator} d={self.width} {' '.join(dtype_name(d) for d in self.dtypes)}"

    def cases(self) -> list[Case]:
        """Ragged with absences, a few tokens a segment, nothing at all, strided rows, an expanded gradient."""
        ragged = TINY if self.rehearse else RAGGED
        found = []
        for dtype in self.dtypes:

            def make(layout: str, lengths: Sequence[int], dtype: torch.dtype = dtype, **more: Any) -> Case:
                return Case(self.operator, self.width, dtype, layout, tuple(lengths), queries=3, **more)

            found += [
                make("ragged", ragged),
                make("no tokens", EMPTY),
                make("strided", ragged, row_stride=2, expanded_gradient=True),
            ]
            if not self.rehearse:
                found.append(make("few tokens", FEW))
        return found


def check_group(group: Group) -> Generator[Verdict, None, None]:
    """Every case of a group, as it comes; a case that raises is red and the next one still runs."""
    with tiles.using(group.table) if group.table is not None else nullcontext():
        for seed, case in enumerate(group.cases()):
            try:
                yield check(case, case.make(group.device, seed))
            except Exception as problem:
                yield Verdict(case.name, case.operator, complaints=(processes.one_line(problem),))
                if group.device == "cuda":
                    torch.cuda.synchronize()  # after a fault of the device nothing in this process is a finding


def groups(
    device: str,
    *,
    widths: Sequence[int] = WIDTHS,
    dtypes: Sequence[torch.dtype] = tuple(LIMITS),
    table: dict[str, Any] | None = None,
    rehearse: bool = False,
) -> list[Group]:
    """The whole gate, the slowest to compile first."""
    return [
        Group(operator, width, tuple(dtypes), device, table, rehearse)
        for width in sorted(widths, reverse=True)
        for operator in reversed(OPERATORS)
    ]


def run_gate(
    work: Sequence[Group],
    workers: int,
    seconds: float,
    say: Callable[[str], None] = print,
    each: Callable[[Verdict], None] = lambda verdict: None,
) -> tuple[list[Verdict], list[str]]:
    """Check every group; ``each`` is called with every verdict as it comes.

    Returns:
        The verdicts, and in one line each the groups that did not run to their end.
    """
    outcomes = processes.run_tasks(
        check_group, work, workers, time.monotonic() + seconds, say, each=lambda group, verdict: each(verdict)
    )
    verdicts = [verdict for outcome in outcomes for verdict in outcome.value or []]
    missing = [f"{group}: {o.error}" for group, o in zip(work, outcomes, strict=True) if o.error]
    return verdicts, missing
