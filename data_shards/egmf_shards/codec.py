"""A sample as bytes and back: the members of one WebDataset key.

``<id>.json`` holds everything but the features; ``<id>.audio.npy`` and ``<id>.vision.npy`` hold float32 ``[frames,
dim]`` at their real length, and an absent modality has no member. Nothing here can execute what it reads: JSON, and
``.npy`` without pickles, are the only formats. The same sample always gives the same bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.sample import FEATURE_MODALITIES, Sample

JSON_MEMBER = "json"
MEMBERS = (JSON_MEMBER, *(f"{m}.npy" for m in FEATURE_MODALITIES))
"""The members a sample may have; the index stores a member as its place in this tuple."""

# The header that numpy writes for our arrays. Matching it skips ast.literal_eval, which costs more than all the rest.
_HEADER = re.compile(rb"\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\), \} *\n")
_MAGIC = b"\x93NUMPY\x01\x00"


def encode(sample: Sample) -> dict[str, bytes]:
    """The sample's members: member name (``json``, ``audio.npy``, ...) to bytes.

    Raises:
        ShardError: the text cannot be written as UTF-8, or a number as JSON.
    """
    try:
        text = json.dumps(
            sample.to_json(), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError (a lone surrogate) is a ValueError
        raise ShardError(f"sample {sample.id!r}: cannot be written as UTF-8 JSON ({error})") from error
    members = {JSON_MEMBER: text}
    for modality in FEATURE_MODALITIES:
        array = getattr(sample, modality)
        if array is not None:
            members[f"{modality}.npy"] = encode_array(array)
    return members


def encode_array(array: np.ndarray) -> bytes:
    """A ``.npy`` file of ``array`` as little-endian float32 in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype="<f4"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_json(data: bytes | memoryview, where: str) -> dict[str, Any]:
    """The JSON object in ``data``; ``where`` names the sample in the error.

    Raises:
        ShardError: not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(bytes(data))
    except ValueError as error:
        raise ShardError(f"{where}: the JSON member is malformed ({error})") from error
    if not isinstance(value, dict):
        raise ShardError(f"{where}: the JSON member holds a {type(value).__name__}; it must hold an object")
    return value


def decode_array(data: bytes | memoryview, where: str) -> np.ndarray:
    """The float32 ``[frames, dim]`` array of a ``.npy`` file's bytes; a copy, so it outlives ``data`` and is writable.

    Raises:
        ShardError: not a ``.npy`` file, a pickle, or not a two-dimensional array of float32.
    """
    if bytes(data[:8]) == _MAGIC:
        start = 10 + int.from_bytes(data[8:10], "little")
        match = _HEADER.fullmatch(data[10:start])
        if match:
            frames, dim = int(match[1]), int(match[2])
            if len(data) != start + 4 * frames * dim:
                raise ShardError(
                    f"{where}: {len(data) - start} bytes of numbers; [{frames}, {dim}] float32 needs {4 * frames * dim}"
                )
            return np.frombuffer(data, dtype="<f4", offset=start).reshape(frames, dim).astype(np.float32)
    try:
        array = np.load(io.BytesIO(bytes(data)), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ShardError(f"{where}: not a readable .npy member ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        raise ShardError(f"{where}: the .npy member must hold float numbers in two dimensions [frames, dim]")
    return array.astype(np.float32)


def decode(members: Mapping[str, bytes | memoryview], where: str) -> Sample:
    """The inverse of :func:`encode`.

    Raises:
        ShardError: a member is malformed, or the declared modalities and the members disagree.
    """
    arrays = {
        m: decode_array(members[f"{m}.npy"], f"{where}, {m}.npy") for m in FEATURE_MODALITIES if f"{m}.npy" in members
    }
    return Sample.from_json(decode_json(members[JSON_MEMBER], where), arrays, where)
