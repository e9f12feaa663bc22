"""Clips made by code: a drawn face that moves and speaks, a synthetic voice, any container, and damage."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.synthetic import face, voice

__all__ = ["Clip", "face", "flipped", "remuxed", "voice"]


@dataclass
class Clip:
    """What a clip is made of; ``write`` makes it."""

    video: str | None = "libx264"
    audio: str | None = "aac"
    seconds: float = 2.0
    fps: float = 25
    size: tuple[int, int] = (160, 120)
    rate: int = 16_000
    layout: str = "mono"
    silent: bool = False
    faces: bool = True
    pix_fmt: str = "yuv420p"
    sample: np.ndarray | None = None
    """Sound in place of the voice; float32 ``[n]``."""
    rotation: int = 0
    times: list[float] | None = None
    """When frames are shown, in place of every 1 / fps."""
    late: float = 0.0
    """Seconds by which sound begins after the picture."""
    second_audio: bool = False
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """The clip as a file, its container by the suffix or ``format``."""
        if self.video == "libsvtav1":
            # Run by root, SVT-AV1 gives the process that encodes real-time priority (SCHED_FIFO), and whatever that
            # process starts later inherits it: ranks that wait for each other in a loop then starve all others.
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                return alone.submit(self._write, path).result()
        return self._write(path)

    def _write(self, path: Path) -> Path:
        import av

        with av.open(str(path), "w", format=self.format, options=self.options) as container:
            video = self._video(container) if self.video else None
            sounds = [self._audio(container) for _ in range((1 + self.second_audio) if self.audio else 0)]
            if video is not None:
                self._write_video(container, video)
            for number, stream in enumerate(sounds):
                self._write_audio(container, stream, self.silent or (self.second_audio and number == 1))
            for stream in [*([video] if video is not None else []), *sounds]:
                container.mux(stream.encode(None))
        return path

    def _video(self, container: Any) -> Any:
        options = {"preset": "ultrafast"} if self.video in ("libx264", "libx265") else {}
        if self.video == "libx265":
            options["x265-params"] = "log-level=none"
        if self.video == "libsvtav1":
            options = {"preset": "12"}
        if self.video in ("libvpx", "libvpx-vp9"):
            options = {"deadline": "realtime", "cpu-used": "8"}
        stream = container.add_stream(self.video, rate=Fraction(self.fps).limit_denominator(1001), options=options)
        stream.width, stream.height = self.size
        stream.pix_fmt = self.pix_fmt
        if self.rotation:
            stream.set_display_rotation(self.rotation)
        if self.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        return stream

    def _audio(self, container: Any) -> Any:
        stream = container.add_stream(self.audio, rate=self.rate)
        stream.layout = self.layout
        if self.audio == "wmav2":
            stream.bit_rate = 64_000
        return stream

    def _write_video(self, container: Any, stream: Any) -> None:
        import av

        count = len(self.times) if self.times is not None else round(self.seconds * self.fps)
        for i in range(count):
            t = self.times[i] if self.times is not None else i / self.fps
            if self.faces:
                image = face(*self.size, mouth=6 + 5 * np.sin(8 * t), x=0.5 + 0.05 * np.sin(2 * t))
            else:
                image = np.full((self.size[1], self.size[0], 3), 20 + 10 * i % 200, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if self.times is not None:
                frame.pts, frame.time_base = round(t * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))

    def _write_audio(self, container: Any, stream: Any, silent: bool) -> None:
        import av

        x = self.sample if self.sample is not None else voice(self.seconds, self.rate)
        x = np.zeros_like(x) if silent else x
        channels = stream.codec_context.layout.nb_channels
        step = self.rate
        for first in range(0, len(x), step):
            block = np.repeat(x[None, first : first + step], channels, 0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts = self.rate, first + round(self.late * self.rate)
            frame.time_base = Fraction(1, self.rate)
            container.mux(stream.encode(frame))


def remuxed(source: Path, path: Path, shift: float = 0.0) -> Path:
    """The same packets in another container, all of them ``shift`` seconds later."""
    import av

    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is None:
                continue
            by = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + by, packet.dts + by
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    return path


def flipped(source: Path, path: Path, count: int = 200, seed: int = 0, keep: int = 2048) -> Path:
    """The file with bytes changed anywhere behind the first ``keep`` and before the last quarter's index."""
    data = bytearray(source.read_bytes())
    random = np.random.default_rng(seed)
    for place in random.integers(keep, max(len(data) - keep, keep + 1), count):
        data[place] ^= int(random.integers(1, 256))
    path.write_bytes(data)
    return path
