"""The names that a pickle may use, and what stands for a call of each: code of ours that checks every argument.

Nothing is imported by name and no callable of a file is called. Arrays are filled through numpy's own ``__setstate__``
only after shape, dtype and bytes were found to agree.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from egmf_shards.foreign_files import FROM_TORCH

MAX_NAME_CHARACTERS = 200
_SLACK = 1 << 20
ALLOWED = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("_codecs", "encode"): "encode",  # how protocol 2 writes bytes
    ("__builtin__", "bytes"): "bytes",  # how protocol 2 writes no bytes
    ("builtins", "bytes"): "bytes",
    ("collections", "OrderedDict"): "OrderedDict",
}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|O8|[US][0-9]{1,7}")
_ELEMENTS = (str, int, float, np.generic, type(None), list)


class Name:
    """An allowed name on the stack; ``kind`` says which builder serves it."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name


class Latin1Text:
    """A long text that is where ``_codecs.encode`` takes its argument, as the ``data`` it will be encoded to."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class DType:
    """A dtype on the stack; a BUILD may still set its byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|" if code[0] == "S" or code in ("b1", "i1", "u1", "O8") else "<"
        self.built = False

    def resolve(self) -> np.dtype[Any]:
        return np.dtype("O") if self.code == "O8" else np.dtype(self.order + self.code)


