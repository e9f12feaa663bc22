"""What ``egmf bench step`` measures; a module of its own, because the command line reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepOptions:
    """What is measured."""

    backbone: str = "gemma3-270m"
    """shape of the LLM of random weights: gemma3-270m or mistral-7b, or a folder or hub id whose shape and tokenizer
    it has"""
    layers: int = 6
    """of its layers so many"""
    shards: str | None = None
    """folder of shards with a training and a validation split; null: generated dialogues of MELD's lengths"""
    samples: int = 128
    """training utterances, a multiple of the batch"""
    dense_samples: int = 32
    """of them those that contestants with logits of every position train on; their prompts are as long as all's"""
    rounds: int = 3
    """how often everyone trains on them; figures are medians"""
    batch: int = 32
    """samples of an optimiser step"""
    micro_batch: int = 16
    """of them those that are laid out and computed at once"""
    only: str | None = None
    """comma-separated: forest, packed, padded, bare, trainer, ragged, predecessor, brief, lengthy; null: all"""
    settings: str | None = None
    """YAML file of settings that go over everyone's, such as backbone.liger or training.offload"""
