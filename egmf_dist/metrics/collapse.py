"""The alarm for a model that gives one answer to everything.

Collapse is this model family's typical silent failure: a published 48.12 % accuracy on MELD's test split was exactly
"always neutral" (1256 of 2610). So it is looked for in every evaluation and said in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from egmf_shards import CLASSIFICATION, Task

SAME_CLASS_SHARE = 0.99
"""Classification: a larger share of answers in one class is a collapse, unless the truth is that lopsided itself."""
SPREAD_SHARE = 0.02
"""Regression: answers with a standard deviation below this part of the truth's are a collapse."""
MIN_ANSWERS = 10
"""With fewer answers nothing is claimed: a handful may agree by chance."""


def collapse(task: Task, truth: Sequence[float], predicted: Sequence[float]) -> str | None:
    """One sentence when the predictions collapsed to one answer, else None.

    Args:
        task: what was asked.
        truth: one class index (classification) or number (regression) per sample.
        predicted: the model's, in the same order.
    """
    if len(predicted) < MIN_ANSWERS:
        return None
    if task.kind == CLASSIFICATION:
        return _one_class(task, [int(t) for t in truth], [int(p) for p in predicted])
    spread, true_spread = float(np.std(predicted)), float(np.std(truth))
    if spread >= SPREAD_SHARE * true_spread:
        return None
    return (
        f"{task.name}: all {len(predicted)} answers are about {np.mean(predicted):.3g} "
        f"(standard deviation {spread:.2g}, "
        f"the truth's is {true_spread:.2g}): the model has collapsed to one answer"
    )


def _one_class(task: Task, truth: Sequence[int], predicted: Sequence[int]) -> str | None:
    answer, count = Counter(predicted).most_common(1)[0]
    true_classes = Counter(truth)
    true_share = true_classes.most_common(1)[0][1] / len(truth)
    if count <= SAME_CLASS_SHARE * len(predicted) or true_share > SAME_CLASS_SHARE:
        return None
    return (
        f"{task.name}: {count} of {len(predicted)} answers are {task.labels[answer]!r} "
        f"(the truth has {len(true_classes)} classes): the model has collapsed to one answer"
    )
