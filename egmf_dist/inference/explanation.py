"""What is known of one answer: which words and frames it hangs on, what the gate listens to, what each modality is
worth. Shown in a notebook, drawn, or written as JSON."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.inference.utterance import Answer
from egmf_shards import TEXT

FOR, AGAINST = "#0072B2", "#D55E00"
"""Colours of what raises and what lowers the answer's probability: of :mod:`egmf_dist.style`, which needs
matplotlib."""
DECIMALS = 6


@dataclass(frozen=True)
class Word:
    """A word of the utterance; where there are Chinese characters, one of those. What shares a token is one."""

    text: str
    prompt: float
    """Its attribution through the prompt that the LLM reads, in nats."""
    fused: float
    """Through the text that the fusion reads, in nats."""

    @property
    def attribution(self) -> float:
        """Both, in nats."""
        return self.prompt + self.fused


@dataclass(frozen=True, eq=False)
class Modality:
    """One modality that the utterance has, as the fusion reads it."""

    name: str
    """``text`` or a feature stream's."""
    attributions: np.ndarray
    """float64 ``[tokens]``: of each token of the text, or frame, in nats."""
    gates: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    """What the fusion says of each token, such as the experts' weights by name: float32 ``[tokens]``."""
    frames: int
    """How many were given. Where they are more than ``model.max_stream_tokens``, the model reads averages of equal
    groups of neighbours, and a token is such a group."""
    labels: tuple[str, ...] = ()
    """What each token of the text holds."""

    @property
    def attribution(self) -> float:
        """Of all its tokens, in nats."""
        return float(self.attributions.sum())

    @property
    def largest(self) -> float:
        """The largest size of a token's attribution, and above 0: what bars are measured by."""
        return _largest(self.attributions)


@dataclass(frozen=True)
class Without:
    """The same question with something taken away."""

    what: str
    """A modality, or ``context``."""
    answer: Answer = field(repr=False)
    """What is answered then."""
    change: float
    """Of the log-probability of the answer that is explained, in nats; below 0 where what was taken away spoke for
    it."""
    value_change: float | None
    """A number: of its expected value."""


