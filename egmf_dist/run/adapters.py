"""Which adapter of a run is the best, and what it says of itself; its weights are :mod:`egmf_dist.model.adapter`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from egmf_dist.errors import EgmfError
from egmf_dist.formats import read_stamped

if TYPE_CHECKING:  # a model that is used alone needs no reader of settings
    from egmf_dist.run.folder import Run

DESCRIPTION = "adapter.json"


def read_best(run: Run) -> tuple[Path, dict[str, Any]]:
    """Folder and description of a run's best adapter as they are at this moment.

    Raises:
        DamagedError: the pointer or the description is missing or damaged.
        EgmfError: the run has none yet.
    """
    if not run.best.is_file():
        what = "no such run"
        if run.folder.is_dir():
            what = f"nothing trained in it yet ({run.best.relative_to(run.folder)} is missing)"
        raise EgmfError(f"run {run}: {what}; train first: egmf train --config FILE.yaml --run {run}")
    folder = run.adapters / str(read_stamped(run.best).get("adapter"))
    return folder, read_stamped(folder / DESCRIPTION)
