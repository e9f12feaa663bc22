"""Bounds from a datasheet: how fast an operator can be at best, and how little of a training step it is.

Nothing here is measured. A bound is a time that no kernel can stay under on the device; what a kernel reaches of it is
for a GPU to say.
"""

from __future__ import annotations

from typing import Any

from egmf_kernels.bench.cases import BLOCK
from egmf_kernels.tools.formulas import (
    DIRECTIONS,
    Ceilings,
    Direction,
    Operations,
    bound_seconds,
    bytes_moved,
    operations,
)

DATASHEETS = (
    Ceilings("H100 SXM", 3.35e12, 989e12, 67e12, "NVIDIA H100 datasheet: 3.35 TB/s; dense bf16 989, fp32 67 TFLOP/s"),
    Ceilings(
        "A100 SXM", 2.04e12, 312e12, 19.5e12, "NVIDIA A100 80GB datasheet: 2.04 TB/s; dense bf16 312, fp32 19.5 TFLOP/s"
    ),
)
"""Ceilings for bf16."""
LLM_PARAMETERS = 7_000_000_000
LLM_TOKENS = 160
"""Tokens of one sample that the language model reads where nothing else is said: pseudo tokens, prompt and answer."""


def bounds_us(operator: str, direction: Direction, moved: int, sizes: dict[str, Any]) -> dict[str, float]:
    """The roofline in microseconds on each device, for an implementation that moves ``moved`` bytes."""
    done = operations(operator, direction, **sizes)
    return {device.name: round(1e6 * bound_seconds(moved, done, device), 2) for device in DATASHEETS}


def llm_step(tokens: int, parameters: int = LLM_PARAMETERS, trained: bool = False) -> tuple[Operations, int]:
    """Operations and least bytes of one training step of a language model.

    A weight takes part in one multiply-add a token: 2 operations forward, 2 more for the gradient of what it was
    multiplied with and, where the weight itself is trained, 2 more for its own gradient. So with P parameters and N
    tokens a step is 6 P N where all weights are trained and 4 P N where they are frozen under adapters (the adapters',
    attention's and recomputation's own operations are left out, which makes the step smaller and a share of it larger).
    Bytes: bf16 weights read once forward and once backward, 2 x 2 P, and where trained their gradients written, 2 P.
    """
    per_token = 6 if trained else 4
    return Operations(per_token * parameters * tokens, 0), (6 if trained else 4) * parameters


def surroundings(sizes: dict[str, Any]) -> tuple[Operations, int]:
    """Operations and bytes, forward and backward, of what the block leaves to torch: the wide projection to query, key
    and value of the two attention experts (``2 T D 6 D``) and both attentions (``4 J^2 D`` a sample of J = T / B tokens
    each); backward twice as many operations.

    Passes: projection x and 6 D forward, the 6 D twice, x and dx backward; attention 6 D and 2 D forward, 6 D, 2 D (o),
    2 D (do) and 6 D (dq, dk, dv) backward. Projection's weights and their gradient are 3 x 6 D^2.
    """
    tokens, width, batch = sizes["tokens"], sizes["width"], sizes["batch"]
    forward = 12 * tokens * width**2 + 2 * 4 * batch * (tokens / batch) ** 2 * width
    passes = (7 + 14) + (8 + 16)
    return Operations(int(3 * forward), 0), (passes * tokens * width + 18 * width**2) * sizes["element"]


def step_share(
    sizes: dict[str, Any],
    llm_tokens: int,
    device: Ceilings,
    kernels_seconds: float | None = None,
    parameters: int = LLM_PARAMETERS,
) -> list[dict[str, Any]]:
    """The fusion block's part of a training step beside a language model at its bound; a row a way of training.

    With measured kernels the true share is smaller, because a real step takes longer than the model's bound; with
    bounds on both sides it is an order of magnitude and no more.

    Args:
        sizes: keywords of :func:`egmf_kernels.tools.formulas.sizes_of`.
        llm_tokens: tokens of one sample that the language model reads (pseudo tokens, prompt, answer).
        device: its ceilings.
        kernels_seconds: time of the kernels forward and backward where it was measured; their bound where not.
        parameters: of the language model.

    Returns:
        ``device``, ``width``, ``tokens``, ``llm_tokens``, ``llm_weights``; microseconds of the kernels, of what torch
        does in the block (a bound), of the language model (a bound); ``kernels_percent`` and ``block_percent`` of
        their sum.
    """
    if kernels_seconds is None:
        kernels_seconds = sum(
            bound_seconds(bytes_moved(op, d, **sizes), operations(op, d, **sizes), device)
            for op in BLOCK
            for d in DIRECTIONS
        )
    other, other_bytes = surroundings(sizes)
    rest = bound_seconds(other_bytes, other, device)
    rows = []
    for trained in (False, True):
        done, moved = llm_step(sizes["batch"] * llm_tokens, parameters, trained)
        llm = bound_seconds(moved, done, device)
        whole = kernels_seconds + rest + llm
        rows.append(
            {
                "device": device.name,
                "width": sizes["width"],
                "tokens": sizes["tokens"],
                "llm_tokens": llm_tokens,
                "llm_weights": "trained, 6 P N" if trained else "frozen, 4 P N",
                "kernels_us": round(1e6 * kernels_seconds, 1),
                "torch_us": round(1e6 * rest, 1),
                "llm_us": round(1e6 * llm, 1),
                "kernels_percent": round(100 * kernels_seconds / whole, 3),
                "block_percent": round(100 * (kernels_seconds + rest) / whole, 3),
            }
        )
    return rows


def measured_share(summary: dict[str, Any], llm_tokens: int = LLM_TOKENS) -> list[dict[str, Any]]:
    """:func:`step_share` with the kernels' measured times and the device's measured ceilings.

    Args:
        summary: of :func:`egmf_kernels.bench.measure.measure_all`.
        llm_tokens: as in :func:`step_share`.

    Returns:
        Rows of the widths and numbers of tokens at which every operator of the block was measured, ragged.
    """
    ceilings = summary.get("ceilings")
    if not ceilings:
        return []
    device = Ceilings(summary["machine"], ceilings["copy"], ceilings["matmul"], float("inf"), "measured")
    found = []
    used = [
        row
        for row in summary["rows"]
        if (row["implementation"], row["layout"], row["direction"]) == ("fused", "ragged", "both") and row["ms"]
    ]
    for width, tokens, batch in sorted({(row["width"], row["tokens"], row["batch"]) for row in used}):
        rows = {row["operator"]: row for row in used if (row["width"], row["tokens"]) == (width, tokens)}
        if set(BLOCK) <= set(rows):
            sizes = {"tokens": tokens, "width": width, "element": 2, "batch": batch}
            found += step_share(sizes, llm_tokens, device, sum(rows[op]["ms"] for op in BLOCK) / 1e3)
    return found
