"""The feature streams of a run: which there are, in which widths, and which modalities that makes.

Two folders of a run may hold a stream in different widths, made by different extractors: each width is an input of its
own, with its own statistics and its own projection, and all of them are one modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from egmf_shards import TEXT, FeatureInput

Streams = Mapping[str, Sequence[int]]
"""By name the widths that the run's folders have; none where a folder names a stream that no sample has."""


def modalities_of(streams: Streams) -> tuple[str, ...]:
    """The run's modalities in their order: text, then the streams by name."""
    return (TEXT, *sorted(streams))


def inputs_of(streams: Streams) -> list[FeatureInput]:
    """The run's feature inputs in their order: by stream, then by width."""
    return [FeatureInput(name, dim) for name in sorted(streams) for dim in sorted(streams[name])]
