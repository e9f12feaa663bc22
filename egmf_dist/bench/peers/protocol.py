"""What every reader's script does with its batches: time them, and check that each sample came once with its bytes.

A script runs in an environment of its own, so this needs torch, numpy and the standard library only. It is started as
``python read_NAME.py JSON`` and prints one line of JSON; what libraries print goes to stderr.

Arguments (JSON object): ``started`` (Unix time at which the process was started), ``data`` (folder that the reader
opens), ``files`` (what is dropped from the page cache before the cold pass), ``truth`` (JSON file), ``workers``,
``batch`` (samples), ``seconds`` (least time of the warm passes), ``first_only`` (stop after the first batch). Or
``prepare``: convert the tars in ``source`` to ``data`` instead of reading.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """What a training step would get."""

    facts: Sequence[Any]
    """Of each sample the decoded JSON (or the part of it that the layout holds, with ``id``), as a dict or as an
    object whose ``to_json`` gives one."""
    audio: torch.Tensor
    """float32 ``[sum of audio_frames, dim]``, or ``[samples, longest, dim]`` where the layout pads."""
    vision: torch.Tensor
    audio_frames: Any
    """Length of each sample: int ``[samples]``, an array or a tensor."""
    vision_frames: Any


Passes = Callable[[], Iterator[Batch]]
"""Each call gives one pass over all samples."""


def as_is(batch: Batch) -> Batch:
    """For torch's DataLoader: its own default would walk through every dict and list of a finished batch."""
    return batch


def pack(facts: Sequence[Any], audio: Sequence[np.ndarray], vision: Sequence[np.ndarray]) -> Batch:
    """Features end to end: the cheapest batch of ragged samples."""
    return Batch(
        facts,
        torch.from_numpy(np.concatenate(audio)),
        torch.from_numpy(np.concatenate(vision)),
        np.array([len(a) for a in audio], np.int32),
        np.array([len(v) for v in vision], np.int32),
    )


