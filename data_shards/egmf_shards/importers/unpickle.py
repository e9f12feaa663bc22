"""Untrusted pickles as plain data: an interpreter of the few opcodes that numpy arrays and plain containers need.

``pickle.load`` runs whatever a file names. Here nothing is imported and nothing of the file is called: a name is looked
up in a fixed table, and each entry of the table is built by code of this module after its arguments were checked. What
comes out is made of dict, list, tuple, str, bytes, bytearray, int, float, bool, None, numpy scalars and numpy arrays of
numbers or strings (object arrays: of str, numbers, None and lists). An ``OrderedDict`` comes back as dict.

Memory and time are bounded by the file: a declared length is checked against what is left of the file before it is
read, an array's shape against its bytes, and the bytes of all arrays against the file's size (one buffer cannot be
blown up many times), small objects by a number of steps. Nothing recurses. Large arrays are views of the bytes read:
the peak is about the file's size, for protocol 2 (bytes written as text) up to 1.3 times it.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.foreign_files import HEAD, foreign_kind
from egmf_shards.importers.pickle_calls import MAX_NAME_CHARACTERS, Calls, Latin1Text, Name, kind_of
from egmf_shards.progress import byte_progress

MAX_OPCODES = 10_000_000
"""Far above what a data set needs (an utterance of MSE-Adapter: under 100); bounds time and the number of objects."""
MAX_DEPTH = 32
_LARGE = 1 << 16
_PIECE = 1 << 24
"""Longer reads are done in pieces of this size, so that a bar can show how far they are."""

_SCALARS = (str, bytes, bytearray, int, float, np.generic, type(None))
_REFUSED = {
    "P": "PERSID, a persistent id",
    "Q": "BINPERSID, a persistent id",
    "i": "INST, an instance of a class",
    "o": "OBJ, an instance of a class",
    "\x81": "NEWOBJ, an instance of a class",
    "\x92": "NEWOBJ_EX, an instance of a class",
    "\x82": "EXT1, an extension code",
    "\x83": "EXT2, an extension code",
    "\x84": "EXT4, an extension code",
    "\x97": "NEXT_BUFFER, a buffer outside the file",
    "S": "STRING, a string of Python 2",
    "T": "BINSTRING, a string of Python 2",
    "U": "SHORT_BINSTRING, a string of Python 2",
}


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """The plain data of the pickle (protocols 2 to 5) in ``path``; see this module's docstring for what that may be.

    Raises:
        ShardError: the file is missing, not a pickle, damaged, longer or shorter than its pickle, or asks for anything
            but plain data; the message names what it asked for and at which byte.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ShardError(f"{path}: not a file; a pickle is needed")
        with path.open("rb") as file:
            machine = _Machine(file, path, status.st_size)
            try:
                with byte_progress(f"reading {path.name}", machine.size, lambda: machine.at):
                    return machine.run()
            except ShardError:
                raise
            except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, struct.error) as error:
                # The net under the explicit checks: numpy and UTF-8 have refusals of their own.
                machine.refuse(f"damaged ({type(error).__name__})")
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error


