"""Extractors of one's own that end or hang their process on some clips: what a bad decoder does."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from egmf_media.decode.container import DECODING
from egmf_media.specification import SOUND, Specification


class Fatal:
    """Ends its process on ``crash*``, hangs on ``hang*``, wants 2 GiB on ``vast*``, raises on ``raise*``,
    and gives the file's size otherwise. With EGMF_TEST_BROKEN in the environment it cannot be made."""

    missing = ""

    def __init__(self, settings) -> None:
        if os.environ.get("EGMF_TEST_BROKEN"):
            raise RuntimeError("cannot be made just now")
        self.specification = Specification("own_extractors:Fatal", 1, SOUND, 1.0, 1, DECODING)

    def extract(self, path, limits, counts):
        if path.stem.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if path.stem.startswith("hang"):
            time.sleep(600)
        if path.stem.startswith("vast"):
            np.ones(1 << 28)  # 2 GiB
        if path.stem.startswith("raise"):
            raise RuntimeError("two\nlines")
        return np.full((1, 1), path.stat().st_size, np.float32)
