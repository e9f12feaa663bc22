"""What the index of a folder costs one process: seconds to open, memory that is held, memory that is mapped.

The index is made for the purpose, of samples that no shard holds: three members each, as text, audio and vision have,
ten samples a dialogue; the shards are files without content. Processes of their own open it, one after another, and ask
the system what they hold: the first goes through all of it and keeps what follows from it, those after it do not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError

MEMBERS = 3
SHARD_SAMPLES = 10_000
MOST = 10**9
GLOBAL_BATCH, BATCHES = 1024, 200
"""What is looked up after opening: so many random global batches, all their members' places."""
ORDERS = ("full", "dialogue")
"""Values of ``data.shuffle``."""
_OFFSETS = 4096
"""Bytes from one member to the next."""


def measure_index(samples: int) -> dict[str, Any]:
    """Measure.

    Args:
        samples: of the folder.

    Returns:
        ``samples``, ``file_bytes``, and for each of :data:`ORDERS` ``first`` and ``later``, one process each:
        ``open_s``, seconds until the first global batch is known; ``peak_held_bytes``, the most private memory
        (``RssAnon``) on the way; then, after opening and, with ``read_`` in front, after :data:`BATCHES` global batches
        were looked up, ``held_bytes`` and ``mapped_bytes`` (``RssFile``), which the system can drop at any time;
        ``batch_s``, seconds to look up one. All bytes are what the process has more than before.

    Raises:
        EgmfError: a number that cannot be, or a process could not open it.
    """
    if not 1 <= samples <= MOST:
        raise EgmfError(f"--samples is {samples}; it must be from 1 to {MOST}")
    from egmf_shards.format.arrays import SETTLED

    with tempfile.TemporaryDirectory(prefix="egmf-index-") as made:
        folder = Path(made, "data")
        folder.mkdir()
        found: dict[str, Any] = {"samples": samples, "file_bytes": write_folder(folder, samples)}
        time.sleep(SETTLED / 1e9)  # nothing is kept of a file that may change again in the same instant
        for order in ORDERS:
            found[order] = {turn: _process(folder, order, samples) for turn in ("first", "later")}
    return found


