"""The best adapter: where a run has none, one that cannot be read, one that is evaluated while training goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from checkpoints import save

from egmf_dist.errors import EgmfError
from egmf_dist.files import remove_folder
from egmf_dist.model import adapter
from egmf_dist.model.adapter import describe_best, point_to_best
from egmf_dist.run.folder import Run
from egmf_shards.checksums import sha256


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_run_without_an_adapter_says_what_to_do(tmp_path):
    with pytest.raises(EgmfError, match="no such run; train first"):
        adapter.pin(Run(tmp_path / "none"))
    run = Run(tmp_path)
    with pytest.raises(EgmfError, match="nothing trained in it yet"):
        adapter.pin(run)
    run.adapter(3).mkdir(parents=True)
    point_to_best(run, 3)
    with pytest.raises(EgmfError, match=r"adapter\.json is missing"):
        adapter.pin(run)
    (run.adapter(3) / adapter.DESCRIPTION).write_text('{"sha256": "x"}')
    with pytest.raises(EgmfError, match=r"trained\.safetensors is missing"):
        adapter.pin(run)
    (run.adapter(3) / adapter.TRAINED_FILE).write_text("w")
    with pytest.raises(EgmfError, match=r"trained\.safetensors is damaged"):
        adapter.pin(run)
    assert sorted(path.name for path in run.adapters.iterdir()) == ["best.json", run.adapter(3).name]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("links", [True, False])
def test_an_adapter_stays_while_it_is_evaluated(run, monkeypatch, links):
    """A training beside it finds a better one and removes this one, before and after it was chosen."""
    for step in (3, 5):
        run.adapter(step).mkdir(parents=True)
        (run.adapter(step) / adapter.TRAINED_FILE).write_text(f"weights {step}")
        digest = sha256(run.adapter(step) / adapter.TRAINED_FILE)
        (run.adapter(step) / adapter.DESCRIPTION).write_text(json.dumps({"sha256": digest}))
    point_to_best(run, 3)
    real = os.link

    def link(source: Path, target: Path) -> None:
        if "0000003" in str(source):
            point_to_best(run, 5)
            remove_folder(run.adapter(3))
        if not links and Path(source).exists():
            raise OSError("no hard links here")
        real(source, target)

    monkeypatch.setattr(adapter.os, "link", link)
    with adapter.best_adapter(run) as held:
        assert held.name == "step-0000005"
        remove_folder(run.adapter(5))
        assert (held.folder / adapter.TRAINED_FILE).read_text() == "weights 5"
    assert [path.name for path in run.adapters.iterdir()] == ["best.json"]


@pytest.mark.parametrize("damage", ["", "{", None])
def test_a_best_adapter_that_cannot_be_read_says_what_to_do(run: Run, damage: str | None) -> None:
    save(run, 2, 2)
    path = run.adapter(2) / adapter.DESCRIPTION
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(EgmfError, match=r"adapter.json is .*; put it back from a copy, or go on from"):
        describe_best(run)
    run.best.write_text("")
    with pytest.raises(
        EgmfError,
        match=r"best.json is damaged .*; put it back from a copy, or go on from",
    ):
        adapter.pin(run)
    assert [p.name for p in run.adapters.iterdir() if p.name.startswith(".")] == []
