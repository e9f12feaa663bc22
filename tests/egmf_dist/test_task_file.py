"""Tasks from YAML: the shipped example, and what a broken file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from egmf_dist import recipe_files
from egmf_dist.config.task_file import read_task
from egmf_dist.errors import EgmfError
from egmf_dist.recipe_files import EXAMPLE_TASK
from egmf_shards import ShardError

EXAMPLE = Path(__file__).parents[2] / "configs" / "tasks" / "example.yaml"


def test_the_example_is_a_task():
    task = read_task(EXAMPLE)
    assert (task.name, task.kind, task.languages) == ("mood", "classification", ("en", "zh"))
    assert task.legal_answers("zh") == ("平静", "紧张", "愉快")


REGRESSION = "name: x\nkind: regression\nquestions: {en: q}\nlow: -1.0\nhigh: 1.0\nconvention: sims\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name: [", EgmfError, "not YAML"),
        ("- a", EgmfError, "must hold the fields of one task"),
        ("name: x", ShardError, "a task is malformed"),
        ("name: x\nkind: regression\nquestions: {en: q}\nlow: 1\nhigh: 0\nstep: 1", ShardError, "low < high"),
        ("name: x\nkind: regression\nquestions: {en: q}\ncolour: 1", ShardError, "a task is malformed"),
        (REGRESSION + "step: 0.3", ShardError, "task .*task.yaml: task 'x': step 0.3 does not divide the range"),
        (REGRESSION.replace("1.0", "5.0") + "step: 0.5", ShardError, "convention 'sims' needs the range .*-1, 1"),
        (REGRESSION + "step: " + "1" * 5000, EgmfError, "not YAML .a whole number of more than 4300 digits"),
        ("version https://git-lfs.github.com/spec/v1", EgmfError, "a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, error, message):
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message) as found:
        read_task(path)
    assert "\n" not in str(found.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(EgmfError, match=r"cannot be read .*see configs/tasks/example.yaml"):
        read_task(tmp_path / "none.yaml")


def test_the_example_is_named_where_it_can_be_opened(tmp_path, monkeypatch):
    """In a folder that is no clone, and where only the wheel is installed."""
    installed = tmp_path / "site" / "egmf_dist" / "recipes" / "configs"
    (installed / "tasks").mkdir(parents=True)
    (installed / EXAMPLE_TASK).write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for folders, example in (
        (recipe_files._FOLDERS, EXAMPLE),
        ((recipe_files.HERE, installed), installed / EXAMPLE_TASK),
    ):
        monkeypatch.setattr(recipe_files, "_FOLDERS", folders)
        with pytest.raises(EgmfError) as found:
            read_task(tmp_path / "none.yaml")
        assert str(found.value).endswith(f"; see {example}")
        read_task(str(found.value).rpartition("see ")[2])
