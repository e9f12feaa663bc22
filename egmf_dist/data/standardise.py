"""Features to mean 0 and deviation 1, by the training split's own statistics.

Extractors write magnitudes of 1e4 beside 1e-3; in bf16, through one linear layer, the small ones would be lost. The
statistics come from the manifests, are pooled over a run's folders and are stored with the adapter, so that training
and use see the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError
from egmf_shards import FeatureInput

CLAMP = 10.0
"""Values further than this many deviations from the mean are moved to that distance."""


@dataclass(frozen=True, eq=False)
class Standardisation:
    """One feature input's; constant dimensions become 0."""

    mean: np.ndarray
    """float64 ``[dim]``."""
    std: np.ndarray
    """float64 ``[dim]``; 0 where a dimension is constant."""

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """float32 ``[frames, dim]`` to the same, in deviations from the mean, at most :data:`CLAMP` of them."""
        scale = np.divide(1.0, self.std, out=np.zeros_like(self.std), where=self.std > 0)
        # The difference in float64: a mean of 1e6 beside a deviation of 1 would take float32's last bits.
        return np.clip((frames - self.mean) * scale, -CLAMP, CLAMP).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """For the adapter's description."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Standardisation:
        """The inverse of :meth:`to_json`."""
        return cls(np.array(data["mean"], np.float64), np.array(data["std"], np.float64))

    @classmethod
    def pooled(cls, statistics: Sequence[Mapping[str, Any]]) -> Standardisation:
        """Over several folders, each weighted by its frames; of two parts' frames as of one whole.

        Args:
            statistics: manifests' entries of one stream: ``frames``, and per dimension ``mean``, ``std``, ``min`` and
                ``max``.
        """
        frames = np.array([s["frames"] for s in statistics], np.float64)[:, None]
        mean, std, low, high = (
            np.array([s[name] for s in statistics], np.float64) for name in ("mean", "std", "min", "max")
        )
        whole = (frames * mean).sum(0) / frames.sum()
        variance = (frames * (std**2 + (mean - whole) ** 2)).sum(0) / frames.sum()
        # A constant's deviation may be a rounding error; its least and largest are equal.
        return cls(whole, np.where(low.min(0) == high.max(0), 0.0, np.sqrt(variance)))


def standardisations(
    manifests: Sequence[Mapping[str, Any]], folders: Sequence[str], inputs: Sequence[FeatureInput]
) -> dict[str, Standardisation]:
    """For each feature input that a run has, by its key.

    Args:
        manifests: of the run's folders.
        folders: their names, for messages.
        inputs: the run's; folders that hold a stream in the same width are pooled.

    Raises:
        EgmfError: a folder has the stream and no statistics of its training split.
    """
    out = {}
    for own in inputs:
        known = []
        for manifest, folder in zip(manifests, folders, strict=True):
            if manifest["streams"].get(own.stream, {}).get("dim") != own.dim:
                continue
            entry = manifest.get("statistics", {}).get(own.stream)
            if entry is not None and entry["frames"]:
                known.append(entry)
            elif has_training_frames(manifest, own.stream):
                raise EgmfError(
                    f"{folder}: its manifest has no statistics of {own.stream}, by which features are standardised; "
                    "make them with: egmf shards index --force DIR, or train with data.standardise false"
                )
        if known:
            out[own.key] = Standardisation.pooled(known)
    return out


def has_training_frames(manifest: Mapping[str, Any], modality: str) -> bool:
    """Whether a training sample has the modality."""
    train = manifest["splits"].get("train", {"samples": 0, "missing": {}})
    return bool(train["samples"] > train.get("missing", {}).get(modality, 0))
