"""Predictions and their metrics, and what identifies a backbone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError
from egmf_dist.inference.predictions import written
from egmf_dist.inference.score import evaluate_predictions
from egmf_dist.model import identity
from egmf_dist.model.backbone import load_backbone, load_tokenizer
from egmf_dist.model.identity import backbone_identity
from egmf_dist.run.identity import Identity, check_identity


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


def test_metrics_come_from_the_numbers_and_only_what_is_written_is_rounded(tasks):
    """With 3,000 labels, six decimals of each probability would sum to 0.999 or 1.001."""
    labels = tuple(f"label {i}" for i in range(3000))
    many = {
        "many": replace(tasks["emotion"], name="many", labels=labels, questions={"en": "?"}, answers={"en": labels})
    }
    p = np.full(3000, 1 / 3000)
    p[7] += 4e-7
    row = {"id": "a", "task": "many", "truth": "label 7", "predicted": "label 7", "probabilities": p / p.sum()}
    confident = 1 - evaluate_predictions([row], many)["many"]["metrics"]["ece"]
    assert confident == pytest.approx((1 / 3000 + 4e-7) / p.sum(), rel=1e-12)
    line = written(row | {"gates": {"experts": {"local": 0.12345678}}}, many["many"], None)
    assert json.loads(json.dumps(line))["probabilities"][:8] == [0.000333] * 7 + [0.000334]
    assert line["gates"]["experts"]["local"] == 0.123457


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


def test_models_that_differ_deep_in_a_long_file_are_two(random_backbone, tmp_path, monkeypatch):
    """Two fine-tuned from one: the same size, header and embedding. A run of before knows the first hash alone."""
    monkeypatch.setattr(identity, "_WHOLE", 2**20)
    copy = tmp_path / "copy"
    shutil.copytree(random_backbone, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes().ljust(3 * 2**20, b"0"))
    (copy / "merges.txt").write_text("a b")
    before = backbone_identity(BackboneConfig(path=str(copy)))
    assert backbone_identity(BackboneConfig(path=str(copy))) == before

    def refused(then: dict, now: dict) -> bool:
        parts = [Identity(1, "d", 0, part) for part in (then, now)]
        try:
            check_identity(*parts, "run x")
        except EgmfError as error:
            return "another model than it was made with" in str(error)
        return False

    with open(weights, "r+b") as file:
        file.seek(2 * 2**20)
        file.write(b"1")
    after = backbone_identity(BackboneConfig(path=str(copy)))
    assert refused(before, after)
    assert not refused({"sha256": before["sha256"]}, after)
    assert refused({"sha256": "other"}, after)
    assert refused({"path": "owner/name", "revision": None, "commit": None}, after)
    (copy / "merges.txt").write_text("a c")
    assert refused(after, backbone_identity(BackboneConfig(path=str(copy))))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_said_in_one_line(random_backbone, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(random_backbone, copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(content[:-7])
    with pytest.raises(EgmfError, match=r"backbone '.*copy': its weights cannot be loaded: [^\n]+$"):
        load_backbone(BackboneConfig(path=str(copy)), torch.float32)


@pytest.mark.parametrize("path", ["", "./none", "none/of/them", "tests/none"])
def test_a_path_that_is_no_model_is_said_in_one_line(path):
    with pytest.raises(EgmfError, match=r"backbone.path (is empty|'.*' holds no config.json)") as caught:
        load_tokenizer(BackboneConfig(path=path))
    assert "\n" not in str(caught.value)
