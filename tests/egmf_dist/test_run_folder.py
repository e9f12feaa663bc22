"""What a resumed run may change, where its paths lead, and what is written about it."""

from __future__ import annotations

import errno
import os
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from egmf_dist.config import Config, load_config, load_run_config, read_directory
from egmf_dist.config.rules import ON_RESUME
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json, write_text
from egmf_dist.run import folder, manifest
from egmf_dist.run.console import rate
from egmf_dist.run.folder import Run, check_run, discard_leftovers, open_run, renew_settings
from egmf_dist.run.identity import Identity
from egmf_dist.run.places import Places, found_again, locate
from egmf_dist.run.records import read_records

MAY_CHANGE = {
    "data.shards", "data.group_by_length", "data.workers", "data.prefetch", "data.bad_samples",
    "data.max_bad_in_a_row", "data.max_bad_fraction", "data.cache_dir", "data.cache_gib", "data.retries",
    "backbone.path", "backbone.gradient_checkpointing", "backbone.attn_implementation", "backbone.liger",
    "model.kernels", "training.steps", "training.micro_batch",
    "training.micro_tokens", "training.packing", "training.validate_every", "training.patience",
    "training.checkpoint_every", "training.keep_checkpoints", "training.log_every", "training.zero_stage",
    "training.offload",
    "training.max_skipped_steps", "evaluation.batch_size", "evaluation.scoring",
    "logging.to", "logging.project", "launch.max_failures", "launch.min_workers", "launch.cpus_per_worker",
    "training.hang_seconds", "training.deterministic", "training.compare_modules", "training.zero_options",
    "training.profile_steps",
}  # fmt: skip


def test_the_marks_in_the_schema():
    """Anything else decides which samples a batch holds, what the model is or what the optimiser does."""
    marked = {
        f"{section.name}.{setting.name}"
        for section in fields(Config)
        for setting in fields(getattr(Config(), section.name))
        if ON_RESUME in setting.metadata
    }
    assert marked == MAY_CHANGE


@pytest.mark.parametrize("section", [f.name for f in fields(Config)])
def test_what_is_not_marked_is_refused_and_what_is_marked_is_kept(tmp_path, section):
    run = Run(tmp_path / "run")
    open_run(Config(), run, "never")
    saved = run.config.read_text()
    part = getattr(Config(), section)
    for setting in fields(part):
        key = f"{section}.{setting.name}"
        # check_run compares; that the values are legal is another's concern.
        other = replace(Config(), **{section: replace(part, **{setting.name: "another"})})
        if section == "data" and setting.name == "shards":
            other = replace(Config(), data=replace(Config().data, shards=["another"]))
        if key in MAY_CHANGE:
            assert list(check_run(other, run, "auto")) == [key]
        else:
            with pytest.raises(EgmfError, match=f"{key} was .* and is now 'another'; resume with the settings"):
                check_run(other, run, "auto")
    assert run.config.read_text() == saved


def test_a_resumed_run_keeps_what_it_was_told_last(tmp_path, monkeypatch):
    run, first, second = Run(tmp_path / "run"), tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    config = replace(Config(), data=replace(Config().data, shards=["data"]))
    assert open_run(config, run, "never")
    assert read_directory(run.config) == first
    monkeypatch.chdir(second)
    longer = replace(config, training=replace(config.training, steps=9, patience=2))
    assert not open_run(longer, run, "auto")
    assert load_config(run.config) == config  # only the holder of the lock writes
    changed = renew_settings(longer, run, "auto")
    assert changed == {"training.steps": [1200, 9], "training.patience": [0, 2]}
    assert load_config(run.config) == longer
    assert renew_settings(longer, run, "auto") == {}
    lines = run.config.read_text().splitlines()
    new = ("format", "directory", "  standardise", "  max_prompt_tokens", "  scoring")
    run.config.write_text("\n".join(line for line in lines if not line.startswith(new)))
    assert read_directory(run.config) is None  # version 1
    # It read features as they are, and must not go on with others unseen.
    with pytest.raises(EgmfError, match=r"data.standardise was False and is now True"):
        renew_settings(longer, run, "auto")
    raw = replace(longer, data=replace(longer.data, standardise=False))
    assert renew_settings(raw, run, "auto") == {}
    assert read_directory(run.config) == second
    assert load_run_config(run.config) == raw


def test_two_starts_make_one_run(tmp_path, monkeypatch):
    """The second finds the name free, too; the first is quicker."""
    run = Run(tmp_path / "run")
    real = folder.sync_tree

    def sync_tree(temporary: Path) -> None:
        monkeypatch.setattr(folder, "sync_tree", real)
        open_run(Config(), run, "never")

    monkeypatch.setattr(folder, "sync_tree", sync_tree)
    with pytest.raises(EgmfError, match="exists; choose another name"):
        open_run(Config(), run, "never")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_paths_are_found_where_they_were_given(tmp_path, monkeypatch):
    run, given, elsewhere = Run(tmp_path / "run"), tmp_path / "given", tmp_path / "elsewhere"
    for path in (given / "data", given / "model", elsewhere):
        path.mkdir(parents=True)
    (given / "data" / "manifest.json").touch()
    monkeypatch.chdir(given)
    config = Places(["data", "s3://bucket/x"], "model").put_into(Config())
    open_run(config, run, "never")
    assert found_again(config, run) == config
    assert locate(run, Places(), True) == Places(["data", "s3://bucket/x"], "model")
    monkeypatch.chdir(elsewhere)
    there = Places([str(given / "data"), "s3://bucket/x"], str(given / "model"))
    assert found_again(config, run) == there.put_into(Config())
    assert locate(run, Places(), True) == there
    # A name that the run does not know leads nowhere else than from here.
    typo = replace(config, data=replace(config.data, shards=["dta"]))
    assert found_again(typo, run).data.shards == ["dta"]


