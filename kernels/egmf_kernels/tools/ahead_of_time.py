"""Compile every entry of a tile table to machine code for its architecture, on a machine without a GPU.

The operators' own launch functions run on empty CPU tensors with a watcher that stops each launch and hands it to
Triton's compiler for the wanted target: what is compiled is what a GPU would be asked to run for tensors that begin at
a multiple of 16 bytes, whatever the number of tokens (counts are not specialised).
``ptxas`` and ``cuobjdump`` come with Triton. The process must not interpret (``TRITON_INTERPRET`` unset).

    python -m egmf_kernels.tools.ahead_of_time [--arch 90] [--kernel NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from egmf_kernels import select, tiles

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory one block may use, by compute capability (CUDA programming guide)."""
REGISTERS_PER_SM = 65_536
MATRIX_PRODUCTS = ("gated_tri_proj_forward", "gated_tri_proj_backward_a", "gated_tri_proj_backward_w")
NARROW_LOADS = {
    "ms_dwconv_forward": 64,
    "ms_dwconv_backward": 32,
    "segment_sum_kernel": 32,
    "modality_mix_backward": 32,
}
"""Kernels whose widest load may be narrower than 16 bytes, and how narrow (bits). The convolution gives a lane 4 or 2
channels, because each channel costs up to 50 registers of window, taps and sums; a warp's row is still one full line.
"""


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one launch."""

    kernel: str
    architecture: int
    bits: int
    width: int
    tile: dict[str, Any]
    registers: int
    stack: int
    spills: int
    """Instructions that touch local memory."""
    shared: int
    """Bytes."""
    threads: int
    widest_load: int
    """Bits; 0 where everything comes through asynchronous copies (then :attr:`copies` counts those of 16 bytes)."""
    copies: int
    matrix: str
    """Matrix instructions used: wgmma, mma, or none."""

    def complaints(self) -> list[str]:
        """Every gate this kernel fails, in words."""
        found = []
        if self.stack or self.spills:
            found.append(f"{self.stack} bytes of stack, {self.spills} local-memory instructions; must be 0")
        if self.registers * self.threads > REGISTERS_PER_SM:
            found.append(f"{self.registers} registers x {self.threads} threads; at most {REGISTERS_PER_SM}")
        if self.shared > SHARED_LIMIT[self.architecture]:
            found.append(f"{self.shared} bytes of shared memory; at most {SHARED_LIMIT[self.architecture]}")
        narrowest = NARROW_LOADS.get(self.kernel, 128)
        if self.tile.get("K", 0) > 4:  # the pooling's threads have 4 columns then
            narrowest = min(narrowest, 64)
        if self.widest_load < narrowest and not self.copies:
            found.append(f"widest load {self.widest_load} bits; must be {narrowest}")
        if self.kernel in MATRIX_PRODUCTS and self.bits == 16:
            wanted = "wgmma" if self.architecture >= 90 else "mma"
            if self.matrix != wanted:
                found.append(f"matrix instructions {self.matrix}; must be {wanted}")
        return found

    def row(self) -> str:
        """One line of a table."""
        tile = " ".join(f"{k}={v}" for k, v in self.tile.items())
        return (
            f"sm_{self.architecture} {self.kernel:28} {self.bits:2} d={self.width:<5} {tile:46} "
            f"{self.registers:3} regs {self.spills} spills {self.shared:6} B {self.widest_load:3}-bit {self.matrix}"
        )


class OfflineDriver:
    """Stands where Triton expects a GPU driver: it names the target and is never asked to run anything."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu


Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def launches_of(operator: str, width: int, dtype: torch.dtype, tokens: int = 4096, queries: int = 4) -> list[Launch]:
    """What an operator's forward and backward launch at a width, without launching it."""
    from egmf_kernels.ops.common.arguments import Gate
    from egmf_kernels.ops.common.launch import watching
    from egmf_kernels.ops.gated_tri_proj import kernels as projection
    from egmf_kernels.ops.hier_gate_mix_norm import kernels as mix
    from egmf_kernels.ops.ms_dwconv import kernels as dwconv
    from egmf_kernels.ops.ragged_pool_gate import kernels as pool

    seen: list[Launch] = []

    def stop(kernel: Any, grid: tuple[int, ...], arguments: Any, keywords: dict[str, Any]) -> bool:
        seen.append((kernel, tuple(arguments), dict(keywords)))
        return False

    def make(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind)

    batch, modalities, experts = 16, 3, 3
    cu = torch.zeros(batch * modalities + 1, dtype=torch.int32)
    segment = torch.zeros(tokens, dtype=torch.int32)
    x, streams = make(tokens, width), [make(tokens, width) for _ in range(experts)]
    gate = Gate(make(experts, width), make(batch, experts), make(batch, modalities), segment, cu, modalities)
    with watching(stop):
        if operator == "ragged_pool_gate":
            q, logits = make(queries, width), make(batch, modalities)
            pooled, beta, part, lse = pool.forward(x, q, logits, cu, 0.7)
            pool.backward(pooled, x, q, logits, cu, beta, part, lse, 0.7)
        elif operator == "ms_dwconv":
            weights = [make(width, k) for k in (3, 5, 7)]
            dwconv.forward(x, weights, make(3, width), make(3), segment)
            dwconv.backward(x, x, weights, make(3, width), make(3), segment)
        elif operator in ("mix_norm", "norm"):
            plain = operator == "norm"
            used, own = ([], gate.norm_alone()) if plain else (streams, gate)
            _, alpha, rstd = mix.forward(x, used, own, make(width), 0.7, 1e-6)
            mix.backward(x, x, used, own, make(width), alpha, rstd, 0.7)
        else:
            weight, bias = make(experts, width, width), make(experts, width)
            _, alpha, weight_ET = projection.forward(x, streams, weight, bias, gate, 0.7)
            projection.backward(x, x, streams, weight, bias, gate, alpha, weight_ET, 0.7)
    return seen


