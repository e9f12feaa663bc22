"""Clips that somebody sends to harm a server; each is small, and quickly made."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np


def many_frames(path: Path, count: int = 100_000, seconds: float = 10.0) -> Path:
    """``count`` pictures in a few seconds: one packet, again and again."""
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1_000_000)
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")
        (packet,) = [*stream.encode(frame), *stream.encode(None)]
        data = bytes(packet)
        for number in range(count):
            one = av.Packet(data)
            one.stream, one.time_base = stream, Fraction(1, 1_000_000)
            one.pts = one.dts = round(number * seconds / count * 1_000_000)
            one.is_keyframe = True
            container.mux(one)
    return path


def vast_pictures(path: Path, side: int = 16_000) -> Path:
    """An ``.avi`` of some kilobytes that claims pictures of 16,000 by 16,000 pixels, 256 MB each once decoded: about
    the largest that FFmpeg itself would begin with."""
    import av

    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12  # behind the chunk's name and length, and the header's own length
    data[at : at + 8] = struct.pack("<ii", side, side)
    at = data.index(b"IHDR")
    data[at + 4 : at + 12] = struct.pack(">II", side, side)
    data[at + 17 : at + 21] = struct.pack(">I", zlib.crc32(data[at : at + 17]))
    path.write_bytes(data)
    return path
