"""On which side of padded arrays the padding is: at the end, as MMSA publishes, or in front, as some files have it.

Nothing in a file says it, so the zeros do. Where lengths are given, a clip tells where the rows that its length leaves
over are zeros on one side and not on the other. Without lengths, a clip tells where it has rows of zeros on one side
alone; real frames of zeros (no face) do that, too, so a clear majority counts, and without one the file is refused.
``--padding`` says it instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.messages import listed

FRONT, END = "front", "end"
SIDES = (FRONT, END)
_CLEAR = 2
"""A majority of so many times the others decides."""


def check_side(given: str | None) -> None:
    """Refuse a side that there is none of."""
    if given is not None and given not in SIDES:
        raise ShardError(f"padding is {given!r}; it must be {' or '.join(SIDES)}")


def used_rows(padded: np.ndarray) -> np.ndarray:
    """bool ``[T]``: which rows of ``[T, dim]`` hold a finite number other than 0."""
    used: np.ndarray = ((padded != 0) & np.isfinite(padded)).any(axis=1)
    return used


class PaddingSide:
    """The clips of one modality of one file, asked one by one; then :meth:`side` is what they say."""

    def __init__(self, where: str, given: str | None = None) -> None:
        self._where, self._given = where, given
        self._with_lengths = False
        self.found: dict[str, list[str]] = {side: [] for side in (*SIDES, "neither")}
        """Which clips, in words: those that are padded on one side, and those whose length fits neither."""

    def ask(self, clip: str, padded: np.ndarray, length: int | None) -> None:
        """Take ``padded`` ``[T, dim]`` of one clip; ``length`` None: none is given."""
        if self._given is not None:
            return
        used = used_rows(padded)
        total = len(used)
        if not used.any():
            return
        if length is None:
            free = {FRONT: not used[0], END: not used[-1]}
        elif length >= total:
            return
        else:
            self._with_lengths = True
            free = {FRONT: not used[: total - length].any(), END: not used[length:].any()}
        if free[FRONT] != free[END]:
            self.found[FRONT if free[FRONT] else END].append(clip)
        elif length is not None and not free[END]:
            self.found["neither"].append(clip)

    def side(self) -> str:
        """``front`` or ``end``.

        Raises:
            ShardError: lengths and zeros, or zeros alone, contradict each other, so that any side would cut real frames
                away.
        """
        if self._given is not None:
            return self._given
        front, end, neither = (self.found[side] for side in (FRONT, END, "neither"))
        decide = f"or decide with --padding {FRONT} or --padding {END}"
        if not self._with_lengths:
            fewer, more = sorted((len(front), len(end)))
            if fewer and more < _CLEAR * fewer:
                raise ShardError(
                    f"{self._where}: {len(front)} clips have zeros in front alone ({listed(front[:1])}) and {len(end)} "
                    f"at the end alone ({listed(end[:1])}), so which of them are padding cannot be told; "
                    f"give lengths, {decide}"
                )
            return FRONT if len(front) > len(end) else END
        if front and end:
            raise ShardError(
                f"{self._where}: by their lengths {len(front)} clips have their zeros in front ({listed(front[:1])}) "
                f"and {len(end)} at the end ({listed(end[:1])}); check the lengths, {decide}"
            )
        if neither and not front and not end:
            raise ShardError(
                f"{self._where}: the lengths of {len(neither)} clips, the first {listed(neither[:1])}, leave over rows "
                f"that are no zeros on either side, and no clip tells where the padding is; check the lengths, {decide}"
            )
        return FRONT if front else END

    def describe(self) -> str | None:
        """What the manifest's ``source`` says; None where no clip is padded."""
        if self._given is not None:
            return f"{self._given} (given)"
        side = self.side()
        count, others = len(self.found[side]), len(self.found[END if side == FRONT else FRONT])
        if not count:
            return None
        return f"{side} (by the zeros of {count} clips" + (f"; {others} have theirs on the other)" if others else ")")


def ask_all(asked: PaddingSide, clips: Iterable[tuple[str, np.ndarray, int | None]]) -> str:
    """The side of all ``clips`` (name, ``[T, dim]``, length)."""
    for clip, padded, length in clips:
        asked.ask(clip, padded, length)
    return asked.side()
