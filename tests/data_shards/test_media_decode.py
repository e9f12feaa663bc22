"""Decoding: everything on the clip's own clock, whatever the container says or does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Clip, flipped, remuxed, voice

from egmf_media.decode.pictures import HOLD, read_pictures
from egmf_media.decode.sound import read_sound
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits

LIMITS = Limits()


def pictures(path: Path, rate: float = 5.0, longest: int = 640, limits: Limits = LIMITS):
    counts: dict = {}
    return list(read_pictures(path, limits, rate, longest, counts)), counts


def test_sound_is_16_khz_mono_and_as_loud_as_it_was(tmp_path):
    x = voice(2.0)
    sound = read_sound(Clip(video=None, audio="pcm_s16le", sample=x).write(tmp_path / "a.wav"), LIMITS)
    assert sound.samples.dtype == np.float32
    assert np.abs(sound.samples - x).max() < 1e-4
    assert sound.heard.tolist() == [[0, 32_000]]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_sound_that_begins_late_is_where_it_was_heard(tmp_path, suffix):
    clip = Clip(late=2.43, seconds=1.0, audio="pcm_s16le" if suffix != "mp4" else "aac")
    sound = read_sound(clip.write(tmp_path / f"a.{suffix}"), LIMITS)
    loud = np.flatnonzero(np.abs(sound.samples) > 0.01)
    assert abs(loud[0] / 16_000 - 2.43) < 0.01
    assert not sound.samples[: sound.heard[0, 0]].any()
    assert abs(sound.counts["offset"] - 2.43) < 0.07  # AAC's priming is sound, too


@pytest.mark.parametrize(("suffix", "shift"), [("mkv", 3.0), ("ts", 1.7), ("mov", 0.0), ("mkv", 0.0)])
def test_a_remuxed_clip_has_the_same_sound_and_pictures(tmp_path, suffix, shift):
    source = Clip().write(tmp_path / "a.mp4")
    other = remuxed(source, tmp_path / f"b.{suffix}", shift)
    assert np.array_equal(read_sound(source, LIMITS).samples, read_sound(other, LIMITS).samples)
    for one, two in zip(pictures(source)[0], pictures(other)[0], strict=True):
        assert one.second == two.second
        assert np.array_equal(one.image, two.image)


def test_priming_that_a_container_forgets_moves_nothing(tmp_path):
    """Sound 60 ms before the picture is an encoder's priming; half a second before it is sound."""
    for late, cut in ((-0.06, 0.06), (-0.5, 0.0)):
        path = Clip(late=late, audio="pcm_s16le", seconds=1.0).write(tmp_path / "a.mkv")
        sound = read_sound(path, LIMITS)
        assert abs(sound.counts["seconds"] - (1.0 - cut)) < 0.002
        assert pictures(path)[1]["offset"] == (0.0 if cut else 0.5)


def test_a_variable_rate_shows_what_was_seen_at_each_time(tmp_path):
    times = [0.0, 0.04, 0.5, 0.52, 1.7, 1.9]
    found, counts = pictures(Clip(times=times, faces=False, audio=None, video="ffv1").write(tmp_path / "a.mkv"))
    shown = [max(i for i, t in enumerate(times) if t <= k / 5 + 0.002) for k in range(10)]
    assert shown == [round((float(p.image.mean()) - 20) / 10) for p in found]
    assert [p.same for p in found] == [False, *(a == b for a, b in pairwise(shown))]
    assert counts["frames_seen"] == 6


def test_a_frame_is_held_for_a_while_and_then_nothing_is_seen(tmp_path):
    found, _ = pictures(Clip(times=[0.0, 3.0], faces=False, audio=None, video="ffv1").write(tmp_path / "a.mkv"))
    assert [p.second for p in found if p.image is None] == [k / 5 for k in range(16) if HOLD < k / 5 < 3.0]


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_phone_gives_upright_pictures(tmp_path, rotation):
    plain, _ = pictures(Clip(audio=None).write(tmp_path / "a.mp4"))
    turned, counts = pictures(Clip(audio=None, rotation=rotation).write(tmp_path / "b.mp4"))
    assert (counts["rotation"] - rotation) % 360 == 0
    assert np.array_equal(turned[3].image, np.rot90(plain[3].image, rotation // 90))


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_ffmpegs(tmp_path, rotation):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: there is nothing to compare with")
    path = Clip(audio=None, rotation=rotation).write(tmp_path / "a.mp4")
    found = pictures(path)[0][0].image
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "bgr24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    assert np.abs(np.frombuffer(raw, np.uint8).reshape(found.shape).astype(int) - found).mean() < 1


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for i in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((120, 160, 3), i, np.uint8))))
        container.mux(stream.encode(None))
    assert pictures(path)[0][0].image.shape == (120, 320, 3)


def test_a_large_picture_is_made_smaller_and_a_small_one_stays(tmp_path):
    path = Clip(audio=None, size=(320, 240), seconds=0.4).write(tmp_path / "a.mp4")
    assert pictures(path, longest=160)[0][0].image.shape == (120, 160, 3)
    assert pictures(path, longest=640)[0][0].image.shape == (240, 320, 3)