OPERATORS = {
    "ragged_pool_gate": ("ragged_pool_gate_forward", "ragged_pool_gate_backward"),
    "ms_dwconv": ("ms_dwconv_forward", "ms_dwconv_backward"),
    "mix_norm": ("mix_norm_forward", "mix_norm_backward"),
    "norm": ("norm_forward", "norm_backward"),
    "projection": ("expert_gate_forward", "expert_gate_backward", *MATRIX_PRODUCTS),
}
"""Operator -> the table entries its launches read."""
WITHOUT_TILE = {
    "ragged_pool_gate": ("modality_mix_forward", "modality_mix_backward"),
    "mix_norm": ("segment_sum_kernel",),
}
"""Operator -> kernels of fixed block sizes to compile with it; what two operators launch is compiled with one."""


def entry_of(kernel: Any, keywords: dict[str, Any]) -> str:
    """The table entry a launch read; a mix of no streams is the entry of the plain norm."""
    name: str = kernel.fn.__name__
    return name.replace("mix_norm", "norm") if name.startswith("mix_norm") and keywords["E"] == 0 else name


def compile_launch(launch: Launch, capability: int, bits: int, width: int) -> Compiled:
    """Compile one launch for a target and read the result back from its machine code."""
    import triton

    kernel, arguments, keywords = launch
    triton.runtime.driver.set_active(OfflineDriver(capability))
    kernel.device_caches.clear()
    made = kernel.warmup(*arguments, **keywords, grid=(1,))
    usage = resources(made.asm["cubin"])
    ptx = made.asm["ptx"]
    loads = re.findall(r"\bld\.global[.\w:]*?(?:\.v(\d))?\.b(\d+)\b", ptx)
    tile = {k: v for k, v in keywords.items() if isinstance(v, int) and k not in ("E", "EP", "M", "MP", "R", "BD")}
    for flag in ("GATED", "WEIGHED", "EVEN", "SCALES", "TAPS"):
        tile.pop(flag, None)
    return Compiled(
        kernel=entry_of(kernel, keywords),
        architecture=capability,
        bits=bits,
        width=width,
        tile=tile,
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=local_instructions(made.asm["cubin"]) if usage["STACK"] or usage["LOCAL"] else 0,
        shared=made.metadata.shared,
        threads=made.metadata.num_warps * 32,
        widest_load=max((int(count or 1) * int(bits) for count, bits in loads), default=0),
        copies=len(re.findall(r"\bcp\.async\.c[ag]\b[^;]*?\b0x10\b", ptx)),
        matrix=next((name for name in ("wgmma", "mma") if re.search(rf"\b{name}\.\w*sync", ptx)), "none"),
    )


