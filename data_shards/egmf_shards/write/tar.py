"""WebDataset's writer of tars, without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def new_tar(path: Path) -> Any:
    """A ``webdataset.TarWriter`` of bytes: the same samples give the same bytes, whoever writes them and when.

    Importing WebDataset imports torch where that is installed: seconds and hundreds of megabytes, for data sets that
    nobody makes in a process that writes files. It does without where there is none, so for that import there is none.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # what Python itself puts there for "not to be found"
    try:
        from webdataset.writer import TarWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    # A fixed integer time: no PAX header is needed for a fraction.
    return TarWriter(str(path), encoder=False, mtime=0)
