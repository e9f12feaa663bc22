"""A file of tensors whose reads are watched, in place of what ``safe_open`` gives."""

from __future__ import annotations


class Watched:
    """An opened file; ``note`` hears the name of a tensor before it is read, and may fail in the file's place."""

    def __init__(self, opened, note):
        self._opened, self._note = opened, note

    def __enter__(self):
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *rest):
        return self._opened.__exit__(*rest)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def get_tensor(self, name):
        self._note(name)
        return self._file.get_tensor(name)
