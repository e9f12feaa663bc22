"""Clips that are drawn: a voice of harmonics and a face of ellipses, for tests and measurements. Nobody's likeness.

They prove that sound and faces are decoded, found and followed. What a real voice or face gives is another question.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egmf_media.decode.container import av


def voice(seconds: float = 2.0, rate: int = 16_000, f0: float = 120.0, level: float = 0.3) -> np.ndarray:
    """Harmonics of ``f0`` under a spectral slope, four syllables a second; float32 ``[n]``."""
    t = np.arange(round(seconds * rate)) / rate
    x = sum(np.sin(2 * np.pi * f0 * n * t) / n for n in range(1, 9) if f0 * n < rate / 2)
    return (level * x / 3 * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def face(width: int = 160, height: int = 120, mouth: float = 10.0, x: float = 0.5, y: float = 0.5) -> np.ndarray:
    """A drawn face that YuNet takes for one; uint8 RGB ``[height, width, 3]``. ``mouth`` is how far it is open."""
    import cv2

    im = np.full((height, width, 3), (90, 140, 120), np.uint8)
    s, cx, cy = height / 360 * 1.2, x * width, y * height

    def ellipse(dx: float, dy: float, a: float, b: float, colour: tuple[int, int, int]) -> None:
        centre, axes = (int(cx + dx * s), int(cy + dy * s)), (max(1, int(a * s)), max(1, int(b * s)))
        cv2.ellipse(im, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    ellipse(0, -20, 88, 112, (60, 40, 30))
    ellipse(0, 90, 40, 60, (215, 170, 140))
    ellipse(0, 0, 75, 100, (230, 185, 150))
    for side in (-1, 1):
        ellipse(side * 30, -20, 16, 9, (245, 245, 245))
        ellipse(side * 30, -20, 7, 8, (30, 40, 60))
        ellipse(side * 30, -38, 20, 5, (70, 50, 40))
        ellipse(side * 78, 0, 10, 22, (215, 170, 140))
    ellipse(0, 5, 9, 22, (212, 168, 135))
    ellipse(0, 22, 15, 8, (200, 150, 120))
    ellipse(0, 52, 28, 8 + mouth / 2, (190, 90, 90))
    ellipse(0, 52, 20, mouth / 2, (60, 30, 40))
    return cv2.GaussianBlur(im, (0, 0), max(1.5 * s, 0.5))


def write_clip(path: Path, seconds: float, size: tuple[int, int] = (640, 360), fps: int = 25) -> Path:
    """A face that speaks, as H.264 and AAC.

    Args:
        path: the container by its ending.
        seconds: long.
        size: width and height in pixels, even.
        fps: frames a second.
    """
    pyav = av()
    with pyav.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        sound = voice(seconds)
        for number in range(round(seconds * fps)):
            t = number / fps
            image = face(*size, mouth=6 + 5 * np.sin(8 * t), x=0.5 + 0.05 * np.sin(2 * t))
            container.mux(video.encode(pyav.VideoFrame.from_ndarray(image, format="rgb24")))
            if number % fps == 0:
                first = round(t * 16_000)
                frame = pyav.AudioFrame.from_ndarray(sound[None, first : first + 16_000], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16_000, first
                container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path
