"""Settings: files, overrides, and one clear line for each mistake."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from egmf_dist.config import (
    BackboneConfig,
    Config,
    EvaluationConfig,
    config_from_dict,
    dump_config,
    load,
    load_config,
    read_directory,
    without_effect,
)
from egmf_dist.config.rules import at_least, free
from egmf_dist.errors import EgmfError
from egmf_dist.formats import FORMAT
from egmf_dist.run.folder import Run, changes

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_there_are_recipes():
    assert {p.name for p in RECIPES} >= {"demo.yaml", "real.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_is_valid_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    dump_config(config, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == config
    assert config_from_dict(asdict(config)) == config


def test_a_runs_config_names_its_version_and_where_paths_start(tmp_path):
    """And serves as the settings of another run all the same."""
    path = tmp_path / "config.yaml"
    dump_config(Config(), path, "/somewhere")
    assert yaml.safe_load(path.read_text())["format"] == FORMAT
    assert read_directory(path) == Path("/somewhere")
    assert load_config(path) == Config()
    path.write_text("data: {shards: [x]}\n")  # version 1
    assert read_directory(path) is None
    path.write_text(f"format: {FORMAT + 1}\ndata: {{shards: [x]}}\nwhat_is_that: 3\n")
    with pytest.raises(EgmfError, match=rf"config {path}: written in format {FORMAT + 1}, .*; use a newer one"):
        load_config(path)


def test_an_option_wins_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("model:\n  width: 64\n")
    assert load_config(tmp_path / "c.yaml").model.width == 64
    assert load_config(tmp_path / "c.yaml", ["--model.width", "32"]).model.width == 32


def test_every_field_has_a_docstring():
    """The text under a field is its help on the command line."""
    import docstring_parser

    import egmf_dist.config.schema as schema

    for name in ("Config", *(type(getattr(Config(), f)).__name__ for f in Config.__dataclass_fields__)):
        cls = getattr(schema, name)
        documented = {p.arg_name for p in docstring_parser.parse_from_object(cls).params if p.description}
        assert documented == set(cls.__dataclass_fields__), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"width": 100}}, r"model.width is 100; it must be a positive multiple of 16"),
        ({"model": {"heads": 3}}, r"model.heads is 3; it must be a divisor"),
        ({"model": {"kernel_sizes": [4]}}, r"model.kernel_sizes is \[4\]; .* odd"),
        ({"model": {"local_expert": False, "semantic_expert": False, "global_expert": False}}, "every expert is off"),
        ({"model": {"widht": 64}}, "widht"),
        ({"data": {"context_turns": 13}}, "data.context_turns is 13; it must be 0 to 12"),
        ({"training": {"steps": 0}}, "training.steps is 0"),
        ({"training": {"precision": "fp16"}}, "training.precision"),
        ({"training": {"select_by": "weighted_f1"}}, "TASK.METRIC"),
        ({"backbone": {"lora_rank": 0}, "model": {"pseudo_tokens": 0}}, "nothing would be trained"),
        ({"trainig": {"steps": 3}}, "trainig"),
    ],
    ids=str,
)
def test_a_mistake_gets_one_line_that_names_the_key(tmp_path, settings, message):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(EgmfError, match=message) as caught:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EgmfError, match="no such file"):
        load_config(tmp_path / "none.yaml")


@dataclass(frozen=True)
class WithOneMore(EvaluationConfig):
    """A section with a setting that only this test knows."""

    patience: int = free(3, at_least(1))
    """How often to look again."""


@dataclass(frozen=True)
class Wider(Config):
    """All settings with that one among them."""

    evaluation: WithOneMore = field(default_factory=WithOneMore)


def test_a_setting_is_one_field(tmp_path, monkeypatch):
    """Its name, type, default, help, rule and what a resume may do with it: nothing else is touched."""
    monkeypatch.setattr(load, "Config", Wider)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"shards": ["x"]}, "evaluation": {"patience": 4}}))
    saved, given = load_config(path), load_config(path, ["--evaluation.patience", "5"])
    assert (saved.evaluation.patience, given.evaluation.patience) == (4, 5)
    assert changes(Run(tmp_path / "run"), saved, given) == {"evaluation.patience": [4, 5]}
    with pytest.raises(EgmfError, match=r"evaluation.patience is 0; it must be 1 or more"):
        load_config(path, ["--evaluation.patience", "0"])
    with pytest.raises(EgmfError, match="patience"):
        load_config(path, ["--evaluation.patience", "often"])


def test_settings_without_effect_are_said():
    """A recipe's settings of LoRA stay in its file where another way of tuning is asked for."""
    lora = BackboneConfig(lora_rank=8, lora_dropout=0.0)
    assert without_effect(Config(backbone=lora)) == []
    assert without_effect(Config(backbone=BackboneConfig(tuning="full"))) == []
    said = ["backbone.lora_rank, backbone.lora_dropout have no effect: backbone.tuning is full"]
    assert without_effect(Config(backbone=replace(lora, tuning="full"))) == said


def test_a_recipe_is_known_by_its_name(tmp_path, monkeypatch):
    """In a folder that has no configs/, too; a file of that name goes first."""
    monkeypatch.chdir(tmp_path)
    for path in RECIPES:
        assert load_config(path.stem) == load_config(path)
    (tmp_path / "demo").write_text("data: {shards: [mine]}\n")
    assert load_config("demo").data.shards == ["mine"]
    with pytest.raises(
        EgmfError,
        match=r"config nodemo: no such file; give .* recipe \(clips, demo, real, real-llm, real-llm-gpu\)",
    ):
        load_config("nodemo")
