"""Text as people typed it: the same for what is imported and for what is asked about."""

from __future__ import annotations

import re

# U+0080 to U+009F are control codes nobody types: they are Windows-1252 bytes that somebody decoded as Latin-1.
_CONTROL_1 = re.compile("[\x80-\x9f]")


def clean_text(text: str) -> str:
    """The text as people typed it, by two rules and nothing else.

    1. A character U+0080 to U+009F is replaced by the Windows-1252 character of that byte (``\\x92`` is ``’``); the
       five bytes that Windows-1252 leaves undefined are dropped.
    2. Every run of white space (line breaks and no-break spaces too) becomes one space; none stays at the ends.
    """
    text = _CONTROL_1.sub(_windows_1252, text)
    return " ".join(text.split())


def _windows_1252(match: re.Match[str]) -> str:
    return match[0].encode("latin-1").decode("cp1252", errors="ignore")
