"""``describe`` and its tables."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from egmf_shards import ShardError, describe, print_info, synthesize


def test_describe(folder):
    info = describe(folder())
    assert info["tasks"] == {"mood": "classification", "score": "regression"}
    assert info["shards"] == 5
    assert info["splits"]["train"]["samples"] == 18
    low, middle, high, top = info["splits"]["train"]["lengths"]["audio_frames"]
    assert 1 <= low <= middle <= high <= top <= 7
    assert info["ceilings"] is None


def test_print_info(tmp_path):
    synthesize(tmp_path / "demo", samples=30)
    text = io.StringIO()
    print_info(tmp_path / "demo", Console(file=text, width=160))
    for part in ("demo", "surprise", "sentiment", "audio+vision", "0.940", "en, zh", "audio 16"):
        assert part in text.getvalue()


def test_a_folder_without_features(folder, sample):
    plain = sample(0, modalities=("text",), audio=None, vision=None)
    text = io.StringIO()
    print_info(folder(samples=[plain]), Console(file=text, width=160))
    assert "audio none, vision none" in text.getvalue()


def test_a_missing_folder(tmp_path):
    with pytest.raises(ShardError, match="there is no such folder of shards"):
        print_info(tmp_path / "none")
