"""Clips of every kind, and what must become of each: ok, absent or failed, and a word of the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from clips import Clip, flipped, remuxed, voice


class Row(NamedTuple):
    """One clip."""

    name: str
    make: Callable[[Path], object]
    audio: str = "ok"
    vision: str = "ok"
    """``STATUS``, or ``STATUS: a part of the reason``."""


def _truncated(source: Clip, share: float) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        data = source.write(path).read_bytes()
        path.write_bytes(data[: round(len(data) * share)])

    return make


def _flipped(source: Clip, count: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        flipped(source.write(path), path, count)

    return make


def _moved(source: Clip, shift: float, suffix: str = ".mp4") -> Callable[[Path], object]:
    def make(path: Path) -> None:
        between = path.with_name(f".{path.stem}{suffix}")
        remuxed(source.write(between), path, shift)
        between.unlink()

    return make


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _long(path: Path) -> None:
    """Ten minutes, at one frame a second, so that making it is quick."""
    Clip(seconds=600, fps=1, faces=False, sample=np.tile(voice(10.0), 60), audio="flac").write(path)


def _zero_pages(path: Path) -> None:
    data = bytearray(Clip(audio="pcm_s16le", seconds=3).write(path).read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)


NO_CLIP, NO_SOUND, NO_VIDEO, SILENT = (
    "failed: is no media file", "absent: no audio stream", "absent: no video stream", "absent: silent",
)  # fmt: skip
NO_FACE = "absent: no face in any frame"
MATRIX = [
    # containers and codecs
    Row("h264-aac.mp4", Clip().write),
    Row("h264-aac.mov", Clip().write),
    Row("h264-aac.mkv", Clip().write),
    Row("h264-aac.ts", Clip().write),
    Row("h264-mp3.avi", Clip(audio="libmp3lame").write),
    Row("h265-aac.mp4", Clip(video="libx265").write),
    Row("h264-10bit.mkv", Clip(pix_fmt="yuv420p10le").write),
    Row("av1-opus.mkv", Clip(video="libsvtav1", audio="libopus", rate=48_000).write),
    Row("vp8-opus.webm", Clip(video="libvpx", audio="libopus", rate=48_000).write),
    Row("vp9-opus.webm", Clip(video="libvpx-vp9", audio="libopus", rate=48_000).write),
    Row(
        "browser.webm",
        Clip(video="libvpx", audio="libopus", rate=48_000, format="webm", options={"live": "1"}).write,
    ),
    Row("mpeg4-mp2.avi", Clip(video="mpeg4", audio="mp2").write),
    Row("mpeg1-mp2.mpg", Clip(video="mpeg1video", audio="mp2", rate=44_100).write),
    Row("wmv-wma.wmv", Clip(video="wmv2", audio="wmav2", rate=44_100, layout="stereo").write),
    Row("flv.flv", Clip(video="flv", audio="libmp3lame", rate=44_100).write),
    Row("mjpeg-pcm.mov", Clip(video="mjpeg", pix_fmt="yuvj420p", audio="pcm_s16le").write),
    Row("ffv1-flac.mkv", Clip(video="ffv1", audio="flac").write),
    Row("prores.mov", Clip(video="prores", pix_fmt="yuv422p10le", audio="pcm_s16le").write),
    Row("animation.gif", Clip(video="gif", pix_fmt="rgb8", audio=None, fps=10).write, NO_SOUND),
    # rates and channels
    Row("8khz.wav", Clip(video=None, audio="pcm_s16le", rate=8000).write, vision=NO_VIDEO),
    Row("96khz.flac", Clip(video=None, audio="flac", rate=96_000).write, vision=NO_VIDEO),
    Row("11khz-u8.wav", Clip(video=None, audio="pcm_u8", rate=11_025).write, vision=NO_VIDEO),
    Row("float.wav", Clip(video=None, audio="pcm_f32le").write, vision=NO_VIDEO),
    Row("mulaw.wav", Clip(video=None, audio="pcm_mulaw", rate=8000).write, vision=NO_VIDEO),
    Row("stereo.mp3", Clip(video=None, audio="libmp3lame", rate=44_100, layout="stereo").write, vision=NO_VIDEO),
    Row("stereo.m4a", Clip(video=None, rate=44_100, layout="stereo").write, vision=NO_VIDEO),
    Row("surround.mkv", Clip(audio="ac3", rate=48_000, layout="5.1").write),
    Row("opus.ogg", Clip(video=None, audio="libopus", rate=48_000).write, vision=NO_VIDEO),
    Row("phone.amr", Clip(video=None, audio="libopencore_amrnb", rate=8000).write, vision=NO_VIDEO),
    # time and place
    Row("variable.mkv", Clip(times=[0, 0.04, 0.5, 0.52, 1.7, 1.9]).write),
    Row("slow.mp4", Clip(fps=2).write),
    Row("fast.mp4", Clip(fps=120, seconds=1).write),
    Row("turned-90.mp4", Clip(rotation=90, faces=False).write, vision=NO_FACE),
    Row("turned-180.mp4", Clip(rotation=180).write, vision="any"),
    Row("late-sound.mp4", Clip(late=2.43).write),
    Row("late-sound.mkv", Clip(late=2.43, audio="pcm_s16le").write),
    Row("late-picture.mkv", Clip(late=-0.5, audio="pcm_s16le").write),
    Row("moved.mkv", _moved(Clip(), 5.0)),
    Row("moved.ts", _moved(Clip(), 2.0)),
    Row("two-sounds.mkv", Clip(second_audio=True).write),
    Row("one-frame.mp4", Clip(audio=None, seconds=0.04).write, NO_SOUND),
    # what is not there
    Row("no-sound.mp4", Clip(audio=None).write, NO_SOUND),
    Row("no-video.mp4", Clip(video=None).write, vision=NO_VIDEO),
    Row("no-face.mp4", Clip(faces=False).write, vision=NO_FACE),
    Row("silent.mp4", Clip(silent=True).write, SILENT),
    Row("short.wav", Clip(video=None, audio="pcm_s16le", seconds=0.02).write, "absent: shorter than 50", NO_VIDEO),
    # damage
    Row("truncated.mp4", _truncated(Clip(), 0.5), NO_CLIP, NO_CLIP),
    Row("truncated.mkv", _truncated(Clip(), 0.5)),
    Row("truncated.ts", _truncated(Clip(), 0.5)),
    Row("truncated.wav", _truncated(Clip(video=None, audio="pcm_s16le"), 0.5), vision=NO_VIDEO),
    Row("flipped.mp4", _flipped(Clip(seconds=4), 40), "any", "any"),
    Row("flipped.mkv", _flipped(Clip(seconds=4, audio="pcm_s16le"), 200), "any", "any"),
    Row("flipped.ts", _flipped(Clip(seconds=4), 200), "any", "any"),
    Row("zero-pages.mkv", _zero_pages, "any", "any"),
    # what is no clip
    Row("empty.mp4", _bytes(b""), "failed: is empty (0 bytes)", "failed: is empty (0 bytes)"),
    Row("text.mp4", _bytes(b"These are words and no film.\n" * 50), NO_CLIP, NO_CLIP),
    Row("page.mp4", _bytes(b"<!DOCTYPE html><html><body>404</body></html>"), NO_CLIP, NO_CLIP),
    Row("playlist.mp4", _bytes(b"#EXTM3U\n#EXTINF:10,\nh264-aac.ts\n#EXT-X-ENDLIST\n"), NO_CLIP, NO_CLIP),
    Row("concat.mp4", _bytes(b"ffconcat version 1.0\nfile h264-aac.ts\n"), NO_CLIP, NO_CLIP),
    Row("noise.mp4", _bytes(np.random.default_rng(0).bytes(20_000)), NO_CLIP, NO_CLIP),
    # large
    Row("4k.mp4", Clip(size=(3840, 2160), seconds=0.6, fps=10, faces=False).write, vision=NO_FACE),
    Row("10-minutes.mkv", _long, vision=NO_FACE),
    Row(
        "8k.mkv",
        Clip(size=(7680, 4320), seconds=0.1, fps=10, faces=False, video="mjpeg", pix_fmt="yuvj420p").write,
        vision="failed: its frames are 7680 by 4320",
    ),
]


def fits(expected: str, status: str, reason: str) -> bool:
    """Whether an outcome is the one that a row asks for; ``any`` is any, which is said in one line."""
    wanted, _, part = expected.partition(": ")
    return wanted == "any" or (status == wanted and reason.startswith(part))