def test_damage_is_counted_and_what_is_left_stays_in_its_place(tmp_path):
    source = Clip(audio="pcm_s16le", seconds=4.0).write(tmp_path / "a.mkv")
    whole = read_sound(source, LIMITS).samples
    path = flipped(source, tmp_path / "b.mkv", count=400)
    sound = read_sound(path, LIMITS)
    assert np.abs(sound.samples).max() <= 1
    there = np.zeros(len(whole), bool)
    for first, last in sound.heard:
        there[first : min(last, len(whole))] = True
    n = min(len(whole), len(sound.samples))
    assert there[:n].mean() > 0.5
    assert (np.abs(sound.samples[:n] - whole[:n])[there[:n]] < 1e-3).mean() > 0.95


def test_samples_beyond_full_scale_and_none_are_clipped_and_counted(tmp_path):
    x = voice(1.0) * 20
    x[100] = np.nan
    sound = read_sound(Clip(video=None, audio="pcm_f32le", sample=x).write(tmp_path / "a.wav"), LIMITS)
    assert np.abs(sound.samples).max() == 1
    assert sound.samples[100] == 0
    assert sound.counts["clipped"] == int((np.abs(np.nan_to_num(x)) > 1).sum())


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(audio=None), "no audio stream"),
        (Clip(silent=True), "silent (RMS 0.0e+00, below 1e-04)"),
        (Clip(sample=voice(2.0, level=2e-4), audio="pcm_f32le"), "silent"),
        (Clip(sample=voice(0.02), audio="pcm_s16le"), "shorter than 50 ms"),
    ],
)
def test_no_sound_is_absent_and_says_why(tmp_path, clip, reason):
    with pytest.raises(AbsentError, match="^" + re.escape(reason)):
        read_sound(clip.write(tmp_path / "a.mkv"), LIMITS)


def test_no_video_and_a_cover_picture_are_absent(tmp_path):
    song = tmp_path / "a.mp3"
    with av.open(str(song), "w") as container:
        audio = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(voice(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        packets = [*cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))), *cover.encode(None)]
        container.mux(packets + audio.encode(frame) + audio.encode(None))
    for path in (song, Clip(video=None, audio="aac").write(tmp_path / "b.m4a")):
        with pytest.raises(AbsentError, match=r"^no video stream$"):
            pictures(path)
        assert read_sound(path, LIMITS).counts["seconds"] >= 1


def test_of_several_streams_the_default_is_read(tmp_path):
    sound = read_sound(Clip(second_audio=True).write(tmp_path / "a.mkv"), LIMITS)
    assert sound.counts["audio_streams"] == 2
    assert sound.counts["rms"] > 0.01  # the second is silent


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello world\n" * 100, "is no media file"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n", "is no media file"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "is no media file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no media file"),
        (b"PK\x03\x04" + bytes(200), "is no media file"),
    ],
)
def test_what_is_no_clip_is_refused_and_no_other_file_is_read(tmp_path, data, message):
    Clip().write(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(data)
    for read in (lambda: read_sound(tmp_path / "b.mp4", LIMITS), lambda: pictures(tmp_path / "b.mp4")):
        with pytest.raises(MediaError) as caught:
            read()
        assert str(caught.value).startswith(message)


def test_a_name_is_a_file_and_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Clip(video=None, seconds=0.5).write(tmp_path / "a.m4a").rename("concat:x|y.m4a")
    assert read_sound(Path("concat:x|y.m4a"), LIMITS).counts["seconds"] > 0.4
    with pytest.raises(MediaError, match="there is no such file"):
        read_sound(Path("http://127.0.0.1:9/a.mp4"), LIMITS)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_bytes=100), "at most 100 are read"),
        (Limits(max_pixels=1000), "its frames are 160 by 120; at most 1000 pixels"),
        (Limits(max_seconds=1), "is 2 s long; at most 1 s are read"),
        (Limits(max_frames=10), "has more than 10 frames of video"),
    ],
)
def test_a_clip_beyond_a_limit_is_refused(tmp_path, limits, message):
    path = Clip().write(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=message):
        pictures(path, limits=limits)


def test_a_recording_that_names_no_duration_is_read_and_limited(tmp_path):
    """A browser's MediaRecorder writes into a pipe: no duration, no index."""
    clip = Clip(video="libvpx", audio="libopus", rate=48_000, format="webm", options={"live": "1"})
    path = clip.write(tmp_path / "a.webm")
    with av.open(str(path)) as container:
        assert container.duration is None
    found, counts = pictures(path)
    assert (len(found), counts["frames_seen"]) == (10, 50)
    assert abs(read_sound(path, LIMITS).counts["seconds"] - 2) < 0.03
    for read_it in (
        lambda: pictures(path, limits=Limits(max_seconds=1)),
        lambda: read_sound(path, Limits(max_seconds=1)),
    ):
        with pytest.raises(MediaError, match="at most 1 s are read"):
            read_it()
