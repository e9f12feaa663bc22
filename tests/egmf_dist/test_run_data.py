"""From settings to what is read: which order, which policy, and what a resumed run may change."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from egmf_dist.config import Config, DataConfig, TrainingConfig
from egmf_dist.data.run_data import open_split, open_stream
from egmf_dist.errors import EgmfError
from egmf_dist.inference import score
from egmf_dist.run.folder import Run, check_run, open_run
from egmf_shards import ShardError, synthesize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "demo"
    synthesize(out, seed=0, samples=60, missing=0.1)
    return out


def config_for(shards: str, **data: object) -> Config:
    return Config(data=DataConfig(shards=[shards], **data), training=TrainingConfig(global_batch=8, micro_batch=4))


@pytest.mark.parametrize(
    ("shuffle", "local", "remote"), [("auto", 0, 16), ("full", 0, 0), ("block", 16, 16)]
)  # samples of a block; 0: everything is mixed with everything
def test_what_auto_shuffles(folder, tmp_path, shuffle, local, remote):
    for shards, expected in ((str(folder), local), (f"file://{folder}", remote)):
        settings = {"shuffle": shuffle, "block_samples": 16, "window_blocks": 2, "cache_dir": str(tmp_path / "cache")}
        config = config_for(shards, **settings)
        stream = open_stream(config, open_split(config, "train"), 0, 1)
        assert (stream.order.block, stream.order.window) == (expected, 2)


def test_a_url_gives_the_samples_of_the_folder(folder, tmp_path):
    local = config_for(str(folder), shuffle="block")
    remote = config_for(f"file://{folder}", cache_dir=str(tmp_path / "cache"))
    streams = [open_stream(config, open_split(config, "train"), 0, 1) for config in (local, remote)]
    for position in range(0, 80, 8):
        ours, theirs = ([s.to_json() for m in stream.read(position) for s in m.samples] for stream in streams)
        assert ours == theirs


def test_every_setting_arrives(folder):
    config = config_for(str(folder), weights=[2.0], group_by_length=True, bad_samples="skip")
    stream = open_stream(config, open_split(config, "train"), 0, 1)
    assert stream.order.quotas == [1000]
    assert stream.tolerate
    assert stream.plan(0) != open_stream(config_for(str(folder), weights=[2.0]), stream.shards, 0, 1).plan(0)


CHANGES = {
    "weights": [1.0], "shuffle": "block", "block_samples": 3, "window_blocks": 3, "group_by_length": True,
    "workers": 2, "prefetch": 4, "bad_samples": "skip", "max_bad_in_a_row": 7, "max_bad_fraction": 0.5,
    "cache_dir": "elsewhere", "cache_gib": 1.0, "retries": 1, "mixed_epochs": 1,
    "drop_frames": 0.5, "drop_words": 0.1, "drop_stream": 0.2,
}  # fmt: skip
FREE = {
    "group_by_length",
    "workers",
    "prefetch",
    "bad_samples",
    "max_bad_in_a_row",
    "max_bad_fraction",
    "cache_dir",
    "cache_gib",
    "retries",
}


def test_the_table_of_changes_is_whole():
    assert CHANGES.keys() | {
        "shards",
        "context_turns",
        "max_text_tokens",
        "max_prompt_tokens",
        "standardise",
    } == set(DataConfig.__dataclass_fields__)


@pytest.mark.parametrize("key", CHANGES)
def test_a_resumed_run_may_change_how_is_read_but_not_what(folder, tmp_path, key):
    config = config_for(str(folder))
    open_run(config, Run(tmp_path / "run"), "never")
    other = replace(config, data=replace(config.data, **{key: CHANGES[key]}))
    if key in FREE:
        check_run(other, Run(tmp_path / "run"), "auto")
    else:
        with pytest.raises(EgmfError, match=f"data.{key} was .* and is now"):
            check_run(other, Run(tmp_path / "run"), "auto")


def test_a_url_with_a_password_is_refused():
    from egmf_dist.config.check import check_config

    config = config_for("https://me:secret@host/folder")
    with pytest.raises(EgmfError, match="credentials come from the environment") as caught:
        check_config(config)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("policy", ["strict", "skip", "quarantine"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_missing_shard_is_tolerated_where_training_reads_and_nowhere_else(tmp_path, policy, split):
    synthesize(tmp_path / "demo", seed=0, samples=60, missing=0.1)
    (tmp_path / "demo" / f"{split}-000000.tar").unlink()
    config = config_for(str(tmp_path / "demo"), bad_samples=policy)
    if split == "train" and policy != "strict":
        assert f"{split}-000000.tar" in open_split(config, split).faults[0]
    else:
        with pytest.raises(ShardError, match=f"{split}-000000.tar"):
            open_split(config, split)
    for other in {"train", "valid", "test"} - {split}:
        assert open_split(config, other).faults == [], "another split's shards are its own concern"


def test_scoring_takes_no_bad_sample_for_a_sample(monkeypatch):
    """Whatever the policy: a metric over fewer samples than it claims would be wrong."""

    def read(indices: list[int]) -> SimpleNamespace:  # a call that tolerates would not fit
        raise ShardError(f"sample {indices[0]} is damaged")

    alone = {
        "rank": lambda: 0,
        "world_size": lambda: 1,
        "device": lambda: "cpu",
        "failing_together": contextlib.nullcontext,
    }
    for name, function in alone.items():
        monkeypatch.setattr(score.distributed, name, function)
    shards = SimpleNamespace(read=read, __len__=lambda self: 3)
    with pytest.raises(ShardError, match="sample 0 is damaged"):
        score.score_samples(SimpleNamespace(), shards, None, 2, [0, 1, 2])
