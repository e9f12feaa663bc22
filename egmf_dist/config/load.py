"""YAML files and ``--section.key value`` to a :class:`Config` and back; jsonargparse does the parsing and the help."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from egmf_dist.config.check import check_config
from egmf_dist.config.schema import Config
from egmf_dist.config.yaml_file import parse_yaml
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_text
from egmf_dist.formats import KEY, check_format, stamped
from egmf_dist.recipe_files import recipe_file, recipes, shipped
from egmf_shards.messages import unbroken

DIRECTORY = "directory"
"""Key of a run's ``config.yaml``: the folder in which its relative paths start."""

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The sections of a YAML file of settings; one with nothing below it (``model:``) is left out: it means defaults.

    The name of a recipe is read as its file, so that a recipe is at hand where only the wheel is installed; a file
    of that name in this folder goes first.

    What a run's ``config.yaml`` says beside its sections (``format``, ``directory``) is left out, too: as settings of
    another run its paths are read as any other file's.

    Raises:
        EgmfError: the file is missing, not YAML in UTF-8 or not a mapping, a key is unknown or a value has the wrong
            type, or a later version wrote it. Rules between values are not checked: options may still change them.
    """
    if os.fspath(path) in recipes() and not Path(path).is_file():
        path = recipe_file(os.fspath(path))
    sections = read_yaml(path)
    for key in (KEY, DIRECTORY):
        sections.pop(key, None)
    for name, section in sections.items():
        if name in Config.__dataclass_fields__ and not isinstance(section, dict | None):
            raise EgmfError(
                f"config {path}: {name} is {section!r}; it must be a section of settings, 'key: value' lines"
            )
    sections = {name: section for name, section in sections.items() if section is not None}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config, None)
    try:
        parser.parse_object(sections)
    except (jsonargparse.ArgumentError, TypeError) as error:  # TypeError: a key that is no string
        raise EgmfError(f"config {path}: {unbroken(str(error))}") from error
    return sections


def read_yaml(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The mapping in a YAML file of settings.

    Raises:
        EgmfError: the file is missing, not YAML in UTF-8 or not a mapping, or a later version wrote it.
    """
    try:
        sections = parse_yaml(path, "config")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise EgmfError(
            f"config {path}: no such file; give a YAML file or a recipe ({', '.join(recipes())})"
        ) from error
    except OSError as error:
        raise EgmfError(f"config {path}: cannot be read: {error.strerror}") from error
    if not isinstance(sections, dict):
        found = "is empty" if sections is None else f"holds a {type(sections).__name__}"
        names = ", ".join(Config.__dataclass_fields__)
        example = shipped("demo.yaml")
        raise EgmfError(f"config {path}: {found}; it must hold sections of settings ({names}), as {example}")
    check_format(sections.get(KEY), f"config {path}")
    return sections


class SettingsFile(jsonargparse.ActionConfigFile):
    """``--config FILE`` by way of :func:`read_settings`, so that every mistake in the file names the file."""

    @staticmethod
    def apply_config(parser: jsonargparse.ArgumentParser, cfg: jsonargparse.Namespace, dest: str, value: str) -> None:
        """Put the file's settings under those parsed so far, and its path into the list ``dest``."""
        text = yaml.safe_dump(read_settings(value), allow_unicode=True)
        jsonargparse.ActionConfigFile.apply_config(parser, cfg, dest, text)
        cfg[dest][-1] = value


def add_config_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Give ``parser`` the options ``--config FILE`` and ``--section.key VALUE`` of every setting."""
    parser.add_argument(
        "--config", action=SettingsFile, help="YAML file of settings, or the name of a recipe; options after it win"
    )
    parser.add_class_arguments(Config, None)


def config_from_namespace(namespace: jsonargparse.Namespace) -> Config:
    """The checked settings among the parsed options.

    Raises:
        EgmfError: a setting breaks a rule of :mod:`egmf_dist.config.check`.
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
        raise EgmfError(f"config: {unbroken(str(error))}") from error
    check_config(config)
    return config


def config_from_saved(sections: Mapping[str, Any]) -> Config:
    """The same of settings that a run or an adapter was saved with, by this version or one before.

    What was no setting then has the value that was done then: prompts were plain text.

    Raises:
        EgmfError: see :func:`config_from_dict`.
    """
    prompt = {"chat_template": "off"} | dict(sections.get("prompt") or {})
    return config_from_dict({**sections, "prompt": prompt})


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file of settings, then apply ``["--section.key", "value", ...]``.

    Raises:
        EgmfError: the file is missing or not YAML, a key is unknown, a value has the wrong type or breaks a rule.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    try:
        namespace = parser.parse_args(["--config", os.fspath(path), *overrides])
    except jsonargparse.ArgumentError as error:
        raise EgmfError(unbroken(str(error))) from error
    return config_from_namespace(namespace)


def load_run_config(path: str | os.PathLike[str]) -> Config:
    """The settings in a run's ``config.yaml``.

    A run that version 1 wrote was trained on features as they are, which was no setting then. Runs of before chat
    templates had plain prompts.

    Raises:
        EgmfError: see :func:`load_config`.
    """
    config = config_from_saved(read_settings(path))
    if KEY in read_yaml(path):
        return config
    return replace(config, data=replace(config.data, standardise=False))


def read_directory(path: str | os.PathLike[str]) -> Path | None:
    """The folder in which relative paths of a run's ``config.yaml`` start; None where version 1 wrote it.

    Raises:
        EgmfError: see :func:`read_yaml`.
    """
    found = read_yaml(path).get(DIRECTORY)
    return Path(found) if isinstance(found, str) else None


def dump_config(config: Config, path: str | os.PathLike[str], directory: str | os.PathLike[str] | None = None) -> None:
    """Write the resolved settings as YAML that :func:`load_config` reads back.

    Args:
        config: the settings.
        path: the file; a reader sees the old one or the new one.
        directory: the folder in which relative paths among the settings start.
    """
    header = stamped({} if directory is None else {DIRECTORY: os.fspath(directory)})
    text = yaml.safe_dump(header | asdict(config), sort_keys=False, allow_unicode=True)
    write_text(Path(path), text)