@dataclass(frozen=True)
class Explanation:
    """Why one answer. Attributions are integrated gradients of its log-probability among the legal answers."""

    answer: Answer
    """What is explained; its ``diagnostics`` hold the weights of modalities, where the fusion has such."""
    log_probability: float
    """Of the answer, in nats."""
    baseline: float
    """The answer's log-probability without inputs: the utterance's embeddings are zeros, every frame the training
    split's mean."""
    words: tuple[Word, ...]
    """Of the utterance, in order; empty where it has no text."""
    modalities: tuple[Modality, ...]
    """Those that are there, in the model's order."""
    without: tuple[Without, ...]
    """Each modality that is there taken away, then the context where there is one."""
    steps: int
    """At how many places of the path gradients were taken."""

    @property
    def attributed(self) -> float:
        """The sum of all attributions, in nats."""
        frames = sum(modality.attribution for modality in self.modalities if modality.name != TEXT)
        return frames + sum(word.attribution for word in self.words)

    @property
    def completeness_error(self) -> float:
        """How far the attributions' sum is from what they explain, ``log_probability - baseline``, as a share of it.

        An exact integral gives 0 (Sundararajan et al. 2017, proposition 1). Where it is not small take more steps;
        where the difference itself is nearly 0 a share says little.
        """
        difference = self.log_probability - self.baseline
        error = abs(self.attributed - difference)
        return error / abs(difference) if difference else float("inf") if error else 0.0

    @property
    def largest(self) -> float:
        """The largest size of a word's attribution, and above 0: what shades are measured by."""
        return _largest([word.attribution for word in self.words])

    def plot(self, path: str | Path) -> Path:
        """Draw it as one PNG.

        Raises:
            OSError: the file cannot be written.
        """
        from egmf_dist.inference.explanation_figure import explanation_figure
        from egmf_dist.style import save

        return save(explanation_figure(self), Path(path))

    def headline(self) -> str:
        """Question, answer and how sure it is, as a line."""
        answer = self.answer
        line = f"{answer.task}: {answer.answer} (probability {answer.probability:.3f})"
        if answer.value is not None:
            line += f", expected value {answer.value:.3f}"
            line += f" ({answer.interval[0]:g} to {answer.interval[1]:g})" if answer.interval else ""
        return line

    def footline(self) -> str:
        """How far the attributions can be trusted, as a line."""
        difference = self.log_probability - self.baseline
        return (
            f"integrated gradients, {self.steps} steps: attributions add up to {self.attributed:+.3f} of "
            f"{difference:+.3f} nats (error {100 * self.completeness_error:.2g} %)"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, rounded, for a file."""
        return {
            "answer": self.answer.answer,
            "label": self.answer.label,
            "value": rounded(self.answer.value),
            "log_probability": rounded(self.log_probability),
            "baseline": rounded(self.baseline),
            "steps": self.steps,
            "completeness_error": rounded(self.completeness_error),
            "words": [
                {"text": word.text, "prompt": rounded(word.prompt), "fused": rounded(word.fused)} for word in self.words
            ],
            "modalities": {
                own.name: {
                    "frames": own.frames,
                    **({"tokens": list(own.labels)} if own.labels else {}),
                    "attributions": rounded(own.attributions),
                    "gates": {
                        level: {name: rounded(weights) for name, weights in columns.items()}
                        for level, columns in own.gates.items()
                    },
                }
                for own in self.modalities
            },
            "diagnostics": {
                level: {name: rounded(weight) for name, weight in columns.items()}
                for level, columns in self.answer.diagnostics.items()
            },
            "without": {
                own.what: {
                    "answer": own.answer.answer,
                    "value": rounded(own.answer.value),
                    "change": rounded(own.change),
                    "value_change": rounded(own.value_change),
                }
                for own in self.without
            },
        }

    def _repr_html_(self) -> str:
        said = "".join(_shaded(word.text, word.attribution, self.largest) for word in self.words)
        weights = self.answer.diagnostics.get("modalities", {})
        rows = [("", "attribution", "weight", *(f"without it: {name}" for name in ("change", "answer", "value")))]
        without = {own.what: own for own in self.without}
        for own in self.modalities:
            weight = f"{weights[own.name]:.3f}" if own.name in weights else ""
            total = sum(word.attribution for word in self.words) if own.name == TEXT else own.attribution
            rows.append((own.name, f"{total:+.3f}", weight, *_changes(without.pop(own.name))))
        rows += [(what, "", "", *_changes(own)) for what, own in without.items()]
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return (
            f"<div><b>{html.escape(self.headline())}</b><p style='line-height:2'>{said}</p><table>{cells}</table>"
            f"<small>{html.escape(self.footline())}; in nats</small></div>"
        )


def _changes(own: Without) -> tuple[str, str, str]:
    return f"{own.change:+.3f}", own.answer.answer, "" if own.value_change is None else f"{own.value_change:+.3f}"


def _shaded(text: str, attribution: float, top: float) -> str:
    colour = FOR if attribution > 0 else AGAINST
    alpha = round(255 * min(abs(attribution) / top, 1) * 0.7)
    style = f"background:{colour}{alpha:02x};padding:2px 3px;border-radius:3px"
    return f"<span style='{style}' title='{attribution:+.3f}'>{html.escape(text)}</span> "


def _largest(values: Sequence[float] | np.ndarray) -> float:
    return max(float(np.abs(values).max(initial=0.0)), 1e-12)


def rounded(value: Any) -> Any:
    """A number, or an array as a list, with as many decimals as are written; None stays, infinity becomes None."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return round(value, DECIMALS) if isinstance(value, float) else np.round(value.astype(float), DECIMALS).tolist()
