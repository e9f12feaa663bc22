"""Feature streams of any name, number and width: packed, standardised, encoded, fused; and samples without a target."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.data.run_data import RunData, open_split
from egmf_dist.errors import EgmfError
from egmf_dist.recipes.tiny_corpus import read_sources
from egmf_shards import ShardWriter

SCALE = 100.0
"""Of the second folder's audio: only statistics of its own bring it to a deviation of 1."""


def in_another_width(sample, number: int):
    """The sample with an audio of 9 numbers, and without vision but with eda."""
    rng = np.random.default_rng(number)
    features = {
        "audio": (SCALE * rng.normal(size=(3, 9))).astype(np.float32),
        "eda": rng.normal(size=(4, 1)).astype(np.float32),
    }
    modalities = ("text", *features)
    return replace(sample, id=f"w-{number}", dataset="wide", modalities=modalities, features=features)


@pytest.fixture
def write(tmp_path, tasks):
    """``write(name, samples)``: a folder of shards; its path."""

    def make(name, samples) -> str:
        with ShardWriter(tmp_path / name, samples[0].dataset, list(tasks.values())) as writer:
            for sample in samples:
                writer.write(sample)
        return str(tmp_path / name)

    return make


def made(random_backbone: Path, folders: list[str]):
    """The model and collator of a run on such folders, and its samples."""
    config = Config(
        data=DataConfig(shards=folders),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2),
        training=TrainingConfig(precision="fp32"),
    )
    shards = open_split(config, "train")
    data = RunData.from_json(json.loads(json.dumps(RunData.of(shards, config.data).to_json())))
    capabilities, collator = read_backbone(config, data)
    return build_egmf(config, capabilities, data).eval(), collator, list(shards), data


def test_two_folders_of_different_widths_and_streams_in_one_batch(random_backbone, write, make_samples):
    """Each width has its projection and its statistics; a batch is the sum of its samples all the same."""
    narrow = make_samples(8, seed=1)
    wide = [in_another_width(sample, i) for i, sample in enumerate(make_samples(8, seed=2))]
    model, collator, samples, data = made(random_backbone, [write("narrow", narrow), write("wide", wide)])
    assert data.modalities == ("text", "audio", "eda", "vision")
    assert [own.key for own in collator.inputs] == ["audio_6", "audio_9", "eda_1", "vision_5"]
    assert set(model.encoders.features) == set(data.standardisations) == {"audio_6", "audio_9", "eda_1", "vision_5"}

    batch = collator(samples, [1.0] * len(samples))
    assert batch.modalities == 4
    of_wide = batch.features[1]
    assert of_wide.shape == (3 * 8, 9)
    assert float(of_wide.std()) == pytest.approx(1, abs=0.1), f"not {SCALE}"
    lengths_BM = batch.cu_segments.diff().view(-1, 4)
    for sample, lengths in zip(samples, lengths_BM.tolist(), strict=True):
        assert lengths[1:] == [len(sample.features.get(m, ())) for m in ("audio", "eda", "vision")]

    with torch.no_grad():
        alone = torch.stack([model(collator([s], [1.0])).total for s in samples])
        torch.testing.assert_close(model(batch).total, alone.sum(), rtol=1e-4, atol=1e-4)
    model.train()
    model(batch).total.backward()
    for key, encoder in model.encoders.features.items():
        assert encoder.weight.grad.abs().sum() > 0, key

    odd = replace(wide[0], features={**wide[0].features, "audio": np.zeros((2, 7), np.float32)})
    with pytest.raises(EgmfError, match="sample w-0: audio is 7 wide; this run's is 6 or 9"):
        collator([odd], [1.0])
    other = replace(narrow[0], modalities=("gaze",), text="", features={"gaze": np.zeros((2, 7), np.float32)})
    with pytest.raises(EgmfError, match="sample s-0: gaze is 7 wide; this run's is none"):
        collator([other], [1.0])


def test_each_token_keeps_its_sample_and_modality(random_backbone, write, make_samples):
    """Removing one stream from one sample moves nobody else's tokens."""
    wide = [in_another_width(sample, i) for i, sample in enumerate(make_samples(4, seed=2))]
    folders = [write("narrow", make_samples(4, seed=1)), write("wide", wide)]
    model, collator, samples, _ = made(random_backbone, folders)
    without = [sample.without("audio") if i == 1 else sample for i, sample in enumerate(samples)]
    with torch.no_grad():
        all_there, one_less = (model.fuse(collator(batch, [1.0] * 8)) for batch in (samples, without))
    moved = (all_there.pooled_BKD - one_less.pooled_BKD).abs().amax((1, 2))
    assert (moved > 1e-4).tolist() == [i == 1 for i in range(8)]
    assert one_less.diagnostics["modalities"].shape == (8, 4)
    assert float(one_less.diagnostics["modalities"][1, 1]) == 0


def test_a_run_on_text_alone_has_one_modality(random_backbone, write, make_samples):
    samples = [replace(s, modalities=("text",), features={}) for s in make_samples(4)]
    model, collator, samples, data = made(random_backbone, [write("text", samples)])
    assert data.modalities == ("text",)
    batch = collator(samples, [1.0] * 4)
    with torch.no_grad():
        alone = torch.stack([model(collator([s], [1.0])).total for s in samples])
        torch.testing.assert_close(model(batch).total, alone.sum(), rtol=1e-4, atol=1e-4)
        assert model.fuse(batch).diagnostics["modalities"].tolist() == [[1.0]] * 4
    model.train()
    model(batch).total.backward()
    assert all(p.grad is not None for p in model.fusion.parameters())


def test_samples_without_a_target_are_refused_by_name(write, make_samples):
    """By training and evaluation alike, before anything is loaded; the collator, too, gives no batch with a hole."""
    samples = make_samples(4)
    folder = write("data", [*samples[:3], replace(samples[3], label=None, value=None)])
    message = "1 of the 4 samples of the split 'train' have no target, the first is 's-3'"
    with pytest.raises(EgmfError, match=message):
        open_split(Config(data=DataConfig(shards=[folder])), "train")
    with pytest.raises(EgmfError, match=message + f" in {re.escape(str(folder))}"):  # to pre-train on, too
        read_sources([Path(folder)], 1)
