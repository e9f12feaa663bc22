"""Two runs beside each other: whether they differ, by what both have predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.formats import stamped
from egmf_dist.report.differences import differences, sentence
from egmf_dist.run.folder import Run, checkpoint_name
from egmf_launcher.cli import main


def make_run(folder: Path, tasks, right: float, seed: int) -> Path:
    """A run that has answered 200 of one task's samples on test, so many of them rightly."""
    run, labels = Run(folder), tasks["emotion"].labels
    adapter = run.adapter(1)
    adapter.mkdir(parents=True)
    write_json(run.best, stamped({"adapter": checkpoint_name(1)}))
    write_json(adapter / "adapter.json", stamped({"data": RunData(tasks, ["en", "zh"], {}, {}).to_json()}))
    chance = np.random.default_rng(seed)
    truth = np.random.default_rng(9).integers(0, 3, 200)
    said = np.where(chance.random(200) < right, truth, (truth + 1) % 3)
    run.evaluations.mkdir()
    lines = [
        {"id": f"s{i}", "task": "emotion", "truth": labels[t], "predicted": labels[p], "dialogue": f"d{i // 4}"}
        for i, (t, p) in enumerate(zip(truth, said, strict=True))
    ]
    run.predictions("test").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_a_difference_is_told_from_none(tasks, tmp_path) -> None:
    good, same, poor = (
        make_run(tmp_path / name, tasks, right, seed)
        for name, right, seed in (("good", 0.85, 0), ("same", 0.84, 0), ("poor", 0.6, 2))
    )
    found = differences(good, [same, poor])
    assert [row["differs"] for row in found] == [False, True]
    assert found[1]["n"] == 200
    assert found[1]["interval"][0] > 0
    assert sentence(found[0]).endswith("200 samples): no difference that the samples show")
    back = differences(poor, [good])[0]
    assert back["difference"] == -found[1]["difference"]


def test_what_cannot_be_compared_is_not(tasks, tmp_path) -> None:
    """One dialogue, other truths, and labels of another task."""
    good, poor = make_run(tmp_path / "good", tasks, 0.9, 0), make_run(tmp_path / "poor", tasks, 0.5, 1)

    def rewritten(change) -> None:
        for folder in (good, poor):
            file = Run(folder).predictions("test")
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            rows = [row | change(folder, number, row) for number, row in enumerate(rows)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    # Two folders' samples of one name: the n-th is the n-th.
    rewritten(lambda _, number, row: {"id": f"s{number % 100}", "dialogue": "d"})
    (row,) = differences(good, [poor])
    assert (row["n"], row["interval"], row["p"], row["differs"]) == (200, None, None, False)
    assert sentence(row).endswith("(200 samples): too few dialogues to say whether that is a difference")
    rewritten(lambda folder, number, row: {"predicted": "boredom"} if folder == poor and number == 7 else {})
    with pytest.raises(EgmfError, match="task 'emotion' has no label 'boredom'; it has"):
        differences(good, [poor])
    rewritten(lambda folder, number, row: {"truth": "?"} if folder == poor and number == 7 else {})
    with pytest.raises(EgmfError, match="sample s7: one run's predictions hold the truth"):
        differences(good, [poor])


def test_the_verb_says_it(tasks, tmp_path, capsys) -> None:
    good, poor = make_run(tmp_path / "good", tasks, 0.9, 0), make_run(tmp_path / "poor", tasks, 0.5, 1)
    assert main(["report", str(good), "--compare", str(poor)]) == 0
    said = capsys.readouterr().out
    assert "test, emotion: weighted_f1 +0." in said
    assert said.rstrip().endswith("200 samples): a difference")
