"""Trackers: what each is given and keeps over a resume, and that none of them stops a run."""

from __future__ import annotations

import json
import struct
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.utils.tensorboard  # noqa: F401 (it takes longer than the tests let a tracker open)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from egmf_dist.config import Config, LoggingConfig
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.formats import stamped
from egmf_dist.report import write_report
from egmf_dist.report.publish import publish
from egmf_dist.run import tracking
from egmf_dist.run.checkpoints import Progress
from egmf_dist.run.folder import Run, open_run, renew_settings
from egmf_dist.run.records import Records, read_records
from egmf_dist.run.trackers import check_trackers, without_password

LOSSES = [0.8, 0.4, 0.2, 0.1]
TASKS = {"emotion, 情": {"metrics": {"weighted_f1": 0.5, "nll": None}}}


def config_for(names: list[str]) -> Config:
    return Config(logging=LoggingConfig(names, "a project"))


def train(config: Config, run: Run, first: int = 1, last: int = 4) -> None:
    """What a training writes on rank 0, without one."""
    records = Records(run, config, True, False, Progress(step=first - 1, validated=first - 1))
    records.write({"kind": "start", "step": first - 1})
    for step in range(first, last + 1):
        records.write({"kind": "train", "step": step, "loss": LOSSES[step - 1], "grad_norm": float("nan")})
    records.write({"kind": "valid", "step": last, "tasks": TASKS})
    if last == len(LOSSES):
        records.write({"kind": "end", "step": last})
    records.close()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """No server, no key and no mode from the environment of whoever tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("NETRC", raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield patch


def tracked(name: str, runs: Path) -> Run:
    """A run that was stopped after step 3, went on from step 2 with more to do, was evaluated and drawn."""
    run, config = Run(runs / name), config_for(["tensorboard", name])
    open_run(config, run, "never")
    train(config, run, last=3)
    longer = replace(config, training=replace(config.training, steps=7))
    renew_settings(longer, run, "auto")
    train(longer, run, first=3)
    run.evaluations.mkdir()
    result = {"tasks": {"emotion": {"metrics": {"accuracy": 0.25}}}, "checkpoint": "best/step-0000003"}
    run.evaluation("test").write_text(json.dumps(result))
    run.report.mkdir()
    page = run.report / "index.html"
    page.write_text("<p>all of it")
    attached, complaints = publish(run.folder, [page])
    assert complaints == []
    assert [line.split(":")[0] for line in attached] == [name]
    return run


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format after a header of seven bytes, a protobuf message each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or a last part
            yield Record.FromString(parts)
            parts = b""


def wandb_history(folders: list[Path], name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the parts of an offline run hold: numbers in their order, and the settings."""
    seen: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for folder in folders:
        for record in wandb_records(folder / f"run-{name}.wandb"):
            if record.HasField("run"):
                assert record.run.project == "a project"
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = record.history.item
                seen.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return seen, settings


