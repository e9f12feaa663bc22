"""Where a recipe's settings are: one file, which a clone has in ``configs/`` and the wheel beside this module."""

from __future__ import annotations

from pathlib import Path

from egmf_dist.errors import EgmfError

PACKAGED = Path(__file__).parent / "configs"
"""Where the wheel puts the repository's ``configs/`` (``pyproject.toml``)."""


def recipe_file(name: str) -> Path:
    """The settings of a recipe: in this folder's ``configs/``, else in the clone or the wheel that this package is of.

    Raises:
        EgmfError: there is none of that name.
    """
    here = Path("configs", f"{name}.yaml")
    for path in (here, PACKAGED.parents[2] / here, PACKAGED / here.name):
        if path.is_file():
            return path
    raise EgmfError(f"{here} is not here, and no recipe of that name is installed; give --config FILE.yaml")
