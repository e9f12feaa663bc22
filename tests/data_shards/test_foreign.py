"""Files that are something else than their name says: every verb that reads one says what it is and what to do."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egmf_dist.config.task_file import read_task
from egmf_dist.errors import EgmfError
from egmf_shards import (
    ShardError,
    ShardSet,
    Task,
    import_cherma,
    import_jsonl,
    import_label_csv,
    import_meld,
    import_mmsa,
)
from egmf_shards.check.verify import verify
from egmf_shards.foreign_files import foreign_kind
from egmf_shards.format.index_build import build_index
from egmf_shards.importers.foreign_tars import index_foreign
from egmf_shards.importers.unpickle import load_pickle

TASK = Task(name="t", kind="regression", questions={"en": "?"}, low=-1, high=1, step=0.5)
KINDS = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer, .*git lfs pull",
    ),
    "web page": (b"\xef\xbb\xbf\n <!DOCTYPE html><title>Virus scan warning</title>", "a web page .* download it again"),
    "gzip": (gzip.compress(b"x" * 2000), "a gzip archive; unpack it first"),
    "zip": (b"PK\x03\x04" + bytes(600), "a zip archive; unpack it first"),
}
SPLITS = ("train", "valid", "test")


def meld(folder: Path, data: bytes, out: Path) -> Any:
    for name in ("train", "dev", "test"):
        (folder / f"{name}_sent_emo.csv").write_bytes(data)
    return import_meld(folder, out)


def cherma(folder: Path, data: bytes, out: Path) -> Any:
    for name in ("audio", "visual"):
        (folder / name).mkdir()
    for name in SPLITS:
        (folder / f"{name}.json").write_bytes(data)
    return import_cherma(folder, out)


def csd(folder: Path, data: bytes, out: Path) -> Any:
    pytest.importorskip("h5py")
    from egmf_shards import import_csd

    (folder / "Labels.csd").write_bytes(data)
    (folder / "folds.json").write_text('{"train": ["v"]}')
    return import_csd(folder, out, "mosi", folder / "folds.json")


def one(name: str, call: Callable[[Path, Path], Any]) -> Callable[[Path, bytes, Path], Any]:
    def read(folder: Path, data: bytes, out: Path) -> Any:
        (folder / name).write_bytes(data)
        return call(folder / name, out)

    return read


READERS: dict[str, Callable[[Path, bytes, Path], Any]] = {
    "label-csv": one("l.csv", lambda path, out: import_label_csv(path, out, "d", "zh")),
    "meld": meld,
    "jsonl": one("d.jsonl", lambda path, out: import_jsonl(path, out, "d", TASK)),
    "mmsa": one("p.pkl", lambda path, out: import_mmsa(path, out, "sims")),
    "cherma": cherma,
    "csd": csd,
    "index": one("a.tar", lambda path, out: index_foreign(path.parent, tasks(path.parent))),
    "build_index": one("a.tar", lambda path, out: build_index(path.parent, [path.name])),
    "tasks.json": one("tasks.json", lambda path, out: index_foreign(empty_tar(path.parent))),
    "task file": one("t.yaml", lambda path, out: read_task(path)),
    "load_pickle": one("p.pkl", lambda path, out: load_pickle(path)),
}  # fmt: skip


def tasks(folder: Path) -> Path:
    (folder / "tasks.json").write_text(json.dumps([TASK.to_json()]), encoding="utf-8")
    return folder / "tasks.json"


def empty_tar(folder: Path) -> Path:
    tarfile.open(folder / "a.tar", "w").close()
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_each_reader_says_what_the_file_is(reader, kind, tmp_path):
    data, message = KINDS[kind]
    (tmp_path / "in").mkdir()
    with pytest.raises((ShardError, EgmfError), match=message) as caught:
        READERS[reader](tmp_path / "in", data, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "in") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", KINDS)
def test_verify_names_a_shard_that_is_something_else(kind, folder):
    out = folder()
    (out / "train-000000.tar").write_bytes(KINDS[kind][0])
    (problem,) = [p for p in verify(out).problems if p.kind == "header"]
    assert problem.shard == "train-000000.tar"
    assert "a shard is an uncompressed tar" in problem.what


@pytest.mark.parametrize("name", ["manifest.json", "index.npz"])
def test_a_folder_cloned_without_git_lfs(name, folder):
    out = folder()
    (out / name).write_bytes(KINDS["Git LFS"][0])
    with pytest.raises(ShardError, match=f"{name}: not a readable .*a Git LFS pointer"):
        ShardSet.open([out], "train")


class Tensor:
    """Pickled as torch pickles its own: by a name of its modules."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        import torch

        return torch.tensor, ()


