"""A verb's options from its function: the signature gives names, types and defaults, the docstring the help.

What a parameter becomes:

* positional-only (before ``/``): a word without a name;
* ``bool``: a flag; a list or ``Sequence``: one or more words, and the option may be repeated;
* a :class:`~egmf_shards.format.task.Task`: the path of its YAML file;
* a dataclass, or ``**options: Unpack[TypedDict]``: an option for each field;
* a type with ``add_options`` and ``from_options`` (:mod:`egmf_dist.config.given`): options of its own;
* :class:`~egmf_launcher.arguments.CommandLine`: none; it is the command line itself.

``a_name`` becomes ``--a-name``; ``--a_name`` is read as well.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import docstring_parser
import jsonargparse

from egmf_launcher.arguments import CommandLine
from egmf_shards.format.task import Task

REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """One option, or one word without a name."""

    name: str
    hint: Any
    default: Any
    help: str
    positional: bool = False

    @property
    def is_list(self) -> bool:
        """Whether it takes several words."""
        return any(get_origin(hint) in (list, Sequence) for hint in alternatives(self.hint))

    def add_to(self, parser: jsonargparse.ArgumentParser) -> None:
        """Give the parser this option."""
        dashed = f"--{self.name.replace('_', '-')}"
        names = [self.name] if self.positional else list(dict.fromkeys([dashed, f"--{self.name}"]))
        how: dict[str, Any] = {"help": self.help}
        if self.hint is bool:
            parser.add_argument(*names, action="store_true", **how)
            return
        if self.is_list:
            how |= {"nargs": "+", "action": "extend", "type": str}
        elif choices := choices_of(self.hint):
            how["choices"] = choices
        else:
            how["type"] = as_words(self.hint)
        if self.positional and self.default is not REQUIRED and not self.is_list:
            how["nargs"] = "?"
        if self.default is not REQUIRED:
            how["default"] = list(self.default) if self.is_list else self.default
        elif not self.positional:
            how["required"] = True
        parser.add_argument(*names, **how)

    def value(self, parsed: Any) -> Any:
        """The parsed word or words as the function takes them."""
        types_ = alternatives(self.hint)
        if parsed is None:
            return None
        if self.is_list:
            made = next(get_args(hint)[0] for hint in types_ if get_origin(hint) in (list, Sequence))
            return [made(word) for word in parsed]
        if Task in types_:
            from egmf_dist.config.task_file import read_task

            return read_task(parsed)
        return Path(parsed) if Path in types_ else parsed


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def as_words(hint: Any) -> Any:
    """The type that jsonargparse reads in place of ``hint``: what names a file is a ``str``."""

    def word(one: Any) -> Any:
        return str if one in (Path, Task) or get_origin(one) is PathLike else one

    return reduce(or_, [word(one) for one in alternatives(hint)])


def choices_of(hint: Any) -> list[Any]:
    """The values that a ``Literal``, or one or nothing, allows by name; empty for other types."""
    return [value for one in alternatives(hint) if get_origin(one) is Literal for value in get_args(one)]


def add_options(
    parser: jsonargparse.ArgumentParser, function: Callable[..., Any], says: Mapping[str, str] | None = None
) -> None:
    """Give the parser the options of ``function``.

    Args:
        parser: the verb's.
        function: the verb.
        says: help in place of the docstring's.
    """
    for parameter, hint in parameters_of(function):
        if hasattr(hint, "add_options"):
            hint.add_options(parser)
        for option in options_of(function, parameter, hint, says or {}):
            option.add_to(parser)


def call(function: Callable[..., Any], parsed: jsonargparse.Namespace, words: Sequence[str]) -> Any:
    """Call ``function`` with what was parsed.

    Args:
        function: the verb.
        parsed: its options, as :func:`add_options` named them.
        words: the command line.
    """
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter, hint in parameters_of(function):
        options = options_of(function, parameter, hint, {})
        values = {option.name: option.value(parsed[option.name]) for option in options}
        if hint is CommandLine:
            named[parameter.name] = CommandLine(words)
        elif hasattr(hint, "from_options"):
            named[parameter.name] = hint.from_options(parsed, words)
        elif spreads(hint):
            assert isinstance(hint, type)
            named[parameter.name] = hint(**values)
        elif is_typeddict(hint):
            named |= {name: value for name, value in values.items() if value is not None}
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(values[parameter.name])
        else:
            named |= values
    return function(*positional, **named)


def parameters_of(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    """The parameters with their types; of ``**options: Unpack[T]`` it is ``T``."""
    hints = get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        yield parameter, get_args(hint)[0] if parameter.kind is parameter.VAR_KEYWORD else hint


def options_of(
    function: Callable[..., Any], parameter: inspect.Parameter, hint: Any, says: Mapping[str, str]
) -> list[Option]:
    """The options that one parameter makes here."""
    if hint is CommandLine or hasattr(hint, "add_options"):
        return []
    if spreads(hint):
        help_of = documented(hint, says)
        hints = get_type_hints(hint)
        defaults = {f.name: REQUIRED if f.default is MISSING else f.default for f in fields(hint)}
        return [Option(name, hints[name], default, help_of(name)) for name, default in defaults.items()]
    if is_typeddict(hint):
        help_of = documented(hint, says)
        return [Option(name, type_, None, help_of(name)) for name, type_ in get_type_hints(hint).items()]
    positional = parameter.kind is parameter.POSITIONAL_ONLY
    return [Option(parameter.name, hint, parameter.default, documented(function, says)(parameter.name), positional)]


def spreads(hint: Any) -> bool:
    """Whether a parameter is a dataclass with an option for each field; a task is one that is read from its file."""
    return is_dataclass(hint) and hint is not Task


def documented(source: Any, says: Mapping[str, str]) -> Callable[[str], str]:
    """The help of each parameter of a function, or field of a class: by its docstring, without its markup."""
    found = {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(source).params}

    def help_of(name: str) -> str:
        text = re.sub(r":\w+:`~?([^`]+)`", r"\1", says.get(name, found.get(name, "")))
        return " ".join(text.replace("`", "").split()).removesuffix(".")

    return help_of
