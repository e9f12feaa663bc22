"""Inside a package imports only point down, too: each folder has a floor, and no two modules import each other.

As in ``test_layering.py`` every file is parsed, so an import inside a function counts. What only a type checker reads
(``if TYPE_CHECKING``) does not: nothing is imported there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Bottom first; what stands in one line does not know the rest of it. A name is a folder of the package or a module
# beside them. The package's own ``__init__`` may import all.
FLOORS = {
    "egmf_dist": """
        errors
        files registry formats distributed
        config
        run
        data
        metrics
        model
        objectives
        build engine
        inference
        training
        preflight
        report recipes bench
        jobs
    """,
    "data_shards/egmf_shards": """
        errors
        messages
        progress accelerated checksums foreign_files
        storage
        format
        write
        read
        order
        check
        synthetic
        importers
    """,
}


def floors_of(table: str) -> dict[str, int]:
    """The floor of each name, from 0."""
    return {name: floor for floor, line in enumerate(table.split("\n")) for name in line.split()}


def runtime_imports(tree: ast.AST) -> Iterator[ast.ImportFrom | ast.Import]:
    """Every import but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from runtime_imports(ast.Module([other], []))
        else:
            yield from runtime_imports(node)


def modules_of(folder: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name; a folder's ``__init__`` by the folder's."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def edges_of(folder: Path) -> dict[str, set[str]]:
    """Which modules of a package each of its modules imports by name."""
    known = modules_of(folder)
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        meant: list[str] = []
        for node in runtime_imports(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                meant += [alias.name for alias in node.names]
            elif node.module and node.level == 0:
                within = [f"{node.module}.{alias.name}" for alias in node.names]
                meant += [module if module in known else node.module for module in within]
        edges[name] = {module for module in meant if module in known} - {name}
    return edges


def violations(folder: Path, table: str) -> list[str]:
    """Every import that runs up, one line each; and a circle of modules, where there is one."""
    floors, package = floors_of(table), folder.name
    edges, found = edges_of(folder), []
    for name, imported in edges.items():
        if name == package:
            continue
        own = name.split(".")[1]
        if own not in floors:
            found.append(f"{name}: {own} has no floor")
            continue
        for other in sorted(imported):
            if other == package:
                if package != "egmf_dist":  # its __init__ holds the version alone
                    found.append(f"{name} imports {package} whole")
                continue
            theirs = other.split(".")[1]
            if theirs != own and floors.get(theirs, -1) >= floors[own]:
                found.append(f"{name} imports {other}")
    circle = first_circle({name: imported - {package} for name, imported in edges.items()})
    return [*found, *([f"circle: {' -> '.join(circle)}"] if circle else [])]


def first_circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that lead back to the first of them; empty where there are none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            circle = walk(other, [*path, name])
            if circle:
                return circle
        done.add(name)
        return []

    for name in sorted(edges):
        circle = walk(name, [])
        if circle:
            return circle
    return []


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_runs_up_and_there_is_no_circle(package: str) -> None:
    assert violations(ROOT / package, FLOORS[package]) == []


TREE = {
    "__init__.py": "from p.high.c import d",
    "low/__init__.py": "",
    "low/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.high.c import d",
    "low/b.py": "from p.low import a",
    "high/__init__.py": "",
    "high/c.py": "from p.low.b import x\nimport p.base",
    "base.py": "",
}


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("low/b.py", "def f():\n    from p.high import c", "p.low.b imports p.high.c"),
        ("low/b.py", "import p.high.c", "p.low.b imports p.high.c"),
        ("low/b.py", "from p import d", "p.low.b imports p whole"),
        ("base.py", "from p.low.a import x", "p.base imports p.low.a"),
        ("low/a.py", "from p.low.b import x", "circle: p.low.b -> p.low.a -> p.low.b"),
        ("new/e.py", "", "p.new.e: new has no floor"),
        ("low/b.py", "", None),
    ],
)
def test_a_bad_package_is_found(tmp_path: Path, file: str, source: str, complaint: str | None) -> None:
    for name, text in (TREE | {file: source}).items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = violations(tmp_path / "p", "base\nlow\nhigh")
    assert found[:1] == ([] if complaint is None else [complaint])
