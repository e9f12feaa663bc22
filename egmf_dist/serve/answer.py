"""What is answered: the row of ``egmf predict``, and for the page what each stream says, gates by time, the clip."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmf_dist.inference.predictions import DECIMALS
from egmf_dist.inference.utterance import Answer
from egmf_media.preview import Preview
from egmf_shards import TEXT, Sample

MOMENTS = 8
"""Of a clip that the page shows."""


def variants(sample: Sample) -> list[tuple[str, str, Sample]]:
    """A sample with each modality that is there taken away, and alone; what would be nothing or the same is left out.

    Returns:
        ``without`` or ``alone``, the modality, the sample.
    """
    there = sample.modalities
    if len(there) < 2:
        return []
    found = [("without", name, sample.without(name)) for name in there]
    for name in there:
        alone = sample
        for other in there:
            alone = alone if other == name else alone.without(other)
        found.append(("alone", name, alone))
    return found


def explained(whole: Answer, others: Sequence[tuple[str, str, Answer]]) -> dict[str, Any]:
    """Answers to :func:`variants` beside the one to the whole: by ``without`` and ``alone``, by modality; and whether
    probabilities and interval are ``calibrated`` on validation data.

    ``change`` is of the log-probability of the whole's answer, in nats, as in ``egmf predict --explain``; None where
    it has become impossible.
    """
    found: dict[str, Any] = {"without": {}, "alone": {}, "calibrated": whole.calibrated}
    for way, name, answer in others:
        p, before = (given.probabilities[whole.answer] for given in (answer, whole))
        own: dict[str, Any] = {"answer": answer.answer, "probability": round(answer.probability, DECIMALS)}
        own["change"] = round(math.log(p) - math.log(before), DECIMALS) if p > 0 and before > 0 else None
        if answer.value is not None and whole.value is not None:
            own |= {
                "value": round(answer.value, DECIMALS),
                "value_change": round(answer.value - whole.value, DECIMALS),
            }
        found[way][name] = own
    return found


def gates_by_time(
    gates: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], sample: Sample, rates: Mapping[str, float]
) -> dict[str, Any]:
    """Gates of streams whose frame rate is known, for a picture.

    Args:
        gates: of :meth:`egmf_dist.inference.model.Model.gates`.
        sample: that they are of.
        rates: frames a second by stream.

    Returns:
        By stream ``seconds`` (of all tokens together, which are equally long) and ``levels``: by level and column a
        weight a token.
    """
    found: dict[str, Any] = {}
    for name, levels in gates.items():
        if name == TEXT or name not in rates or not levels:
            continue
        rounded = {
            level: {column: np.round(weights.astype(float), 4).tolist() for column, weights in columns.items()}
            for level, columns in levels.items()
        }
        found[name] = {"seconds": round(len(sample.features[name]) / rates[name], 3), "levels": rounded}
    return found


def shown(clip: Preview) -> dict[str, Any]:
    """A preview in JSON: ``seconds``, ``outline`` ``[[least, largest], ...]``, ``moments`` with a ``data:`` picture."""
    return {
        "seconds": round(clip.seconds, 3),
        "outline": np.round(clip.outline.astype(float), 3).tolist(),
        "moments": [
            {
                "second": round(one.second, 3),
                "picture": "data:image/jpeg;base64," + base64.b64encode(one.jpeg).decode("ascii"),
                "box": None if one.box is None else [round(x, 4) for x in one.box],
                "faces": one.faces,
            }
            for one in clip.moments
        ],
    }
