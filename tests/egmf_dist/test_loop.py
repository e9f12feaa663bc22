"""The loop without a model: what is released when a start fails."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run
from egmf_dist.training import loop, trainer


class Anything:
    """Shards, stream, run data and model at once."""

    index_hash, faults, tasks, languages, streams, micro_batches = "d", (), {}, (), {}, 1
    task_numbers, specifications = (0,), {}

    def __len__(self) -> int:
        return 1

    def collator(self, *arguments: object) -> None:
        return None

    def keeping(self, known: None) -> tuple[Anything, None]:
        return self, None

    def statistics(self) -> dict:
        return {}

    def describe(self) -> str:
        return "backbone"

    def describe_kernels(self, device: torch.device) -> str:
        return "reference"


@pytest.mark.parametrize(
    "fails", ["load_checkpoint", "check_scoring", "Records", "write_manifest", "start_record", "load"]
)
def test_the_engine_is_released_whatever_fails(tmp_path, monkeypatch, fails):
    """And the records are closed where they were opened."""
    released: list[str] = []
    engine = SimpleNamespace(destroy=lambda: released.append("engine"))
    records = SimpleNamespace(write=lambda record: None, close=lambda: released.append("records"))
    anything = Anything()
    collator = SimpleNamespace(limits=SimpleNamespace(chat=None))
    stand_ins = {
        "open_split": anything, "open_stream": anything, "read_backbone": (anything, collator),
        "check_scoring": (SimpleNamespace(way="sequence"), "scoring"), "build_egmf": anything,
        "check_selection": None, "check_shared": {}, "deepspeed_settings": {}, "initialise": engine,
        "parameter_groups": [{"params": [torch.zeros(1)], "lr": 1.0}],
        "partitioned_loading": contextlib.nullcontext(), "load_checkpoint": None, "Records": records,
        "write_manifest": None, "start_record": {}, "load": iter([]), "BadSamples": None,
    }  # fmt: skip
    for name, value in stand_ins.items():
        monkeypatch.setattr(trainer, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(trainer, "RunData", SimpleNamespace(of=lambda shards, config: anything))
    alone = {"world_size": 1, "rank": 0, "device": torch.device("cpu"), "gather_objects": ["host"]}
    for name, value in alone.items():
        monkeypatch.setattr(trainer.distributed, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(trainer.distributed, "on_rank_zero", lambda do: do())

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(trainer, fails, fail)
    with pytest.raises(OSError, match="disk full"):
        loop.train(Config(), Run(tmp_path), trainer.Start())
    opened = fails not in ("load_checkpoint", "check_scoring", "Records")
    assert released == (["records", "engine"] if opened else ["engine"])


def test_a_launch_that_was_given_up_touches_no_records(tmp_path, monkeypatch):
    """Ray starts its workers again; by then the run is another's, with a checkpoint and records of its own."""
    run = Run(tmp_path)
    run.lock.write_text('{"format": 2, "pid": 7, "host": "h", "since": "9:00", "launch": "another"}')
    run.metrics.write_text('{"kind": "train", "step": 7}\n')
    for name in ("open_split", "open_stream", "read_backbone", "build_egmf"):
        monkeypatch.setattr(trainer, name, lambda *arguments: Anything())
    for name, value in {"world_size": 1, "rank": 0, "device": torch.device("cpu")}.items():
        monkeypatch.setattr(trainer.distributed, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(trainer.distributed, "on_rank_zero", lambda do: do())
    with pytest.raises(EgmfError, match="has taken it over"):
        loop.train(Config(), run, trainer.Start("never", "mine"))
    assert run.metrics.read_text() == '{"kind": "train", "step": 7}\n'
    assert not run.manifest.exists()
