"""Files that are something else than their name says: a download that went wrong, an archive, another program's."""

from __future__ import annotations

from pathlib import Path

HEAD = 512
"""Bytes from a file's start that are enough to tell."""
_ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"7z\xbc\xaf": "7z"}
_TORCH_OF_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
FROM_TORCH = (
    "written by torch.save; read it with torch.load and save it with pickle.dump, its tensors as numpy arrays "
    "(tensor.numpy())"
)


def foreign_kind(head: bytes) -> str:
    """What a file is by its first :data:`HEAD` bytes, and what to do about it; empty where they say nothing."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file that it stands for; fetch that with `git lfs pull`"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower().startswith((b"<!doctype", b"<html")):
        return "a web page (a login, or a warning of the site), not the file; download it again"
    if head.startswith(_TORCH_OF_BEFORE_1_6) or (head.startswith(b"PK\x03\x04") and b"data.pkl" in head):
        return FROM_TORCH
    archive = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), "")
    return f"a {archive} archive; unpack it first" if archive else ""


def foreign_file(path: Path) -> str:
    """:func:`foreign_kind` of a file; empty where it cannot be read, which whoever reads it says."""
    try:
        with path.open("rb") as file:
            return foreign_kind(file.read(HEAD))
    except OSError:
        return ""
