"""A tiny model of two questions that takes clips: recordings, shards, and a run whose best adapter is random."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from clips import Clip
from families import FAMILIES, save_model

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig, dump_config
from egmf_dist.data.run_data import RunData
from egmf_dist.inference.export import export
from egmf_dist.model.adapter import save_adapter
from egmf_dist.model.identity import backbone_identity
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity
from egmf_launcher.cli import main
from egmf_shards import ShardSet

EMOTION = """
name: emotion
kind: classification
questions: {en: "Which emotion?", zh: "什么情绪？"}
labels: [calm, excited]
answers: {en: [calm, excited], zh: [平静, 激动]}
"""
SENTIMENT = """
name: sentiment
kind: regression
questions: {en: "How positive?", zh: "多积极？"}
low: -1.0
high: 1.0
step: 0.5
convention: mosei
"""


def record(folder: Path, extractors: str) -> Path:
    """Four recordings, and shards of them for both questions, by the command line.

    Args:
        folder: which gets ``clips/``, ``emotion/`` and ``sentiment/``.
        extractors: of ``features.yaml``.
    """
    (folder / "clips").mkdir(parents=True)
    (folder / "features.yaml").write_text(extractors, encoding="utf-8")
    for number in range(4):
        Clip(seconds=1.0, faces=number != 2).write(folder / "clips" / f"c{number}.mp4")
    extract = ["features", "extract", "--source", str(folder / "clips"), "--out", str(folder / "features")]
    assert main([*extract, "--config", str(folder / "features.yaml")]) == 0
    streams = yaml.safe_load(extractors)
    targets = {"emotion": ("label", ["calm", "excited", "calm", "calm"]), "sentiment": ("value", [0.5, -1.0, 0.0, 1.0])}
    for (name, (key, values)), task in zip(targets.items(), (EMOTION, SENTIMENT), strict=True):
        rows = [
            {"id": f"c{n}", "split": split, "text": f"word {n}", "language": ("en", "zh")[n % 2], key: values[n]}
            for n, split in enumerate(("train", "train", "valid", "test"))
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
        command = ["shards", "import", "jsonl", "--source", str(folder / f"{name}.jsonl"), "--dataset", name]
        command += ["--task", str(folder / f"{name}.yaml"), "--out", str(folder / name)]
        command += ["--features", "{" + ", ".join(f"{stream}: {folder}/features/{stream}" for stream in streams) + "}"]
        assert main(command) == 0
    return folder


def random_run(folder: Path, shards: list[Path]) -> Run:
    """A run on shards whose best adapter is random."""
    kind, start, settings, _ = FAMILIES["qwen2"]
    backbone = save_model(folder / "backbone", kind, start, settings)
    config = Config(
        data=DataConfig(shards=[str(one) for one in shards]),
        backbone=BackboneConfig(path=str(backbone), lora_rank=4, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
        training=TrainingConfig(precision="fp32"),
    )
    opened = ShardSet.open(config.data.shards, "train")
    data = RunData.of(opened, config.data)
    torch.manual_seed(0)
    model = build_egmf(config, read_backbone(config, data)[0], data)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    run = Run(folder / "run")
    run.folder.mkdir()
    identity = Identity(1, opened.index_hash, 0, backbone_identity(config.backbone), data.specifications)
    about = {"step": 7, "score": 0.5, "selected_by": "valid", "config": asdict(config), "data": data.to_json()}
    save_adapter(model, run, 7, about | {"identity": identity.to_json()})
    dump_config(config, run.config)
    return run


def exported_model(folder: Path, shards: list[Path]) -> Path:
    """The same, exported."""
    export(random_run(folder, shards), folder / "exported")
    return folder / "exported"
