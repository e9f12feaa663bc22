"""The account of bad samples: what is counted, what is set aside, and when a run stops."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from egmf_dist.config import DataConfig
from egmf_dist.data import bad_samples
from egmf_dist.data.bad_samples import BadSamples
from egmf_dist.data.loader import Step
from egmf_dist.errors import EgmfError
from egmf_dist.run.checkpoints import Progress
from egmf_dist.run.folder import Run
from egmf_shards import BadSlot, Slot

BATCH = 10


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    """A world of one; two ranks are in tests/distributed."""
    alone = {
        "share_objects": lambda values: values,
        "on_rank_zero": lambda do: do(),
    }
    for name, function in alone.items():
        monkeypatch.setattr(bad_samples.distributed, name, function)


def step_at(position: int, epoch: int, bad: set[int]) -> Step:
    """A step of ten whose sample numbers are the places in the epoch; those in ``bad`` cannot be read."""
    slots = [Slot(p, p // epoch, p % epoch) for p in range(position, position + BATCH)]
    broken = [BadSlot(s, f"key-{s.index}", f"x.tar: sample {s.index}") for s in slots if s.index in bad]
    weights = torch.tensor([0.0 if s.index in bad else 1.0 for s in slots])
    return Step([SimpleNamespace(weight_B=weights)], [slots], broken, None)


def run(account: BadSamples, counts: Progress, epoch: int, bad: set[int], steps: int) -> list[list[str]]:
    met = []
    for _ in range(steps):
        step = step_at(counts.position, epoch, bad)
        account.leave_out(step)
        met.append([b.key for b in account.take(step, len(step.bad))])
        counts.position += BATCH
    return met


def test_skip_counts_again_in_every_epoch(tmp_path):
    counts = Progress()
    account = BadSamples(DataConfig(bad_samples="skip", max_bad_fraction=0.1), Run(tmp_path), 30, BATCH, counts)
    met = run(account, counts, 30, {4, 5}, 6)
    assert met == [["key-4", "key-5"], [], []] * 2
    assert (counts.bad, counts.bad_in_epoch, counts.bad_in_a_row) == (4, 2, 0)
    assert not Run(tmp_path).quarantine.exists()


def test_quarantine_writes_once_and_leaves_out_from_then_on(tmp_path):
    counts, config = Progress(), DataConfig(bad_samples="quarantine", max_bad_fraction=0.1)
    account = BadSamples(config, Run(tmp_path), 30, BATCH, counts)
    assert run(account, counts, 30, {4}, 6) == [["key-4"], [], [], [], [], []]
    lines = [json.loads(line) for line in Run(tmp_path).quarantine.read_text().splitlines()]
    assert lines == [{"position": 4, "epoch": 0, "sample": 4, "key": "key-4", "reason": "x.tar: sample 4"}]
    # It can be read again, but a quarantined sample stays out.
    mended = step_at(counts.position, 30, set())
    account.leave_out(mended)
    assert account.take(mended, 0) == []
    assert mended.batches[0].weight_B.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]


def test_a_disk_that_takes_no_line_ends_no_training(tmp_path, capsys):
    """The line comes with the next one, and in between nothing half written hides what stands there."""
    counts, config = Progress(), DataConfig(bad_samples="quarantine", max_bad_fraction=0.5)
    account = BadSamples(config, Run(tmp_path), 30, BATCH, counts)
    Run(tmp_path).quarantine.mkdir()  # cannot be opened
    assert run(account, counts, 30, {4, 14, 24}, 2) == [["key-4"], ["key-14"]]
    assert capsys.readouterr().err.count("quarantine.jsonl cannot be written (Is a directory); its lines wait") == 1
    Run(tmp_path).quarantine.rmdir()
    assert run(account, counts, 30, {4, 14, 24}, 1) == [["key-24"]]
    assert [json.loads(line)["sample"] for line in Run(tmp_path).quarantine.read_text().splitlines()] == [4, 14, 24]


def test_a_resumed_run_knows_what_was_set_aside_before_its_position(tmp_path):
    line = {"epoch": 0, "key": "k", "reason": "r"}
    Run(tmp_path).quarantine.write_text(
        "".join(json.dumps(line | {"position": p, "sample": p}) + "\n" for p in (3, 25))
    )
    with Run(tmp_path).quarantine.open("a") as file:
        file.write('{"position": 26, "sam')  # a kill cut it short
    counts = Progress(position=20)
    account = BadSamples(DataConfig(bad_samples="quarantine"), Run(tmp_path), 30, BATCH, counts)
    assert account.quarantined == {3}
    assert [json.loads(text)["position"] for text in Run(tmp_path).quarantine.read_text().splitlines()] == [3]


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_too_many_in_a_row_stop_the_run(tmp_path, policy):
    """Twelve in a row over two steps; the row is counted in the order of the positions."""
    config = DataConfig(bad_samples=policy, max_bad_in_a_row=12, max_bad_fraction=1.0)
    counts = Progress()
    account = BadSamples(config, Run(tmp_path), 100, BATCH, counts)
    run(account, counts, 100, set(range(3, 14)), 5)
    assert counts.bad_in_a_row == 0
    counts = Progress()
    account = BadSamples(config, Run(tmp_path / "other"), 100, BATCH, counts)
    (tmp_path / "other").mkdir()
    with pytest.raises(EgmfError, match=r"12 samples in a row .*the last: x.tar: sample 14") as caught:
        run(account, counts, 100, set(range(3, 15)), 5)
    assert "\n" not in str(caught.value)
    assert counts.position == BATCH


def test_too_large_a_part_of_an_epoch_stops_the_run(tmp_path):
    config = DataConfig(bad_samples="skip", max_bad_fraction=0.02)
    counts = Progress()
    account = BadSamples(config, Run(tmp_path), 100, BATCH, counts)
    run(account, counts, 100, {7, 55}, 30)  # two of a hundred are allowed, in each of three epochs
    assert counts.bad == 6
    counts = Progress()
    account = BadSamples(config, Run(tmp_path), 100, BATCH, counts)
    with pytest.raises(EgmfError, match=r"3 samples of one epoch, more than 0.02 of 100 .*sample 91"):
        run(account, counts, 100, {7, 55, 91}, 30)
    assert counts.position == 90


def test_an_epochs_end_inside_a_batch_forgets_nothing(tmp_path):
    """Samples 23 and 24 of 25 are bad; the batch that meets them goes on into the next epoch."""
    counts = Progress()
    account = BadSamples(DataConfig(bad_samples="skip", max_bad_fraction=0.04), Run(tmp_path), 25, BATCH, counts)
    with pytest.raises(EgmfError, match=r"2 samples of one epoch, more than 0\.04 of 25"):
        run(account, counts, 25, {23, 24}, 3)
    assert counts.bad_in_epoch == 0


def test_the_budget_is_not_rounded_up(tmp_path):
    counts = Progress()
    account = BadSamples(DataConfig(bad_samples="skip", max_bad_fraction=0.01), Run(tmp_path), 150, BATCH, counts)
    with pytest.raises(EgmfError, match=r"2 samples of one epoch, more than 0\.01 of 150"):
        run(account, counts, 150, {3, 5}, 1)


def test_what_is_set_aside_adds_up_over_epochs(tmp_path):
    """One new bad sample an epoch: never more than one of an epoch, but the third is too many for the data set."""
    counts = Progress()
    account = BadSamples(DataConfig(bad_samples="quarantine", max_bad_fraction=0.1), Run(tmp_path), 20, BATCH, counts)
    for broken in ({1}, {1, 2}):
        run(account, counts, 20, broken, 2)
    with pytest.raises(EgmfError, match="3 samples"):
        run(account, counts, 20, {1, 2, 3}, 2)


def test_a_batch_longer_than_an_epoch_sets_a_sample_aside_once(tmp_path):
    counts = Progress()
    account = BadSamples(DataConfig(bad_samples="quarantine", max_bad_fraction=0.5), Run(tmp_path), 4, BATCH, counts)
    assert run(account, counts, 4, {1}, 1) == [["key-1"]]
    assert counts.bad == 1
    assert len(Run(tmp_path).quarantine.read_text().splitlines()) == 1


@pytest.mark.parametrize("line", ["null", '{"a": 1}', '{"position": "x", "sample": 1}', "\udcff"])
def test_a_damaged_quarantine_file_is_read_up_to_the_damage(tmp_path, line):
    sound = json.dumps({"position": 3, "sample": 3, "epoch": 0, "key": "k", "reason": "r"})
    Run(tmp_path).quarantine.write_bytes(f"{sound}\n{line}\n".encode("utf-8", "surrogateescape"))
    account = BadSamples(DataConfig(bad_samples="quarantine"), Run(tmp_path), 30, BATCH, Progress(position=20))
    assert account.quarantined == {3}


def test_a_reason_may_hold_signs_that_end_lines_elsewhere(tmp_path):
    lines = [{"position": n, "sample": n, "epoch": 0, "key": "k", "reason": "so\u2028it goes"} for n in (3, 5)]
    Run(tmp_path).quarantine.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    account = BadSamples(DataConfig(bad_samples="quarantine"), Run(tmp_path), 30, BATCH, Progress(position=20))
    assert account.quarantined == {3, 5}


def test_strict_counts_nothing(tmp_path):
    counts = Progress()
    account = BadSamples(DataConfig(), Run(tmp_path), 100, BATCH, counts)
    assert run(account, counts, 100, set(), 2) == [[], []]
