"""The wheel's list of files: every file of the four packages, and the recipes. `make wheel` installs and uses it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "egmf_dist",
    "kernels/egmf_kernels",
    "data_shards/egmf_shards",
    "data_shards/egmf_media",
    "launcher/egmf_launcher",
)


def files(folder: Path, inside: str) -> set[str]:
    """The files of a folder by the names they have in the wheel."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {f"{inside}/{path.as_posix()}" for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_packages_the_recipes_and_nothing_else(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed; it is in the extra dev")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    packages = set[str]().union(*(files(ROOT / folder, Path(folder).name) for folder in PACKAGES))
    assert names == packages | files(ROOT / "configs", "egmf_dist/recipes/configs")
    assert {name for name in names if name.endswith("py.typed")} == {f"{Path(p).name}/py.typed" for p in PACKAGES}
