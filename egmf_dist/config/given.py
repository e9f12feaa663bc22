"""What a command line says about settings: all of them for a new run, some instead of a run's own.

Both are parameters of verbs: they add their options to a parser, and are made from what it has parsed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from egmf_dist.config.load import add_config_arguments, config_from_namespace, load_config
from egmf_dist.config.rules import ON_RESUME, PLACE
from egmf_dist.config.schema import Config
from egmf_shards.messages import unbroken


@dataclass(frozen=True)
class AllSettings:
    """``--config FILE`` and ``--section.key VALUE`` of every setting."""

    parsed: jsonargparse.Namespace
    overrides: list[str] = field(default_factory=list)
    """The ``--section.key value`` part of the command line."""

    @staticmethod
    def add_options(parser: jsonargparse.ArgumentParser) -> None:
        """Give a verb's parser these options."""
        add_config_arguments(parser)

    @classmethod
    def from_options(cls, parsed: jsonargparse.Namespace, words: Sequence[str]) -> Self:
        """From a verb's options and its command line."""
        return cls(parsed, list(_overrides(words)))

    @property
    def file(self) -> Path | None:
        """The file of ``--config``."""
        return Path(str(self.parsed.config[0])) if self.parsed.config else None

    @property
    def name_data(self) -> bool:
        """Whether a file or an option says which data is meant."""
        return self.file is not None or bool(self.parsed.data.shards)

    def config(self) -> Config:
        """The checked settings.

        Raises:
            EgmfError: a setting breaks a rule.
        """
        return config_from_namespace(self.parsed)

    def over(self, file: str | os.PathLike[str]) -> Config:
        """The options over the settings of another file.

        Raises:
            EgmfError: see :func:`egmf_dist.config.load_config`.
        """
        return load_config(file, self.overrides)


def _overrides(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        section = word.removeprefix("--").partition("=")[0].partition(".")[0]
        if word.startswith("--") and section in Config.__dataclass_fields__:
            yield word
            if "=" not in word:
                yield from (value for value in [next(rest, None)] if value is not None)


@dataclass(frozen=True)
class SomeSettings:
    """What may be said instead of a run's own settings without training it anew: where data and backbone lie now, and
    the section ``evaluation``. What is left out stays as the run says."""

    values: dict[str, Any]
    """``section.key`` to value, those alone that are given."""

    @staticmethod
    def add_options(parser: jsonargparse.ArgumentParser) -> None:
        """Give a verb's parser these options."""
        for section, cls in get_type_hints(Config).items():
            hints = get_type_hints(cls)
            help_of = {p.arg_name: p.description for p in docstring_parser.parse_from_object(cls).params}
            for setting in fields(cls):
                is_place = setting.metadata.get(ON_RESUME) == PLACE[ON_RESUME]
                if not is_place and section != "evaluation":
                    continue
                moved = ": its new place, where it has moved since training; its hash must be the same"
                text = f"instead of the run's{moved if is_place else ''}. {help_of[setting.name]}"
                hint = hints[setting.name]
                values: dict[str, Any] = {"type": hint | None}
                if get_origin(hint) is Literal:
                    values = {"choices": list(get_args(hint))}
                plain = unbroken(text.replace("`", ""))
                parser.add_argument(f"--{section}.{setting.name}", default=None, help=plain, **values)

    @classmethod
    def from_options(cls, parsed: jsonargparse.Namespace, words: Sequence[str]) -> Self:
        """From a verb's options."""
        sections = {name: parsed.get(name) for name in Config.__dataclass_fields__}
        return cls(
            {
                f"{name}.{key}": value
                for name, section in sections.items()
                if section is not None
                for key, value in section.as_dict().items()
                if value is not None
            }
        )

    def section(self, name: str) -> dict[str, Any]:
        """The given settings of one section, without its name."""
        return {key.partition(".")[2]: value for key, value in self.values.items() if key.startswith(f"{name}.")}
