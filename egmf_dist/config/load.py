"""YAML files and ``--section.key value`` to a :class:`Config` and back; jsonargparse does the parsing and the help."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from egmf_dist.config.schema import Config
from egmf_dist.config.validate import validate
from egmf_dist.errors import EgmfError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def add_config_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Give ``parser`` the options ``--config FILE`` and ``--section.key VALUE`` of every setting."""
    parser.add_argument("--config", action="config", help="YAML file of settings; options after it win")
    parser.add_class_arguments(Config, None)


def config_from_namespace(namespace: jsonargparse.Namespace) -> Config:
    """The checked settings among the parsed options.

    Raises:
        EgmfError: a setting breaks a rule of :mod:`egmf_dist.config.validate`.
    """
    return config_from_dict({name: namespace[name].as_dict() for name in Config.__dataclass_fields__})


def config_from_dict(sections: Mapping[str, Any]) -> Config:
    """Checked settings from nested dictionaries, as ``dataclasses.asdict`` of a :class:`Config` gives them.

    Raises:
        EgmfError: a key is unknown, a value has the wrong type or breaks a rule.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config, "config")
    try:
        config: Config = parser.instantiate(parser.parse_object({"config": dict(sections)}))["config"]
    except jsonargparse.ArgumentError as error:
        raise EgmfError(f"config: {one_line(error)}") from error
    validate(config)
    return config


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file of settings, then apply ``["--section.key", "value", ...]``.

    Raises:
        EgmfError: the file is missing or not YAML, a key is unknown, a value has the wrong type or breaks a rule.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    if not Path(path).is_file():
        raise EgmfError(f"config {path}: no such file; give a YAML file such as configs/demo.yaml")
    try:
        namespace = parser.parse_args(["--config", os.fspath(path), *overrides])
    except jsonargparse.ArgumentError as error:
        raise EgmfError(f"config {path}: {one_line(error)}") from error
    return config_from_namespace(namespace)


def one_line(error: Exception) -> str:
    """The parser's message without its line breaks."""
    return " ".join(str(error).split())


def dump_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write the resolved settings as YAML that :func:`load_config` reads back."""
    Path(path).write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
