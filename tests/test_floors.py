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

# Bottom first; names in one line do not import each other. A name is a folder of the package or a module
# beside them. The package's own ``__init__`` may import all.
FLOORS = {
    "egmf_dist": """
        errors
        files registry formats distributed recipe_files style features ledger
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
        report recipes bench serve
        scale
        jobs
    """,
    "data_shards/egmf_shards": """
        errors lazy
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
    "data_shards/egmf_media": """
        errors
        messages limits
        specification
        decode weights
        extract synthetic
        audio vision
        encoders
        extractors preview
        batch
    """,
}


def floors_of(table: str) -> dict[str, int]:
    """The floor of each name, from 0."""
    return {name: floor for floor, line in enumerate(table.split("\n")) for name in line.split()}


def runtime_imports(tree: ast.AST) -> Iterator[ast.ImportFrom | ast.Import | ast.Call]:
    """Every import but those under ``if TYPE_CHECKING``; ``importlib.import_module("...")`` is one, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from runtime_imports(ast.Module(node.orelse, []))
        else:
            name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in ("import_module", "__import__") and node.args:
                yield node
            yield from runtime_imports(node)


def named_in(node: ast.ImportFrom | ast.Import | ast.Call, module: str, known: dict[str, Path]) -> list[str]:
    """The modules that one import in ``module`` names; a relative one is resolved."""
    if isinstance(node, ast.Call):
        first = node.args[0]
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    source = node.module or ""
    if node.level:
        folder = module.split(".") if known[module].name == "__init__.py" else module.split(".")[:-1]
        source = ".".join([*folder[: len(folder) - node.level + 1], *source.split(".")]).rstrip(".")
    within = [f"{source}.{alias.name}" for alias in node.names]
    return [name if name in known else source for name in within]


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
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        meant = {module for node in runtime_imports(tree) for module in named_in(node, name, known)}
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
        ("low/b.py", "from ..high import c", "p.low.b imports p.high.c"),
        ("low/b.py", "from ..high.c import x", "p.low.b imports p.high.c"),
        ("low/__init__.py", "from ..high import c", "p.low imports p.high.c"),
        ("base.py", "from .low import a", "p.base imports p.low.a"),
        ("low/b.py", "from .a import x", None),
        ("low/b.py", "import importlib\nimportlib.import_module('p.high.c')", "p.low.b imports p.high.c"),
        ("low/b.py", "def f():\n    g(__import__('p.high.c'))", "p.low.b imports p.high.c"),
        ("low/b.py", "if not TYPE_CHECKING:\n    import p.high.c", "p.low.b imports p.high.c"),
        ("low/b.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import p.high.c", "p.low.b imports p.high.c"),
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


SOURCES = sorted(
    path
    for part in ("egmf_dist", "data_shards/egmf_shards", "data_shards/egmf_media", "kernels", "launcher")
    for path in (ROOT / part).rglob("*.py")
)


def test_files_and_functions_stay_small():
    """A file says one thing in at most 400 lines; a function takes at most 8 arguments, but for operators' schemas."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        assert lines <= 400, f"{path} has {lines} lines"
        if "ops" in path.parts:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
                assert len(named) <= 8, f"{path}: {node.name} takes {len(named)}"
