"""The blocks of a page and what is wrong with them: commands that do not exist, code that does not compile.

Every block names its language; one that is a file of the reader's says ``title="NAME"``. Of a shell block each command
is parsed by whom it would be given to: ``egmf`` and ``launcher/train.py`` by the real command line, a training's
settings checked like a run's; ``make`` by the Makefile's targets; ``python`` and ``sh`` by the file or module and its
options; ``pip`` by the extras. Whatever nothing here can judge must be marked by a comment right above its block,
``<!-- not run: downloads a model -->``; the block's other commands are parsed all the same. A single capital is a
number of the reader's (``--training.seed S``), and data and models that he has need not be there.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from egmf_shards.messages import unbroken

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("sh", "bash", "shell", "console")
LANGUAGES = (*SHELL, "python", "yaml", "json", "jsonl", "text")
OURS = ("egmf_dist", "egmf_kernels", "egmf_launcher", "egmf_media", "egmf_shards")
NO_COMMANDS = ("egmf index 1",)
"""What stands between backticks and looks like one: bytes that the shards' content hash begins with."""
_FENCED = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1$", re.M | re.S)
_MARK = re.compile(r"<!-- not run: (\S.*?) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str
    """The file that it is, by ``title="NAME"``; empty for none."""
    text: str
    line: int
    mark: str
    """Why it is not run; empty where nothing says so."""


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = page.split("\n")
    for found in _FENCED.finditer(page):
        number = page.count("\n", 0, found.start())
        mark = _MARK.match(lines[number - 1]) if number else None
        title = re.search(r'title="([^"]+)"', found[2])
        language = found[2].split()[0] if found[2].split() else ""
        yield Block(language, title[1] if title else "", found[3], number + 1, mark[1] if mark else "")


def faults(page: str) -> list[str]:
    """What is wrong with the blocks of a page, a line each."""
    found: list[str] = []
    titles = frozenset(block.title for block in blocks(page))
    for block in blocks(page):
        if block.language not in LANGUAGES:
            found.append(f"line {block.line}: a block of language {block.language!r}, not of {', '.join(LANGUAGES)}")
            continue
        check = CHECKS["sh" if block.language in SHELL else block.language]
        try:
            found += [f"line {block.line}: {fault}" for fault in check(block, titles)]
        except Exception as error:  # whoever parses it has an exception of his own
            found.append(f"line {block.line}: {unbroken(str(error))}")
    return found


def inline_faults(page: str) -> list[str]:
    """What is wrong with the commands between backticks; a verb or an option alone is a name, and passes."""
    found: list[str] = []
    titles = frozenset(block.title for block in blocks(page))
    prose = _FENCED.sub("", page)
    for span in re.findall(r"`((?:egmf|make|deepspeed|torchrun) [^`]*)`", prose):
        command = shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", span.replace("\n", " ")))
        if span in NO_COMMANDS:
            continue
        try:
            fault = PROGRAMS[command[0]](command, titles)
        except Exception as error:
            fault = unbroken(str(error))
        if fault and not re.search("are required|expected (at least )?one argument|not provided", fault):
            found.append(f"{' '.join(command)}: {fault}")
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command; of a ``for`` loop with the first of its values."""
    values: dict[str, str] = {}
    for line in text.replace("\\\n", " ").split("\n"):
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if not word or word[0] not in "&;|":
                command.append(re.sub(r"\$\{?(\w+)\}?", lambda name: values.get(name[1], name[0]), word))
                continue
            while command and (command[0] in ("do", "done") or re.match(r"\w+=", command[0])):
                command = command[1:]
            if command[:1] == ["for"]:
                values[command[1]] = command[3]
            elif command:
                yield command
            command = []


def shell_faults(block: Block, titles: frozenset[str]) -> Iterator[str]:
    """Of each command that there is a check for, what that says; the others if the block is not marked."""
    for words in commands(block.text):
        check = PROGRAMS.get(words[0])
        if check is not None:
            try:
                fault = check(words, titles)
            except Exception as error:
                fault = unbroken(str(error))
        else:
            fault = "" if block.mark else "nothing checks it: mark the block <!-- not run: WHY -->"
        if fault:
            yield f"{' '.join(words)}: {fault}"


def egmf_fault(words: list[str], titles: frozenset[str]) -> str:
    """The command line parses, and a training's settings keep their rules; ``titles`` are the files of the page."""
    from egmf_dist.config import AllSettings
    from egmf_dist.recipe_files import recipes
    from egmf_launcher.cli import parse

    known, given = set(recipes()), [word for word in words[1:] if word not in ("...", "--help")]
    for place, word in enumerate(given):
        config = place > 0 and given[place - 1] == "--config"
        if config and word not in known and not (ROOT / word).is_file():
            if word != "FILE" and word not in titles:
                return f"there is no {word}, and no block of the page is called so"
            given[place] = "demo"  # a block has a check of its own
        elif config and (ROOT / word).is_file():
            given[place] = str(ROOT / word)
        elif re.fullmatch(r"[A-Z]", word):
            given[place] = "1"
    parsed = parse(given).args[1]  # type: ignore[attr-defined]
    if given[0] == "train":
        AllSettings.from_options(parsed, given).config()
    return ""


def launched_fault(words: list[str], titles: frozenset[str]) -> str:
    """``deepspeed`` and ``torchrun`` start ``launcher/train.py``, which has ``egmf train``'s options."""
    script = "launcher/train.py"
    if script not in words:
        return f"starts no {script}"
    return egmf_fault(["egmf", "train", *words[words.index(script) + 1 :]], titles)


def make_fault(words: list[str], titles: frozenset[str]) -> str:
    """Its targets are the Makefile's."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    names = set(re.findall(r"^([A-Z]+) *[:?]?=", makefile, re.M))
    unknown = [word for word in words[1:] if word not in targets and word.partition("=")[0] not in names]
    return f"the Makefile has no {', '.join(unknown)}" if unknown else ""


def program_fault(words: list[str], titles: frozenset[str]) -> str:
    """A file of the page, or one of the repository or a module, which names every option that is given."""
    if words[1] in titles:
        return ""
    if words[1] == "-m":
        spec = importlib.util.find_spec(words[2])
        file, rest = Path(spec.origin) if spec is not None and spec.origin else None, words[3:]
    else:
        file, rest = ROOT / words[1], words[2:]
    if file is None or not file.is_file():
        return "there is no such program"
    said = file.read_text(encoding="utf-8")
    unknown = [word for word in rest if word.startswith("--") and not re.search(rf"{word}\b", said)]
    return f"{file.name} has no {', '.join(unknown)}" if unknown else ""


def pip_fault(words: list[str], titles: frozenset[str]) -> str:
    """The extras are ours."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [extra for word in words for extra in re.findall(r"^(?:egmf-dist|\.)\[(\w+)\]$", word)]
    return "" if named and set(named) <= extras.keys() else "no extra of egmf-dist"


def python_faults(block: Block, titles: frozenset[str]) -> Iterator[str]:
    """It compiles, and what it imports of ours is there."""
    for node in ast.walk(ast.parse(block.text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        for name in names:
            module = node.module or "" if isinstance(node, ast.ImportFrom) else name
            if module.partition(".")[0] in OURS:
                found = importlib.import_module(module)
                if isinstance(node, ast.ImportFrom) and not hasattr(found, name):
                    yield f"{module} has no {name}"


def yaml_faults(block: Block, titles: frozenset[str]) -> Iterator[str]:
    """Settings or a task, by what they hold."""
    from egmf_dist.config import Config
    from egmf_dist.config.load import config_from_dict
    from egmf_shards import Task

    found: Any = yaml.safe_load(block.text)
    if "questions" in found:
        Task.from_json(found, "task")
    elif not set(found) <= set(Config.__dataclass_fields__):
        yield f"neither a task nor settings: {', '.join(found)}"
    else:
        config_from_dict(found)


def json_faults(block: Block, titles: frozenset[str]) -> Iterator[str]:
    """JSON, or a line of it each."""
    for text in block.text.splitlines() if block.language == "jsonl" else [block.text]:
        json.loads(text)
    return iter(())


PROGRAMS: Mapping[str, Callable[[list[str], frozenset[str]], str]] = {
    "egmf": egmf_fault,
    "deepspeed": launched_fault,
    "torchrun": launched_fault,
    "make": make_fault,
    "python": program_fault,
    "sh": program_fault,
    "pip": pip_fault,
}
CHECKS: Mapping[str, Callable[[Block, frozenset[str]], Iterator[str]]] = {
    "sh": shell_faults,
    "python": python_faults,
    "yaml": yaml_faults,
    "json": json_faults,
    "jsonl": json_faults,
    "text": lambda block, titles: iter(()),
}
