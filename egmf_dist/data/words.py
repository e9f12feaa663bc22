"""Words of a text in any language that is known here."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends: what stands between spaces, a Chinese character alone."""
    return [word.span() for word in _WORD.finditer(text)]
