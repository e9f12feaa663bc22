"""A sample as bytes and back: the members of one WebDataset key.

``<id>.json`` holds everything but the features; ``<id>.STREAM.npy`` (``<id>.audio.npy``, ...) holds a feature stream,
float32 ``[frames, dim]`` at its real length, and an absent one has no member. Nothing here can execute what it reads:
JSON, and ``.npy`` without pickles, are the only formats. The same sample always gives the same bytes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from egmf_shards.accelerated import crc32, parse_json
from egmf_shards.errors import ShardError
from egmf_shards.format import rules
from egmf_shards.format.sample import Sample

JSON_MEMBER = "json"
MAX_ARRAY_HEADER = 1 << 14
"""Bytes; numpy reads no ``.npy`` header longer than 10,000."""


@lru_cache(maxsize=65536)
def array_header(frames: int, dim: int) -> tuple[bytes, int]:
    """What :func:`encode_array` writes in front of the numbers of a ``[frames, dim]`` array, and its CRC32.

    A reader that knows the shape compares these bytes instead of parsing them: numpy's parser costs more than all the
    rest of a sample.
    """
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (frames, dim)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue(), crc32(buffer.getvalue())


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
    # In the order of their names, whoever made the sample.
    return members | {array_member(stream): encode_array(sample.features[stream]) for stream in sorted(sample.features)}


def array_member(stream: str) -> str:
    """The kind of member that holds a feature stream: ``audio.npy``."""
    return f"{stream}.npy"


def stream_of(kind: str) -> str | None:
    """The feature stream that a kind of member holds; None where it holds none: ``json``, or no kind at all."""
    stream, dot, ending = kind.partition(".")
    return stream if dot and ending == "npy" and not rules.stream_fault(stream) else None


def encode_array(array: np.ndarray) -> bytes:
    """A ``.npy`` file of ``array`` as little-endian float32 in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype="<f4"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_json(data: bytes | memoryview, where: object) -> dict[str, Any]:
    """The JSON object in ``data``; ``where`` names the sample in the error.

    Raises:
        ShardError: not UTF-8, not JSON, or not an object.
    """
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: the JSON member is malformed ({error})") from error
    if not isinstance(value, dict):
        raise ShardError(f"{where}: the JSON member holds a {type(value).__name__}; it must hold an object")
    return value


def decode_array(data: bytes | memoryview, where: str) -> np.ndarray:
    """The float32 ``[frames, dim]`` array of a ``.npy`` file's bytes; a copy, so it outlives ``data`` and is writable.

    Raises:
        ShardError: not a ``.npy`` file, a pickle, or not a two-dimensional array of float numbers.
    """
    try:
        array = parse_array(data)
    except ValueError as error:
        raise ShardError(f"{where}: not a readable .npy member ({error})") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ShardError(f"{where}: the .npy member must hold float numbers in two dimensions [frames, dim]")
    return array.astype(np.float32)


@dataclass(frozen=True)
class ArrayLayout:
    """What a ``.npy`` header says: ``size`` bytes of numbers follow the ``offset`` bytes of the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int
    size: int


def array_layout(head: bytes | memoryview) -> ArrayLayout:
    """The layout that a ``.npy`` file's first :data:`MAX_ARRAY_HEADER` bytes declare; nothing is allocated.

    Raises:
        ValueError: no ``.npy`` header of version 1 or 2, or not of plain numbers or text. One line.
    """
    file = io.BytesIO(bytes(head[:MAX_ARRAY_HEADER]))
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file)
    # numpy hands the header to Python's own parser, which fails in many ways: SyntaxError, TokenError, RecursionError,
    # MemoryError, ...
    except Exception as error:
        raise ValueError(f"its header is malformed: {type(error).__name__}") from error
    if dtype.kind not in "biufcU" or not dtype.itemsize:
        raise ValueError(f"its header declares {str(dtype)[:40]}; plain numbers are needed")
    if any(isinstance(n, bool) or not 0 <= n < 1 << 63 for n in shape):
        raise ValueError(f"its header declares the shape {shape}"[:120])
    return ArrayLayout(dtype, shape, fortran_order, file.tell(), math.prod(shape) * dtype.itemsize)


def parse_array(data: bytes | memoryview) -> np.ndarray:
    """The array of a whole ``.npy`` file's bytes, of any type but objects; it shares ``data``'s memory.

    Raises:
        ValueError: no ``.npy`` file, or not of the length that its header declares. One line.
    """
    layout = array_layout(data)
    if layout.offset + layout.size != len(data):
        raise ValueError(
            f"its header declares {_digits(layout.size)} bytes of numbers; {len(data) - layout.offset} are there"
        )
    if not layout.size:
        return np.empty(layout.shape, layout.dtype)
    flat = np.frombuffer(data, layout.dtype, offset=layout.offset)
    return flat.reshape(layout.shape[::-1]).T if layout.fortran_order else flat.reshape(layout.shape)


def _digits(number: int) -> str:
    return str(number) if number < 1 << 63 else "more than 2^63"


def decode(members: Mapping[str, bytes | memoryview], where: str) -> Sample:
    """The inverse of :func:`encode`.

    Raises:
        ShardError: a member is malformed, or the declared modalities and the members disagree.
    """
    streams = {kind: stream for kind in members for stream in [stream_of(kind)] if stream is not None}
    arrays = {stream: decode_array(members[kind], f"{where}, {kind}") for kind, stream in streams.items()}
    return Sample.from_json(decode_json(members[JSON_MEMBER], where), arrays, where)
