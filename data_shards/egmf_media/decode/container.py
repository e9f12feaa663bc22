"""A clip opened: which streams of it are read, and where its clock begins.

**The clock.** Everything is placed by presentation time. Second 0 is where the clip's first stream begins, so a clip
moved by remuxing stays the same. Sound that begins a little before the picture is the priming of an encoder whose
container does not say so (up to :data:`PRIMING`): then second 0 is the picture's, and what comes before is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_media.errors import MediaError
from egmf_media.limits import Limits
from egmf_media.messages import one_line

DECODING = 1
"""Version of what decoding gives; part of every specification."""
PRIMING = 0.15
"""Seconds: HE-AAC at 16 kHz primes by 0.13 s."""
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "asf", "flv", "live_flv", "ogg", "wav", "w64",
    "flac", "mp3", "aac", "aiff", "caf", "amr", "ac3", "au", "mxf", "dv", "gif", "wavarc",
)  # fmt: skip
"""Demuxers that may be tried, by FFmpeg's names. None of them reads another file or address (as playlists do)."""
KNOWN = "mp4, mov, mkv, webm, avi, ts, mpg, wmv, flv, ogg, wav, flac, mp3, aac, amr, ..."
_SUFFIXES = (
    "mp4 m4v m4a mov 3gp 3g2 mkv mka webm avi ts mts m2ts mpg mpeg vob wmv wma asf flv ogg oga ogv opus wav w64 flac "
    "mp3 aac aif aiff caf amr ac3 au mxf dv gif"
)
SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""What a clip's name ends in, where a folder is searched for clips."""


@dataclass(frozen=True)
class Streams:
    """What of a clip is read."""

    audio: int | None
    """The stream's number; None: the clip has no sound."""
    video: int | None
    """Likewise; a cover picture of a song is no video."""
    start: float
    """Second 0 of the clip's clock, in the container's time."""
    audio_count: int
    video_count: int
    duration: float | None
    """Seconds that the container claims; None: it claims nothing, as a browser's recording."""


def av() -> Any:
    """PyAV, quiet.

    Raises:
        MediaError: it is not installed.
    """
    try:
        import av as pyav
    except ImportError as error:
        raise MediaError("clips need PyAV: pip install 'egmf-dist[media]'") from error
    pyav.logging.set_level(None)
    return pyav


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[tuple[Any, Streams]]:
    """An open container and what of it is read.

    Raises:
        MediaError: there is no such file, it is no media file of :data:`FORMATS`, or it is beyond a limit.
    """
    pyav = av()
    limits.check_file(path)
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "enable_drefs": "0"}
    try:
        # An absolute path begins with no protocol. Tags in other encodings than UTF-8 are nobody's concern here.
        container = pyav.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (pyav.error.FFmpegError, ValueError, UnicodeError) as error:
        raise MediaError(f"is no media file that is read here ({KNOWN})") from error
    try:
        yield container, _streams(container, limits)
    finally:
        container.close()


def _streams(container: Any, limits: Limits) -> Streams:
    sounds = [s for s in container.streams.audio if s.codec_context is not None]
    pictures = [s for s in container.streams.video if s.codec_context is not None and not _is_cover(s)]
    if not sounds and not pictures:
        raise MediaError("holds neither sound nor video")
    sound, picture = _chosen(sounds), _chosen(pictures)
    duration = None if container.duration is None else container.duration / 1_000_000
    if duration is not None and duration > 0:
        limits.check_seconds(duration)
    return Streams(
        None if sound is None else sound.index,
        None if picture is None else picture.index,
        _start(_begin(sound), _begin(picture)),
        len(sounds),
        len(pictures),
        duration,
    )


def _chosen(streams: list[Any]) -> Any:
    """The one that the file calls the default; of several or none the first. The largest could be a commentary."""
    return next((s for s in streams if s.disposition & s.disposition.default), streams[0] if streams else None)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & (stream.disposition.attached_pic | stream.disposition.still_image))


def _begin(stream: Any) -> float | None:
    if stream is None or stream.start_time is None:
        return None
    return float(stream.start_time * stream.time_base)


def _start(sound: float | None, picture: float | None) -> float:
    if sound is None or picture is None:
        return sound if sound is not None else picture or 0.0
    return picture if 0 < picture - sound <= PRIMING else min(sound, picture)


def frames_of(container: Any, stream: Any, counts: dict[str, int]) -> Iterator[Any]:
    """Decoded frames of one stream, in order; a packet that cannot be decoded is counted and passed over.

    Args:
        container: open.
        stream: of it; decoded in this thread alone.
        counts: ``bad_packets`` is counted up in it.

    Raises:
        MediaError: there is no decoder for it.
    """
    pyav = av()
    stream.codec_context.thread_count = 1
    stream.thread_type = "NONE"
    packets = container.demux(stream)
    failures = 0
    while True:
        try:
            packet = next(packets, None)
        except pyav.error.FFmpegError as error:
            # A container that ends in the middle, or is damaged: what was read so far is what there is. Some demuxers
            # can go on behind the damage; one that cannot says the same error for ever.
            counts["bad_packets"] += 1
            failures += 1
            if failures > 3 or isinstance(error, pyav.error.EOFError):
                return
            packets = container.demux(stream)
            continue
        if packet is None:
            return
        try:
            yield from packet.decode()
        except pyav.error.EOFError:
            return
        except (pyav.error.DecoderNotFoundError, NotImplementedError) as error:
            raise MediaError(f"no decoder for {stream.codec_context.name}: {one_line(error)}") from error
        except (pyav.error.FFmpegError, ValueError):
            counts["bad_packets"] += 1