@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_torch_says_how_to_save_it_as_numpy(new, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "p.pkl"
    torch.save({"train": torch.ones(3)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ShardError, match=r"p.pkl: written by torch.save; read it with torch.load .*tensor.numpy"):
        import_mmsa(path, tmp_path / "out", "sims")
    path.write_bytes(pickle.dumps({"train": {"audio": torch.ones(3)}}))
    with pytest.raises(ShardError, match=r"asks for 'torch.*it holds tensors, .*tensor.numpy"):
        import_mmsa(path, tmp_path / "out", "sims")


def test_what_a_data_sets_own_files_begin_with_is_nothing_foreign(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    for data in (
        b"",
        b"video_id,clip_id",
        b"[{",
        b"\x89HDF\r\n\x1a\n",
        pickle.dumps([1], 4),
        (tmp_path / "x.npy").read_bytes(),
    ):
        assert foreign_kind(data) == ""


@pytest.mark.parametrize("form", ["list", "0-d", "[N, 1]", "[N, 1, 1]", "text", "text in arrays", "float32"])
def test_labels_lengths_and_ids_in_any_container(form, tmp_path):
    """What pandas, torch's collate or a loop leave of a column."""

    def column(values: list[Any]) -> Any:
        array = np.array(values)
        numeric = array.dtype.kind in "fi"
        return {
            "list": values,
            "0-d": [np.array(v) for v in values],
            "[N, 1]": array[:, None],
            "[N, 1, 1]": array[:, None, None],
            "text": [str(v) for v in values],
            "text in arrays": array.astype(str)[:, None],
            "float32": array.astype(np.float32) if numeric else values,
        }[form]

    data = {}
    for split in SPLITS:
        audio = np.concatenate([np.ones((2, 3, 4)), np.zeros((2, 2, 4))], axis=1)
        data[split] = {"id": column([f"{split}$_$1", f"{split}$_$2"]), "raw_text": column(["x", "y"]), "audio": audio}
        data[split] |= {"regression_labels": column([-1.0, 0.4]), "audio_lengths": column([3, 3])}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(data))
    import_mmsa(tmp_path / "p.pkl", tmp_path / "out", "sims")
    samples = list(ShardSet.open([tmp_path / "out"], "train"))
    assert [s.value for s in samples] == pytest.approx([-1.0, 0.4])
    assert [(s.id, s.text, len(s.features["audio"])) for s in samples] == [
        ("sims-train-1", "x", 3),
        ("sims-train-2", "y", 3),
    ]


@pytest.mark.parametrize("label", ["much", None, [1.0, 2.0], np.ones(2), True, np.array("x")])
def test_a_label_that_is_no_number_says_so(label, tmp_path):
    split = {"id": ["v$_$1"], "raw_text": ["x"], "regression_labels": [label]}
    data = {"train": split} | {
        name: split | {"id": [f"{name}$_$1"]} | {"regression_labels": [0.0]} for name in SPLITS[1:]
    }
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(
        ShardError, match=r"p.pkl, train, row 0, id 'v\$_\$1': regression_labels is .*; a number is needed"
    ):
        import_mmsa(tmp_path / "p.pkl", tmp_path / "out", "sims")


@pytest.mark.parametrize("digits", [400, 5000])
def test_thousands_of_digits_are_one_line_everywhere(digits, tmp_path):
    number = "1" * digits
    (tmp_path / "d.jsonl").write_text(f'{{"id": "a", "split": "train", "text": "x", "value": {number}}}')
    with pytest.raises(
        ShardError, match=r"d.jsonl, line 1: (not JSON .a whole number|value a number beyond)"
    ) as caught:
        import_jsonl(tmp_path / "d.jsonl", tmp_path / "out", "d", TASK)
    assert len(str(caught.value)) < 300
    (tmp_path / "t.yaml").write_text(
        f"name: x\nkind: regression\nquestions: {{en: q}}\nlow: -{number}\nhigh: 1\nstep: 1\n"
    )
    with pytest.raises((ShardError, EgmfError), match=r"t.yaml: (not YAML .a whole number|task 'x': low is a number)"):
        read_task(tmp_path / "t.yaml")
    (tmp_path / "tasks.json").write_text(f'{{"low": {number}}}')
    empty_tar(tmp_path)
    with pytest.raises(ShardError, match=r"tasks.json: (not a readable JSON file .a whole number|a task is malformed)"):
        index_foreign(tmp_path)