class Calls:
    """Names, calls (REDUCE) and states (BUILD) of one pickle.

    Args:
        size: the file's bytes; all arrays together may not outgrow them. refuse: raises the error with a reason.
    """

    def __init__(self, size: int, refuse: Callable[[str], NoReturn]) -> None:
        self.size = size
        self.refuse = refuse
        self.unfilled: dict[int, np.ndarray] = {}
        """Arrays that _reconstruct made and no BUILD has filled, by id."""
        self.produced = 0

    def name(self, module: Any, name: Any) -> Name:
        """The stand-in for ``module.name``, where that is allowed."""
        if type(module) is not str or type(name) is not str:
            self.refuse("damaged (a name that is not text)")
        full = ascii(f"{module[:MAX_NAME_CHARACTERS]}.{name[:MAX_NAME_CHARACTERS]}")[1:-1]
        if (module, name) not in ALLOWED:
            of_torch = f": it holds tensors, {FROM_TORCH}" if module.partition(".")[0] == "torch" else ""
            self.refuse(f"asks for '{full}', which is refused{of_torch}")
        return Name(ALLOWED[module, name], full)

    def spend(self, count: int) -> None:
        """Count bytes that were made: one buffer used again and again must not outgrow the file."""
        self.produced += count
        if self.produced > 3 * self.size + _SLACK:
            self.refuse("its arrays hold far more than the file")

    def reduce(self, function: Any, args: Any) -> Any:
        """What the call ``function(*args)`` stands for; its arguments must be exactly what numpy writes."""
        if type(function) is not Name or type(args) is not tuple:
            self.refuse(f"a call of {kind_of(function)} is refused")
        made: Any = None
        if function.kind == "reconstruct":
            if len(args) == 3 and _is_ndarray(args[0]) and _is_zero(args[1]) and type(args[2]) in (str, bytes):
                made = np.ndarray((0,), np.int8)
                self.unfilled[id(made)] = made
        elif function.kind == "dtype":
            if args and type(args[0]) is str and not _DTYPE.fullmatch(args[0]):
                self.refuse(f"an array of numpy's type {ascii(args[0])[:40]}")
            if len(args) in (1, 3) and type(args[0]) is str and _DTYPE.fullmatch(args[0]) and _are_flags(args[1:]):
                made = DType(args[0])
        elif function.kind == "scalar":
            if len(args) == 2 and type(args[0]) is DType and type(args[1]) is bytes:
                made = self.scalar(args[0].resolve(), args[1])
        elif function.kind == "frombuffer":
            if len(args) in (4, 5) and type(args[0]) in (bytes, bytearray) and type(args[1]) is DType:
                made = self.from_buffer(*args)
        elif function.kind == "encode":
            if len(args) != 2 or type(args[1]) is not str or args[1] != "latin1":
                made = None
            elif type(args[0]) is Latin1Text:
                made = args[0].data
            elif type(args[0]) is str:
                self.spend(len(args[0]))
                made = args[0].encode("latin-1")
        elif args == ():
            made = b"" if function.kind == "bytes" else {} if function.kind == "OrderedDict" else None
        if made is None:
            self.refuse(f"a call of {function.name!r} with {reprlib.repr([type(a).__name__ for a in args])} is refused")
        return made

    def build(self, target: Any, state: Any) -> None:
        """Set the state of a dtype, or of an array that has none yet; nothing else may have one."""
        if type(target) is DType:
            self.build_dtype(target, state)
        elif self.unfilled.get(id(target)) is target and type(target) is np.ndarray:
            del self.unfilled[id(target)]
            self.build_array(target, state)
        else:
            self.refuse(f"a state for an object of type {kind_of(target)} is refused")

    def build_dtype(self, target: DType, state: Any) -> None:
        size = {"U": 4, "S": 1}.get(target.code[0], 0) * int(target.code[1:])
        good = (
            type(state) is tuple
            and len(state) == 8
            and all(type(item) in (int, str, type(None)) for item in state)
            and state[0] == 3
            and state[1] in ("<", ">", "|", "=")
            and state[2:5] == (None, None, None)
            and state[5] in (size, -1)
            and not target.built
        )
        if not good:
            self.refuse("a dtype with a state that is not a plain number's or string's")
        target.built = True
        if target.order == "<":
            target.order = "<" if state[1] == "|" else state[1]

    def build_array(self, target: np.ndarray, state: Any) -> None:
        if not (type(state) is tuple and len(state) == 5 and type(state[0]) is int and type(state[2]) is DType):
            self.refuse("an array with a state that is not numpy's")
        _, shape, kind, fortran, data = state
        dtype = kind.resolve()
        if type(fortran) not in (bool, int):
            self.refuse("an array with a state that is not numpy's")
        if dtype.kind == "O":
            if type(data) is not list:
                self.refuse("an object array without its list")
            for item in data:
                if not isinstance(item, _ELEMENTS):
                    self.refuse(
                        f"an object array that holds {kind_of(item)}; text, numbers and lists are allowed in one"
                    )
        elif type(data) is not bytes:
            self.refuse("an array without its bytes")
        self.check_shape(shape, dtype, data)
        target.__setstate__((1, shape, dtype, bool(fortran), data))  # type: ignore[arg-type]
        self.check_values(target)

    def check_shape(self, shape: Any, dtype: np.dtype[Any], data: Any) -> None:
        if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            self.refuse("an array whose shape is not a tuple of whole numbers")
        count, size = math.prod(shape), 1 if dtype.kind == "O" else dtype.itemsize
        if not size or count * size != len(data):
            self.refuse(f"an array {reprlib.repr(list(shape))} of {dtype.str} with {len(data)} items or bytes")
        self.spend(count * dtype.itemsize)

    def check_values(self, array: np.ndarray) -> None:
        """Bytes that are no truth value or no character would be trouble later."""
        if array.dtype.kind not in "bU" or not array.size:
            return
        flat = array.ravel(order="K").view("u1" if array.dtype.kind == "b" else array.dtype.byteorder + "u4")
        if flat.max() > (1 if array.dtype.kind == "b" else 0x10FFFF):
            self.refuse("an array of text or truth values that holds neither")

    def scalar(self, dtype: np.dtype[Any], data: bytes) -> Any:
        if dtype.kind == "O" or len(data) != dtype.itemsize:
            self.refuse(f"a numpy scalar of {dtype.str} with {len(data)} bytes")
        if not data:
            return np.zeros((), dtype)[()]
        self.spend(len(data))
        array = np.frombuffer(data, dtype)
        self.check_values(array)
        return array[0]

    def from_buffer(self, data: Any, kind: DType, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        dtype = kind.resolve()
        if dtype.kind == "O" or type(order) is not str or order not in ("C", "F", "K"):
            self.refuse("an array with a buffer that is not numpy's")
        self.check_shape(shape, dtype, data)
        flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        self.check_values(flat)
        if order == "K":
            if type(axes) is not tuple or not _are_flags(axes) or sorted(axes) != list(range(len(shape))):
                self.refuse("an array whose order of axes is not numpy's")
            return flat.reshape(shape).transpose(axes)
        return flat.reshape(shape, order="F" if order == "F" else "C")


def _is_ndarray(value: Any) -> bool:
    return type(value) is Name and value.kind == "ndarray"


def _is_zero(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) == 1 and type(shape[0]) is int and shape[0] == 0


def _are_flags(values: tuple[Any, ...]) -> bool:
    return all(type(value) in (bool, int) for value in values)


def kind_of(item: Any) -> str:
    """What a message calls ``item``: an allowed name by itself, anything else by its type."""
    return item.name if isinstance(item, Name) else type(item).__name__.lower()
