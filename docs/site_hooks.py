"""What ``mkdocs build`` needs beside docs/: pages from outside it, and links that lead out of it.

README.md is the site's first page; CONTRIBUTING.md and CHANGELOG.md are pages, too. Any other file or folder of the
repository that a page links to becomes a page below ``files/`` that shows it. The Markdown itself links as a git forge
wants it, by places in the repository; :func:`on_page_markdown` writes the site's places in.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages of the site: place in the repository to place in the site."""
SHOWN = "files"
KINDS = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "sh", ".md": "markdown"}
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: *)([^)\s#]*)(#[^)\s]*)?")
"""A link's or picture's beginning, target and anchor; of a reference's definition, too."""
_FENCE = re.compile(r" *(```+|~~~+)")
_CODE = re.compile(r"(`+)(?:.+?)\1")
_places: dict[str, str] = {}
"""Place in the site -> place in the repository, of every page that is not in docs/."""


def is_outside(target: str) -> bool:
    """Whether a link leads to another server."""
    return re.match(r"[a-z]+:", target) is not None


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a page, each with whether it is prose: no part of a fenced block."""
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        yield line, not fence and not found
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""


def relinked(text: str, new: Callable[[str, str], str]) -> str:
    """The page with ``new(target, anchor)`` in place of each target that is neither code nor another server's."""

    def change(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        return found[0] if is_outside(target) else found[1] + new(target, anchor)

    def line_of(line: str) -> str:
        kept: list[str] = []
        hidden = _CODE.sub(lambda found: kept.append(found[0]) or f"\0{len(kept) - 1}\0", line)
        return re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], LINK.sub(change, hidden))

    return "\n".join(line_of(line) if is_prose else line for line, is_prose in prose(text))


def links(text: str) -> list[tuple[str, str]]:
    """Target and anchor (``#...`` or nothing) of every link that stays in the repository."""
    found: list[tuple[str, str]] = []
    relinked(text, lambda target, anchor: found.append((target, anchor)) or target)
    return found


def place_in_repository(source: str, target: str) -> str:
    """Where a link of the page ``source`` leads, as a place in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) if target else source


def place_in_site(place: str) -> str:
    """Where the site shows what lies at a place in the repository."""
    if place in PAGES:
        return PAGES[place]
    return place.removeprefix(f"{DOCS}/") if place.startswith(f"{DOCS}/") else f"{SHOWN}/{place}.md"


def shown(place: str) -> str:
    """A file or folder of the repository as a page."""
    path = ROOT / place
    if path.is_dir():
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        kind, body = "text", "\n".join(file for file in files if "__pycache__" not in file)
    else:
        kind, body = KINDS.get(path.suffix, "text"), path.read_text(encoding="utf-8").rstrip("\n")
    return f"# {place}\n\n````{kind}\n{body}\n````\n"


def apart(text: str) -> str:
    """Fenced blocks with empty lines around them: Python-Markdown takes what touches one for the same paragraph."""
    lines: list[str] = []
    before = True
    for line, is_prose in prose(text):
        if is_prose != before and lines and lines[-1].strip() and line.strip():
            lines.append("")
        lines.append(line)
        before = is_prose
    return "\n".join(lines)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/, and what any page links to there."""
    from mkdocs.structure.files import File

    texts = {place: (ROOT / place).read_text(encoding="utf-8") for place in PAGES}
    inside = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    linked = {
        place_in_repository(source, target)
        for source in (*PAGES, *inside)
        for target, _ in links((ROOT / source).read_text(encoding="utf-8"))
    }
    outside = {place for place in linked if not place.startswith(f"{DOCS}/") and (ROOT / place).exists()} - texts.keys()
    for place, text in (texts | {place: shown(place) for place in sorted(outside)}).items():
        _places[place_in_site(place)] = place
        files.append(File.generated(config, place_in_site(place), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links by places in the repository become links by places in the site."""
    here = page.file.src_uri
    source = _places.get(here, f"{DOCS}/{here}")

    def new(target: str, anchor: str) -> str:
        if not target:
            return anchor
        there = place_in_site(place_in_repository(source, target))
        return posixpath.relpath(there, posixpath.dirname(here) or ".") + anchor

    return relinked(apart(markdown), new)
