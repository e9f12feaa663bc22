"""A tiny model that takes clips, once a process; and a service around it, once a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clip_model import exported_model, record
from fastapi.testclient import TestClient
from served import SERVING, URL

from egmf_dist.inference.model import Model, load
from egmf_dist.serve.app import build_app
from egmf_dist.serve.server import hosts_of
from egmf_dist.serve.service import Service
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


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return load(exported)


@pytest.fixture(scope="module")
def service(model: Model) -> Iterator[Service]:
    made = Service(model, SERVING)
    made.warm()
    yield made
    made.close()
    assert not made.folder.exists()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    """Not as a context: the service outlives it."""
    return TestClient(build_app(service, hosts=hosts_of("127.0.0.1")), base_url=URL, raise_server_exceptions=False)
