"""Where the recipes' settings are: one file each, in a clone's ``configs/`` and in the wheel beside their code."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.errors import EgmfError

PACKAGED = Path(__file__).parent / "recipes" / "configs"
"""Where the wheel puts the repository's ``configs/`` (``pyproject.toml``)."""
HERE = Path("configs")
_FOLDERS = (HERE, PACKAGED.parents[2] / HERE, PACKAGED)
"""This folder's, the clone's that this package is of, the wheel's: the first that has a file is asked for it."""
EXAMPLE_TASK = "tasks/example.yaml"


def recipes() -> list[str]:
    """Names of the recipes that are here or installed."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.yaml")})


def recipe_file(name: str) -> Path:
    """The settings of a recipe.

    Raises:
        EgmfError: there is none of that name.
    """
    path = shipped(f"{name}.yaml")
    if not path.is_file():
        raise EgmfError(f"{path} is not here, and no recipe of that name is installed; give --config FILE.yaml")
    return path


def shipped(name: str) -> Path:
    """A file of ``configs/`` where it can be opened; ``configs/NAME`` where there is none."""
    return next((path for folder in _FOLDERS if (path := folder / name).is_file()), HERE / name)
