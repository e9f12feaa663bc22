"""Samples a second of each reader: the same samples, batches of 32, one machine, one run.

A process opens one data set in one way and makes a cold pass, a checked pass and warm passes. The processes of all
readers take turns, so that a busy moment of the machine does not hit one of them alone. Three such rounds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egmf_dist.bench import samples as made
from egmf_dist.bench.environments import clean_environment, is_built, python_of
from egmf_dist.bench.machine import machine
from egmf_dist.bench.run_peer import run_peer
from egmf_dist.errors import EgmfError

KIND = "data readers"
OURS = "ours"
BATCH = 32
SHARDS = 8
"""Tars a data set, so that two workers have equal shares."""
FEW = 8
"""Samples a tar in the set of many shards; and how many small samples there are for a large one."""
SAMPLES, QUICK_SAMPLES, FEWEST = 8000, 1000, 512
ROUNDS = 3
DISK_BYTES = 500_000
"""Room for a small sample and its share of the large ones, in all formats."""
WARM_SECONDS, QUICK_SECONDS = 1.0, 0.1
STATES = ("warm", "cold")
PEERS = Path(__file__).with_name("peers")

Way = tuple[str, dict[str, Any]]
_WORKERS: tuple[Way, ...] = (("0 workers", {"workers": 0}), ("2 workers", {"workers": 2}))


@dataclass(frozen=True)
class Reader:
    """One library, and the ways in which it is measured; the best one counts."""

    title: str
    ways: tuple[Way, ...] = _WORKERS
    converts: bool = False
    """It reads files that are made of the tars first."""
    many_shards: bool = True
    """It reads the tars, so it can be given 1,000 of them."""


READERS = {
    OURS: Reader("this project"),
    "webdataset": Reader("WebDataset"),
    "energon": Reader("Megatron Energon", converts=True),
    "mds": Reader(
        "MosaicML MDS",
        ways=tuple(
            (f"{how}, {workers} workers", {"workers": workers, "by_number": how == "by number"})
            for how in ("stream", "by number")
            for workers in (0, 2)
        ),
        converts=True,
        many_shards=False,
    ),
    "ray": Reader("Ray Data", ways=(("1 core", {"workers": 1}), ("2 cores", {"workers": 2}))),
    "pickle": Reader("padded pickle", converts=True, many_shards=False),
}
PEER_NAMES = tuple(name for name in READERS if name != OURS)

NOTES = (
    "Every reader gives batches of 32 with decoded JSON and float32 torch tensors, features end to end (the pickle: "
    "padded). One thread a process. Best of its ways (workers, cores) by the median of the rounds.",
    "This project reads in global random order and checks the CRC32 of every member. The others read in the order of "
    "their files, which is faster for them than their shuffle, and check no payload.",
    "The padded pickle is in memory: its warm pass reads no file and decodes nothing. Its layout has no speaker and no "
    "context. Its cold pass begins with loading the file.",
    "Cold: the first pass, with the start of workers; before, the page cache was asked to drop the files "
    "(POSIX_FADV_DONTNEED). What lies below the kernel (a host's cache, a drive's own) stays warm. MB/s counts the "
    "payload: JSON and .npy members.",
    "First batch: from opening the data set to the first batch, imports not included, files dropped from the page "
    "cache before; for Ray with the start of its processes.",
)


@dataclass
class _Plan:
    """What is measured once in each round."""

    reader: str
    size: str
    way: str
    arguments: dict[str, Any]
    results: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


def measure_data(
    out: Path,
    *,
    samples: int | None = None,
    quick: bool = False,
    peers: Sequence[str] = PEER_NAMES,
    environments: Path | None,
    progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure all readers; the data lie in a folder inside ``out`` that is removed at the end.

    Args:
        out: folder that is there.
        samples: how many of 27 KB; an eighth of it of 300 KB. None for 8,000, or 1,000 if ``quick``.
        quick: one round instead of three, short warm passes.
        peers: names of :data:`PEER_NAMES`.
        environments: folder of the peers' environments; None: they run in this one.
        progress: called with what is done, how many steps are, and how many there are.
        say: called with a line for a person.

    Returns:
        The summary, without its files.

    Raises:
        EgmfError: a peer that is not known, too few samples, no room; our own reader failed.
    """
    samples = (QUICK_SAMPLES if quick else SAMPLES) if samples is None else samples
    unknown = [name for name in peers if name not in PEER_NAMES]
    if unknown:
        raise EgmfError(f"--peers names {unknown[0]!r}; it may name {', '.join(PEER_NAMES)}")
    if samples < FEWEST:
        raise EgmfError(f"--samples is {samples}; at least {FEWEST} are needed, so that there are batches to time")
    free = shutil.disk_usage(out).free
    if free < samples * DISK_BYTES:
        raise EgmfError(
            f"--out {out}: {free / 1e9:.1f} GB are free; {samples} samples in all formats need "
            f"{samples * DISK_BYTES / 1e9:.1f} GB"
        )
    bench = _Bench(environments, progress, say, 1 if quick else ROUNDS, QUICK_SECONDS if quick else WARM_SECONDS)
    with tempfile.TemporaryDirectory(prefix=".data-", dir=out) as folder:
        try:
            return bench.run(Path(folder), samples, [OURS, *peers])
        except OSError as error:
            raise EgmfError(
                f"--out {out}: {error.strerror or error}; it must be a folder that can be written"
            ) from error


