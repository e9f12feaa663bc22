"""A sample's key from the ids of a data set, whatever these are made of: different ids give different keys.

A key may hold letters, digits, ``-`` and ``_``. What an id holds besides is written as its code point: ``访`` becomes
``_u8bbf_``, ``a.b`` ``a_u2e_b``. Ids of letters, digits, ``-`` and ``_`` stay as they are, with three exceptions that
would otherwise say the same as another id: what looks like such a code itself, a ``-`` inside the last of several parts
(``-`` parts them), and a last word ``text``, ``audio`` or ``vision`` (the endings of samples with a modality's own
label). :func:`unescaped` is the inverse. Where a key is not the ids letter for letter, the sample says them as
``source_id``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from egmf_shards.format.rules import KEY
from egmf_shards.importers.streams import MODALITIES

_CODE = re.compile(r"_u([0-9a-f]+)_")
_LIKE_A_CODE = re.compile(r"_u[0-9a-f]+(?![A-Za-z0-9-])")
_LIKE_A_CODE_NO_HYPHENS = re.compile(r"_u[0-9a-f]+(?![A-Za-z0-9])")


class Name(NamedTuple):
    """What a sample is called."""

    key: str
    source_id: str
    """The id as the source has it; empty where the key holds it letter for letter."""


def escaped(text: str, hyphens: bool = False) -> str:
    """``text`` in the letters of a key; with ``hyphens`` those are escaped, too. See the module's docstring."""
    like = _LIKE_A_CODE_NO_HYPHENS if hyphens else _LIKE_A_CODE
    # What looks like a code: the "_" in front would be read as the code's, where its end follows or another code.
    doubtful = {match.start() for match in like.finditer(text) if match.end() < len(text)}
    return "".join(
        character
        if KEY.fullmatch(character) and place not in doubtful and not (hyphens and character == "-")
        else _code(character)
        for place, character in enumerate(text)
    )


def unescaped(key: str) -> str:
    """The inverse of :func:`escaped`."""
    return _CODE.sub(lambda match: chr(int(match[1], 16)), key)


def name(source_id: str, *parts: str, prefix: str = "") -> Name:
    """The key of an id's ``parts`` behind ``prefix`` (of a key's letters, the same for all samples that may meet)."""
    words = [escaped(part, hyphens=number > 0) for number, part in enumerate(parts)]
    key = "-".join([prefix, *words] if prefix else words)
    return Name(key, "" if key == "-".join([prefix, *parts] if prefix else parts) else source_id)


def clip_name(dataset: str, video: str, clip: str, source_id: str = "") -> Name:
    """The name of a clip of a video; ``source_id`` left out is MMSA's ``video$_$clip``."""
    return without_modality(name(source_id or f"{video}$_${clip}", video, clip, prefix=dataset), f"{video}$_${clip}")


def without_modality(plain: Name, source_id: str) -> Name:
    """``plain`` with an ending that no modality's own label has (``modality_labels.py`` adds ``-text`` and so on)."""
    front, hyphen, last = plain.key.rpartition("-")
    if not hyphen or last not in MODALITIES:
        return plain
    return Name(f"{front}-{_code(last[0])}{last[1:]}", plain.source_id or source_id)


def _code(character: str) -> str:
    return f"_u{ord(character):x}_"
