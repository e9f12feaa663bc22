"""Which packages and versions this project needs: pyproject.toml, as it was when the project was installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

NAME = "egmf-dist"
OPTIONAL = ("remote", "cuda", "gguf", "csd", "wandb", "mlflow")
"""Extras that a training may need; the others are for developing, or for what comes later."""


@cache
def our_packages() -> dict[str, SpecifierSet]:
    """The range of each package that has to be there on this platform; empty where this is not installed as one."""
    return {r.name: r.specifier for r in _requirements() if r.marker is None or r.marker.evaluate({"extra": ""})}


@cache
def optional_packages() -> dict[str, tuple[str, SpecifierSet]]:
    """Extra and range of each package that some trainings need."""
    found: dict[str, tuple[str, SpecifierSet]] = {}
    for requirement in _requirements():
        for extra in OPTIONAL:
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra}):
                found.setdefault(requirement.name, (extra, requirement.specifier))
    return found


@cache
def our_python() -> SpecifierSet:
    """The range of Python versions."""
    try:
        return SpecifierSet(metadata(NAME)["Requires-Python"] or "")
    except PackageNotFoundError:
        return SpecifierSet()


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata(NAME).get_all("Requires-Dist") or []]
    except PackageNotFoundError:
        return []
