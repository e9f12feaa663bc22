"""Context out of the lines before, of a file that is read once and in bounded memory: the dialogue that is going on.

A dialogue's lines follow each other, in their order; lines of no dialogue may stand between them. What comes otherwise
would be answered with less context than it has, and nobody would see it: :class:`Order` refuses it beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_shards import MAX_CONTEXT_TURNS
from egmf_shards.format.rules import MAX_TURN
from egmf_shards.messages import shown

_RIGHT = "sort the lines by dialogue and turn, or give each its context"


def dialogue_of(data: Mapping[str, Any]) -> str | None:
    """What tells a line's dialogue from others, its split included; None: it is of none."""
    given = data.get("dialogue")
    return None if given is None or given == "" else json.dumps([data.get("split"), given], sort_keys=True)


def turn_of(data: Mapping[str, Any]) -> int | None:
    """A line's place in its dialogue, from 0; None: it does not say.

    Raises:
        EgmfError: it is no such number.
    """
    turn = data.get("turn")
    if turn is not None and (not isinstance(turn, int) or isinstance(turn, bool) or not 0 <= turn <= MAX_TURN):
        raise EgmfError(f"turn is {shown(turn)}; a whole number from 0 is needed")
    return turn


class Order:
    """Sees that no dialogue comes again after another one began, and that its turns ascend.

    Of each dialogue a number is kept: about 100 bytes.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._dialogue: str | None = None
        self._turn: int | None = None

    def check(self, data: Mapping[str, Any]) -> None:
        """Look at the next line.

        Raises:
            EgmfError: its context would not be what was said before it; says what would be right.
        """
        dialogue = dialogue_of(data)
        if dialogue is None:
            return
        try:
            turn = turn_of(data)
        except EgmfError:  # which its line says
            turn = None
        own = data.get("context") is not None
        if dialogue != self._dialogue:
            if hash(dialogue) in self._seen and not own:
                raise EgmfError(f"dialogue {shown(data['dialogue'])} comes again after another one began; {_RIGHT}")
            self._seen.add(hash(dialogue))
            self._dialogue, self._turn = dialogue, None
        if turn is None:
            return
        if self._turn is not None and turn <= self._turn and not own:
            raise EgmfError(f"turn {turn} of dialogue {shown(data['dialogue'])} follows turn {self._turn}; {_RIGHT}")
        self._turn = turn


class Running:
    """The dialogue that is going on: its last :data:`MAX_CONTEXT_TURNS` turns."""

    def __init__(self) -> None:
        self.turn = 0
        """The place of the line that was entered last, as counted here."""
        self._dialogue: str | None = None
        # A turn, or the number of a line that could not be read.
        self._said: list[tuple[str, str] | int] = []
        self._unread: list[int] = []

    def enter(self, data: Mapping[str, Any]) -> None:
        """Come to a line of a dialogue: what is known now is what was said before it."""
        dialogue = dialogue_of(data)
        if dialogue is None:
            return
        if dialogue != self._dialogue:
            # Unreadable lines right before may have been its beginning, but for one that says that it is the first.
            before = [] if data.get("turn") == 0 else self._unread
            self._dialogue, self._said, self.turn = dialogue, [*before], 0
        self._unread = []

    @property
    def context(self) -> list[tuple[str, str]]:
        """Speaker and text of the turns before, oldest first."""
        return [turn for turn in self._said if not isinstance(turn, int)]

    @property
    def lacks(self) -> str:
        """Which lines may be missing in it, in words; empty for none."""
        unread = [str(turn) for turn in self._said if isinstance(turn, int)]
        return f"line {', '.join(unread)}, which could not be read" if unread else ""

    def leave(self, data: Mapping[str, Any], number: int) -> None:
        """Go on behind the line that was entered: it was said, whether or not it can be answered."""
        if dialogue_of(data) is None:
            return
        text, speaker = data.get("text", ""), data.get("speaker", "")
        readable = isinstance(text, str) and isinstance(speaker, str)
        self._add((speaker, text) if readable else number)
        self.turn += 1

    def lose(self, number: int) -> None:
        """Pass over a line that cannot be read at all: it may be of this dialogue, or of the next."""
        self._unread = [*self._unread, number][-MAX_CONTEXT_TURNS:]
        self._add(number)

    def _add(self, turn: tuple[str, str] | int) -> None:
        self._said = [*self._said, turn][-MAX_CONTEXT_TURNS:]
