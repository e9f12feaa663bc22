"""Features as deviations from the training split's mean."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData, open_split
from egmf_dist.data.standardise import CLAMP, Standardisation
from egmf_dist.errors import EgmfError
from egmf_shards import ShardWriter


def statistics(rows):
    return {
        "frames": len(rows), "mean": rows.mean(0).tolist(), "std": rows.std(0).tolist(),
        "min": rows.min(0).tolist(), "max": rows.max(0).tolist(),
    }  # fmt: skip


def test_pooled_statistics_are_those_of_all_frames_together():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)) * [1, 1e4, 1e-3] + [5, -1e5, 0] for n in (7, 100, 31)]
    parts = [np.concatenate([p, np.full((len(p), 1), 0.1)], 1) for p in parts]
    whole = np.concatenate(parts)
    pooled = Standardisation.pooled([statistics(p) for p in parts])
    np.testing.assert_allclose(pooled.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pooled.std[:3], whole.std(0)[:3], rtol=1e-9)
    assert pooled.std[3] == 0.0
    again = Standardisation.from_json(json.loads(json.dumps(pooled.to_json())))
    done = again.apply(whole.astype(np.float32))
    np.testing.assert_allclose(done.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(done.std(0), [1, 1, 1, 0], atol=1e-3)
    assert done.dtype == np.float32


def test_values_are_clamped_and_constants_become_zero():
    known = Standardisation(np.array([10.0, 3.0]), np.array([2.0, 0.0]))
    done = known.apply(np.array([[10, 3], [14, 4], [1e9, -5], [-1e9, 1e30]], np.float32))
    assert done.tolist() == [[0, 0], [2, 0], [CLAMP, 0], [-CLAMP, 0]]


@pytest.fixture
def write_toy_shards(tasks):
    """``write(folder, samples, factors)``: shards with the audio's columns multiplied; their folder."""

    def write(folder, samples, factors=1.0):
        with ShardWriter(folder, "toy", list(tasks.values())) as writer:
            for sample in samples:
                audio = sample.features["audio"] * np.asarray(factors, np.float32)
                writer.write(replace(sample, features={**sample.features, "audio": audio}))
        return str(folder)

    return write


@pytest.fixture
def loss_of(random_backbone):
    """``loss_of(folder, standardise)``: the loss of step 1 on its first samples, in fp32."""

    def run(folder, standardise=True):
        config = Config(
            data=DataConfig(shards=[folder], standardise=standardise),
            backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_dropout=0.0),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        split = open_split(config, "train")
        data = RunData.of(split, config.data)
        # What the adapter's description keeps is what use reads.
        data = RunData.from_json(json.loads(json.dumps(data.to_json())))
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data)
        with torch.no_grad():
            return float(model(collator([split[i] for i in range(8)], [1.0] * 8)).total)

    return run


def test_a_column_in_other_units_leaves_the_loss_as_it_was(make_samples, tmp_path, loss_of, write_toy_shards):
    """One audio column times 1e4: the same loss; without standardisation another one, so the column is read."""
    plain = write_toy_shards(tmp_path / "plain", make_samples(16))
    scaled = write_toy_shards(tmp_path / "scaled", make_samples(16), [1, 1e4, 1, 1, 1, 1])
    assert loss_of(scaled) == pytest.approx(loss_of(plain), rel=1e-5)
    assert abs(loss_of(scaled, False) - loss_of(plain, False)) > 1e-3
    assert abs(loss_of(plain) - loss_of(plain, False)) > 1e-3


def test_a_folder_without_statistics_is_refused(make_samples, tmp_path, loss_of, write_toy_shards):
    folder = write_toy_shards(tmp_path / "old", make_samples(16))
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["statistics"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EgmfError, match=r"manifest has no statistics of audio.*egmf shards index --force"):
        loss_of(folder)
    assert np.isfinite(loss_of(folder, False))


def test_a_resumed_run_keeps_the_statistics_of_its_first_steps(make_samples, tmp_path, write_toy_shards):
    """They are no part of the data's identity, and a folder's may be made anew."""
    config = Config(data=DataConfig(shards=[write_toy_shards(tmp_path / "a", make_samples(16))]))
    data = RunData.of(open_split(config, "train"), config.data)
    known = json.loads(json.dumps(data.to_json()))["standardisations"]
    assert data.keeping(None) == (data, None)
    assert data.keeping(known)[1] is None
    known["audio_6"]["mean"][0] += 1.0
    kept, said = data.keeping(known)
    assert "it keeps its own" in said
    assert kept.standardisations["audio_6"].mean[0] == data.standardisations["audio_6"].mean[0] + 1.0
