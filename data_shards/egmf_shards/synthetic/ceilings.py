"""The best any model can do on the generated data: from the exact posterior of the construction, by enumeration.

The context (the opening line, which tells the mood) is always seen; removing a modality removes it from the utterance
only. A cue that is present is taken as read without error (bit and intensity); the frame noise is small enough for
that, and a test decodes generated arrays to check it. What remains uncertain is what noise, missing modalities and
the mood leave open.

* **Corr** (sentiment): the best predictor is E[s | seen], its correlation with s is ``sqrt(Var E[s | seen] / Var s)``.
* **Weighted F1** (emotion): of the expected confusion matrix of a decision rule. The argmax of the posterior is the
  best rule for accuracy but not for F1: among classes that are equally likely it always names the same one, and
  spreading the answers scores higher. So the rule may be randomised, and is improved from the argmax and from the
  posterior itself by ascent on F1 until it gains no more; the better result is the ceiling.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from egmf_shards.synthetic.construction import LABELS, STANDARD, Cues, emotion_prior, sentiment


def subsets(cues: Cues = STANDARD) -> list[tuple[bool, ...]]:
    """Which cues may be seen: every choice but none."""
    return [kept for kept in product((True, False), repeat=len(cues.names)) if any(kept)]


def compute_ceilings(
    missing: float, noise: float, cues: Cues = STANDARD, zeros: float = 0.0
) -> dict[str, dict[str, Any]]:
    """Per task its metric and the ceiling with each subset of modalities.

    ``{"emotion": {"metric": "weighted_f1", "text+audio+vision": x, ...}, "sentiment": {"metric": "corr", ...}}``.

    Args:
        missing: the rate at which each modality is missing in the data, on top of the modalities removed.
        noise: the rate at which a cue's bit is flipped.
        cues: what carries them.
        zeros: the rate of calm utterances.
    """
    emotion: dict[str, Any] = {"metric": "weighted_f1"}
    values: dict[str, Any] = {"metric": "corr"}
    for subset in subsets(cues):
        name = "+".join(cue for cue, kept in zip(cues.names, subset, strict=True) if kept)
        joint = emotion_joint(missing, noise, subset, cues)
        emotion[name] = round(best_weighted_f1(joint), 4)
        values[name] = round(sentiment_correlation(missing, noise, subset, cues, zeros), 4)
    return {"emotion": emotion, "sentiment": values}


def emotion_joint(missing: float, noise: float, kept: tuple[bool, ...], cues: Cues = STANDARD) -> np.ndarray:
    """float64 ``[cells, 7]``: P(what is seen, emotion), where only the ``kept`` modalities may be seen.

    A cell is a mood and, per cue, bit 0, bit 1 or absent: cell ``mood * 3 ** cues + sum 3 ** i * (bit or 2)``.
    """
    cells = 3 ** len(cues.names)
    joint = np.zeros((2, cells, len(LABELS)))
    flips = cues.flips(noise)[:, None]
    bit_given_class = np.where(cues.code[..., None] == np.arange(2), 1 - flips, flips)  # [7, cues, bit]
    for present, probability in cues.missing_patterns(missing):
        seen = [p and k for p, k in zip(present, kept, strict=True)]
        for states in product(*[(0, 1) if s else (2,) for s in seen]):
            likelihood = np.full(len(LABELS), probability)
            for i, state in enumerate(states):
                if state < 2:
                    likelihood = likelihood * bit_given_class[:, i, state]
            joint[:, cell_code(states)] += 0.5 * emotion_prior() * likelihood
    return joint.reshape(2 * cells, len(LABELS))


def cell_code(states: tuple[int, ...]) -> int:
    """The number of a combination of cue states (0, 1, or 2 for absent)."""
    return sum(3**i * state for i, state in enumerate(states))


def weighted_f1(joint: np.ndarray, rule: np.ndarray) -> float:
    """Weighted F1 of the expected confusion matrix: ``sum_k P(k) * 2 TP_k / (P(k) + P(answer k))``.

    Args:
        joint: ``[cells, classes]`` P(seen, class).
        rule: ``[cells, classes]`` P(answer | seen).
    """
    hits, answered, prior = _confusion(joint, rule)
    return float((prior * 2 * hits / (prior + answered)).sum())


def argmax_rule(joint: np.ndarray) -> np.ndarray:
    """The rule that always answers with the likeliest class (the first of equals)."""
    return np.eye(joint.shape[1])[joint.argmax(axis=1)]


def best_weighted_f1(joint: np.ndarray, steps: int = 400) -> float:
    """The highest weighted F1 found over all (randomised) decision rules; see the module's text."""
    joint = joint[joint.sum(axis=1) > 0]
    seen = joint.sum(axis=1, keepdims=True)
    posterior = joint / seen
    best = weighted_f1(joint, argmax_rule(joint))
    for rule in (0.9 * argmax_rule(joint) + 0.1 * posterior, posterior):
        rule = (rule + 1e-6) / (rule + 1e-6).sum(axis=1, keepdims=True)
        for _ in range(steps):
            hits, answered, prior = _confusion(joint, rule)
            scale = 2 * prior / (prior + answered)
            gradient = scale * posterior - scale * hits / (prior + answered)  # per unit of P(seen)
            rule = rule * np.exp(2.0 * gradient)  # exponentiated-gradient ascent stays on the simplex
            rule /= rule.sum(axis=1, keepdims=True)
        best = max(best, weighted_f1(joint, rule))
    return best


