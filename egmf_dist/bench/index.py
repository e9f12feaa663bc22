"""What the index of a folder costs one process: seconds to open, memory that stays.

The index is made for the purpose, of samples that no shard holds: three members each, as text, audio and vision have.
A process of its own opens it and asks the system what it holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError

MEMBERS = 3
SHARD_SAMPLES = 10_000
MOST = 10**9


def measure_index(samples: int) -> dict[str, Any]:
    """Measure.

    Args:
        samples: of the folder.

    Returns:
        ``samples``, ``file_bytes``, ``open_s``, ``resident_bytes`` (what the process holds more than before, its own
        and mapped pages together), ``private_bytes`` (its own alone).

    Raises:
        EgmfError: a number that cannot be, or the process could not open it.
    """
    if not 1 <= samples <= MOST:
        raise EgmfError(f"--samples is {samples}; it must be from 1 to {MOST}")
    with tempfile.TemporaryDirectory(prefix="egmf-index-") as folder:
        size = write_index(Path(folder), samples)
        own = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "egmf_dist.bench.index", folder]
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            why = f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip().splitlines()[-1]
            raise EgmfError(f"an index of {samples} samples ({size} bytes) cannot be opened here: {why}")
        found: dict[str, Any] = json.loads(done.stdout)
    return {"samples": samples, "file_bytes": size, **found}


def write_index(folder: Path, samples: int) -> int:
    """An index of so many samples in ``folder``; its bytes."""
    from egmf_shards.format.index import INDEX_NAME, Index, save_index

    shards, members = -(-samples // SHARD_SAMPLES), samples * MEMBERS
    number = np.arange(samples, dtype=np.int64)
    member = np.arange(members, dtype=np.int64)
    inside = member % (SHARD_SAMPLES * MEMBERS)
    digits = max(9, len(str(samples)))
    index = Index(
        shard_names=np.array([f"train-{i:06d}.tar" for i in range(shards)]),
        shard_sizes=np.full(shards, 4096 * (SHARD_SAMPLES * MEMBERS + 3), np.int64),
        task_names=np.array(["emotion"]),
        key=np.char.zfill(number.astype(f"<U{digits}"), digits),
        split=np.zeros(samples, np.uint8),
        task=np.zeros(samples, np.int32),
        text_chars=np.full(samples, 40, np.int32),
        target=np.ones(samples, np.uint8),
        first_member=np.arange(0, members + 1, MEMBERS, dtype=np.int64),
        member_kind=np.tile(np.arange(MEMBERS, dtype=np.uint8), samples),
        member_shard=(member // (SHARD_SAMPLES * MEMBERS)).astype(np.int32),
        member_offset=4096 * inside + 512,
        member_size=np.full(members, 2048, np.int64),
        member_crc=(member * 2654435761 % 2**32).astype(np.uint32),
        frames={name: np.full(samples, 30, np.int32) for name in ("audio", "vision")},
        dialogue=(number // 10).astype(np.int32),
    )
    save_index(folder, index)
    return (folder / INDEX_NAME).stat().st_size


def main(folder: str) -> None:
    """What the process of its own does: open, and say what it holds."""
    import psutil

    from egmf_shards.format.index import load_index

    process = psutil.Process()
    before = process.memory_info().rss, process.memory_full_info().uss
    begin = time.perf_counter()
    index = load_index(Path(folder), check_shards=False)
    seconds = time.perf_counter() - begin
    resident = process.memory_info().rss - before[0]
    private = process.memory_full_info().uss - before[1]
    print(json.dumps({"open_s": seconds, "resident_bytes": resident, "private_bytes": private, "read": len(index)}))


if __name__ == "__main__":
    main(sys.argv[1])