def _process(folder: Path, order: str, samples: int) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, sys.path))
    own = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(folder.parent / "cache")}
    command = [sys.executable, "-m", "egmf_dist.bench.index", str(folder), order]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip().splitlines()[-1]
        raise EgmfError(f"an index of {samples} samples cannot be opened here: {why}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_folder(folder: Path, samples: int) -> int:
    """Index and empty shards of so many samples in ``folder``; the index's bytes."""
    from egmf_shards.format.index import INDEX_NAME, save_columns

    shards = -(-samples // SHARD_SAMPLES)
    names, size = [f"train-{i:06d}.tar" for i in range(shards)], _OFFSETS * (SHARD_SAMPLES * MEMBERS + 3)
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(size)
    save_columns(folder, ["audio", "vision"], _columns(samples, names, size))
    return (folder / INDEX_NAME).stat().st_size


def write_manifest_of(folder: Path) -> None:
    """The manifest, which names the index's content hash: whoever wants to know that goes through all of it."""
    from egmf_shards.format.index import load_index
    from egmf_shards.format.manifest import MANIFEST_NAME

    index = load_index(folder, check_shards=False)
    own = {"samples": len(index), "utterances": len(index), "labels": {}, "values": {}}
    places = zip(index.shard_names.tolist(), index.shard_sizes.tolist(), strict=True)
    manifest = {
        "schema": 2,
        "dataset": "made",
        "tasks": [
            {"name": "emotion", "kind": "classification", "questions": {"en": "?"}, "labels": ["a", "b"],
             "answers": {"en": ["a", "b"]}}
        ],
        "streams": {"audio": {"dim": 4}, "vision": {"dim": 4}},
        "languages": ["en"],
        "splits": {"train": own | {"missing": {"text": 0, "audio": 0, "vision": 0}}},
        "shards": [{"name": name, "size": size, "samples": SHARD_SAMPLES} for name, size in places],
        "index": index.content_hash,
        "source": {},
    }  # fmt: skip
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")


def _columns(samples: int, names: Sequence[str], size: int) -> dict[str, Any]:
    from egmf_shards.format.arrays import Pieces, pieces

    digits = max(9, len(str(samples)))

    def column(kind: str, count: int, made: Callable[[np.ndarray], np.ndarray]) -> Pieces:
        parts = (made(np.arange(part.start, part.stop)).astype(kind) for part in pieces(count))
        return Pieces(kind, count, parts)

    def keys(number: np.ndarray) -> np.ndarray:
        """Digits in no order: 7,654,321 shares no factor with a power of ten."""
        mixed = number * 7_654_321 % 10**digits
        letters = [mixed // 10**place % 10 + ord("0") for place in reversed(range(digits))]
        return np.stack(letters, axis=1).astype("<u4").view(f"<U{digits}").reshape(-1)

    per_sample: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "key": (f"<U{digits}", keys),
        "split": ("|u1", lambda n: n * 0),
        "task": ("<i4", lambda n: n * 0),
        "text_chars": ("<i4", lambda n: n * 0 + 40),
        "target": ("|u1", lambda n: n * 0 + 1),
        "audio_frames": ("<i4", lambda n: n * 0 + 30),
        "vision_frames": ("<i4", lambda n: n * 0 + 30),
        "dialogue": ("<i4", lambda n: n // 10),
    }
    per_member: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "member_kind": ("|u1", lambda m: m % MEMBERS),
        "member_shard": ("<i4", lambda m: m // (SHARD_SAMPLES * MEMBERS)),
        "member_offset": ("<i8", lambda m: _OFFSETS * (m % (SHARD_SAMPLES * MEMBERS)) + 512),
        "member_size": ("<i8", lambda m: m * 0 + 2048),
        "member_crc": ("<u4", lambda m: m * 2654435761 % 2**32),
    }
    return {
        "shard_names": np.array(names),
        "shard_sizes": np.full(len(names), size, np.int64),
        "task_names": np.array(["emotion"]),
        "first_member": column("<i8", samples + 1, lambda n: n * MEMBERS),
        **{name: column(kind, samples, made) for name, (kind, made) in per_sample.items()},
        **{name: column(kind, samples * MEMBERS, made) for name, (kind, made) in per_member.items()},
    }


def held() -> tuple[int, int]:
    """Bytes of this process's memory that are its own, and that are pages of files."""
    with open("/proc/self/status", encoding="utf-8") as file:
        found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.MULTILINE)}
    return found["RssAnon"] + found["RssShmem"], found["RssFile"]


class _Peak:
    """The most of its own memory that the process has while it is entered."""

    def __enter__(self) -> _Peak:
        self.most, self._over = held()[0], threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, held()[0])

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        self.most = max(self.most, held()[0])


def _global_batches(length: int) -> Iterator[int]:
    yield from np.random.default_rng(0).integers(0, max(1, length - GLOBAL_BATCH), BATCHES).tolist()


def main(folder: str, order: str) -> None:
    """What a process of its own does: open, look up, and say what it holds."""
    from egmf_shards import ShardSet, Stream, StreamOptions

    before = held()
    with _Peak() as peak:
        begin = time.perf_counter()
        if not Path(folder, "manifest.json").exists():
            write_manifest_of(Path(folder))
        shards = ShardSet.open([folder], "train")
        sizes = {"global_batch": GLOBAL_BATCH, "micro_batch": GLOBAL_BATCH, "rank": 0, "world": 1}
        stream = Stream(shards, seed=0, options=StreamOptions(dialogues=order == "dialogue"), **sizes)
        stream.plan(0)
        seconds = time.perf_counter() - begin
    said: dict[str, Any] = {"read": len(shards), "open_s": seconds, "peak_held_bytes": peak.most - before[0]}
    opened = held()
    begin = time.perf_counter()
    for position in _global_batches(len(shards)):
        numbers = np.array([slot.index for slot in stream.global_slots(position)])
        found = shards.table.columns.find(numbers)
        shards.table.columns.take("key", found, len(numbers))
        shards.table.columns.members(found, len(numbers))
    said["batch_s"] = (time.perf_counter() - begin) / BATCHES
    for name, now in (("", opened), ("read_", held())):
        said |= {f"{name}held_bytes": now[0] - before[0], f"{name}mapped_bytes": now[1] - before[1]}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
