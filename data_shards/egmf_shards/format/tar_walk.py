"""A strict walk over a tar: every byte is either a payload, or held to what it must be.

``tarfile`` forgives: it skips padding, ignores what follows the end, and reads a checksum field leniently. Here a
header's checksum must stand in one of two exact forms, padding must be zero, and the archive must end with zeros up to
the last byte; so a flipped bit outside of a payload is found without a hash. What remains are the payloads (their
CRC32 is in the index) and the bodies of PAX and GNU extension records (covered by the shard's SHA-256 alone).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512
MAX_MEMBER = 1 << 28
"""Bytes; a member that claims more is refused: 256 MiB is 65,000 frames of 1,024 numbers."""
SPARSE = "GNU.sparse."
"""How the PAX records of a sparse file begin: its holes are nowhere in the tar, so its bytes are no slice of it."""
_ZEROS = bytes(BLOCK)

Finding = Callable[[str, str, str], None]
"""``report(kind, member, what)`` takes one problem."""


@dataclass(frozen=True)
class Member:
    """One plain file of the tar: its name, and where its payload lies, in bytes."""

    name: str
    offset: int
    size: int


def walk_tar(data: bytes | mmap.mmap, report: Finding) -> list[Member]:
    """The members of a whole tar in memory (a map will do); problems go to ``report``, none is raised.

    After an unreadable header the walk goes on at the next sound one.
    """
    view = memoryview(data)
    end, at = len(view), 0
    members: list[Member] = []
    extended: dict[str, str] = {}
    while at < end:
        header = bytes(view[at : at + BLOCK])
        if len(header) < BLOCK:
            report("truncated", "", f"the file ends inside the header at byte {at}")
            return members
        if header == _ZEROS:
            _check_end(view[at:], at, report)
            return members
        wrong = _header_fault(header)
        if wrong:
            found = _next_header(view, at + BLOCK)
            then = "nothing readable follows" if found is None else f"the walk goes on at byte {found}"
            report("header", "", f"the tar header at byte {at} is damaged or no header ({wrong}); {then}")
            if found is None:
                return members
            at, extended = found, {}
            continue
        kind, name = header[156:157], extended.get("path") or _name(header)
        size = int(extended["size"]) if kind in b"0\0" and "size" in extended else _number(header[124:136])
        start = at + BLOCK
        at = start + -(-size // BLOCK) * BLOCK
        if size > MAX_MEMBER:
            report("oversized member", name, f"claims {size} bytes; at most {MAX_MEMBER} are allowed")
        if start + size > end or at > end:
            report("truncated", name, f"needs {at - start} bytes from byte {start}; the file ends at byte {end}")
            return members
        if view[start + size : at] != bytes(at - start - size):
            report("padding", name, f"the padding behind it, from byte {start + size}, is not zero")
        if kind in (b"x", b"L"):
            extended |= _extension(kind, bytes(view[start : start + min(size, 1 << 20)]), report)
            continue
        if kind == b"g":
            if _extension(b"x", bytes(view[start : start + min(size, 1 << 20)]), report):
                report("header", name, "a global PAX header sets every member's path or size, or makes it sparse")
            continue
        sparse, extended = SPARSE in extended, {}
        if sparse:
            report("special member", name, "is a sparse file; only plain files are allowed")
        elif kind in (b"1", b"2"):
            report("link member", name, "is a link; only plain files are allowed")
        elif kind not in (b"0", b"\0"):
            report("special member", name, f"is of tar type {kind!r}; only plain files are allowed")
        elif size <= MAX_MEMBER:
            members.append(Member(name, start, size))
    report("truncated", "", "the archive's end (two blocks of zeros) is missing")
    return members


def _check_end(rest: memoryview, at: int, report: Finding) -> None:
    if len(rest) < 2 * BLOCK:
        report("truncated", "", f"the archive's end at byte {at} has {len(rest)} bytes; two blocks of zeros are needed")
    for start in range(0, len(rest), 1 << 20):
        piece = bytes(rest[start : start + (1 << 20)])
        if piece.count(0) != len(piece):
            report("padding", "", f"something other than zeros follows the archive's end at byte {at}")
            return


def _header_fault(header: bytes) -> str:
    """Why ``header`` is none; empty where it is one. Both accepted forms of the checksum are many bits apart."""
    field = header[148:156]
    total = sum(header) - sum(field) + 8 * 0x20
    if field not in (b"%06o\0 " % total, b"%07o\0" % total):
        return "its checksum is wrong"
    try:
        _number(header[124:136])
        _name(header)
    except ValueError:
        return "its size or name is unreadable"
    return ""


def _next_header(view: memoryview, start: int) -> int | None:
    """The next block that is a header by its magic and its checksum."""
    for at in range(start, len(view) - BLOCK + 1, BLOCK):
        if view[at + 257 : at + 262] == b"ustar" and not _header_fault(bytes(view[at : at + BLOCK])):
            return at
    return None


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's base 256, for 8 GiB and more
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not all(0x30 <= c < 0x38 for c in digits):
        raise ValueError("not octal")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0].decode()
    prefix = header[345:500].partition(b"\0")[0].decode() if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _extension(kind: bytes, body: bytes, report: Finding) -> dict[str, str]:
    """What a PAX (``x``) or GNU (``L``) record says about the next member: ``path``, ``size``, :data:`SPARSE`."""
    found: dict[str, str] = {}
    at = 0
    try:
        if kind == b"L":
            return {"path": body.partition(b"\0")[0].decode()}
        while at < len(body):
            digits, space, _ = body[at : at + 10].partition(b" ")
            length = int(digits)
            key, equals, value = body[at + len(digits) + 1 : at + length].partition(b"=")
            if not space or not equals or not value.endswith(b"\n") or length <= len(digits):
                raise ValueError("not a record")
            at += length
            found[SPARSE if key.startswith(SPARSE.encode()) else key.decode()] = value[:-1].decode()
        if not (found.get("size", "0").isdecimal() and len(found.get("size", "0")) < 20):
            raise ValueError("size is no number")
    except ValueError as error:
        report("header", "", f"a PAX or GNU extension record is malformed ({error})")
        found = {}
    return {key: value for key, value in found.items() if key in ("path", "size", SPARSE)}