class _Machine:
    """One run over one file. ``stack`` is the part above the newest mark; ``below`` holds the parts under the marks."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file = file
        self.path = path
        self.size = size
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.calls = Calls(size, self.refuse)
        self.handlers = self._handlers()

    def refuse(self, what: str) -> NoReturn:
        raise ShardError(
            f"{self.path}, byte {self.at}: {what}; a pickle of numpy arrays and plain containers is needed"
        )

    def run(self) -> Any:
        self._check_start()
        read, handlers = self.read, self.handlers
        for _ in range(MAX_OPCODES):
            code = read(1)[0]
            if code == 0x2E:
                return self._stop()
            handler = handlers.get(code)
            if handler is None:
                self.refuse(f"opcode {_REFUSED.get(chr(code), f'0x{code:02x}')} is refused")
            handler()
        self.refuse(f"more than {MAX_OPCODES} steps")

    def _check_start(self) -> None:
        start = self.file.read(HEAD)
        self.file.seek(0)
        if not start:
            self.refuse("the file is empty")
        foreign = foreign_kind(start)
        if foreign:
            raise ShardError(f"{self.path}: {foreign}")
        if start[0] != 0x80 or len(start) < 2 or not 2 <= start[1] <= 5:
            self.refuse("not a pickle of protocol 2 to 5")

    def _stop(self) -> Any:
        if len(self.stack) != 1 or self.below:
            self.refuse("damaged (it does not end with one object)")
        if self.at != self.size:
            self.refuse(f"{self.size - self.at} bytes follow the end of the pickle")
        if self.calls.unfilled:
            self.refuse("an array without its numbers")
        self._check_plain(self.stack[0])
        return self.stack[0]

    def _check_plain(self, root: Any) -> None:
        """Only plain data is left, no deeper than MAX_DEPTH, and nothing holds itself."""
        height: dict[int, int] = {}
        todo: list[tuple[Any, bool]] = [(root, False)]
        while todo:
            item, left = todo.pop()
            if isinstance(item, np.ndarray):
                children: Any = item.ravel().tolist() if item.dtype.kind == "O" else ()
            elif type(item) in (list, tuple):
                children = item
            elif type(item) is dict:
                children = item.values()
            elif isinstance(item, _SCALARS):
                continue
            else:
                self.refuse(f"{kind_of(item)} is where data should be")
            nested = [child for child in children if not isinstance(child, _SCALARS)]
            if left:
                height[id(item)] = 1 + max((height[id(child)] for child in nested), default=0)
                if height[id(item)] > MAX_DEPTH:
                    self.refuse(f"containers deeper than {MAX_DEPTH}")
            elif id(item) not in height:
                height[id(item)] = MAX_DEPTH + 1  # stays so while its children are visited: a cycle counts as too deep
                todo.append((item, True))
                todo.extend((child, False) for child in nested)

    # Reading

    def read(self, count: int) -> bytes:
        if count > self.size - self.at:
            self.refuse(f"damaged ({count} bytes are declared, {self.size - self.at} are left)")
        if count > _PIECE:
            return self.read_long(count)
        data = self.file.read(count)
        if len(data) != count:
            self.refuse("the file became shorter while it was read")
        self.at += count
        return data

    def read_long(self, count: int) -> bytes:
        buffer = io.BytesIO()  # it gives its bytes away without a copy
        end = self.at + count
        while self.at < end:
            piece = self.file.read(min(_PIECE, end - self.at))
            if not piece:
                self.refuse("the file became shorter while it was read")
            buffer.write(piece)
            self.at += len(piece)
        return buffer.getvalue()

    def number(self, count: int) -> int:
        return int.from_bytes(self.read(count), "little")

    def line(self) -> str:
        data = self.file.readline(MAX_NAME_CHARACTERS + 1)
        self.at += len(data)
        if not data.endswith(b"\n"):
            self.refuse("damaged (a name has no end)")
        return data[:-1].decode()

    # Stack

    def pop(self) -> Any:
        if not self.stack:
            self.refuse("damaged (nothing on the stack)")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            self.refuse(f"damaged (a {kind.__name__} is needed on the stack)")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.below:
            self.refuse("damaged (no mark on the stack)")
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            self.refuse("damaged (nothing on the stack)")
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def put(self, index: int) -> None:
        if not self.stack:
            self.refuse("damaged (nothing on the stack)")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.refuse("damaged (it points at an object that is not there)")
        self.stack.append(self.memo[index])

    def set_items(self, target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            self.refuse("damaged (a key without a value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashes of other keys can be made to collide, or to take forever (tuples of tuples).
            if type(key) not in (str, bytes) and not (type(key) is int and abs(key) < 2**60):
                self.refuse(f"a dict key of type {type(key).__name__}; str, bytes and int are allowed")
            target[key] = value

    def long(self, count: int) -> int:
        if count > 9:
            self.refuse(f"a whole number of {count} bytes; 64 bits are allowed")
        return int.from_bytes(self.read(count), "little", signed=True)

    def text(self, width: int) -> str | Latin1Text:
        count = self.number(width)
        if count > _LARGE and self.stack and type(self.stack[-1]) is Name and self.stack[-1].kind == "encode":
            return self.latin1(count)
        return self.read(count).decode("utf-8", "surrogatepass")

    def latin1(self, count: int) -> Latin1Text:
        """An array's bytes as protocol 2 writes them, piece by piece: whole, the text would be thrice in memory."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        data = io.BytesIO()
        while count:
            piece = self.read(min(count, _LARGE))
            count -= len(piece)
            data.write(decoder.decode(piece, final=not count).encode("latin-1"))
        return Latin1Text(data.getvalue())

    def stack_global(self) -> Any:
        name = self.pop()
        return self.calls.name(self.pop(), name)

    def reduce(self) -> Any:
        args = self.pop()
        return self.calls.reduce(self.pop(), args)

    def build(self) -> None:
        state = self.pop()
        target = self.pop()
        self.calls.build(target, state)
        self.stack.append(target)

    def _handlers(self) -> dict[int, Callable[[], object]]:
        def push(make: Callable[[], Any]) -> Callable[[], object]:
            def pushed() -> None:
                value = make()  # first: it may put another list in the place of self.stack
                self.stack.append(value)

            return pushed

        def unpacked(form: str) -> Callable[[], object]:
            return lambda: self.stack.append(struct.unpack(form, self.read(struct.calcsize(form)))[0])

        table: dict[str, Callable[[], object]] = {
            "\x80": lambda: self.read(1),  # PROTO
            "\x95": lambda: self.read(8),  # FRAME: a hint for readers that buffer
            "(": self.mark,
            "0": lambda: self.pop() if self.stack else self.pop_mark(),
            "1": self.pop_mark,
            "N": push(lambda: None),
            "\x88": push(lambda: True),
            "\x89": push(lambda: False),
            "K": push(lambda: self.number(1)),
            "M": push(lambda: self.number(2)),
            "J": unpacked("<i"),
            "G": unpacked(">d"),
            "\x8a": push(lambda: self.long(self.number(1))),
            "\x8b": push(lambda: self.long(self.number(4))),
            "\x8c": push(lambda: self.text(1)),
            "X": push(lambda: self.text(4)),
            "\x8d": push(lambda: self.text(8)),
            "C": push(lambda: self.read(self.number(1))),
            "B": push(lambda: self.read(self.number(4))),
            "\x8e": push(lambda: self.read(self.number(8))),
            "\x96": push(self.byte_array),
            "]": push(list),
            ")": push(tuple),
            "}": push(dict),
            "t": push(lambda: tuple(self.pop_mark())),
            "\x85": lambda: self.tuple_of(1),
            "\x86": lambda: self.tuple_of(2),
            "\x87": lambda: self.tuple_of(3),
            "a": lambda: self.append([self.pop()]),
            "e": lambda: self.append(self.pop_mark()),
            "s": lambda: self.set_one([self.pop(), self.pop()]),
            "u": lambda: self.set_many(self.pop_mark()),
            "q": lambda: self.put(self.number(1)),
            "r": lambda: self.put(self.number(4)),
            "\x94": lambda: self.put(len(self.memo)),
            "h": lambda: self.get(self.number(1)),
            "j": lambda: self.get(self.number(4)),
            "c": push(lambda: self.calls.name(self.line(), self.line())),
            "\x93": push(self.stack_global),
            "R": push(self.reduce),
            "b": self.build,
            "\x98": lambda: None,  # READONLY_BUFFER concerns buffers outside the file; there are none
        }
        return {ord(code): handler for code, handler in table.items()}

    def byte_array(self) -> bytearray:
        count = self.number(8)
        if count > self.size - self.at:
            self.read(count)
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            piece = self.file.readinto(view[done : done + _PIECE])  # type: ignore[attr-defined]
            if not piece:
                self.refuse("the file became shorter while it was read")
            done += piece
            self.at += piece
        return data

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_one(self, value_key: list[Any]) -> None:
        self.set_items(self.top(dict), value_key[::-1])

    def set_many(self, items: list[Any]) -> None:
        self.set_items(self.top(dict), items)
