"""What tests of the server share: its bounds, an upload, what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egmf_dist.serve.service import Service
from egmf_dist.serve.settings import Serving

URL = "http://127.0.0.1"
SERVING = Serving(max_queue=2, max_bytes=8 << 20, max_seconds=20, upload_seconds=30, decode_seconds=30)


def left(service: Service) -> list[str]:
    """Files of the server, but for its example."""
    return [path.name for path in service.folder.iterdir() if path.name != "example.mp4"]


def upload(path: Path, name: str = "a.mp4") -> dict[str, Any]:
    return {"clip": (name, path.read_bytes(), "video/mp4")}
