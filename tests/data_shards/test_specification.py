"""docs/shard-format.md is enough to read shards, and names everything the code has."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
from foreign_tars import DIMS, TASKS, foreign, record, tasks_file

import egmf_shards
from egmf_shards import ShardSet
from egmf_shards.check.verify import verify
from egmf_shards.format.index import load_index
from egmf_shards.format.index_checks import COLUMN_TYPES
from egmf_shards.format.rules import FIELDS
from egmf_shards.importers.foreign_tars import index_foreign


def test_a_program_that_knows_only_the_specification(tmp_path):
    """Index and manifest from ``docs/shard-format.md`` with tarfile, numpy and hashlib alone: sound, and opened."""
    out = foreign(tmp_path / "foreign", [record(i) for i in range(8)], None)
    kinds, splits = ["json", "audio.npy", "vision.npy"], ["train", "valid", "test"]
    rows: list[tuple] = []
    members: list[tuple] = []
    names = sorted(p.name for p in out.glob("*.tar"))
    samples: list[dict] = []
    for number, name in enumerate(names):
        raw = (out / name).read_bytes()
        with tarfile.open(out / name) as tar:
            for info in tar:
                key, _, kind = info.name.partition(".")
                data = raw[info.offset_data : info.offset_data + info.size]
                if not rows or rows[-1] != (key, number):
                    rows.append((key, number))
                    samples.append({"first": len(members)})
                samples[-1][kind] = json.loads(data) if kind == "json" else np.load(io.BytesIO(data))
                members.append((kinds.index(kind), number, info.offset_data, info.size, zlib.crc32(data)))
    tasks = list(dict.fromkeys(s["json"]["task"] for s in samples))
    kind, shard, offset, size, crc = zip(*members, strict=True)
    arrays = {
        "shard_names": np.array(names),
        "shard_sizes": np.array([(out / n).stat().st_size for n in names], np.int64),
        "task_names": np.array(tasks),
        "key": np.array([key for key, _ in rows]),
        "split": np.array([splits.index(s["json"]["split"]) for s in samples], np.uint8),
        "task": np.array([tasks.index(s["json"]["task"]) for s in samples], np.int32),
        "text_chars": np.array([len(s["json"]["text"]) for s in samples], np.int32),
        "audio_frames": np.array([len(s.get("audio.npy", ())) for s in samples], np.int32),
        "vision_frames": np.array([len(s.get("vision.npy", ())) for s in samples], np.int32),
        "first_member": np.array([*(s["first"] for s in samples), len(members)], np.int64),
        "member_kind": np.array(kind, np.uint8),
        "member_shard": np.array(shard, np.int32),
        "member_offset": np.array(offset, np.int64),
        "member_size": np.array(size, np.int64),
        "member_crc": np.array(crc, np.uint32),
    }
    digest = hashlib.sha256(b"egmf index 1")
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    np.savez(out / "index.npz", version=np.int64(1), **arrays)
    counted: dict[str, dict] = {}
    for split in splits:
        inside = [s["json"] for s in samples if s["json"]["split"] == split]
        values = [s["value"] for s in inside if "value" in s]
        moments = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max} if values else {}
        good = sum(s.get("label") == "good" for s in inside)
        counted[split] = {
            "samples": len(inside),
            "utterances": len(inside),
            "labels": {"mood": {"good": good, "bad": 0}} if good else {},
            "values": {"score": {"count": len(values)} | {n: float(f(values)) for n, f in moments.items()}}
            if values
            else {},
            "missing": {m: sum(m not in s["modalities"] for s in inside) for m in ("text", "audio", "vision")},
        }
    counts = [sum(n == i for _, n in rows) for i in range(len(names))]
    manifest = {
        "schema": 1,
        "dataset": "foreign",
        "tasks": TASKS,
        "dims": DIMS,
        "languages": ["en"],
        "splits": counted,
        "shards": [
            {"name": n, "size": (out / n).stat().st_size, "samples": c} for n, c in zip(names, counts, strict=True)
        ],
        "index": digest.hexdigest(),
        "source": {},
    }
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    report = verify(out)
    assert report.ok, list(map(str, report.problems))
    assert len(ShardSet.open([out], "train")) == 4
    (out / "index.npz").unlink()
    (out / "manifest.json").unlink()
    assert index_foreign(out, tasks_file(tmp_path))["index"] == manifest["index"], "both programs agree on the index"


def test_the_specification_names_everything_the_code_has(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "shard-format.md").read_text(encoding="utf-8")
    out = foreign(tmp_path / "foreign", [record(i) for i in range(4)])
    manifest = index_foreign(out)
    index = load_index(out)
    with np.load(out / "index.npz") as written:
        assert len(written.files) == len(COLUMN_TYPES) + 3 + len(index.frames)
        for name in written.files:
            kind, column = written[name].dtype, "STREAM_frames" if name.endswith("_frames") else name
            assert f"\n| `{column}` | {'str' if kind.kind == 'U' else kind.name} |" in text
    for name in (*manifest, *manifest["splits"]["train"]):
        assert f"\n| `{name}` |" in text
    for name in FIELDS:
        assert f"\n| `{name}` |" in text
    package = Path(egmf_shards.__file__).parent
    modules = ("check/scan.py", "check/verify.py", "format/tar_walk.py")
    source = "".join((package / name).read_text(encoding="utf-8") for name in modules)
    kinds = set(re.findall(r'(?:report\.add|report)\("([a-z ]+)"', source)) | {"schema", "features", "leakage"}
    assert len(kinds) > 15
    for kind in kinds:
        assert f"`{kind}`" in text
