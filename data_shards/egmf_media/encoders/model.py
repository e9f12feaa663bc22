"""A Hugging Face encoder out of a folder or the hub's cache: what it reads, how wide it is, its files' hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from egmf_media.errors import MediaError
from egmf_media.messages import one_line
from egmf_media.specification import PICTURES, SOUND

_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("*.safetensors",)


@dataclass(frozen=True)
class EncoderModel:
    """What is known before weights are read."""

    folder: Path
    reads: str
    """Sound or pictures."""
    kind: str
    """transformers' ``model_type``."""
    width: int
    """Of a hidden state."""
    layers: int
    """Hidden states: the input's and one a layer."""
    size: int
    """Pixels of a picture's side; 0 for sound."""
    preprocessing: Mapping[str, Any]
    """``preprocessor_config.json``."""
    weights: Mapping[str, str]
    """SHA-256 of the files, by name."""


def libraries() -> str:
    """Why no encoder can be used here; empty where one can."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        return f"encoders need torch and transformers ({one_line(error)})"
    return ""


def open_model(name: str) -> EncoderModel:
    """An encoder of speech (WavLM, HuBERT, Whisper, ...) or of pictures (CLIP, DINOv2, SigLIP, ViT, ...).

    Args:
        name: a folder in Hugging Face format, or a name on the hub.

    Raises:
        MediaError: it is not there, of another kind, or torch or transformers are not installed.
    """
    if libraries():
        raise MediaError(libraries())
    folder = _folder(name)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MediaError(f"{name}: its config.json cannot be read ({one_line(error)})") from error
    preprocessing = _preprocessing(folder, name)
    own = config.get("vision_config", config)
    width = own.get("hidden_size") or own.get("d_model")
    depth = own.get("num_hidden_layers") or own.get("encoder_layers")
    if not isinstance(width, int) or not isinstance(depth, int):
        raise MediaError(f"{name}: a {kind} is no encoder that is known here; it has no hidden_size and layers")
    if "patch_size" in own or "image_size" in own:
        reads, size = PICTURES, _size(own, preprocessing)
    elif kind == "whisper" or "conv_stride" in own or "num_feat_extract_layers" in own:
        reads, size = SOUND, 0
    else:
        raise MediaError(f"{name}: a {kind} reads neither sound nor pictures; a speech or vision encoder is needed")
    files = [folder / file for file in _FILES if (folder / file).is_file()]
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not weights:
        raise MediaError(f"{name}: holds no .safetensors; weights in other formats may run code, and are not read")
    return EncoderModel(folder, reads, kind, width, depth + 1, size, preprocessing, hashes([*files, *weights]))


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        patterns = [*_FILES, *_WEIGHTS, "*.json", "*.txt", "*.model"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's errors have no common base
        raise MediaError(
            f"{name}: no such folder, and it cannot be had from the hub ({type(error).__name__})"
        ) from error


def _preprocessing(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / "preprocessor_config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise MediaError(f"{name}: has no readable preprocessor_config.json") from error
    return found if isinstance(found, dict) else {}


def _size(config: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> int:
    given = preprocessing.get("crop_size") or preprocessing.get("size") or config.get("image_size") or 224
    if isinstance(given, Mapping):
        given = given.get("height") or given.get("shortest_edge") or config.get("image_size")
    return int(given) if isinstance(given, int) and 16 <= given <= 2048 else 224


def hashes(files: list[Path]) -> dict[str, str]:
    """SHA-256 of files by name; of one file once a process."""
    return {path.name: _digest(path, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files}


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
