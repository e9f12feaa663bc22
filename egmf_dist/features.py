"""How a run's features were made, and that others are refused: specifications by feature input (``audio_182``).

A folder of shards that says nothing of an input is taken as it is: nobody knows that it differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from egmf_dist.errors import EgmfError
from egmf_media.errors import MediaError
from egmf_media.specification import Specification, difference
from egmf_shards import FeatureInput


def specifications_of(manifests: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> dict[str, Any]:
    """What the folders of a run say, together.

    Args:
        manifests: of the folders of shards.
        folders: where they lie, for messages.

    Returns:
        By feature input the specification, JSON-able; inputs of which no folder says it are left out.

    Raises:
        EgmfError: two say otherwise of one input, or what one says is malformed.
    """
    found: dict[str, Any] = {}
    where: dict[str, str] = {}
    for manifest, folder in zip(manifests, folders, strict=True):
        for stream, about in manifest["streams"].items():
            made = about.get("specification")
            if made is None or not about["dim"]:
                continue
            key = FeatureInput(stream, about["dim"]).key
            parsed = parse(made, f"{folder}: {stream}")
            if parsed.dim != about["dim"]:
                raise EgmfError(
                    f"{folder}: {stream} has {about['dim']} numbers a frame, and {parsed}, which is said to have made "
                    f"it, makes {parsed.dim}; extract it again, or take the specification out of its stream.json"
                )
            if key in found:
                right = "extract one of them again, or give the stream another name there"
                _check(parse(found[key], where[key]), parsed, f"{stream} of {where[key]}", f"that of {folder}", right)
            found[key], where[key] = parsed.to_json(), folder
    return found


def check_specifications(then: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Refuse features that were made otherwise than those of a run.

    Args:
        then: by feature input what the run was trained with.
        now: what there is now.
        what: has ``then``, for the message.

    Raises:
        EgmfError: the first input that differs; names both specifications.
    """
    for key in sorted(then.keys() & now.keys()):
        one, other = (parse(made[key], f"{what}: {key}") for made in (then, now))
        right = "give it features that were made as they were in training"
        _check(one, other, f"{what}: {key}", "what it is given", right)


def _check(then: Specification, now: Specification, what: str, other: str, right: str) -> None:
    if then.sha256 != now.sha256:
        raise EgmfError(f"{what} was made by {then}, {other} by {now}: {difference(then, now)}; {right}")


def parse(made: Any, where: str) -> Specification:
    """A specification out of a file.

    Raises:
        EgmfError: it is none.
    """
    try:
        return Specification.from_json(made, where)
    except MediaError as error:
        raise EgmfError(str(error)) from error
