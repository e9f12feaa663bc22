"""Small shard folders that the tests of this folder write for themselves."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from egmf_shards import Sample, ShardError, ShardWriter, Task, Turn
from egmf_shards.format import arrays, index
from egmf_shards.importers.foreign_tars import index_foreign
from egmf_shards.order import dialogues

MOOD = Task(
    name="mood",
    kind="classification",
    questions={"en": "Mood?", "zh": "心情？"},
    labels=("good", "bad"),
    answers={"en": ("good", "bad"), "zh": ("好", "坏")},
)
SCORE = Task(name="score", kind="regression", questions={"en": "Score?"}, convention="mosei", low=-1, high=1, step=0.5)

SampleMaker = Callable[..., Sample]
FolderMaker = Callable[..., Path]
Refusal = Callable[[Callable[[], object], str], None]


@pytest.fixture
def sample() -> SampleMaker:
    """``sample(i, **changes)``: sample number ``i``; every third lacks audio, every fifth is a regression.

    Features change by the name of their stream, ``audio=None``, or all together as ``features``.
    """

    def make(i: int, **changes: object) -> Sample:
        rng = np.random.default_rng(i)
        score = i % 5 == 4
        audio = None if i % 3 == 2 else rng.normal(size=(1 + i % 7, 4)).astype(np.float32)
        base = Sample(
            id=f"toy-{i}",
            text=f"words of {i}, 字",
            language="en",
            task="score" if score else "mood",
            dataset="toy",
            split=("train", "train", "train", "valid", "test")[i % 5],
            modalities=("text", "vision") if audio is None else ("text", "audio", "vision"),
            label=None if score else ("good", "bad")[i % 2],
            value=0.25 if score else None,
            speaker="Ann",
            dialogue=f"d{i // 4}",
            turn=i % 4,
            context=tuple(Turn("Ben", f"turn {k}") for k in range(i % 4)),
        )
        arrays = {"audio": audio, "vision": rng.normal(size=(2, 3)).astype(np.float32)}
        arrays = changes.pop("features", {name: changes.pop(name, array) for name, array in arrays.items()})
        features = {name: array for name, array in arrays.items() if array is not None}
        return replace(base, features=features, **changes)

    return make


@pytest.fixture
def folder(tmp_path: Path, sample: SampleMaker) -> FolderMaker:
    """``folder(name, samples=None, **writer_arguments)``: a finished folder in ``tmp_path``; 30 samples by default."""

    def make(name: str = "toy", samples: Iterable[Sample] | None = None, **arguments: object) -> Path:
        settings: dict = {"dataset": "toy", "tasks": [MOOD, SCORE], "samples_per_shard": 7} | arguments
        with ShardWriter(tmp_path / name, **settings) as writer:
            for one in (sample(i) for i in range(30)) if samples is None else samples:
                writer.write(one)
        return tmp_path / name

    return make


@pytest.fixture
def refused() -> Refusal:
    """``refused(call, message)``: one short line with ``message``, and less than 8 MB taken on the way."""

    def check(call: Callable[[], object], message: str) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(ShardError, match=message) as caught:
                call()
            assert tracemalloc.get_traced_memory()[1] < 8e6
        finally:
            tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    return check


def same(a: Sample, b: Sample) -> bool:
    """Equal in every field, arrays to the bit."""
    if a.to_json() != b.to_json() or a.features.keys() != b.features.keys():
        return False
    return all(np.array_equal(array, b.features[name]) for name, array in a.features.items())


@pytest.fixture
def equal() -> Callable[[Sample, Sample], bool]:
    """``equal(a, b)``: see :func:`same`."""
    return same


@pytest.fixture
def index_cache(tmp_path, monkeypatch) -> Path:
    """A user's cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "egmf" / "index"


@pytest.fixture
def keeping(index_cache, monkeypatch) -> None:
    """What follows from indexes is kept however small and new they are, made in files, and put together in pieces."""
    monkeypatch.setattr(index, "KEPT_FROM", 0)
    monkeypatch.setattr(dialogues, "_KEPT_FROM", 0)
    monkeypatch.setattr(arrays, "SETTLED", 0)
    monkeypatch.setattr(arrays, "HELD", 0)
    monkeypatch.setattr(arrays, "PIECE", 5)


@pytest.fixture
def folders(tmp_path, folder, sample) -> list[Path]:
    """Two folders: one whose splits are neighbours in the index, and one whose splits lie in each other."""

    def of(name: str, count: int) -> list:
        numbers = range(count)
        some = {i: {"dialogue": ""} if i % 7 == 3 else {"dialogue": f"d{i * 5 // 4 % 6}"} for i in numbers}
        return [sample(i, id=f"{name}-{i}", **some[i]) for i in numbers]

    whole, apart = folder("whole", of("w", 41)), folder("apart", of("a", 60))
    members: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {}
    for path in sorted(apart.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                members.setdefault(info.name.partition(".")[0], []).append((info, tar.extractfile(info).read()))
        path.unlink()
    keys = sorted(members, key=lambda key: int(key.partition("-")[2]) * 37 % 61)
    for number in range(3):
        with tarfile.open(apart / f"part-{number}.tar", "w") as tar:
            for info, data in (member for key in keys[number::3] for member in members[key]):
                tar.addfile(info, io.BytesIO(data))
    index_foreign(apart, force=True)
    return [whole, apart]
