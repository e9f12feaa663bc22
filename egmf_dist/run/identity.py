"""What a run's weights belong to: its data, its backbone and its seed; and how many ranks made them.

One check serves the start of a resume, the ranks that load a checkpoint, and evaluation. A folder is named by a hash of
what lies in it and never by its path, so data and backbone may move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.features import check_specifications
from egmf_dist.formats import DamagedError

_SAME = ("features", "data", "seed", "backbone")


@dataclass(frozen=True)
class Identity:
    """What must be the same for weights, optimiser and position to go on, but for the number of ranks."""

    world_size: int
    """Ranks; another number goes on with the same global batches."""
    data: str
    """Hash of the training split's index."""
    seed: int
    """Of the order."""
    backbone: Mapping[str, Any]
    """Of :func:`backbone_identity`."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """By feature input the specification of its extractor, where one is known."""

    def to_json(self) -> dict[str, Any]:
        """For the files of a run."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: Path | str) -> Identity:
        """The inverse; version 1 also named a folder's path, which is left out.

        Raises:
            DamagedError: a part is missing or has the wrong type; names ``where``.
        """
        try:
            backbone = dict(data["backbone"])
            if "sha256" in backbone:
                backbone.pop("path", None)
            features = dict(data.get("features", {}))
            return cls(int(data["world_size"]), str(data["data"]), int(data["seed"]), backbone, features)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{where} is damaged (it names no identity)") from error


def check_identity(
    made_with: Identity, now: Identity, what: str, keys: tuple[str, ...] = (), otherwise: str = ", or start a new run"
) -> None:
    """Refuse weights that belong to something else.

    Args:
        made_with: read from the checkpoint or adapter.
        now: of this start.
        what: the checkpoint or run, for the message.
        keys: the parts to compare; all by default that must be the same.
        otherwise: what else could be done, the message's end.

    Raises:
        EgmfError: the first part that differs, and what would be right.
    """
    for key in keys or _SAME:
        then, given = getattr(made_with, key), getattr(now, key)
        if key == "features":
            check_specifications(then, given, what)
            continue
        if then == given or (key == "backbone" and _same_backbone(then, given)):
            continue
        raise EgmfError(f"{what}: {_difference(key, then, given)}{otherwise}")


def _same_backbone(then: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """By the hashes that both know: a run of before knows fewer."""
    common = then.keys() & given.keys()
    return bool(common) and all(then[name] == given[name] for name in common)


def _difference(key: str, then: Any, given: Any) -> str:
    if key == "seed":
        return f"made with training.seed {then}, this start has {given}; resume with that one"
    if key == "data":
        return (
            "the shards in data.shards changed: other data than it was made with "
            f"(made with index {str(then)[:12]}, this start has {str(given)[:12]}); "
            "give those with --data.shards, wherever they lie now"
        )
    return (
        "the backbone in backbone.path changed: another model than it was made with "
        f"(made with {_short(then, given)}, this start has {_short(given, then)}); "
        "give that one with --backbone.path, wherever it lies now"
    )


def _short(backbone: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if "sha256" in backbone:
        # The first hash sees little of long files: where it is the same, they or the tokenizer's differ.
        same = backbone["sha256"] == other.get("sha256") and "spread" in backbone
        name, what = ("spread", "a folder whose long files or tokenizer have") if same else ("sha256", "a folder of")
        return f"{what} hash {str(backbone[name])[:12]}"
    return f"{backbone.get('path')!r} of the hub, commit {backbone.get('commit')}"


def is_folder(backbone: Mapping[str, Any]) -> bool:
    """Whether an identity is a folder's, and not a hub model's."""
    return "sha256" in backbone
