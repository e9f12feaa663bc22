"""``egmf bench step``: its contestants do what they say, and one small run of all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, save_model
from transformers import AutoModelForCausalLM

from egmf_dist.bench import dialogues
from egmf_dist.bench.backbones import SHAPES, write_backbone
from egmf_dist.bench.contestants import Read
from egmf_dist.bench.predecessor import Fusion, Padded, Ragged, dense
from egmf_dist.bench.step import NOTES, RATIOS, TITLES
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.model.backbone import load_backbone, load_tokenizer
from egmf_dist.objectives.base import make_objective
from egmf_launcher.cli import main


def test_the_predecessor_has_the_size_that_was_published() -> None:
    fusion = Fusion(4096, (74, 35))
    assert sum(p.numel() for p in fusion.parameters()) == 2_631_692


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Config:
    """Dialogues, and a tiny Gemma 3 that reads a token a word."""
    folder = tmp_path_factory.mktemp("step")
    dialogues.write_dialogues(folder / "data", 64)
    kind, start, settings, _ = FAMILIES["gemma3"]
    save_model(folder / "gemma3", kind, start, settings)
    return Config(
        data=DataConfig(shards=[str(folder / "data")], context_turns=12),
        backbone=BackboneConfig(path=str(folder / "gemma3"), tuning="frozen"),
        model=ModelConfig(auxiliary_weight=0.0),
        training=TrainingConfig(precision="fp32"),
    )


def test_our_loop_and_the_predecessors_train_the_same(made) -> None:
    """Its modules over packed features and rows: the loss and every gradient of one sample alone, dense."""
    read = Read(made)
    backbone = load_backbone(made.backbone, torch.float32)
    fusion = Fusion(read.capabilities.width, (dialogues.AUDIO_DIM, dialogues.VISION_DIM))
    padded = Padded(backbone, fusion)
    ragged = Ragged(backbone, fusion, read.capabilities, make_objective(made, read.data.tasks))
    losses, gradients = [], []
    samples = read.samples[:3]
    for way in ("padded", "ragged"):
        fusion.zero_grad()
        if way == "ragged":
            loss = ragged(read.batch(samples)).total
        else:
            loss = torch.zeros(())
            for sample in samples:
                batch = read.batch([sample])
                whole = dense(batch, read.answers(batch, [sample]), read.collator.limits)
                loss = loss + padded(whole) * (whole.labels_BL >= 0).sum()  # it takes the mean over tokens
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in fusion.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("way", ["padded", "ragged"])
def test_the_predecessor_trains_in_bf16(made, way: str) -> None:
    """As on a GPU; features come in float32."""
    read = Read(made)
    fusion = Fusion(read.capabilities.width, (dialogues.AUDIO_DIM, dialogues.VISION_DIM)).bfloat16()
    backbone = load_backbone(made.backbone, torch.bfloat16)
    batch = read.batch(read.samples[:2])
    if way == "ragged":
        loss = Ragged(backbone, fusion, read.capabilities, make_objective(made, read.data.tasks))(batch).total
    else:
        loss = Padded(backbone, fusion)(dense(batch, read.answers(batch, read.samples[:2]), read.collator.limits))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_shape_reads_a_token_a_word(name: str, tmp_path: Path, monkeypatch) -> None:
    """AutoTokenizer takes some model types' own class instead of the one that was saved, which then knows no word."""
    title, make = SHAPES[name]
    config = make()
    config.update({"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1})
    monkeypatch.setitem(SHAPES, name, (title, lambda: config))
    made = write_backbone(tmp_path / "backbone", 1, name)
    assert title in made.title
    assert made.layer_weights == sum(
        p.numel()
        for key, p in AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").named_parameters()
        if p.ndim == 2 and ".layers." in key
    )
    ids = load_tokenizer(BackboneConfig(path=str(tmp_path / "backbone")))("neutral surprise").input_ids
    assert len(set(ids)) == 2


def test_few_samples_are_as_long_as_all(made) -> None:
    read = Read(made)

    def mean(samples):
        return sum(map(read.collator.prompt_bytes, samples)) / len(samples)

    chosen = read.spread(16)
    assert len({s.id for s in chosen}) == 16
    assert mean(chosen) == pytest.approx(mean(read.samples), rel=0.05)


def test_one_small_run(made, tmp_path: Path) -> None:
    """Everyone, in a process of its own: it joins a process group."""
    words = [
        "--out",
        str(tmp_path),
        "--backbone",
        made.backbone.path,
        "--layers",
        "2",
        "--samples",
        "32",
        "--rounds",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "egmf_launcher.cli", "bench", "step", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["contestant"] for row in summary["rows"]] == list(TITLES)
    assert all(row["samples_per_s"] > 0 and row["rounds"] == 1 for row in summary["rows"])
    speed = {row["contestant"]: row["samples_per_s"] for row in summary["rows"]}
    for name, (first, second) in RATIOS.items():
        assert summary["ratios"][name] == pytest.approx(speed[first] / speed[second], abs=1e-3)
        assert f"{name}: {summary['ratios'][name]:.2f} (" in done.stdout
    parts = summary["breakdown"]
    assert set(parts) > {"reading and laying out", "fusion", "LLM forward", "output layer", "loss", "backward"}
    assert all(seconds >= 0 for seconds in parts.values())
    assert set(NOTES) <= set(summary["notes"])
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["results.csv", "step.png", "summary.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--samples 40", "--samples is 40; it must be a multiple of 32, the batch"),
        ("--only forrest", "--only names 'forrest'; it may name forest, packed"),
        ("--layers 19 --samples 32", "--layers is 19; Gemma 3 270M has 18"),
        ("--out file", "--out file: File exists"),
        ("--out foreign", "foreign/summary.json: not a report of egmf bench step"),
    ],
)
def test_a_mistake_is_one_line(words, says, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    Path("file").write_text("")
    Path("foreign").mkdir()
    Path("foreign", "summary.json").write_text('{"kind": "data readers"}')
    given = words if "--out" in words else f"--out out {words}"
    assert main(["bench", "step", *given.split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
