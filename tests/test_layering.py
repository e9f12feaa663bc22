"""Four floors, imports only downwards: launcher -> egmf_dist -> {kernels, data_shards}.

Every Python file is parsed, so an import inside a function counts, too. The rules are proved on fabricated trees below.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Package -> where it lies, and which of our packages it may import.
FOLDERS = {
    "egmf_launcher": "launcher/egmf_launcher",
    "egmf_dist": "egmf_dist",
    "egmf_kernels": "kernels/egmf_kernels",
    "egmf_shards": "data_shards/egmf_shards",
    "egmf_media": "data_shards/egmf_media",
}
BELOW = {
    "egmf_launcher": {"egmf_dist", "egmf_kernels", "egmf_shards", "egmf_media"},
    "egmf_dist": {"egmf_kernels", "egmf_shards", "egmf_media"},
    "egmf_kernels": set[str](),
    "egmf_shards": set[str](),
    "egmf_media": set[str](),
}
# The ground floor is useful alone: this is all of the outer world it may need.
THIRD_PARTY = {
    "egmf_kernels": {"torch", "triton"},
    "egmf_shards": {"fsspec", "h5py", "isal", "numpy", "orjson", "rich", "webdataset"},
    "egmf_media": {"av", "cv2", "huggingface_hub", "numpy", "opensmile", "torch", "transformers"},
}
# A package of one of these names on the path would hide another (transformers imports `kernels` where it finds one).
WITHOUT_INIT = ("kernels", "data_shards", "launcher", "tests")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import, ``importlib.import_module("...")`` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if (
                name in ("import_module", "__import__")
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield node.lineno, first.value.partition(".")[0]


def media_violations(root: Path) -> list[str]:
    """Media without torch, but for the functions of its encoders: who decodes a clip waits for no torch."""
    found = []
    for path in sorted((root / FOLDERS["egmf_media"]).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        at_once = {line for node in tree.body for line, _ in imported(node) if not isinstance(node, ast.FunctionDef)}
        at_once -= {line for node in tree.body if isinstance(node, ast.ClassDef) for line, _ in imported(node)}
        for line, name in imported(tree):
            if name in ("torch", "transformers", "huggingface_hub"):
                where = f"{path.relative_to(root).as_posix()}:{line}: egmf_media imports {name}"
                if "encoders" not in path.parts:
                    found.append(f"{where} outside of encoders/")
                elif line in at_once:
                    found.append(f"{where} before it is needed")
    return found


def violations(root: Path) -> list[str]:
    """Every broken rule of the tree at ``root``, one line each."""
    found = [
        f"{name}/__init__.py: this folder must not be a package"
        for name in WITHOUT_INIT
        if (root / name / "__init__.py").exists()
    ]
    for package, folder in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            for line, name in imported(ast.parse(path.read_text(encoding="utf-8"), str(path))):
                where = f"{path.relative_to(root).as_posix()}:{line}"
                if name in FOLDERS:
                    if name != package and name not in BELOW[package]:
                        found.append(f"{where}: {package} imports {name}")
                elif package in THIRD_PARTY and name not in sys.stdlib_module_names | THIRD_PARTY[package]:
                    found.append(f"{where}: {package} imports {name}, which its floor does without")
    found += media_violations(root)
    for path in sorted((root / "launcher").glob("*.py")):
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if name not in sys.stdlib_module_names | set(FOLDERS):
                found.append(f"launcher/{path.name}:{line}: a plain script imports {name}")
    return found


def test_the_house_keeps_its_floors() -> None:
    assert violations(ROOT) == []


def test_every_package_was_looked_at() -> None:
    for folder in FOLDERS.values():
        assert list((ROOT / folder).rglob("*.py")), f"{folder} holds no Python file"


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("egmf_dist/a.py", "import egmf_launcher.cli", "egmf_dist imports egmf_launcher"),
        ("egmf_dist/deep/er/a.py", "def f():\n    from egmf_launcher import cli", "egmf_dist imports egmf_launcher"),
        ("data_shards/egmf_shards/a.py", "from egmf_dist.errors import EgmfError", "egmf_shards imports egmf_dist"),
        ("data_shards/egmf_shards/a.py", "import egmf_kernels", "egmf_shards imports egmf_kernels"),
        ("kernels/egmf_kernels/a.py", "from egmf_shards import sample", "egmf_kernels imports egmf_shards"),
        ("kernels/egmf_kernels/a.py", "import os, egmf_dist as e", "egmf_kernels imports egmf_dist"),
        ("data_shards/egmf_shards/a.py", "import torch.distributed", "egmf_shards imports torch"),
        (
            "data_shards/egmf_shards/a.py",
            "try:\n    import pandas\nexcept ImportError: pass",
            "egmf_shards imports pandas",
        ),
        ("data_shards/egmf_media/a.py", "import egmf_shards", "egmf_media imports egmf_shards"),
        ("data_shards/egmf_media/a.py", "import scipy", "egmf_media imports scipy"),
        ("data_shards/egmf_media/a.py", "def f():\n    import torch", "egmf_media imports torch outside of encoders/"),
        ("data_shards/egmf_media/encoders/a.py", "import torch", "egmf_media imports torch before it is needed"),
        ("kernels/egmf_kernels/a.py", "import numpy", "egmf_kernels imports numpy"),
        (
            "egmf_dist/a.py",
            "import importlib\nimportlib.import_module('egmf_launcher.cli')",
            "egmf_dist imports egmf_launcher",
        ),
        ("kernels/__init__.py", "", "must not be a package"),
        ("tests/__init__.py", "", "must not be a package"),
        ("launcher/train.py", "import torch", "a plain script imports torch"),
    ],
)
def test_a_bad_tree_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert complaint in found[0]
    assert file in found[0]


def test_a_good_tree_passes(tmp_path: Path) -> None:
    good = {
        "launcher/train.py": "import sys\nfrom egmf_launcher.cli import main",
        "launcher/egmf_launcher/a.py": "import ray\nfrom egmf_dist import config\nimport egmf_shards",
        "egmf_dist/a.py": "import torch\nfrom egmf_kernels import api\nfrom egmf_dist import errors\nfrom . import b",
        "kernels/egmf_kernels/a.py": "import torch, math\nimport triton.language as tl",
        "data_shards/egmf_shards/a.py": "import numpy as np\nimport webdataset\nfrom rich.table import Table",
    }
    for file, source in good.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert violations(tmp_path) == []


def test_every_name_that_is_imported_late_is_there():
    for name in ("egmf_shards", "egmf_dist", "egmf_dist.config"):
        package = importlib.import_module(name)
        shown = dir(package)
        for late in package.__all__:
            assert getattr(package, late) is not None
            assert late in shown
