"""``manifest.json``: what a start ran on and what it belongs to."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from egmf_dist import __version__
from egmf_dist.config import Config
from egmf_dist.files import renew_json
from egmf_dist.formats import DamagedError, read_stamped, stamped
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "ray", "webdataset", "triton")


def write_manifest(
    run: Run, config: Config, identity: Identity, hosts: list[str], standardisations: Mapping[str, Any]
) -> None:
    """Write versions, seeds, data and base model identity, hosts, and by what statistics features are standardised."""
    manifest: dict[str, Any] = {
        "egmf_dist": __version__,
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
        "identity": identity.to_json(),
        "data": config.data.shards,
        "hosts": hosts,
        "standardisations": dict(standardisations),
    }
    renew_json(run.manifest, stamped(manifest))


def read_identity(run: Run) -> Identity | None:
    """What the newest start belonged to; None where no rank has come so far, or the file is damaged.

    Raises:
        EgmfError: a later version wrote it.
    """
    try:
        return Identity.from_json(read_stamped(run.manifest).get("identity"), run.manifest)
    except DamagedError:
        return None


def read_standardisations(run: Run) -> dict[str, Any] | None:
    """By what statistics the newest start standardised features; None where nothing says so.

    Raises:
        EgmfError: a later version wrote it.
    """
    try:
        known = read_stamped(run.manifest).get("standardisations")
    except DamagedError:
        return None
    return known if isinstance(known, dict) else None


def installed(package: str) -> str | None:
    """A package's version; None where it is not installed (Triton is for Linux alone)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
