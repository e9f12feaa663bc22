"""``egmf bench score``: one small run, and mistakes as one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES, save_model

from egmf_dist.bench.scoring import NOTES, TITLES
from egmf_launcher.cli import main


def test_one_small_run(tmp_path: Path) -> None:
    """All three ways, both kinds of answers, in a process of its own: it joins a process group."""
    kind, start, settings, _ = FAMILIES["gemma3"]
    save_model(tmp_path / "gemma3", kind, start, settings)
    words = ["--backbone", str(tmp_path / "gemma3"), "--layers", "2", "--samples", "16", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "egmf_launcher.cli", "bench", "score", "--out", str(tmp_path / "out"), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["answers"], row["way"]) for row in summary["rows"]] == [(n, way) for n in (7, 61) for way in TITLES]
    cost = {(row["answers"], row["way"]): row["ms_a_sample"] for row in summary["rows"]}
    assert all(ms > 0 for ms in cost.values())
    for n in (7, 61):
        assert summary["ratios"][f"sequence_vs_tree_{n}"] == pytest.approx(
            cost[n, "sequence"] / cost[n, "tree"], abs=1e-3
        )
        assert summary["ratios"][f"tree_vs_greedy_{n}"] == pytest.approx(cost[n, "tree"] / cost[n, "greedy"], abs=1e-3)
        assert f"sequence_vs_tree_{n}: " in done.stdout
    assert summary["notes"] == list(NOTES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.csv", "summary.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--samples 40", "--samples is 40; it must be a multiple of 16, the batch"),
        ("--rounds 0", "--rounds is 0; it must be 1 or more"),
    ],
)
def test_a_mistake_is_one_line(words, says, tmp_path, monkeypatch, capsys) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    assert main(["bench", "score", "--out", str(tmp_path), *words.split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
