"""Fixtures of the model's tests: a tiny model of each family, alone in its process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, STREAMS, save_model

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, PromptConfig, TrainingConfig
from egmf_dist.data.run_data import RunData

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