def serve(
    open_reader: Callable[[dict[str, Any]], Passes],
    prepare: Callable[[dict[str, Any]], None] | None = None,
    packages: Sequence[str] = (),
    load_is_cold: bool = False,
) -> None:
    """Do what the arguments say and print one line of JSON.

    Args:
        open_reader: arguments to passes; opens what the reader needs.
        prepare: converts the samples once, before any measuring.
        packages: distributions whose versions are reported beside torch's and numpy's.
        load_is_cold: the reader loads all samples when it opens, so its cold pass begins there.
    """
    arguments = json.loads(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    if arguments.get("prepare"):
        assert prepare is not None
        prepare(arguments)
        result: dict[str, Any] = {}
    else:
        result = _measure(arguments, open_reader, load_is_cold)
    names = ("torch", "numpy", *packages)
    result["versions"] = {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}
    answer.write(json.dumps(result) + "\n")
    answer.close()


def _measure(
    arguments: dict[str, Any], open_reader: Callable[[dict[str, Any]], Passes], load_is_cold: bool
) -> dict[str, Any]:
    imports = time.time() - arguments["started"]
    truth: dict[str, Any] = json.loads(Path(arguments["truth"]).read_text(encoding="utf-8"))
    cached = drop([Path(name) for name in arguments["files"]])
    opening = time.perf_counter()
    one_pass = open_reader(arguments)
    opened = time.perf_counter()
    batches = one_pass()
    samples = len(next(batches).facts)
    first = time.perf_counter()
    result: dict[str, Any] = {
        "imports": imports, "first_batch": first - opening, "still_cached": cached, "complaint": ""
    }  # fmt: skip
    if arguments.get("first_only"):
        return result
    samples += _count(batches)
    # From before the first batch on: workers fetch more batches while they deliver the first.
    result["cold"] = [samples, time.perf_counter() - (opening if load_is_cold else opened)]
    result["complaint"] = check(one_pass(), truth)
    warm, spent = [], 0.0
    while not result["complaint"] and spent < arguments["seconds"]:
        begin = time.perf_counter()
        count = _count(one_pass())
        seconds = time.perf_counter() - begin
        spent += seconds
        warm.append([count, seconds])
        if count != len(truth):
            result["complaint"] = f"a warm pass gave {count} samples of {len(truth)}"
    return result | {"warm": warm}


def _count(batches: Iterator[Batch]) -> int:
    return sum(len(batch.facts) for batch in batches)


def check(batches: Iterator[Batch], truth: Mapping[str, Any]) -> str:
    """What is wrong with a pass, in one line; empty if every sample came once, with its bytes and facts.

    Args:
        batches: one pass.
        truth: id to ``{"crc": CRC32 of the float32 bytes of audio, then vision, "facts": the JSON}``.
    """
    seen: dict[str, int] = {}
    wrong: list[str] = []
    for batch in batches:
        frames = (batch.audio_frames.tolist(), batch.vision_frames.tolist())
        parts = [_split(x, lengths) for x, lengths in zip((batch.audio, batch.vision), frames, strict=True)]
        for told, audio, vision in zip(batch.facts, *parts, strict=True):
            facts = told if isinstance(told, dict) else told.to_json()
            name = str(facts["id"])
            seen[name] = seen.get(name, 0) + 1
            expected = truth.get(name)
            if expected is None:
                wrong.append(f"{name} was never written")
            elif zlib.crc32(vision, zlib.crc32(audio)) != expected["crc"]:
                wrong.append(f"{name} has other features than were written")
            elif any(_plain(value) != expected["facts"].get(key) for key, value in facts.items()):
                wrong.append(f"{name} has other text or target than was written")
    missing = [name for name in truth if name not in seen]
    twice = [name for name, times in seen.items() if times > 1]
    found = [(len(wrong), "wrong", wrong), (len(missing), "missing", missing), (len(twice), "more than once", twice)]
    return "; ".join(f"{n} of {len(truth)} {what} ({names[0]})" for n, what, names in found if n)


def _split(x: torch.Tensor, lengths: Sequence[int]) -> list[bytes]:
    """The float32 bytes of each sample, without padding."""
    if x.dtype != torch.float32:
        raise TypeError(f"features are {x.dtype}; float32 was written")
    if x.dim() == 3:
        return [x[i, :n].contiguous().numpy().tobytes() for i, n in enumerate(lengths)]
    if sum(lengths) != len(x):
        raise ValueError(f"{len(x)} frames in a batch whose lengths sum to {sum(lengths)}")
    return [part.contiguous().numpy().tobytes() for part in x.split(list(lengths))]


def _plain(value: Any) -> Any:
    """JSON's types: numpy scalars, arrays and tuples that libraries make of numbers and lists become plain again."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value


def drop(files: Sequence[Path]) -> float:
    """Ask the kernel to forget ``files``; returns the share of their pages that it still holds (0: all gone).

    No privilege is needed. It is a request: pages that another process maps stay. What is not on the disk yet stays,
    too, so each file is synced first.
    """
    pages, held = 0, 0
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for path in files:
        resident = resident_pages(path)
        pages += len(resident)
        held += int(resident.sum())
    return held / max(pages, 1)


def resident_pages(path: Path) -> np.ndarray:
    """bool ``[pages]``: which pages of a file are in the page cache; all of them where the kernel does not say.

    It looks without touching. Reading with RWF_NOWAIT instead would start a read-ahead: the first page that is looked
    at brings others in, and whether they arrive in time to be counted is the disk's mood.
    """
    if not path.stat().st_size:
        return np.zeros(0, bool)
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        address, vector = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(flags.ctypes.data)
        failed = libc.mincore(address, ctypes.c_size_t(len(mapped)), vector)
        del view  # a map that is still looked at cannot be closed
    return np.ones(len(flags), bool) if failed else (flags & 1).astype(bool)
