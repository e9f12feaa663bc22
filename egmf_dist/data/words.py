"""Words of a text in any language that is known here."""

from __future__ import annotations

import re

# Scripts that put no space between words: Chinese, Japanese, Yi, Korean, and their punctuation.
_CHARACTER = "\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CHARACTER}]|[^\\s{_CHARACTER}]+")


def words(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends: what stands between spaces, a Chinese character (and the like) alone."""
    return [word.span() for word in _WORD.finditer(text)]
