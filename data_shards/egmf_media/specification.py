"""How features were made: extractor, version, rate, parameters, weights; under one hash that goes wherever they go.

It lies in ``stream.json`` beside features, in the manifest of shards, in checkpoints, exports and predictions. Features
of another specification are other features, whatever their width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egmf_media.errors import MediaError
from egmf_media.messages import one_line

STREAM = "stream.json"
"""Beside the features of a stream: frame rate, what made them, specification."""
SOUND, PICTURES = "sound", "pictures"
_KEYS = {"extractor", "version", "reads", "rate", "dim", "decoding", "parameters", "weights", "sha256", "source"}


@dataclass(frozen=True)
class Specification:
    """Of one feature stream. Two are the same where their hashes are."""

    extractor: str
    """Its name: ``prosody``, ``face``, ``encoder``."""
    version: int
    """Of the extractor: another one gives other numbers."""
    reads: str
    """:data:`SOUND` or :data:`PICTURES`."""
    rate: float
    """Frames a second of the clip; frame k is about second k / rate."""
    dim: int
    """Numbers of a frame."""
    decoding: int
    """Version of :data:`egmf_media.decode.container.DECODING`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    """By name the SHA-256 of each file of weights."""
    source: str = ""
    """Where the weights were found: a folder or a name on the hub. No part of the hash: they may move."""

    @property
    def sha256(self) -> str:
        """Of everything but :attr:`source`: JSON with sorted keys and without spaces."""
        text = json.dumps(self._hashed(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _hashed(self) -> dict[str, Any]:
        return {
            "extractor": self.extractor,
            "version": self.version,
            "reads": self.reads,
            "rate": float(self.rate),
            "dim": self.dim,
            "decoding": self.decoding,
            "parameters": dict(self.parameters),
            "weights": dict(self.weights),
        }

    def to_json(self) -> dict[str, Any]:
        """For the files that carry it."""
        return self._hashed() | ({"source": self.source} if self.source else {}) | {"sha256": self.sha256}

    @classmethod
    def from_json(cls, data: Any, where: str) -> Specification:
        """The inverse.

        Raises:
            MediaError: it is none, or its hash is not that of what it says; names ``where``.
        """
        fault = specification_fault(data)
        if fault:
            raise MediaError(f"{where}: {fault}")
        return _made(data)

    def __str__(self) -> str:
        return f"{self.extractor} {self.version} ({self.sha256[:12]})"


def _made(data: Mapping[str, Any]) -> Specification:
    return Specification(
        data["extractor"],
        data["version"],
        data["reads"],
        data["rate"],
        data["dim"],
        data["decoding"],
        data["parameters"],
        data["weights"],
        data.get("source", ""),
    )


def specification_fault(data: Any) -> str:
    """What is wrong with a specification out of a file; empty for nothing."""
    if not isinstance(data, Mapping) or not _KEYS - {"source"} <= data.keys() <= _KEYS:
        return f"a specification is an object of {', '.join(sorted(_KEYS))}"
    kinds: dict[str, Any] = {
        "extractor": str, "version": int, "reads": str, "rate": (int, float), "dim": int, "decoding": int,
        "parameters": Mapping, "weights": Mapping, "sha256": str, "source": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(data.get(name, ""), kind) or isinstance(data.get(name), bool):
            return f"its specification's {name} is a {type(data[name]).__name__}"
    try:
        right = _made(data).sha256
    except (TypeError, ValueError):
        return "its specification is no JSON"
    if right != data["sha256"]:
        return (
            f"its specification was changed by hand: its hash is {right[:12]} and it says {str(data['sha256'])[:12]}; "
            "extract the features again"
        )
    return ""


def read_stream(folder: Path) -> Specification | None:
    """How the features of a folder were made; None: nothing says it.

    Raises:
        MediaError: its ``stream.json`` cannot be read, or was changed.
    """
    file = folder / STREAM
    if not file.is_file():
        return None
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise MediaError(f"{file}: not a readable JSON file ({one_line(error)})") from error
    found = said.get("specification") if isinstance(said, dict) else None
    return None if found is None else Specification.from_json(found, str(file))


def check_same(then: Specification, now: Specification, what: str, other: str, right: str) -> None:
    """Refuse features that were made otherwise.

    Args:
        then: how they must have been made.
        now: how they were.
        what: has ``then``, in words.
        other: has ``now``.
        right: what to do.

    Raises:
        MediaError: in one line both, what differs first, and what to do.
    """
    if then.sha256 == now.sha256:
        return
    raise MediaError(f"{what} is {then}, {other} is {now}: {difference(then, now)}; {right}")


def difference(then: Specification, now: Specification) -> str:
    """The first thing that differs between two, in words."""
    one, two = _flat(then), _flat(now)
    name = next((key for key in sorted({*one, *two}) if one.get(key) != two.get(key)), "nothing")
    return f"{name} is {_short(one.get(name))} and {_short(two.get(name))}"


def _flat(made: Specification) -> dict[str, Any]:
    data = made._hashed()
    inner = {f"{part}.{name}": value for part in ("parameters", "weights") for name, value in data.pop(part).items()}
    return data | inner


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:40]
