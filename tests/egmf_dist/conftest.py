"""Fixtures of the model's tests: a tiny model of each family, alone in its process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from families import FAMILIES, STREAMS, TUNED, save_model

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, PromptConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.inference.export import export
from egmf_dist.inference.scorer import TreeScorer
from egmf_dist.model.adapter import save_adapter
from egmf_dist.model.identity import backbone_identity
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity

PLAIN = PromptConfig(chat_template="off")


@pytest.fixture(scope="session")
def families(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family."""
    root = tmp_path_factory.mktemp("families")
    return {
        name: save_model(root / name, kind, start, settings) for name, (kind, start, settings, _) in FAMILIES.items()
    }


@pytest.fixture(scope="session")
def load(families, tasks):
    """``load(family, **data settings)``: model in fp32 without dropout, collator and capabilities; made once each."""
    made = {}

    def get(name: str, prompt: PromptConfig = PLAIN, **data):
        key = (name, prompt, *sorted(data.items()))
        if key not in made:
            config = Config(
                prompt=prompt,
                data=DataConfig(shards=["unused"], **data),
                backbone=BackboneConfig(path=str(families[name]), lora_rank=4, lora_alpha=8, lora_dropout=0.0),
                model=ModelConfig(width=32, heads=2),
                training=TrainingConfig(precision="fp32"),
            )
            data_of_run = RunData(tasks, ["en", "zh"], STREAMS, {})
            capabilities, collator = read_backbone(config, data_of_run)
            model = build_egmf(config, capabilities, data_of_run)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.1)
            made[key] = model.eval(), collator, capabilities
        return made[key]

    return get


@pytest.fixture
def alone(monkeypatch):
    """Collectives of a single process."""
    from contextlib import nullcontext

    from egmf_dist import distributed

    monkeypatch.setattr(distributed, "failing_together", nullcontext)
    monkeypatch.setattr(distributed, "share_objects", lambda values: values)


@pytest.fixture(scope="session")
def trained(families, tasks, tmp_path_factory):
    """``trained(kind)``: a run whose best adapter is random, its model and what answers with it; made once each."""
    made = {}

    def get(kind: str):
        if kind in made:
            return made[kind]
        family, changes = TUNED[kind]
        config = Config(
            data=DataConfig(shards=["unused"], context_turns=2),
            backbone=BackboneConfig(path=str(families[family]), lora_rank=4, lora_dropout=0.0, **changes),
            model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or config.backbone.tuning == "full"):
                parameter.data += 0.05 * torch.randn_like(parameter)
        run = Run(tmp_path_factory.mktemp("runs") / kind)
        run.folder.mkdir()
        identity = Identity(1, "", 0, backbone_identity(config.backbone))
        about = {"step": 7, "score": 0.5, "selected_by": "valid", "config": asdict(config), "data": data.to_json()}
        save_adapter(model, run, 7, about | {"identity": identity.to_json()})
        made[kind] = run, model.eval(), TreeScorer(collator, capabilities, 32)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def exported(trained):
    """One exported model for all that only ask it."""
    run, _, _ = trained("lora")
    out = run.folder.parent / "exported"
    export(run, out)
    return out
