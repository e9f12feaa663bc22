"""``features.yaml``: which extractor makes each feature stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egmf_dist.config.yaml_file import parse_yaml
from egmf_dist.errors import EgmfError
from egmf_media.extractors import DEFAULT, extractors_of


def read_plan(path: Path | None) -> dict[str, Any]:
    """By stream the settings of its extractor; without a file ``prosody`` for audio and ``face`` for vision.

    Raises:
        EgmfError: it cannot be read, or is no YAML.
        MediaError: there is no such extractor or setting.
    """
    if path is None:
        return {stream: dict(settings) for stream, settings in DEFAULT.items()}
    try:
        plan = parse_yaml(path, "features")
    except OSError as error:
        raise EgmfError(f"features {path}: cannot be read ({error.strerror})") from error
    extractors_of(plan, f"features {path}")
    return {stream: {"extractor": own} if isinstance(own, str) else dict(own) for stream, own in plan.items()}