def test_a_folder_that_is_gone_is_no_hub_model(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    config = replace(Config(), backbone=replace(Config().backbone, path="models/tiny"))
    open_run(config, run, "never")
    assert found_again(config, run) == config  # nothing says that it ever was a folder
    assert locate(run, Places([]), False).backbone == "models/tiny"
    identity = Identity(1, "d", 0, {"sha256": "b"})
    monkeypatch.setattr(manifest, "installed", lambda package: None)
    manifest.write_manifest(run, config, identity, ["host"], {})
    assert manifest.read_identity(run) == identity
    says = r"its backbone, 'models/tiny' when it was trained, cannot be found \(looked in .*\); .* --backbone.path"
    with pytest.raises(EgmfError, match=says):
        found_again(config, run)
    with pytest.raises(EgmfError, match=says):
        locate(run, Places([]), True)
    # What the command line says was never so when the run was trained.
    given = replace(config, backbone=replace(config.backbone, path="typo"))
    wrong = r"--backbone.path typo is no folder that holds the backbone that it was trained with \(looked in .*\); give"
    with pytest.raises(EgmfError, match=wrong):
        found_again(given, run)
    with pytest.raises(EgmfError, match=wrong):
        locate(run, Places([], "typo"), True)
    with pytest.raises(EgmfError, match=r"--data.shards typo is no folder that holds a manifest.json"):
        locate(run, Places(["typo"]), True)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    assert manifest.installed("torch") is not None
    monkeypatch.setattr(manifest, "version", missing)
    assert manifest.installed("triton") is None


def test_only_what_killed_trainings_left_of_ray_is_removed(tmp_path):
    run = Run(tmp_path)
    for verb in ("train", "evaluate"):
        run.ray_storage(verb, "1").mkdir(parents=True)
    discard_leftovers(run)
    assert list(run.ray.iterdir()) == [run.ray_storage("evaluate", "1")]


def test_what_a_kill_left_half_done_is_cleared_up(tmp_path):
    run = Run(tmp_path / "runs" / "mine")
    whole = {run.checkpoint(2), run.adapter(2), run.adapters / ".pinned-1"}
    left = {
        run.checkpoints / ".step-0000004.tmp", run.checkpoints / ".step-0000002.aside",
        run.adapters / ".step-0000001.gone", run.adapters / ".pinned-2", run.checkpoints / ".step-0000002.old",
        run.folder.with_name(".mine.01234567.tmp"),
    }  # fmt: skip
    for path in whole | left:
        path.mkdir(parents=True)
        (path / "file").write_text(path.name)
    # Moved aside for a new one of the same step, which did not get its name any more.
    os.rename(run.adapter(2), run.adapters / ".step-0000002.aside")
    files = {run.folder / ".now-1", run.folder / ".shared-1", run.folder / ".metrics.jsonl.01234567.tmp"}
    theirs = {run.folder / ".notes.old", run.checkpoints / ".step-0000300.old", run.folder / ".backup.tmp"}
    for path in files | theirs:
        path.touch()
    for path in left | files:
        os.utime(path, (1.0, 1.0))
    discard_leftovers(run)
    assert {path for path in whole if path.is_dir()} == whole
    assert (run.adapter(2) / "file").read_text() == run.adapter(2).name
    assert [path for path in left | files if path.exists()] == []
    assert {path for path in theirs if path.exists()} == theirs, "names that no writer of ours gives"


def test_a_folder_that_cannot_be_made_leaves_none_of_those_above_it(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "dump_config", full)
    with pytest.raises(EgmfError, match=r"its folder cannot be made \(No space left on device\); choose another place"):
        open_run(Config(), Run(tmp_path / "a" / "b" / "mine"), "never")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(EgmfError, match=r"its folder cannot be made \(Not a directory\)"):
        open_run(Config(), Run(tmp_path / "file" / "mine"), "never")


def test_settings_are_written_again_where_their_paths_start_elsewhere(tmp_path, monkeypatch):
    run, config = Run(tmp_path / "mine"), Config()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        if place == "a":
            open_run(config, run, "never")
        else:
            assert renew_settings(config, run, "auto") == {}
        assert read_directory(run.config) == Path.cwd()


def test_only_a_broken_line_of_the_records_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 1}\n{"a": 2, "b\n\xff\n7\n{"a": 3}\n{"a"')
    assert read_records(tmp_path / "metrics.jsonl") == [{"a": 1}, {"a": 3}]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("per_second", "shown"), [(1234.4, "1234"), (10, "10"), (9.96, "10"), (2.34, "2.3"), (0.042, "0.042")]
)
def test_a_slow_steps_rate_is_not_0(per_second, shown):
    assert rate(per_second) == shown