def _confusion(joint: np.ndarray, rule: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class: P(class and answered so), P(answered so), P(class)."""
    return (joint * rule).sum(axis=0), (joint.sum(axis=1, keepdims=True) * rule).sum(axis=0), joint.sum(axis=0)


def sentiment_states(noise: float, cues: Cues = STANDARD) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every state of (mood, shown bits, levels): ``mood [n], bits [n, cues], levels [n, cues], probability [n]``."""
    every_bits = np.array(list(product((0, 1), repeat=len(cues.names))))
    every_levels = np.array(list(product(range(3), repeat=len(cues.names))))
    # P(shown bits | class): a product over the cues.
    match = every_bits[:, None, :] == cues.code[None]
    flips = cues.flips(noise)
    shown = np.where(match, 1 - flips, flips).prod(axis=2)  # [2 ** cues, 7]
    given_mood = emotion_prior() @ shown.T  # [2, 2 ** cues]
    axes = np.meshgrid(range(2), range(len(every_bits)), range(len(every_levels)), indexing="ij")
    mood, b, v = (axis.ravel() for axis in axes)
    return mood, every_bits[b], every_levels[v], 0.5 * given_mood[mood, b] / len(every_levels)


def sentiment_correlation(
    missing: float, noise: float, kept: tuple[bool, ...], cues: Cues = STANDARD, zeros: float = 0.0
) -> float:
    """``sqrt(Var E[s | seen] / Var s)`` where only the ``kept`` modalities may be seen."""
    states = sentiment_states(noise, cues)
    mood, bits, levels, probability = (np.concatenate([values, values]) for values in states)
    calm = np.arange(len(mood)) >= len(mood) // 2
    probability = probability * np.where(calm, zeros, 1 - zeros)
    s = np.where(calm, 0.0, sentiment(bits, levels))
    mean = float((probability * s).sum())
    variance = float((probability * (s - mean) ** 2).sum())
    explained = 0.0
    for present, pattern_probability in cues.missing_patterns(missing):
        code = mood.copy()
        for i in range(len(present)):
            cue = bits[:, i] * 3 + levels[:, i]
            code = code * 6 + (cue if present[i] and kept[i] else 0)
        code = code * 2 + (calm if present[0] and kept[0] else 0)  # the words say it
        mass = np.bincount(code, weights=probability)
        total = np.bincount(code, weights=probability * (s - mean))
        explained += pattern_probability * float((total[mass > 0] ** 2 / mass[mass > 0]).sum())
    return float(np.sqrt(explained / variance))
