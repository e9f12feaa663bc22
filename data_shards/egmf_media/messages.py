"""Foreign values and errors in a message of one line, and files that are seen whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def one_line(error: BaseException) -> str:
    """What a library says, without its line breaks; the error's type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def own_name(path: Path) -> Path:
    """Where one of several writers makes what will be ``path``: no other has this name."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = own_name(path)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """JSON in UTF-8, as :func:`write_bytes` writes."""
    write_bytes(path, (json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode())
