"""How large a clip may be. Looked at before anything is decoded, where the file says it, and while it is, where not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from egmf_media.errors import MediaError


@dataclass(frozen=True)
class Limits:
    """A clip beyond one of these fails; nothing is cut to fit. No part of a specification: they change no feature."""

    max_bytes: int = 2 << 30
    """Of the file."""
    max_pixels: int = 4096 * 2304
    """Of a frame: 4K fits, 8K does not."""
    max_seconds: float = 900.0
    """Of the clip."""
    max_frames: int = 60 * 900
    """Of video that are decoded."""
    max_wall_seconds: float = 1800.0
    """How long one clip may keep a process; it is ended then. For a decoder that hangs."""

    def check_file(self, path: Path) -> int:
        """The size of a file that may be opened.

        Raises:
            MediaError: there is no such file, it is none, empty, or too large.
        """
        try:
            size = os.stat(path).st_size
        except (OSError, ValueError) as error:
            raise MediaError("there is no such file") from error
        if not path.is_file():
            raise MediaError("is no file")
        if not size:
            raise MediaError("is empty (0 bytes)")
        if size > self.max_bytes:
            raise MediaError(f"has {size} bytes; at most {self.max_bytes} are read (max_bytes)")
        return size

    def check_picture(self, width: int, height: int) -> None:
        """Refuse frames that are too large, or of no size.

        Raises:
            MediaError: they are.
        """
        if width < 1 or height < 1:
            raise MediaError(f"its frames are {width} by {height}; no video is")
        if width * height > self.max_pixels:
            raise MediaError(
                f"its frames are {width} by {height}; at most {self.max_pixels} pixels are read (max_pixels)"
            )

    def check_seconds(self, seconds: float) -> None:
        """Refuse a clip, or a place in it, that is too late.

        Raises:
            MediaError: it is.
        """
        if seconds > self.max_seconds:
            raise MediaError(f"is {seconds:.0f} s long; at most {self.max_seconds:.0f} s are read (max_seconds)")

    def check_frames(self, count: int) -> None:
        """Refuse video of too many frames.

        Raises:
            MediaError: there are more.
        """
        if count > self.max_frames:
            raise MediaError(f"has more than {self.max_frames} frames of video (max_frames)")
