"""One tar as WebDataset's ``TarWriter`` writes it, byte for byte.

Ours, because importing WebDataset imports torch where torch is installed: seconds and hundreds of megabytes for a
process that only writes files, and no torch may be needed to make shards.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


class TarWriter:
    """Appends samples to a new tar; the same samples give the same bytes, whoever writes them and when."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample: a member ``KEY.NAME`` for each of ``members``, in the order of their names."""
        for name, content in sorted(members.items()):
            member = tarfile.TarInfo(f"{key}.{name}")
            member.size = len(content)
            member.mode, member.uname, member.gname = 0o444, "bigdata", "bigdata"
            member.mtime = 0  # an integer, which needs no PAX header
            self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Write the end of the tar."""
        try:
            self._tar.close()
        finally:
            self._file.close()
