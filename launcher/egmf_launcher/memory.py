"""Peak memory of this process and all its descendants together.

PSS (proportional set size: a page shared by n processes counts 1/n in each) adds up without counting shared libraries
and forked pages once per process, as RSS would. Processes that another descendant started are found through their
parents, so Ray's daemons count, too.
"""

from __future__ import annotations

import threading

import psutil

_INTERVAL_S = 1.0


class MemorySampler:
    """A context manager that samples once a second from a thread; ``peak_bytes`` is the largest sum seen."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="memory-sampler", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes())
            if self._done.wait(_INTERVAL_S):
                return


def tree_bytes() -> int:
    """The sum of PSS over this process and its descendants, in bytes; a process that ends meanwhile counts nothing."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(memory, "pss", memory.rss)
    return total
