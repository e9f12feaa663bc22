"""Where a run's data and backbone lie now: a relative path is kept relative to where it was given, and found again.

A path in a run's ``config.yaml`` starts in the folder that the file names. Whoever works on the run from another folder
finds the same shards and the same model; where they have moved, their new place is given, and the hash says whether it
is they (:mod:`egmf_dist.run.identity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from egmf_dist.config import Config, load_run_config, read_directory
from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import is_folder
from egmf_dist.run.manifest import read_identity


@dataclass(frozen=True)
class Places:
    """Paths that replace those of a run's settings; None: as they are."""

    shards: list[str] | None = None
    backbone: str | None = None

    def put_into(self, config: Config) -> Config:
        """The settings with these paths."""
        if self.shards is not None:
            config = replace(config, data=replace(config.data, shards=list(self.shards)))
        if self.backbone is not None:
            config = replace(config, backbone=replace(config.backbone, path=self.backbone))
        return config


def found_again(config: Config, run: Run) -> Config:
    """Settings to go on with a run, in which a relative path that leads nowhere from here, but did where the run was
    started, is absolute.

    Raises:
        EgmfError: the backbone was a folder when the run was started and is none now: its path must not be taken for
            the id of a hub model.
    """
    if not run.config.is_file():
        return config
    saved, directory = load_run_config(run.config), read_directory(run.config)
    known = {*saved.data.shards, saved.backbone.path}
    directories = [Path.cwd(), *([directory] if directory is not None else [])]
    shards = [find(path, directories if path in known else directories[:1]) or path for path in config.data.shards]
    path = config.backbone.path
    backbone = find(path, directories if path in known else directories[:1])
    identity = read_identity(run)
    if backbone is None and identity is not None and is_folder(identity.backbone):
        looked = directories if path in known else directories[:1]
        raise EgmfError(f"run {run}: {_gone('backbone', path, looked, 'backbone.path', path not in known)}")
    return Places(shards, backbone).put_into(config)


def locate(run: Run, given: Places, backbone_was_folder: bool) -> Places:
    """Where a trained run's data and backbone lie, as this process can open them.

    Args:
        run: the run.
        given: what the command line says; it goes before what the run says.
        backbone_was_folder: and no hub model.

    Raises:
        EgmfError: they are not there; says with which option to give their new place.
    """
    saved, directory = load_run_config(run.config), read_directory(run.config)
    here = Path.cwd()
    trained_in = [directory, here] if directory is not None and directory != here else [here]
    looked = trained_in if given.shards is None else [here]
    shards = []
    for path in saved.data.shards if given.shards is None else given.shards:
        found = find(path, looked)
        if found is None or ("://" not in found and not (Path(found) / "manifest.json").is_file()):
            raise EgmfError(f"run {run}: {_gone('shards', path, looked, 'data.shards', given.shards is not None)}")
        shards.append(found)
    return Places(shards, locate_backbone(run, saved.backbone.path, given.backbone, backbone_was_folder))


def locate_backbone(run: Run, saved: str, given: str | None, was_folder: bool) -> str:
    """Where a trained run's backbone lies, as this process can open it.

    Args:
        run: the run.
        saved: its path when it was trained.
        given: what the command line says; it goes before.
        was_folder: and no hub model.

    Raises:
        EgmfError: it is not there; says with which option to give its new place.
    """
    directory, here = read_directory(run.config) if run.config.is_file() else None, Path.cwd()
    looked = [directory, here] if given is None and directory is not None and directory != here else [here]
    path = saved if given is None else given
    backbone = find(path, looked)
    if was_folder and (backbone is None or not Path(backbone).is_dir()):
        raise EgmfError(f"run {run}: {_gone('backbone', path, looked, 'backbone.path', given is not None)}")
    return backbone or path


def find(path: str, directories: Sequence[Path]) -> str | None:
    """A path as this process can open it; None for a relative one that is in none of the folders.

    What is not relative to a folder (a URL, an absolute path) is given back as it is.
    """
    if "://" in path or Path(path).is_absolute():
        return path
    for directory in directories:
        if (directory / path).exists():
            return path if directory == Path.cwd() else str(directory / path)
    return None


def _gone(what: str, path: str, directories: Sequence[Path], setting: str, is_given: bool) -> str:
    where = "" if Path(path).is_absolute() else f" (looked in {' and '.join(map(str, directories))})"
    if is_given:
        holds = "a manifest.json" if what == "shards" else "the backbone that it was trained with"
        return f"--{setting} {path} is no folder that holds {holds}{where}; give the one where its {what} lie now"
    return f"its {what}, {path!r} when it was trained, cannot be found{where}; say where that is now with --{setting}"
