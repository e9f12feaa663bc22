"""Selection of the best adapter, and what identifies a backbone."""

from __future__ import annotations

import shutil

import pytest

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError
from egmf_dist.inference.score import check_selection, evaluate_predictions, selection_score
from egmf_dist.model.backbone import load_tokenizer
from egmf_dist.run.identity import backbone_identity
from egmf_dist.tasks.metrics import metric_names


def results(weighted_f1, corr, mae=0.5, ece=0.1):
    return {
        "emotion": {"kind": "classification", "metrics": {"weighted_f1": weighted_f1, "ece": ece}},
        "sentiment": {"kind": "regression", "metrics": {"corr": corr, "mae": mae}},
    }


def test_the_default_is_the_mean_of_the_headlines_and_undefined_is_worst():
    assert selection_score(results(0.6, 0.4), "") == pytest.approx(0.5)
    assert selection_score(results(0.6, None), "") == pytest.approx(-0.2)


@pytest.mark.parametrize("select_by", ["sentiment.mae", "emotion.ece"])
def test_errors_are_better_when_lower(select_by):
    low, high = results(0, 0, mae=0.2, ece=0.2), results(0, 0, mae=0.3, ece=0.3)
    assert selection_score(low, select_by) > selection_score(high, select_by)


def test_a_score_is_better_when_higher_and_a_missing_task_is_worst():
    scores = [selection_score(r, "emotion.weighted_f1") for r in ({}, results(0.5, 0), results(0.6, 0))]
    assert scores == sorted(scores)
    assert scores[0] < -1


def test_an_unknown_task_or_metric_is_named(tasks):
    check_selection("", tasks)
    check_selection("emotion.weighted_f1", tasks)
    check_selection("sentiment.mae", tasks)
    with pytest.raises(EgmfError, match="this run's tasks are emotion, sentiment"):
        check_selection("meld.weighted_f1", tasks)
    with pytest.raises(EgmfError, match="the metrics of emotion are accuracy, weighted_f1"):
        check_selection("emotion.f1", tasks)
    assert "corr" in metric_names(tasks["sentiment"])


def test_scores_that_are_not_finite_are_an_error_that_names_the_sample(tasks):
    row = {
        "id": "s-3",
        "task": "emotion",
        "truth": "joy",
        "predicted": "joy",
        "probabilities": [0.5, float("nan"), 0.5],
    }
    with pytest.raises(EgmfError, match="sample s-3: its scores are not finite"):
        evaluate_predictions([row], tasks)


def test_a_remade_backbone_is_another_one(random_backbone, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(random_backbone, copy)
    before = backbone_identity(BackboneConfig(path=str(copy)))
    assert before["sha256"] == backbone_identity(BackboneConfig(path=str(random_backbone)))["sha256"]
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert backbone_identity(BackboneConfig(path=str(copy)))["sha256"] != before["sha256"]


@pytest.mark.parametrize("path", ["", "./none", "none/of/them", "tests/none"])
def test_a_path_that_is_no_model_is_said_in_one_line(path):
    with pytest.raises(EgmfError, match=r"backbone.path (is empty|'.*' holds no config.json)") as caught:
        load_tokenizer(BackboneConfig(path=path))
    assert "\n" not in str(caught.value)
