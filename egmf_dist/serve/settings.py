"""How much is taken from whom: every bound of the server."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from egmf_dist.errors import EgmfError
from egmf_media.limits import Limits

TEXT_BYTES = 4 << 20
"""Of a JSON or JSON lines body, and of all fields beside a clip."""
CHARACTERS = 20_000
"""Of the words and the context of one utterance."""
CONTEXT_TURNS, TASKS = 100, 100
"""Of one utterance: the model reads fewer turns, and checking very many would hold up whoever else asks."""
FORM_FIELDS = 16
"""Of a form, beside its clip; each may hold its share of TEXT_BYTES, so that all together hold no more."""
FRAMES = 3000
"""Of one feature stream that comes as numbers, where its rate is not known: a minute at 50 frames a second."""
LINES = 256
"""Of one body of JSON lines."""
FRAMES_A_SECOND = 120
"""Of video: a clip of the longest length with more pictures is no recording."""
UPLOAD_GRACE_SECONDS, UPLOAD_BYTES_A_SECOND = 10.0, 4 << 10
"""A body that after the first is seen to come in more slowly than the second holds a place for nothing."""
UPLOADS_A_PLACE = 4
"""Bodies that may come in at once for each place of the queue: a slow client holds one of these, and no place."""
OVERHEAD_BYTES = 64 << 10
"""Of multipart's own lines beside the clip."""


@dataclass(frozen=True)
class Serving:
    """Bounds of a server; the text under a field is its help on the command line."""

    max_queue: int = 16
    """utterances that wait or are worked on; whoever comes then is told 429 and when to come again"""
    max_bytes: int = 64 << 20
    """of an upload; more is refused while it comes in"""
    max_seconds: float = 60.0
    """of a clip"""
    batch: int | None = None
    """questions that the model answers at once, of several requests together; null: as it was evaluated"""
    decoders: int = 1
    """processes that decode clips"""
    max_memory: int = 1 << 30
    """bytes that decoding one clip may need"""
    decode_seconds: float = 60.0
    """that decoding one clip may take"""
    upload_seconds: float = 60.0
    """that a body may take to come in"""
    stop_seconds: float = 60.0
    """that running requests may take once the server was told to stop"""
    transcribe: str | None = None
    """a Whisper, by folder or name on the hub, that the page may ask for words"""
    backbone: str | None = None
    """where the LLM lies now; null: as the folder says"""
    names: tuple[str, ...] = ()
    """by which it is asked besides its own, such as the name of a proxy before it: ["answers.example.org"]"""

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            EgmfError: names the option.
        """
        for name in ("max_queue", "max_bytes", "decoders", "max_memory"):
            if getattr(self, name) < 1:
                raise EgmfError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")
        for name in ("max_seconds", "decode_seconds", "upload_seconds", "stop_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise EgmfError(f"--{name.replace('_', '-')} is {value:g}; seconds above 0 are needed")
        if self.batch is not None and self.batch < 1:
            raise EgmfError(f"--batch is {self.batch}; it must be 1 or more")
        odd = next((name for name in self.names if not re.fullmatch(r"[0-9a-z.-]+|\[[0-9a-f:.]+\]", name)), None)
        if odd is not None:
            raise EgmfError(f"--names: {odd!r} is none; small letters, digits, dots and dashes are, without a port")

    @property
    def limits(self) -> Limits:
        """Of a clip, for who decodes it."""
        return Limits(
            max_bytes=self.max_bytes,
            max_seconds=self.max_seconds,
            max_frames=math.ceil(self.max_seconds * FRAMES_A_SECOND),
            max_wall_seconds=self.decode_seconds,
        )


DEFAULT = Serving()


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one line: what, and what would be right.
        retry: seconds after which it may be tried again; None: the same would be refused again.
    """

    def __init__(self, status: int, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry = status, message, retry
