"""``training.deterministic``: the same bits from the same step on a GPU, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from egmf_dist.errors import EgmfError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Within the body, torch takes algorithms alone whose result does not depend on the order of its threads.

    An operation that has none stops the training in a line that names it: a run that only says that it is
    deterministic is worse than one that does not. (Where it is told to warn instead, torch keeps attention's backward
    pass as it is: https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html.)

    Args:
        asked: whether there is anything to do.

    Raises:
        EgmfError: an operation of the body has no such algorithm on this device.
    """
    if not asked:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # cuBLAS reads it at its first product; workspaces of its own choice depend on the streams.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory finds reads of it, at the cost of a pass over every tensor: nothing here reads any.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise EgmfError(f"training.deterministic: {reason}; leave the setting off, or the operation out") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
