"""A recording as an utterance: its features, made as those were that the model was trained on.

The extractors come from the specifications that the model carries. What the clip does not have is absent, with the
reason; what this machine lacks (weights, a library) is an error, because the model was trained with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_dist.features import check_specifications, parse
from egmf_dist.inference.utterance import NotedSample, Utterance
from egmf_media.errors import MediaError
from egmf_media.extract import FAILED, OK, Extractor, Outcome, extract_one
from egmf_media.extractors import extractor_of, settings_of
from egmf_media.limits import Limits
from egmf_media.specification import Specification, read_stream
from egmf_shards import FeatureInput, Sample
from egmf_shards.messages import unbroken


@dataclass(frozen=True)
class ClipFeatures:
    """What a clip gave."""

    features: Mapping[str, Any]
    """By stream float32 ``[frames, dim]``; those that the utterance brought along, too."""
    why_absent: Mapping[str, str]
    made_by: Mapping[str, str]
    counts: Mapping[str, Mapping[str, Any]]
    """By stream what was seen on the way."""

    def noted(self, sample: Sample) -> Sample:
        """A sample that says so."""
        own = {f.name: getattr(sample, f.name) for f in fields(sample)}
        said = {"why_absent": {**own.get("why_absent", {}), **self.why_absent}, "made_by": dict(self.made_by)}
        return NotedSample(**own | said)


class ClipReader:
    """Clips to features as a model wants them.

    Args:
        specifications: by feature input, of the model.
        streams: the model's, and their widths.
        limits: of a clip.
    """

    def __init__(
        self, specifications: Mapping[str, Any], streams: Mapping[str, Sequence[int]], limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._made: dict[str, list[Specification]] = {
            stream: [
                parse(specifications[key], f"the model's {stream}")
                for width in widths
                if (key := FeatureInput(stream, width).key) in specifications
            ]
            for stream, widths in streams.items()
        }
        self._extractors: dict[str, Extractor] = {}

    def extractor(self, stream: str) -> Extractor:
        """Of a stream, ready.

        Raises:
            EgmfError: the model knows several, this version makes other features, or something is not installed.
        """
        if stream not in self._extractors:
            made = self._made[stream]
            if len(made) > 1:
                both = " and ".join(map(str, made))
                raise EgmfError(f"the model's {stream} was made by {both}: give features in place of a clip")
            try:
                extractor = extractor_of(made[0], f"the model's {stream}")
            except MediaError as error:
                raise EgmfError(str(error)) from error
            if extractor.missing:
                raise EgmfError(f"the model's {stream} cannot be extracted here: {extractor.missing}")
            self._extractors[stream] = extractor
        return self._extractors[stream]

    def read(self, path: Path, utterance: Utterance) -> ClipFeatures:
        """Extract every stream that the utterance does not bring along.

        Raises:
            EgmfError: as :meth:`wanted` and :meth:`found`.
        """
        wanted = self.wanted(utterance)
        outcomes = {stream: extract_one(path, self.extractor(stream), self._limits) for stream in wanted}
        return self.found(str(path), utterance, outcomes)

    def wanted(self, utterance: Utterance) -> list[str]:
        """Which streams of a clip are extracted: all but those that the utterance brings along.

        Raises:
            EgmfError: the model does not know how its features were made.
        """
        known = [stream for stream, made in self._made.items() if made]
        if not known:
            raise EgmfError(
                "the model does not know how its features were made: it was trained on features without a "
                "specification; extract them by `egmf features extract` and train on those, or give features"
            )
        return [stream for stream in known if stream not in utterance.features]

    def found(self, name: str, utterance: Utterance, outcomes: Mapping[str, Outcome]) -> ClipFeatures:
        """What extraction, here or in another process, gave of a clip.

        Args:
            name: of the clip, for messages.
            utterance: whose clip it is.
            outcomes: by stream of :meth:`wanted`.

        Raises:
            EgmfError: the clip cannot be read, or it gives nothing and there are no words either.
        """
        features, why, counts = dict(utterance.features), {}, {}
        made_by: dict[str, str] = {}
        for stream, outcome in outcomes.items():
            counts[stream] = outcome.counts
            if outcome.status == OK:
                features[stream], made_by[stream] = outcome.array, str(self._made[stream][0])
            else:
                why[stream] = outcome.reason
        if outcomes and all(outcome.status == FAILED for outcome in outcomes.values()):
            raise EgmfError(f"{name}: {next(iter(why.values()))}")
        if not features and not utterance.text.strip():
            said = "; ".join(f"{stream}: {reason}" for stream, reason in why.items())
            raise EgmfError(f"{name}: nothing to answer from: {said}; and no words are given")
        return ClipFeatures(features, why, made_by, counts)

    def plan(self) -> dict[str, dict[str, Any]]:
        """By stream the settings of its extractor, for another process; every one is seen to make the same features.

        Raises:
            EgmfError: as :meth:`extractor`.
        """
        known = {stream: made for stream, made in self._made.items() if made}
        return {stream: settings_of(self.extractor(stream).specification) for stream in known}


def check_files(utterance: Utterance, specifications: Mapping[str, Any], where: str) -> None:
    """Refuse ``.npy`` files whose folder says that they were made otherwise than the model's.

    Args:
        utterance: whose features may be files.
        specifications: by feature input, of the model.
        where: names the utterance.

    Raises:
        EgmfError: they were; names both.
    """
    for stream, given in utterance.features.items():
        made = _beside(Path(given).absolute().parent) if isinstance(given, str | Path) else None
        if made is not None:
            key = FeatureInput(stream, made.dim).key
            check_specifications(specifications, {key: made.to_json()}, f"{where}: the model")


@cache
def _beside(folder: Path) -> Specification | None:
    """How the features of a folder were made. A file ``a/b.npy`` may lie below the stream's folder."""
    try:
        return next((made for place in (folder, folder.parent) if (made := read_stream(place)) is not None), None)
    except (MediaError, OSError) as error:  # OSError: such a name no file can have
        raise EgmfError(unbroken(str(error))) from error
