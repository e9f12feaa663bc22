"""A tiny model that takes clips, once a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_model import exported_model, record

from egmf_media.vision.face import Face


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``clips/``, and shards of them for two questions; with faces where their models were fetched."""
    plan = "audio: prosody\n" + ("" if Face().missing else "vision: face\n")
    return record(tmp_path_factory.mktemp("recorded") / "data", plan)


@pytest.fixture(scope="session")
def exported(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model."""
    return exported_model(tmp_path_factory.mktemp("model"), [recorded / "emotion", recorded / "sentiment"])
