"""Measured beside the best possible, condition by condition."""

from __future__ import annotations

from typing import Any

from egmf_dist.inference.conditions import Condition, conditions
from egmf_dist.inference.evaluate import construction_ceilings
from egmf_shards import ShardSet, synthesize

CEILINGS = {
    "emotion": {
        "metric": "weighted_f1",
        "text+audio+vision": 0.95,
        "text+vision": 0.7,
        "audio+vision": 0.6,
        "text+audio": 0.55,
    }
}


MODALITIES = {"modalities": ["text", "audio", "vision"]}


def scored(value: float | None) -> dict[str, Any]:
    return {
        "tasks": {"emotion": {"kind": "classification", "n": 4, "metrics": {"accuracy": 0.0, "weighted_f1": value}}}
    }


def test_the_ceiling_is_that_of_what_was_left():
    evaluation = (
        scored(0.9) | MODALITIES | {"ceilings": CEILINGS, "removed": {"text": scored(0.5), "audio": scored(None)}}
    )
    assert conditions(evaluation) == {
        "emotion": (
            "weighted_f1",
            [Condition("all", 0.9, 0.95), Condition("without text", 0.5, 0.6), Condition("without audio", None, 0.7)],
        )
    }


def test_what_was_removed_from_the_start_stays_removed():
    evaluation = (
        scored(0.5) | MODALITIES | {"ceilings": CEILINGS, "without": ["vision"], "removed": {"audio": scored(0.3)}}
    )
    _, rows = conditions(evaluation)["emotion"]
    assert rows == [Condition("without vision", 0.5, 0.55), Condition("without audio+vision", 0.3, None)]


def test_real_data_has_no_ceiling():
    assert conditions(scored(0.6)) == {"emotion": ("weighted_f1", [Condition("all", 0.6, None)])}


def test_ceilings_hold_for_folders_that_were_built_alike(tmp_path):
    """A joint run over two constructions has no best possible score that either of them says."""
    for name, seed, streams in (("a", 0, "audio,vision"), ("b", 1, "audio,vision"), ("c", 2, "audio,vision,eda")):
        synthesize(tmp_path / name, seed=seed, samples=30, streams=streams)
    alike = construction_ceilings(ShardSet.open([tmp_path / "a", tmp_path / "b"], "test"))
    assert alike == construction_ceilings(ShardSet.open([tmp_path / "a"], "test"))
    assert alike["emotion"]["text+audio+vision"] > 0.9
    assert construction_ceilings(ShardSet.open([tmp_path / "a", tmp_path / "c"], "test")) == {}