def _cuobjdump(cubin: bytes, flag: str) -> str:
    """What the ``cuobjdump`` in Triton's wheel says about a cubin."""
    import triton

    tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack and of local memory, as ``ptxas`` left them: a spill needs stack."""
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", _cuobjdump(cubin, "-res-usage"))}


def local_instructions(cubin: bytes) -> int:
    """How many instructions touch local memory; disassembling costs more than compiling, so only where some may."""
    return len(re.findall(r"\b(?:LDL|STL)\b", _cuobjdump(cubin, "-sass")))


def work(table: dict[str, Any], only: str = "") -> Iterator[tuple[str, int, int]]:
    """(operator, element bits, width) of every group of table entries that one operator's launches read."""
    for operator, entries in OPERATORS.items():
        if not any(only in name for name in (*entries, *WITHOUT_TILE.get(operator, ()))):
            continue
        for bits in (16, 32):
            widths = {int(w) for entry in entries for w in table["kernels"][entry][str(bits)]}
            for width in sorted(widths):
                yield operator, bits, width


def compile_group(
    table: dict[str, Any], operator: str, bits: int, width: int, queries: Sequence[int] = (4,), only: str = ""
) -> list[Compiled]:
    """Compile what one operator launches with a table at a width."""
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    capability = int(table["architecture"].removeprefix("sm_"))
    first = (*OPERATORS[operator], *WITHOUT_TILE.get(operator, ()))
    wanted: list[Launch] = []
    with tiles.using(table):
        for number, count in enumerate(queries):
            entries = OPERATORS[operator] if number else first
            seen = launches_of(operator, width, dtype, queries=count)
            wanted += [x for x in seen if only in x[0].fn.__name__ and entry_of(x[0], x[2]) in entries]
    return [compile_launch(launch, capability, bits, width) for launch in wanted]


def query_counts(operator: str, bits: int, width: int) -> tuple[int, ...]:
    """Numbers of queries to compile for: the pooling's tile serves 4 and shrinks for more; both ends of that rule."""
    fits = 8 * width <= select.MAX_QUERY_ELEMENTS
    return (4, 8) if operator == "ragged_pool_gate" and bits == 16 and fits else (4,)


def compile_table(table: dict[str, Any], only: str = "", processes: int = 2) -> list[Compiled]:
    """Compile every entry of a table."""
    groups = list(work(table, only))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(compile_group, table, *group, query_counts(*group), only) for group in groups]
        return [compiled for job in jobs for compiled in job.result()]


def main() -> int:
    """Compile, print one line a kernel, exit 1 if a gate fails."""
    parser = argparse.ArgumentParser(description="compile the tile tables ahead of time")
    parser.add_argument("--arch", type=int, action="append", choices=tiles.architectures())
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    everything, bad = [], 0
    for capability in options.arch or tiles.architectures():
        for compiled in compile_table(tiles.load(f"sm_{capability}"), options.kernel):
            everything.append(compiled)
            print(compiled.row(), flush=True)
            for complaint in compiled.complaints():
                bad += 1
                print(f"    {complaint}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(c) for c in everything], indent=1) + "\n", encoding="utf-8")
    print(f"{len(everything)} kernels compiled, {bad} complaints")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
