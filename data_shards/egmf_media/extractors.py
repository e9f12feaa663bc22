"""Extractors by name: out of a person's settings, or out of the specification that a trained model carries."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from egmf_media.audio.egemaps import Egemaps
from egmf_media.audio.prosody import Prosody
from egmf_media.encoders.encoder import Encoder
from egmf_media.errors import MediaError
from egmf_media.extract import Extractor
from egmf_media.messages import one_line
from egmf_media.specification import Specification, check_same
from egmf_media.vision.face import RATE, Face

Plan = Mapping[str, Mapping[str, Any]]
"""By feature stream the settings of its extractor."""
DEFAULT: Plan = {"audio": {"extractor": "prosody"}, "vision": {"extractor": "face"}}
"""Offline, on a CPU, without torch."""
_STREAM = re.compile(r"[a-z][a-z0-9_]{0,31}")


def _prosody(settings: Mapping[str, Any]) -> Extractor:
    return Prosody()


def _egemaps(settings: Mapping[str, Any]) -> Extractor:
    return Egemaps()


def _face(settings: Mapping[str, Any]) -> Extractor:
    folder = settings.get("weights")
    return Face(None if folder is None else Path(folder), settings.get("rate", RATE))


def _encoder(settings: Mapping[str, Any]) -> Extractor:
    own = {name: settings[name] for name in ("layers", "rate", "crop", "pooling") if name in settings}
    if "model" not in settings:
        raise MediaError("encoder: model is needed, a folder in Hugging Face format or a name on the hub")
    return Encoder(settings["model"], **own)


KINDS: dict[str, tuple[Callable[[Mapping[str, Any]], Extractor], Mapping[str, Any]]] = {
    "prosody": (_prosody, {}),
    "egemaps": (_egemaps, {}),
    "face": (_face, {"rate": (int, float), "weights": str}),
    "encoder": (_encoder, {"model": str, "layers": list, "rate": (int, float), "crop": str, "pooling": str}),
}
"""By name what makes an extractor, and its settings with their types."""


def extractors_of(plan: Any, where: str = "features") -> dict[str, Extractor]:
    """The extractors of a plan, by stream in their order.

    Args:
        plan: see :data:`Plan`; out of a file that anybody may have written.
        where: names it in messages.

    Raises:
        MediaError: there is no such extractor or setting, or a value does not fit.
    """
    if not isinstance(plan, Mapping) or not plan:
        raise MediaError(f"{where}: feature streams by name are needed, such as audio: {{extractor: prosody}}")
    made = {}
    for stream, settings in plan.items():
        if not isinstance(stream, str) or not _STREAM.fullmatch(stream) or stream == "text":
            raise MediaError(f"{where}: {stream!r} is no name of a stream: a-z, then a-z, 0-9, _; and not text")
        made[stream] = extractor_from(settings, f"{where}: {stream}")
    return dict(sorted(made.items()))


def extractor_from(settings: Any, where: str) -> Extractor:
    """One extractor by its settings.

    Raises:
        MediaError: as :func:`extractors_of`.
    """
    if isinstance(settings, str):
        settings = {"extractor": settings}
    name = settings.get("extractor") if isinstance(settings, Mapping) else None
    if isinstance(name, str) and ":" in name:
        return _own(name, settings, where)
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise MediaError(f"{where}: extractor is {name!r}; one of {known}, or MODULE:NAME of one's own, is needed")
    make, types = KINDS[name]
    for key, value in settings.items():
        if key == "extractor":
            continue
        if key not in types:
            known = ", ".join(types) or "nothing"
            raise MediaError(f"{where}: {name} has no setting {key!r}; it has {known}")
        if not isinstance(value, types[key]) or isinstance(value, bool):
            raise MediaError(f"{where}: {key} is {value!r}, a {type(value).__name__}, which it may not be")
    try:
        return make(settings)
    except MediaError as error:
        raise MediaError(f"{where}: {error}") from error


def _own(name: str, settings: Mapping[str, Any], where: str) -> Extractor:
    """A class of a person's own, made with all settings: see :class:`egmf_media.extract.Extractor`."""
    module, _, attribute = name.partition(":")
    try:
        extractor: Extractor = getattr(importlib.import_module(module), attribute)(settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise MediaError(f"{where}: extractor {name} cannot be made: {one_line(error)}") from error
    return extractor


def settings_of(specification: Specification) -> dict[str, Any]:
    """The settings by which an extractor of a specification is made."""
    settings: dict[str, Any] = {"extractor": specification.extractor}
    if specification.extractor == "face":
        settings["rate"] = specification.rate
    if specification.extractor == "encoder":
        said = specification.parameters
        settings |= {"model": specification.source, "rate": specification.rate, "layers": list(said.get("layers", ()))}
        settings |= {name: said[name] for name in ("crop", "pooling") if name in said}
    return settings


def extractor_of(specification: Specification, what: str) -> Extractor:
    """The extractor that made features.

    Args:
        specification: that the features carry.
        what: has it, for messages: ``the model's audio``.

    Raises:
        MediaError: this version makes them otherwise; names both specifications.
    """
    if specification.extractor not in KINDS:
        raise MediaError(f"{what} was made by {specification}, which this version cannot make; give features instead")
    extractor = extractor_from(settings_of(specification), what)
    right = "use the version of egmf-dist that it was made with, or extract and train again"
    check_same(specification, extractor.specification, what, "what is made here", right)
    return extractor
