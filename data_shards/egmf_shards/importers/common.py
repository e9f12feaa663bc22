"""What the importers have in common: names of data sets and splits, and how a sample is put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format.rules import KEY
from egmf_shards.format.sample import TEXT, UNLABELLED, Sample
from egmf_shards.importers.keys import Name
from egmf_shards.importers.report import print_summary
from egmf_shards.messages import json_reason, shown
from egmf_shards.write.writer import ShardWriter

SPLIT_WORDS = {
    "train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test", UNLABELLED: UNLABELLED,
}  # fmt: skip
"""What a file calls a split, to our name for it."""


def check_dataset(dataset: str) -> None:
    """Refuse a name of a data set that no key could begin with."""
    if not KEY.fullmatch(dataset):
        raise ShardError(f"dataset is {dataset!r}; letters, digits, '-' and '_' are needed, such as simsv2")


def split_of(word: str, where: str) -> str:
    """Our name of the split that a file calls ``word``."""
    if word not in SPLIT_WORDS:
        raise ShardError(f"{where}: mode is {word!r}; it must be one of {', '.join(SPLIT_WORDS)}")
    return SPLIT_WORDS[word]


def build_sample(name: Name, text: str, features: Mapping[str, np.ndarray | None], **fields: Any) -> Sample:
    """A sample whose modalities are those that are there: a text that is not empty, features that are not None.

    Args:
        name: its key and, where that differs, the id in the source.
        text: the utterance, cleaned.
        features: feature stream to float32 ``[frames, dim]`` or None.
        fields: the other fields of :class:`Sample`.
    """
    present = {stream: array for stream, array in features.items() if array is not None}
    modalities = (*((TEXT,) if text else ()), *present)
    return Sample(id=name.key, source_id=name.source_id, text=text, modalities=modalities, features=present, **fields)


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, with a byte order mark or without.

    Raises:
        ShardError: it cannot be read, or is no such file.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON ({json_reason(error)})") from error


def number(value: Any) -> float | None:
    """A target as a file holds it: a number, text that reads as one, or either in arrays or lists of one item.

    None: it is none. NaN is a number.
    """
    value = unwrapped(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and "_" in value:  # which Python would pass over
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def unwrapped(value: Any) -> Any:
    """The content of an array (0-d, ``[1]``, ``[1, 1]``) or a list of one item, as a plain value; others unchanged."""
    while True:
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
            value = value.item()
        elif isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        else:
            return value


def not_a_number(where: str, column: str, value: Any) -> ShardError:
    """The error of a target that :func:`number` cannot read."""
    return ShardError(f"{where}: {column} is {shown(unwrapped(value))}; a number is needed")


def done(writer: ShardWriter) -> dict[str, Any]:
    """The manifest of a writer that is finished; a summary of it is printed."""
    print_summary(writer.manifest)
    return writer.manifest
