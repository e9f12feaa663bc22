"""Which validation samples are scored, by which number the best adapter is chosen, and when that cannot work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from egmf_dist.errors import EgmfError
from egmf_dist.metrics.by_task import metric_names
from egmf_dist.metrics.selection import (
    UNDEFINED,
    check_definable,
    check_selection,
    chosen_for_validation,
    selection_score,
)


def results(weighted_f1, corr, mae=0.5, ece=0.1):
    return {
        "emotion": {"kind": "classification", "metrics": {"weighted_f1": weighted_f1, "ece": ece}},
        "sentiment": {"kind": "regression", "metrics": {"corr": corr, "mae": mae}},
    }


def test_the_default_is_the_mean_of_the_headlines_and_undefined_is_worst():
    assert selection_score(results(0.6, 0.4), "") == pytest.approx(0.5)
    assert selection_score(results(0.6, None), "") == pytest.approx(-0.2)
    assert selection_score(results(None, None), "") == UNDEFINED


@pytest.mark.parametrize("select_by", ["sentiment.mae", "emotion.ece"])
def test_errors_are_better_when_lower(select_by):
    low, high = results(0, 0, mae=0.2, ece=0.2), results(0, 0, mae=0.3, ece=0.3)
    assert selection_score(low, select_by) > selection_score(high, select_by)


def test_a_score_is_better_when_higher_and_a_missing_task_is_worst():
    scores = [selection_score(r, "emotion.weighted_f1") for r in ({}, results(0.5, 0), results(0.6, 0))]
    assert scores == sorted(scores)
    assert scores[0] == UNDEFINED


def test_an_unknown_task_or_metric_is_named(tasks):
    check_selection("", tasks)
    check_selection("emotion.weighted_f1", tasks)
    check_selection("sentiment.mae", tasks)
    with pytest.raises(EgmfError, match="this run's tasks are emotion, sentiment"):
        check_selection("meld.weighted_f1", tasks)
    with pytest.raises(EgmfError, match="the metrics of emotion are accuracy, weighted_f1"):
        check_selection("emotion.f1", tasks)
    assert "corr" in metric_names(tasks["sentiment"])


@pytest.mark.parametrize("wanted", [2, 7, 50, 100, 999])
def test_a_subset_holds_every_task_by_its_share(wanted):
    """A task of 3 among 1,000: a plain random subset of 50 is without it in six of seven seeds."""
    task_of = np.zeros(1000, dtype=int)
    task_of[[17, 400, 987]] = 1
    task_of[500:740] = 2
    chosen = chosen_for_validation(task_of, wanted)
    assert chosen == sorted(set(chosen)) == chosen_for_validation(task_of, wanted)
    assert len(chosen) == max(wanted, 3)
    for more in range(3, 60):
        assert len(chosen_for_validation(task_of, more)) == more
    counts = np.bincount(task_of[chosen], minlength=3)
    assert counts.min() >= 1
    assert abs(counts - np.array([757, 3, 240]) * wanted / 1000).max() <= 2
    assert chosen_for_validation(task_of, 0) == list(range(1000)) == chosen_for_validation(task_of, 5000)


def split_of(samples, tasks):
    reads = []

    def read(indices):
        reads.append(list(indices))
        return SimpleNamespace(samples=[samples[i] for i in indices])

    return SimpleNamespace(read=read, tasks=tasks, reads=reads)


def test_a_selection_that_no_model_could_define_is_refused(make_samples, tasks):
    samples = make_samples(200)
    everything = range(200)
    for select_by in ("", "emotion.weighted_f1", "emotion.ece", "sentiment.corr", "sentiment.mae"):
        split = split_of(samples, tasks)
        assert check_definable(select_by, split, everything) is None
        assert len(split.reads) == 1, "a few samples are enough to see that it is defined"
    constant = [replace(s, value=0.5) if s.task == "sentiment" else s for s in samples]
    check_definable("sentiment.mae", split_of(constant, tasks), everything)
    with pytest.raises(EgmfError, match=r"select_by 'sentiment.corr' is undefined.*emotion: 100, sentiment: 100"):
        check_definable("sentiment.corr", split_of(constant, tasks), everything)
    emotion = [i for i, s in enumerate(samples) if s.task == "emotion"]
    with pytest.raises(EgmfError, match=r"undefined for any model on the 100 validation samples"):
        check_definable("sentiment.mae", split_of(samples, tasks), emotion)
    constant_task = split_of(constant, tasks)
    assert "sentiment can be judged by no model on the 200 validation samples" in check_definable(
        "", constant_task, everything
    )
    one = [next(i for i, s in enumerate(samples) if s.task == "sentiment")]
    with pytest.raises(EgmfError, match="weighted F1 and Corr of every task is undefined"):
        check_definable("", split_of(samples, tasks), one)
