"""What ``egmf bench score`` measures; a module of its own, because the command line reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoringOptions:
    """What is measured."""

    backbone: str = "gemma3-270m"
    """shape of the LLM of random weights: gemma3-270m or mistral-7b, or a folder or hub id whose shape and tokenizer
    it has"""
    layers: int = 6
    """of its layers so many"""
    samples: int = 32
    """utterances, a multiple of 16"""
    rounds: int = 3
    """how often each way answers them; figures are medians"""