class _Bench:
    def __init__(
        self,
        environments: Path | None,
        progress: Callable[[str, int, int], None],
        say: Callable[[str], None],
        rounds: int,
        seconds: float,
    ) -> None:
        self.environments, self.progress, self.say = environments, progress, say
        self.rounds, self.seconds = rounds, seconds
        self.python: dict[str, Path | str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.notes: list[str] = []
        self.payload: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.done, self.steps = 0, 0

    def run(self, folder: Path, samples: int, readers: Sequence[str]) -> dict[str, Any]:
        """Build, write, convert, measure, put together."""
        sizes = {"27kb": (made.SMALL, samples), "300kb": (made.LARGE, samples // FEW)}
        self.steps = len(readers) * 2 + len(sizes)
        readers = [name for name in readers if self._find_python(name)]
        for key, (size, count) in sizes.items():
            self._step(f"writing {count} samples of {size.name}")
            self.payload[key] = made.write(size, count, folder / key, -(-count // SHARDS))
            self.counts[key] = count
        many = folder / "many"
        made.write(made.SMALL, samples, many, FEW)
        plans = [plan for key in sizes for plan in self._plans(folder / key, key, readers)]
        first = self._plans(many, "many", readers)
        self.steps = self.done + self.rounds * (len(plans) + len(first))
        for _ in range(self.rounds):
            for plan in (*plans, *first):
                self._measure(plan)
        return self._summary(plans, first, len(list((many / "shards").glob("*.tar"))))

    def _step(self, doing: str) -> None:
        self.progress(doing, self.done, max(self.steps, self.done + 1))
        self.done += 1

    def _find_python(self, name: str) -> bool:
        if name == OURS or self.environments is None:
            self.python[name] = sys.executable
            return True
        building = not is_built(name, self.environments)
        self._step(f"{'building' if building else 'found'} the environment of {READERS[name].title}")
        try:
            self.python[name] = python_of(name, self.environments)
        except EgmfError as error:
            self._missing(name, str(error))
            return False
        return True

    def _missing(self, name: str, reason: str) -> None:
        line = f"{READERS[name].title} is not measured: {reason}"
        if line not in self.notes:
            self.notes.append(line)
            self.say(line)

    def _plans(self, folder: Path, key: str, readers: Sequence[str]) -> list[_Plan]:
        """One data set's measurements; converts the samples for the readers that want that."""
        plans = []
        for name in readers:
            reader, source = READERS[name], folder / "shards"
            if name not in self.python or (key == "many" and not reader.many_shards):
                continue
            data = folder / name if reader.converts else source
            if reader.converts:
                self._step(f"converting for {reader.title}")
                data.mkdir()
                try:
                    self._call(name, {"prepare": True, "source": str(source), "data": str(data)})
                except EgmfError as error:
                    self._missing(name, str(error))
                    del self.python[name]
                    continue
            files = sorted(str(path) for path in data.iterdir() if path.suffix in (".tar", ".mds", ".pkl"))
            common = {"data": str(data), "files": files, "truth": str(folder / "truth.json"), "batch": BATCH}
            ways = reader.ways[:1] if key == "many" else reader.ways
            for way, arguments in ways:
                extra = {"seconds": self.seconds, "first_only": key == "many"}
                plans.append(_Plan(name, key, way, common | arguments | extra))
        return plans

    def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        own = self.python[name] == sys.executable
        environment = dict(os.environ) if own else clean_environment()
        result = run_peer(self.python[name], PEERS / f"read_{name}.py", arguments, environment)
        self.versions[name] = result["versions"]
        return result

    def _measure(self, plan: _Plan) -> None:
        reader = READERS[plan.reader]
        self._step(f"{reader.title}, {plan.size}, {plan.way}")
        if plan.error:
            return
        try:
            result = self._call(plan.reader, plan.arguments)
        except EgmfError as error:
            if plan.reader == OURS:
                raise EgmfError(f"our own reader failed on {plan.size}, {plan.way}: {error}") from error
            plan.error = str(error)
            self._missing(plan.reader, f"{plan.size}, {plan.way}: {plan.error}")
            return
        if result["complaint"]:
            plan.error = f"wrong data: {result['complaint']}"
            self.say(f"{reader.title}, {plan.size}, {plan.way}: {plan.error}")
        plan.results.append(result)

    def _summary(self, plans: Sequence[_Plan], first: Sequence[_Plan], shards: int) -> dict[str, Any]:
        rows = [row for plan in plans for row in self._rows(plan)]
        for row in rows:
            rivals = [r for r in rows if all(r[k] == row[k] for k in ("reader", "size", "state"))]
            row["best"] = row["samples_per_s"] is not None and row is max(
                rivals, key=lambda r: r["samples_per_s"] or 0.0
            )
        best = {(row["size"], row["reader"], row["state"]): row["samples_per_s"] for row in rows if row["best"]}
        firsts = [self._first_row(plan, shards) for plan in first]
        figures = {".".join(key): value for key, value in best.items()}
        figures |= {f"first_batch_{shards}_shards.{r['reader']}": r["first_batch_s"] for r in firsts if not r["error"]}
        ours = best.get(("27kb", OURS, "warm"))
        ratios = {
            f"vs_{name}": round(ours / best["27kb", name, "warm"], 3)
            if ours and best.get(("27kb", name, "warm"))
            else None
            for name in PEER_NAMES
        }
        return {
            "kind": KIND,
            "machine": machine(),
            "versions": self.versions,
            "correct": not any(plan.error.startswith("wrong data") for plan in (*plans, *first)),
            "rounds": self.rounds,
            "samples": self.counts,
            "payload_bytes": {key: round(value) for key, value in self.payload.items()},
            "figures": figures,
            "ratios": ratios,
            "notes": [*self.notes, *_still_cached(rows), *NOTES],
            "rows": rows,
            "first_batch": firsts,
        }

    def _rows(self, plan: _Plan) -> list[dict[str, Any]]:
        rows = []
        for state in STATES:
            speeds: list[float] = []
            for result in plan.results if not plan.error else ():
                passes = result["warm"] if state == "warm" else [result["cold"]]
                count, seconds = map(sum, zip(*passes, strict=True))
                if count:
                    speeds.append(count / seconds)
            middle = statistics.median(speeds) if speeds else None
            rows.append(
                {
                    "reader": plan.reader,
                    "size": plan.size,
                    "way": plan.way,
                    "state": state,
                    "samples_per_s": _round(middle),
                    "min": _round(min(speeds, default=None)),
                    "max": _round(max(speeds, default=None)),
                    "mb_per_s": _round(middle and middle * self.payload[plan.size] / 1e6),
                    "first_batch_s": _median(plan, "first_batch"),
                    "imports_s": _median(plan, "imports"),
                    "still_cached": max((r["still_cached"] for r in plan.results), default=None),
                    "rounds": len(speeds),
                    "error": plan.error,
                }
            )
        return rows

    def _first_row(self, plan: _Plan, shards: int) -> dict[str, Any]:
        return {
            "reader": plan.reader,
            "shards": shards,
            "way": plan.way,
            "first_batch_s": _median(plan, "first_batch"),
            "imports_s": _median(plan, "imports"),
            "error": plan.error,
        }


def _still_cached(rows: Sequence[dict[str, Any]]) -> list[str]:
    most = max(rows, key=lambda row: row["still_cached"] or 0.0)
    if not most["still_cached"]:
        return []
    where = f"{READERS[most['reader']].title}, {most['size']}, {most['way']}"
    return [f"cold passes were not all cold: {most['still_cached']:.0%} of the pages looked at were cached ({where})"]


def _median(plan: _Plan, key: str) -> float | None:
    values = [result[key] for result in plan.results]
    return round(statistics.median(values), 4) if values else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
