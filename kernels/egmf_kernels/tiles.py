"""Tile tables: which block sizes a kernel runs with, per architecture, element size and width.

A table is a JSON file under ``tiles/``, named after an architecture (``sm_90.json``), written by the tuning command and
read here; nothing is tuned inside training. Every entry of the shipped tables is compiled ahead of time by the tests.
An interpreted process has a table of its own, with tiles small enough that tests straddle them.

    {"architecture": "sm_90", "origin": "...", "kernels": {KERNEL: {ELEMENT_BITS: {WIDTH: {"BT": 4, "num_warps": 4}}}}}

An entry serves every width up to its own; the largest serves what is wider.

``choices`` says where ``torch.compile`` of the reference was measured faster, by width and by number of tokens:
operator -> element bits -> width -> a list of ``[TOKENS, "triton" or "compile"]``, ascending. A pair holds up to its
number of tokens, one with null for all that is longer; in place of a list one word holds for every number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "tiles"
INTERPRETED = "interpreted"

Choice = str | list[list[Any]]
"""What ``choices`` says about a width: one word, or pairs of a number of tokens and a word."""

_forced: list[dict[str, Any]] = []


def architectures() -> list[int]:
    """Compute capabilities (80, 90, ...) that have a table, ascending."""
    return sorted(int(path.stem.removeprefix("sm_")) for path in FOLDER.glob("sm_*.json"))


@cache
def load(name: str) -> dict[str, Any]:
    """One table by name: ``sm_90``, ``interpreted``."""
    table: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return table


@cache
def table_for_capability(capability: int) -> str:
    """Name of the newest table that is not newer than the device; the oldest where all are newer.

    12.x has the registers and shared memory of 8.x per multiprocessor and none of 9.0's matrix instructions.
    """
    known = [a for a in architectures() if capability < 120 or not 90 <= a < 120]
    return f"sm_{max((a for a in known if a <= capability), default=known[0])}"


def capability(device: torch.device) -> int:
    """Compute capability of a CUDA device: 80, 90, ..."""
    return _device_capability(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _device_capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


@contextmanager
def using(table: dict[str, Any]) -> Iterator[None]:
    """Look everything up in ``table`` (tuning, ahead-of-time compilation, tests)."""
    _forced.append(table)
    try:
        yield
    finally:
        _forced.pop()


def current(device: torch.device) -> dict[str, Any]:
    """The table that launches on ``device`` would use now."""
    if _forced:
        return _forced[-1]
    if device.type != "cuda":
        return load(INTERPRETED)
    return load(table_for_capability(capability(device)))


def lookup(kernel: str, tensor: torch.Tensor, width: int) -> dict[str, Any]:
    """Block sizes, ``num_warps`` and ``num_stages`` of a kernel for a tensor's device and dtype at a width."""
    bits = "16" if tensor.element_size() == 2 else "32"
    by_width = current(tensor.device)["kernels"][kernel][bits]
    entry: dict[str, Any] = by_width[_column(tuple(by_width), width)]
    return entry


def prefers_compile(operator: str, tensor: torch.Tensor, width: int, tokens: int) -> bool:
    """Whether this device's table says that ``torch.compile`` of the reference was measured faster (``choices``)."""
    return chosen(_choice(operator, tensor, width), tokens) == "compile"


def varies(operator: str, tensor: torch.Tensor, width: int) -> bool:
    """Whether :func:`prefers_compile` depends on the number of tokens at this width."""
    entry = _choice(operator, tensor, width)
    return not isinstance(entry, str) and len({pair[1] for pair in entry}) > 1


def _choice(operator: str, tensor: torch.Tensor, width: int) -> Choice:
    bits = "16" if tensor.element_size() == 2 else "32"
    by_width = current(tensor.device).get("choices", {}).get(operator, {}).get(bits, {})
    entry: Choice = by_width[_column(tuple(by_width), width)] if by_width else "triton"
    return entry


def chosen(entry: Choice, tokens: int) -> str:
    """What an entry of ``choices`` says for a number of tokens; the last pair serves what is longer than all."""
    if isinstance(entry, str):
        return entry
    word: str = next((pair[1] for pair in entry if pair[0] is None or tokens <= pair[0]), entry[-1][1])
    return word


def hammered(device: torch.device, version: str) -> bool:
    """Whether this device's table records that the matrix products gave equal bits, run after run, under a Triton."""
    record = current(device).get("hammer", {})
    return bool(record.get("equal")) and record["triton"].split(".")[:2] == version.split(".")[:2]


@cache
def _column(widths: tuple[str, ...], width: int) -> str:
    ascending = sorted(widths, key=int)
    return next((w for w in ascending if int(w) >= width), ascending[-1])


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of an accumulator's dtype, as its compiler and its interpreter both take it."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32
