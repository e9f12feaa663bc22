"""Runs that cannot be: each mistake is one line, exit code 2, and neither a run's folder nor a changed one is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from egmf_dist import jobs
from egmf_dist.config import Config, load_config
from egmf_dist.errors import EgmfError
from egmf_dist.formats import FORMAT
from egmf_dist.jobs import Job
from egmf_dist.model.identity import backbone_identity
from egmf_dist.objectives import numbers
from egmf_dist.preflight import preflight
from egmf_dist.recipes import demo
from egmf_dist.run.checkpoints import State
from egmf_dist.run.folder import Run, check_run, discard_unused, open_run
from egmf_dist.run.identity import Identity
from egmf_launcher import launch
from egmf_launcher.cli import main
from egmf_launcher.demo import write_hosts
from egmf_shards import ShardSet
from egmf_shards.format.sample import Sample
from egmf_shards.format.task import Task
from egmf_shards.synthetic.generate import synthesize
from egmf_shards.write.writer import ShardWriter


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
    random_backbone: Path,
    make_samples: Callable[..., list[Sample]],
    tasks: dict[str, Task],
) -> Path:
    """A folder with ``good`` shards and some that are not, a ``backbone``, and ``c.yaml`` of a run that would work."""
    folder = tmp_path_factory.mktemp("prepared")
    synthesize(folder / "good", samples=60)
    mood = replace(tasks["emotion"], name="mood")
    samples = [replace(s, task="mood") for s in make_samples(8) if s.task == "emotion"]
    with ShardWriter(folder / "trainonly", "toy", [mood], streams={"audio": 6, "vision": 5}) as writer:
        for sample in samples:
            writer.write(sample)
    shutil.copytree(folder / "good", folder / "damaged")
    (folder / "damaged" / "index.npz").write_bytes(b"torn")
    synthesize(folder / "other", seed=1, samples=60)
    shutil.copytree(random_backbone, folder / "backbone")
    shutil.copytree(random_backbone, folder / "other_model")
    (folder / "other_model" / "generation_config.json").write_text("{}")
    shutil.copytree(random_backbone, folder / "noend")
    tokenizer = json.loads((folder / "noend" / "tokenizer_config.json").read_text())
    (folder / "noend" / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": None}))
    settings = {
        "data": {"shards": ["good"], "context_turns": 1},
        "backbone": {"path": "./backbone", "lora_rank": 4},
        "model": {"width": 32, "heads": 2},
        "training": {"steps": 2, "global_batch": 4, "precision": "fp32"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: links to what ``prepared`` holds, and the run ``runs/old`` with two ranks' checkpoint."""
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert open_run(load_config("c.yaml"), Run(Path("runs/old")), "never")
    checkpoint = Path("runs/old/checkpoints/step-0000001")
    checkpoint.mkdir(parents=True)
    config = load_config("c.yaml")
    identity = Identity(2, ShardSet.open(["good"], "train").index_hash, 0, backbone_identity(config.backbone))
    record = {
        "progress": {"step": 1},
        "identity": identity.to_json(),
        "state": State(1, 2, {}, {})._asdict(),
        "sha256": {},
    }
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    Path("runs/old/checkpoints/latest.json").write_text(json.dumps({"checkpoint": checkpoint.name}))
    return tmp_path


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--backbone.path ./bakcbone", "backbone.path './bakcbone' holds no config.json"),
        ("--backbone.path ./good", "backbone.path './good' holds no config.json"),
        ("--backbone.path ./noend", "no end-of-sequence token"),
        ("--data.shards [trainonly]", "trainonly: its split 'valid' is empty"),
        ("--data.shards [good,good]", "good: the same shards as good; give each folder once"),
        ("--data.shards [damaged]", "damaged/index.npz: not a readable index"),
        ("--training.global_batch 1", "training.global_batch is 1 for 2 ranks; it must be 2 or more"),
        ("--logging.to [tensorboard,wnadb]", "logging.to is 'wnadb'; it must be one of tensorboard, wandb, mlflow, or"),
        ("--training.select_by mood.weighted_f1", "training.select_by is 'mood.weighted_f1'"),
        ("--training.select_by emotion.f7", "training.select_by is 'emotion.f7'; the metrics of emotion are accuracy"),
        ("--run runs/old", "run runs/old exists; choose another name with --run"),
        ("--run c.yaml", "a file of that name exists"),
        ("--run good --resume auto", "holds no config.yaml, so it is no run"),
        ("--run runs/old --resume auto --training.seed 3", "training.seed was 0 and is now 3"),
        ("--run runs/old --resume auto --data.shards [other]", "data.shards changed: other data than it was made with"),
        ("--run runs/old --resume auto --backbone.path ./other_model", "backbone.path changed: another model than"),
        ("--run runs/old --resume auto --data.shards [file://good]", "data.shuffle auto means another order where"),
        (
            "--run runs/old --resume runs/old/checkpoints/step-0000007",
            "not a checkpoint of run runs/old; it has step-1",
        ),
        ("--run runs/old --resume 7", "--resume 7: not a checkpoint of run runs/old; it has step-1; give one of them"),
        ("--run runs/old --resume runs/old/checkpoints", "not a checkpoint of run runs/old"),
        ("--run runs/old --resume good", "not a checkpoint of run runs/old"),
        ("--run runs/old --resume auto --data.standardise false", "(--data.standardise true), or choose another name"),
        ("--run=", "--run is empty; give the run's folder"),
        ("--run . --resume auto", "names no folder of its own; give one such as runs/NAME"),
        ("--run c.yaml/mine", "its folder cannot be made (Not a directory)"),
        ("--resume runs/old/checkpoints/step-0000001", "there is no run runs/new to go on with"),
    ],
)
def test_nothing_is_left_behind(line: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(here)
    given = line.split()
    for name, value in (("--config", "c.yaml"), ("--run", "runs/new"), ("--workers", "2")):
        if not any(word.split("=")[0] == name for word in given):
            given = [name, value, *given]
    assert main(["train", *given]) == 2
    error = capsys.readouterr().err
    lines = [text for text in error.splitlines() if text.startswith("egmf: error: ")]
    assert len(lines) == 1, error
    assert says in lines[0]
    assert "Traceback" not in error
    assert listing(here) == before


def test_a_checkpoint_must_be_of_this_data_and_backbone(here: Path) -> None:
    config, run = load_config("c.yaml"), Run(Path("runs/old"))
    preflight(config, 2, run, "auto")
    preflight(config, 3, run, "auto")  # another number of ranks goes on
    for resume in ("runs/old/checkpoints/step-0000001", "step-0000001", "step-1", "1"):
        preflight(config, 2, run, resume)
    record = run.checkpoint(1) / "checkpoint.json"
    content = json.loads(record.read_text())
    for key, other, says in (
        ("data", "other", "data.shards"),
        ("backbone", {"sha256": "other"}, "backbone"),
        ("seed", 7, "training.seed 7"),
    ):
        record.write_text(json.dumps(content | {"identity": content["identity"] | {key: other}}))
        with pytest.raises(EgmfError, match=f"step-0000001: .*{says}.*made with|made with {says}"):
            preflight(config, 2, run, "auto")
    # Version 1 named a folder by its path, too.
    backbone = content["identity"]["backbone"] | {"path": "once/upon/a/time", "revision": None}
    record.write_text(json.dumps(content | {"identity": content["identity"] | {"backbone": backbone}}))
    preflight(config, 2, run, "auto")
    record.write_text("{}")
    with pytest.raises(EgmfError, match=r"no sound checkpoint .*step-0000001 was passed over: .*\.json is"):
        preflight(config, 2, run, "auto")
    record.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(
        EgmfError, match=rf"checkpoint\.json: written in format 99, and this egmf-dist reads up to {FORMAT}"
    ):
        preflight(config, 2, run, "auto")


def test_legal_numbers_that_do_not_fit_are_refused_before_ranks_start(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = load_config("c.yaml", ["--objective.number", "soft"]), Run(Path("runs/new"))
    preflight(config, 2, run, "never")
    monkeypatch.setattr(numbers, "LOGITS", 1000)
    with pytest.raises(EgmfError, match=r"objective.number is 'soft': the 13 legal answers of task 'sentiment' in"):
        preflight(config, 2, run, "never")


def stand_in(error: Exception) -> Callable[[Job, bool], dict[str, object]]:
    def do(job: Job, console: bool) -> dict[str, object]:
        raise error

    return do


@pytest.fixture
def launched_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank in this process that changes nothing in its environment."""
    monkeypatch.setattr(launch, "single_rank_environment", list)
    monkeypatch.setattr(launch, "SILENT_RANK_GRACE_S", 0.0)
    for name, value in {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("launched_here")
def test_a_run_that_fails_before_its_first_record_gives_its_name_back(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only the ranks find out; once there are records, or where the run was there before, the folder stays."""
    monkeypatch.setattr(jobs, "do", stand_in(EgmfError("the weights are torn")))
    line = ["train", "--config", "c.yaml", "--workers", "1", "--run"]
    before = listing(here)
    assert main([*line, "runs/new"]) == 2
    assert "the weights are torn" in capsys.readouterr().err
    assert listing(here) == before

    def writes(job: Job, console: bool) -> dict[str, object]:
        (job.run / "metrics.jsonl").write_text("{}\n")
        raise EgmfError("too many non-finite steps")

    monkeypatch.setattr(jobs, "do", writes)
    assert main([*line, "runs/new"]) == 2
    assert set(listing(here)) - set(before) == {"runs/new", "runs/new/config.yaml", "runs/new/metrics.jsonl"}

    monkeypatch.setattr(jobs, "do", stand_in(EgmfError("the weights are torn")))
    (here / "runs" / "new" / "metrics.jsonl").unlink()
    assert main([*line, "runs/new", "--resume", "auto"]) == 2
    assert (here / "runs" / "new" / "config.yaml").is_file()


@pytest.mark.usefixtures("launched_here", "here")
def test_what_a_rank_alone_met_is_said_by_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(jobs, "do", stand_in(EgmfError("shard 7 is torn")))
    assert main(["train", "--config", "c.yaml", "--run", "runs/new"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "egmf: error: rank 1: shard 7 is torn\n")
    assert not Path("runs/new").exists()  # rank 0 opens it
    # What rank 0 meets as well, before the job, is rank 0's to say.
    assert main(["train", "--config", "nowhere.yaml", "--run", "runs/new"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_auto_starts_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "a")
    check_run(Config(), run, "auto")
    assert not run.folder.parent.exists()
    assert open_run(Config(), run, "auto")
    assert not open_run(Config(), run, "auto")
    run.ray_storage("train", "1").mkdir(parents=True)
    assert discard_unused(run)
    assert not run.folder.exists()
    assert not discard_unused(run)


def test_the_demo_refuses_what_is_not_its_own(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(backbone=replace(Config().backbone, path=str(demo.BACKBONE)))
    demo.DATA.mkdir(parents=True)
    with pytest.raises(EgmfError, match=r"holds no manifest.json.*; remove data/demo to have the demo make it anew"):
        demo.prepare(config)
    demo.DATA.rmdir()
    shutil.copytree("good", demo.DATA)
    with pytest.raises(
        EgmfError, match=r"data/demo is not the demo's data \(samples 60 instead of 6000\); move it away"
    ):
        demo.prepare(config)
    monkeypatch.setattr(demo, "UTTERANCES", 60)
    demo.BACKBONE.mkdir(parents=True)
    record = demo.BACKBONE / "backbone.json"
    with pytest.raises(EgmfError, match=r"no readable backbone\.json\); remove backbones/demo"):
        demo.prepare(config)
    record.write_text(json.dumps({"sources": [{"shards": "data/demo", "index_hash": "0"}]}))
    with pytest.raises(EgmfError, match=r"pre-trained on other data than data/demo .*; remove backbones/demo"):
        demo.prepare(config)
    index_hash = ShardSet.open([demo.DATA], "train").index_hash
    record.write_text(json.dumps({"sources": [{"shards": "data/demo", "index_hash": index_hash}]}))
    demo.prepare(config)
    write_hosts()
    assert "wrote hosts: localhost slots=2" in capsys.readouterr().out
    Path("hosts").write_text("a slots=1\nb slots=3\n")
    write_hosts()
    assert "used as it is: a slots=1, b slots=3" in capsys.readouterr().out
    assert Path("hosts").read_text() == "a slots=1\nb slots=3\n"