def test_wandb_offline(calm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a key nobody is asked for one; a start's part and the report's have one id."""
    pytest.importorskip("wandb", reason="wandb is not installed; it is in the extra wandb")
    run = tracked("wandb", tmp_path)
    known = tracking.read_trackers(run)["wandb"]
    assert (known["mode"], known["where"][:8]) == ("offline", "offline;")
    start, *_ = read_records(run.metrics)
    assert start["trackers"]["wandb"].startswith("offline (no API key: `wandb login`); `wandb sync ")
    folders = sorted(path for path in (run.folder / "wandb").iterdir() if path.name.startswith("offline-run-"))
    assert len(folders) == 3
    until = time.monotonic() + 60  # wandb's own process may write its last block after a run was finished
    while True:
        seen, settings = wandb_history(folders, known["id"])
        if any("test/emotion/accuracy" in h for h in seen) or time.monotonic() > until:
            break
        time.sleep(0.2)
    assert [(h["step"], h["train/loss"]) for h in seen if "train/loss" in h] == [
        *enumerate(LOSSES[:3], 1),
        *enumerate(LOSSES[2:], 3),
    ]
    assert [h["step"] for h in seen if h.get("valid/emotion, 情/weighted_f1") == 0.5] == [3, 4]
    assert [h["step"] for h in seen if h.get("test/emotion/accuracy") == 0.25] == [3]
    assert settings["training"]["steps"] == 7
    assert settings["run"] == str(run.folder)
    kept = folders[-1] / "files" / run.folder.name
    assert (kept / "report" / "index.html").read_text() == "<p>all of it"
    assert (kept / "config.yaml").read_text() == run.config.read_text()
    assert "steps: 7" in run.config.read_text(), "wandb's own config.yaml did not take its place"


def test_mlflow_in_the_runs_folder(calm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed; it is in the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed; it is in the extra mlflow")
    from mlflow import MlflowClient

    run = tracked("mlflow", tmp_path)
    known = tracking.read_trackers(run)["mlflow"]
    client = MlflowClient(known["where"])
    (experiment,) = [e for e in client.search_experiments() if e.name == "a project"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status, found.info.run_name) == (known["id"], "FINISHED", "mlflow")
    assert found.data.params["training.seed"] == "0"
    assert found.data.params["logging.to"] == "['tensorboard', 'mlflow']"
    steps = {(m.step, m.value) for m in client.get_metric_history(known["id"], "train/loss")}
    assert steps == set(enumerate(LOSSES, 1))
    assert found.data.metrics.keys() == {"train/loss", "valid/emotion_ 情/weighted_f1", "test/emotion/accuracy"}
    assert [(m.step, m.value) for m in client.get_metric_history(known["id"], "test/emotion/accuracy")] == [(3, 0.25)]
    assert [f.path for f in client.list_artifacts(known["id"])] == ["config.yaml", "report"]
    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(run.folder)
    assert (artifacts / "report" / "index.html").read_text() == "<p>all of it"
    assert "steps: 7" in (artifacts / "config.yaml").read_text()


def test_tensorboard_loses_what_is_repeated(tmp_path: Path) -> None:
    run, config = Run(tmp_path / "run"), config_for(["tensorboard"])
    run.folder.mkdir()
    train(config, run, last=3)
    train(config, run, first=3)
    board = EventAccumulator(str(run.tensorboard)).Reload()
    assert sorted(board.Tags()["scalars"]) == ["train/loss", "valid/emotion, 情/weighted_f1"]
    assert {s.step: s.value for s in board.Scalars("train/loss")} == pytest.approx(dict(enumerate(LOSSES, 1)))
    assert len(board.Scalars("train/loss")) == 4
    assert not run.trackers.exists(), "its events lie in the run's folder under the name they always have"
    assert publish(run.folder, []) == ([], [])


MINE = """
    import threading
    from egmf_dist.run.trackers import Tracker

    given = []

    class Keeps(Tracker):
        known = {"id": "7", "where": "there"}
        def __init__(self, opening):
            self.take((opening.project, opening.resumed_step, dict(opening.known)))
        def add(self, step, numbers):
            self.take((step, dict(numbers)))
        def attach(self, files):
            self.take([file.name for file in files])
        def close(self, finished):
            self.take(finished)
        def take(self, what):
            if type(self) is Keeps:
                given.append(what)

    class FailsOpen(Keeps):
        def __init__(self, opening):
            raise SystemExit("no such\\nserver")
    class FailsAdd(Keeps):
        def add(self, step, numbers):
            raise OSError(28, "No space left on device")
    class FailsAttach(Keeps):
        def attach(self, files):
            raise RuntimeError
    class FailsClose(Keeps):
        def close(self, finished):
            raise ValueError("already closed")

    class HangsOpen(Keeps):
        def __init__(self, opening):
            threading.Event().wait()
    class HangsAdd(Keeps):
        def add(self, step, numbers):
            threading.Event().wait()

    class Needs(Tracker):
        package = "nothing_there"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The module ``mine``; what its trackers were given."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    import mine  # type: ignore[import-not-found]

    yield mine.given
    del sys.modules["mine"]


def test_ones_own_tracker(mine: list[Any], tmp_path: Path) -> None:
    run, config = Run(tmp_path / "run"), config_for(["mine:Keeps"])
    open_run(config, run, "never")
    train(config, run, last=1)
    train(config, run, first=2)
    known = {"id": "7", "where": "there"}
    steps = [(step, {"train/loss": LOSSES[step - 1]}) for step in range(1, 5)]
    valid = [(step, {"valid/emotion, 情/weighted_f1": 0.5}) for step in range(1, 5)]
    assert mine == [
        *[("a project", 0, {}), ["config.yaml"], steps[0], valid[0], False],
        *[("a project", 1, known), ["config.yaml"], *steps[1:], valid[3], True],
    ]
    assert publish(run.folder, [])[1] == []
    assert mine[-1] is True
    with open(run.metrics, "a", encoding="utf-8") as file:  # it began again, and its records stop there
        file.write('{"kind": "start", "step": 4}\n{"kind": "warning", "step": 4, "message": "no"}\n')
    assert publish(run.folder, [])[1] == []
    assert mine[-1] is False  # which a report does not change
    run.lock.write_text("{}")
    assert publish(run.folder, []) == ([], [f"{run} is being trained: a report after its end goes to mine:Keeps"])


def test_the_report_says_where_a_run_is_known(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.metrics.write_text(json.dumps({"kind": "valid", "step": 1, "tasks": TASKS}) + "\n")
    known = {"wandb": {"where": "https://host/<x>"}, "mlflow": {"where": "sqlite:///x"}, "mine:Silent": {"id": "7"}}
    write_json(run.trackers, stamped({"trackers": known}))
    *_, page = write_report(run.folder)
    text = page.read_text()
    assert '<dt>wandb</dt><dd><a href="https://host/&lt;x&gt;">https://host/&lt;x&gt;</a></dd>' in text
    assert "<dt>mlflow</dt><dd>sqlite:///x</dd>" in text
    assert "mine:Silent" not in text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("FailsOpen", "SystemExit: no such server"),
        ("FailsAdd", "OSError: [Errno 28] No space left on device"),
        ("FailsAttach", "RuntimeError: RuntimeError"),
        ("FailsClose", "ValueError: already closed"),
        ("HangsOpen", "it did not open within 1 s"),
        ("HangsAdd", "it did not close within 1 s; the last records may be missing there"),
    ],
)
def test_a_tracker_that_fails_is_switched_off_and_the_run_is_whole(
    mine: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.setattr(tracking, "OPEN_S", 1)
    monkeypatch.setattr(tracking, "CLOSE_S", 1)
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    began = time.monotonic()
    train(config_for([f"mine:{name}", "mine:Keeps", "tensorboard"]), run)
    assert time.monotonic() - began < 20, "nobody waits for it"
    records = read_records(run.metrics)
    assert [r["message"] for r in records if r["kind"] == "warning"] == [
        f"logging.to: mine:{name} is switched off: {says}"
    ]
    assert [r["loss"] for r in records if r["kind"] == "train"] == LOSSES
    assert [what[1]["train/loss"] for what in mine[2:6]] == LOSSES
    assert mine[-1] is True, "another one came to its end"
    assert len(EventAccumulator(str(run.tensorboard)).Reload().Scalars("train/loss")) == 4


def test_other_ranks_open_nothing(mine: list[Any], tmp_path: Path) -> None:
    run, before = Run(tmp_path / "run"), threading.active_count()
    run.folder.mkdir()
    records = Records(run, config_for(["mine:Keeps", "tensorboard"]), False, False, Progress())
    records.write({"kind": "train", "step": 1, "loss": 1.0})
    records.close()
    assert (mine, list(run.folder.iterdir()), threading.active_count()) == ([], [], before)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wnadb", "config: logging.to is 'wnadb'; it must be one of tensorboard, wandb, mlflow, or MODULE:NAME"),
        ("wandb", r"config: logging.to: wandb is not installed: pip install 'egmf-dist\[wandb\]'$"),
        ("mlflow", r"config: logging.to: mlflow is not installed: pip install 'egmf-dist\[mlflow\]'$"),
        ("mine:Needs", "config: logging.to: mine:Needs is not installed: pip install nothing_there$"),
    ],
)
def test_what_is_not_there_is_said(
    mine: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    """A folder of the package's name in the working folder is not the package."""
    (tmp_path / "nothing_there").mkdir()
    if name in ("wandb", "mlflow"):
        empty = tmp_path / "empty"
        (empty / name).mkdir(parents=True)
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "path", [str(empty)])
    with pytest.raises(EgmfError, match=says):
        check_trackers(LoggingConfig(["tensorboard", name]))


def test_no_password_is_written_down() -> None:
    assert without_password("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert without_password("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
