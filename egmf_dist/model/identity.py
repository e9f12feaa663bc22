"""What names a base model, to tell whether weights are put on the model they were trained with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from egmf_dist.config import BackboneConfig
from egmf_dist.model.backbone import load_backbone_config

_WEIGHTS_AND_SETTINGS = (".json", ".safetensors", ".bin", ".model")
_TOKENIZERS, _VOCABULARIES = (".tiktoken", ".jinja", ".py"), ("merges.txt", "vocab.txt")
_WHOLE, _BLOCKS, _BLOCK = 2**26, 256, 2**14


def backbone_identity(config: BackboneConfig) -> dict[str, Any]:
    """What names the base model.

    A hub model: id, revision and resolved commit. A folder: ``sha256``, a hash of its configuration, tokenizer and
    weights in which of a file over 64 MiB its size and its first MiB count, and ``spread``, in which it is its size and
    256 blocks of 16 KiB spread over it (two models fine-tuned from one may differ in a few layers alone) and every file
    that makes a tokenizer counts. Runs of before know the first alone.

    Raises:
        EgmfError: a hub model's configuration cannot be loaded.
    """
    folder = Path(config.path)
    if not folder.is_dir():
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
