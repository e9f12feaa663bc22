"""Clips that somebody sends to harm a server; each is small, and quickly made."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np


def many_frames(path: Path, count: int = 100_000, seconds: float = 10.0) -> Path:
    """``count`` pictures in a few seconds: one packet, again and again."""
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1_000_000)
        (packet,) = stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray"))
        data = bytes(packet)
        for number in range(count):
            one = av.Packet(data)
            one.stream, one.time_base = stream, Fraction(1, 1_000_000)
            one.pts = one.dts = round(number * seconds / count * 1_000_000)
            one.is_keyframe = True
            container.mux(one)
    return path


def vast_pictures(path: Path) -> Path:
    """A picture of 60,000 by 60,000 pixels in forty bytes: 10 GB once it is decoded."""
    head = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\x00"
    path.write_bytes(head + image + b"\x3b")
    return path
