"""What a run's weights belong to: its data, its backbone, its seed and its number of ranks.

One check serves the start of a resume, the ranks that load a checkpoint, and evaluation. A folder is named by a hash of
what lies in it and never by its path, so data and backbone may move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from egmf_dist.config import BackboneConfig, Config
from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run
from egmf_dist.run.formats import DamagedError

_WEIGHTS_AND_SETTINGS = (".json", ".safetensors", ".bin", ".model")
_TOKENIZERS, _VOCABULARIES = (".tiktoken", ".jinja", ".py"), ("merges.txt", "vocab.txt")
_WHOLE, _BLOCKS, _BLOCK = 2**26, 256, 2**14


@dataclass(frozen=True)
class Identity:
    """What must be the same for weights, optimiser and position to go on."""

    world_size: int
    """Ranks; an optimiser's partitions fit no other number."""
    data: str
    """Hash of the training split's index."""
    seed: int
    """Of the order."""
    backbone: Mapping[str, Any]
    """Of :func:`backbone_identity`."""

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
            return cls(int(data["world_size"]), str(data["data"]), int(data["seed"]), backbone)
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
        keys: the parts to compare; all by default.
        otherwise: what else could be done, the message's end.

    Raises:
        EgmfError: the first part that differs, and what would be right.
    """
    for key in keys or tuple(Identity.__dataclass_fields__):
        then, given = getattr(made_with, key), getattr(now, key)
        if then == given or (key == "backbone" and _same_backbone(then, given)):
            continue
        raise EgmfError(f"{what}: {_difference(key, then, given)}{otherwise}")


def _same_backbone(then: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """By the hashes that both know: a run of before knows fewer."""
    common = then.keys() & given.keys()
    return bool(common) and all(then[name] == given[name] for name in common)


def check_trained(run: Run, config: Config, description: Mapping[str, Any]) -> None:
    """Refuse to evaluate a run's adapter with other data or another backbone than it was trained with.

    Args:
        run: for the message.
        config: the run's settings, with the places in which data and backbone lie now.
        description: the adapter's; version 1 names no data, which is then not compared.

    Raises:
        EgmfError: the first that differs.
        ShardError: a folder of shards cannot be opened.
    """
    from egmf_dist.data.run_data import open_split

    now = backbone_identity(config.backbone)
    if "identity" not in description:
        part = {"world_size": 0, "data": "", "seed": 0, "backbone": description.get("backbone")}
        then = Identity.from_json(part, f"run {run}: its adapter")
        return check_identity(then, replace(then, backbone=now), f"run {run}", ("backbone",), "")
    then = Identity.from_json(description["identity"], f"run {run}: its adapter")
    # Only the index counts here: training shards may be gone by the time the test split is scored.
    tolerant = replace(config, data=replace(config.data, bad_samples="skip"))
    found = replace(then, data=open_split(tolerant, "train").index_hash, backbone=now)
    return check_identity(then, found, f"run {run}", ("data", "backbone"), "")


def _difference(key: str, then: Any, given: Any) -> str:
    if key == "world_size":
        return f"made with {then} ranks, this start has {given}; resume with as many as it was made with"
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
        f"(made with {_short(then)}, this start has {_short(given)}); "
        "give that one with --backbone.path, wherever it lies now"
    )


def _short(backbone: Mapping[str, Any]) -> str:
    if "sha256" in backbone:
        return f"a folder of hash {str(backbone['sha256'])[:12]}"
    return f"{backbone.get('path')!r} of the hub, commit {backbone.get('commit')}"


def is_folder(backbone: Mapping[str, Any]) -> bool:
    """Whether an identity is a folder's, and not a hub model's."""
    return "sha256" in backbone


def backbone_identity(config: BackboneConfig) -> dict[str, Any]:
    """What names the base model, to tell whether an adapter is put on the model it was trained with.

    A hub model: id, revision and resolved commit. A folder: ``sha256``, a hash of its configuration, tokenizer and
    weights in which of a file over 64 MiB its size and its first MiB count, and ``spread``, in which it is its size and
    256 blocks of 16 KiB spread over it (two models fine-tuned from one may differ in a few layers alone) and every file
    that makes a tokenizer counts. Runs of before know the first alone.

    Raises:
        EgmfError: a hub model's configuration cannot be loaded.
    """
    folder = Path(config.path)
    if not folder.is_dir():
        from egmf_dist.model.backbone import load_backbone_config  # imports torch; a folder needs none

        commit = getattr(load_backbone_config(config), "_commit_hash", None)
        return {"path": config.path, "revision": config.revision, "commit": commit}
    first, spread = hashlib.sha256(), hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        in_first = file.suffix in _WEIGHTS_AND_SETTINGS
        if not in_first and file.suffix not in _TOKENIZERS and file.name not in _VOCABULARIES:
            continue
        size = file.stat().st_size
        with open(file, "rb") as opened:
            head = opened.read(size if size <= _WHOLE else 2**20)
            blocks = hashlib.sha256(head)
            if in_first:
                first.update(f"{file.name} {size} ".encode() + blocks.digest())
            if size > _WHOLE:
                for number in range(_BLOCKS):
                    opened.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                    blocks.update(opened.read(_BLOCK))
        spread.update(f"{file.name} {size} ".encode() + blocks.digest())
    return {"sha256": first.hexdigest(), "spread": spread.hexdigest()}
