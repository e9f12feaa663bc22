"""One clip through one extractor: what came of it, and why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits
from egmf_media.messages import one_line
from egmf_media.specification import Specification

OK, ABSENT, FAILED = "ok", "absent", "failed"


class Extractor(Protocol):
    """Features of clips, the same for the same clip wherever and however often it is asked."""

    @property
    def specification(self) -> Specification:
        """How they are made."""
        ...

    @property
    def missing(self) -> str:
        """Why it cannot be used here, such as weights that were not fetched; empty where it can."""
        ...

    def extract(self, path: Path, limits: Limits, counts: dict[str, Any]) -> np.ndarray:
        """float32 ``[frames, dim]``; ``counts`` is filled with what was seen on the way.

        Raises:
            AbsentError: the clip does not have the modality.
            MediaError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What came of one clip and one stream."""

    status: str
    """``ok``; ``absent``: the clip does not have it; ``failed``: it may have, and could not be read."""
    reason: str = ""
    """Why it is absent or failed."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    array: np.ndarray | None = field(default=None, repr=False)
    """float32 ``[frames, dim]`` where it is ok."""
    lasting: bool = True
    """Whether another try gives the same: not where weights were missing, or a process was ended."""
    wall: float = 0.0
    """Seconds that it took."""


def extract_one(path: Path, extractor: Extractor, limits: Limits) -> Outcome:
    """Extract; whatever goes wrong is said in the outcome and raised to nobody."""
    start = time.perf_counter()
    counts: dict[str, Any] = {}
    array, status, reason, lasting = None, OK, "", True
    try:
        if extractor.missing:
            status, reason, lasting = ABSENT, extractor.missing, False
        else:
            array = np.ascontiguousarray(extractor.extract(path, limits, counts), np.float32)
            status, reason = _judged(array, extractor.specification.dim)
    except AbsentError as error:
        status, reason = ABSENT, str(error)
        counts |= error.counts
    except MediaError as error:
        status, reason = FAILED, one_line(error)
    except MemoryError:
        status, reason, lasting = FAILED, "needs more memory than there is", False
    except Exception as error:  # a fault of ours, or of a library on a clip that nobody has seen: one clip's, not all's
        status, reason, lasting = FAILED, f"{type(error).__name__}: {one_line(error)}", False
    return Outcome(status, reason, counts, array if status == OK else None, lasting, time.perf_counter() - start)


def _judged(array: np.ndarray, dim: int) -> tuple[str, str]:
    if array.ndim != 2 or array.shape[1] != dim:
        return FAILED, f"its features have the shape {list(array.shape)}; [frames, {dim}] is right"
    if not np.isfinite(array).all():
        return FAILED, "its features hold numbers that are not finite"
    if not array.any():
        return ABSENT, "nothing but zeros"
    return OK, ""
