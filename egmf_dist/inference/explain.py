"""Why one answer: gate weights by token, each modality taken away, integrated gradients by word and frame.

What the model reads of an utterance are the embeddings of its words in the prompt, those in the fusion's text, and the
frames; :class:`Reading` is the answers' log-probabilities as a function of these. Gradients are taken with respect to
them alone: no parameter gets one.

Shape legend: U tokens of the utterance in the prompt, T tokens of the fusion, H the backbone's width, K pseudo tokens,
C legal answers.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from egmf_dist.data.perturb import without_context
from egmf_dist.data.rows import Rows
from egmf_dist.data.streams import modalities_of
from egmf_dist.data.words import words
from egmf_dist.errors import EgmfError
from egmf_dist.inference.explanation import Explanation, Modality, Without, Word
from egmf_dist.inference.scorer import Scorer
from egmf_dist.inference.utterance import Answer
from egmf_dist.model.egmf import EGMF
from egmf_dist.model.fusion.base import Fused
from egmf_dist.model.sequence import log_probabilities
from egmf_shards import TEXT, Sample

STEPS = 64
"""Of integrated gradients where nothing else is asked for."""
_FIRST = 1e-6

Inputs = Sequence[torch.Tensor]
"""``[U, H]`` the prompt's embeddings of the utterance, ``[Tt, H]`` those of the fusion's text, and of each feature
input ``[frames, dim]``."""


def explain(
    answer: Callable[[Sequence[Sample]], list[Answer]],
    model: EGMF,
    scorer: Scorer,
    sample: Sample,
    steps: int = STEPS,
    temperature: float = 1.0,
) -> Explanation:
    """Explain the answer to one sample.

    Args:
        answer: what answers samples.
        model: the same in evaluation mode; it is not changed.
        scorer: its way of scoring.
        sample: that is asked about.
        steps: of integrated gradients.
        temperature: what ``answer`` divides log-probabilities by before it normalises them.

    Raises:
        EgmfError: ``steps`` is none, the sample cannot be used, or a gradient is not finite.
    """
    if steps < 1:
        raise EgmfError(f"steps is {steps}; it must be 1 or more")
    (found,) = answer([sample])
    without = [_without(answer, found, name, sample.without(name)) for name in sample.modalities]
    if sample.context:
        without.append(_without(answer, found, "context", without_context(sample)))
    reading = Reading(model, scorer, sample)
    chosen = list(found.probabilities).index(found.answer)

    def log_p(inputs: Inputs) -> torch.Tensor:
        return (reading(inputs) / temperature).log_softmax(0)[chosen]

    with torch.no_grad():
        ends = [float(log_p([scale * part for part in reading.inputs])) for scale in (1.0, 0.0)]
        gates = reading.gates_by_modality()
    parts = integrated_gradients(log_p, reading.inputs, steps)
    if not all(np.isfinite(part).all() for part in parts):
        raise EgmfError(f"utterance {sample.id}: its gradients are not finite; load the model in float32")
    return Explanation(
        answer=found,
        log_probability=ends[0],
        baseline=ends[1],
        words=_words(sample.text, reading, [part.sum(1) for part in parts[:2]]),
        modalities=tuple(_modalities(sample, reading, [part.sum(1) for part in parts[1:]], gates)),
        without=tuple(without),
        steps=steps,
    )


def integrated_gradients(
    function: Callable[[Inputs], torch.Tensor], inputs: Inputs, steps: int = STEPS
) -> list[np.ndarray]:
    """Attributions of a number to inputs, against zeros (Sundararajan et al. 2017, equation 1).

    ``x_i`` times the integral of ``df/dx_i`` at ``a x`` over a from 0 to 1, as a sum over cells of that line (their
    equation 3). A cell's middle and ends are even in ``log(a + 1e-6)``, which is why this is our own and not captum's:
    a model norms what it reads, and one with norms of queries and keys norms it twice, so with embeddings it changes
    most where a is a thousandth or a millionth, and with frames above a tenth. Of places even in a hardly one falls
    below a hundredth.

    Args:
        function: of tensors like ``inputs`` to a tensor of one number; called once a step, so memory is one backward
            pass's.
        inputs: at which it is explained.
        steps: cells.

    Returns:
        For each input float64 of its shape. Parameters of ``function`` get no gradient.
    """
    halves = _FIRST * np.expm1(np.log1p(1 / _FIRST) * np.linspace(0, 1, 2 * steps + 1))
    totals = [torch.zeros_like(part, dtype=torch.float64) for part in inputs]
    for place, length in zip(halves[1::2], np.diff(halves[::2]), strict=True):
        with torch.enable_grad():
            leaves = [(float(place) * part).detach().requires_grad_() for part in inputs]
            gradients = torch.autograd.grad(function(leaves), leaves, materialize_grads=True)
        for total, gradient in zip(totals, gradients, strict=True):
            total += float(length) * gradient.double()
    return [(total * part.double()).cpu().numpy() for total, part in zip(totals, inputs, strict=True)]


class Reading:
    """Log-probabilities of a sample's legal answers as a function of what is read of the utterance.

    Attributes:
        inputs: what is read.
        spoken: which words they are.
    """

    def __init__(self, model: EGMF, scorer: Scorer, sample: Sample) -> None:
        self.model, self.spoken = model, scorer.collator.spoken(sample)
        device = next(model.parameters()).device
        self.batch = scorer.prepare([sample], [1.0]).to(device)
        limits, prompt, own = scorer.collator.limits, self.batch.prompts[0], self.spoken.prompt
        assert self.batch.answers is not None
        self.count = int(self.batch.answers.legal_BC.sum())
        self.streams = scorer.collator.inputs
        self.names = modalities_of(scorer.collator.streams)
        with torch.no_grad():
            words_UH = model.embed(torch.tensor(prompt.ids, device=device)[torch.from_numpy(own).to(device)])
            text_TH = model.embed_text(self.batch.text_ids) if model.fused else words_UH[:0]
        self.inputs = [words_UH, text_TH, *self.batch.features]
        # A token's position in its sequence, before which the pseudo tokens may stand.
        position = own + len(limits.start) + limits.pseudo_tokens * (own >= prompt.before)
        position_U = torch.from_numpy(position).to(device)
        rows = (rows for rows in self.batch.answers.rows if len(rows.at_E))
        self.rows = [_with_words(rows, position_U, limits.pseudo_tokens) for rows in rows]

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        """float64 ``[C]``, not normalised."""
        words_UH, text_TH, *features = inputs
        pseudo_BKH = words_UH[None]
        if self.model.fused:
            batch = self.batch._replace(features=tuple(features))
            fused: Fused = self.model.fusion(self.model.encoders(text_TH, batch), batch)
            pseudo_BKH = torch.cat([self.model.pseudo_tokens(fused.pooled_BKD), pseudo_BKH], 1)

        def read(rows: Rows, pseudo_BKH: torch.Tensor) -> torch.Tensor:
            return log_probabilities(self.model.read(rows, pseudo_BKH), rows)

        log_p = torch.zeros(self.count, device=words_UH.device)
        for rows in self.rows:
            # Of several forwards one is held for its backward pass at a time.
            again = len(self.rows) > 1 and torch.is_grad_enabled()
            found = checkpoint(read, rows, pseudo_BKH, use_reentrant=False) if again else read(rows, pseudo_BKH)
            log_p = log_p.index_add(0, rows.owner_E, found)
        return log_p.double()

    def gates(self) -> dict[str, dict[str, np.ndarray]]:
        """What the fusion says of each of its tokens, by its columns' names: float32 ``[T]``."""
        fused = self.model.fuse(self.batch)
        found: dict[str, dict[str, np.ndarray]] = {}
        for level, value in (fused.tokens if fused is not None else {}).items():
            names, tokens = self.model.diagnostics.get(level, ()), len(self.batch.order_T)
            if value.shape != (tokens, len(names)):
                raise EgmfError(
                    f"config: model.fusion gives tokens' diagnostic {level!r} of shape {list(value.shape)}; it must be "
                    f"[tokens, columns], here [{tokens}, {len(names)}] by its `diagnostics`"
                )
            found[level] = dict(zip(names, value.float().cpu().numpy().T, strict=True))
        return found

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By modality that is there its tokens among the fusion's: from which to which (exclusive)."""
        bounds = self.batch.cu_segments.tolist()
        of = zip(self.names, bounds, bounds[1:], strict=False)
        return {name: (first, last) for name, first, last in of if first != last}

    def gates_by_modality(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
        """:meth:`gates` of each modality that is there; nothing where nothing is fused."""
        if not self.model.fused:
            return {}
        gates = self.gates()
        return {
            name: {level: {column: value[first:last] for column, value in own.items()} for level, own in gates.items()}
            for name, (first, last) in self.bounds().items()
        }


def _with_words(rows: Rows, position_U: torch.Tensor, pseudo_tokens: int) -> Rows:
    """Rows in which the utterance's tokens are given as pseudo tokens are, behind those."""
    # One sample has one sequence a row, so a position of its prompt is one column.
    position = rows.position_RC.flatten()
    at_P = torch.nonzero((rows.end_RC.flatten() > 0) & torch.isin(position, position_U))[:, 0]
    source_P = pseudo_tokens + torch.searchsorted(position_U, position[at_P])
    return rows._replace(pseudo_P=torch.cat([rows.pseudo_P, at_P]), source_P=torch.cat([rows.source_P, source_P]))


def _without(answer: Callable[[Sequence[Sample]], list[Answer]], whole: Answer, what: str, sample: Sample) -> Without:
    (found,) = answer([sample])
    p, before = (given.probabilities[whole.answer] for given in (found, whole))
    return Without(
        what=what,
        answer=found,
        change=math.log(p) - math.log(before) if p > 0 else -math.inf,
        value_change=None if found.value is None or whole.value is None else found.value - whole.value,
    )


def units(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the words of a text stand, Chinese characters each alone; what shares a token is one.

    Args:
        text: the utterance.
        places: begin and end of what each token holds.

    Returns:
        Begin and end of each.
    """
    found = words(text)
    for place in places:
        first, last = _units_of(found, place)
        found[first : last + 1] = [(found[first][0], found[last][1])]
    return found


def _units_of(found: Sequence[tuple[int, int]], place: tuple[int, int]) -> tuple[int, int]:
    """The first and last unit of which a token holds something; of a lone space, that which follows."""
    first = min(bisect_right(found, place[0], key=lambda unit: unit[1]), len(found) - 1)
    return first, max(first, bisect_left(found, place[1], key=lambda unit: unit[0]) - 1)


def _words(text: str, reading: Reading, parts: Sequence[np.ndarray]) -> tuple[Word, ...]:
    """Attributions of tokens, in the prompt and in the fusion's text, as those of words."""
    tokens = [places.tolist() for places in reading.spoken[1:]]
    if not reading.model.fused:
        tokens[1] = []
    found = units(text, [*tokens[0], *tokens[1]])
    sums = np.zeros((2, len(found)))
    for total, places, values in zip(sums, tokens, parts, strict=True):
        for place, value in zip(places, values, strict=True):
            total[_units_of(found, place)[0]] += value
    return tuple(
        Word(text[begin:end], float(prompt), float(fused))
        for (begin, end), prompt, fused in zip(found, *sums, strict=True)
    )


def _modalities(
    sample: Sample, reading: Reading, parts: Sequence[np.ndarray], gates: dict[str, dict[str, dict[str, np.ndarray]]]
) -> list[Modality]:
    """What the fusion reads, modality by modality; nothing where there is none."""
    if not reading.model.fused:
        return []
    found = []
    for name, weights in gates.items():
        # A sample has a stream in one width, and the other widths of it have no frame.
        own = (
            [parts[0]]
            if name == TEXT
            else [p for p, s in zip(parts[1:], reading.streams, strict=True) if s.stream == name]
        )
        labels = [sample.text[begin:end] for begin, end in reading.spoken.text_places.tolist()] if name == TEXT else []
        frames = len(labels) if name == TEXT else len(sample.features[name])
        found.append(Modality(name, np.concatenate(own), weights, frames, tuple(labels)))
    return found
