"""The gradient of a global batch does not depend on how it was cut, nor on which rank a missing modality falls to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from egmf_dist.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptConfig,
    TrainingConfig,
)
from egmf_shards import Turn

pytestmark = pytest.mark.distributed
# The first half falls to rank 0 and the second to rank 1: one rank without audio, one without vision, one sample with
# nothing.
PATTERNS = [(1, 0, 1), (1, 0, 1), (0, 0, 1), (1, 0, 0), (1, 1, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0)]


@pytest.fixture(scope="module")
def job(random_backbone, tasks):
    """``job(samples, micro_batch, branch=False, packed=False, number="tokens", **of the backbone)`` for gradients.py:
    ZeRO-3, fp32, dropout 0."""

    def make(samples, micro_batch, branch=False, packed=False, number="tokens", **changes):
        config = Config(
            objective=ObjectiveConfig(number=number),
            data=DataConfig(shards=["unused"]),
            prompt=PromptConfig(pseudo_tokens="before_utterance"),
            backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_alpha=8, lora_dropout=0.0, **changes),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32", zero_stage=3, micro_batch=micro_batch),
        )
        return {
            "config": config,
            "samples": samples,
            "tasks": tasks,
            "streams": {"audio": [6], "vision": [5]},
            "branch": branch,
            "packed": packed,
        }

    return make


def dialogues(samples):
    """Two dialogues, two questions on an utterance; utterances share what went before."""
    turns = tuple(Turn("AB"[i % 2], text) for i, text in enumerate(["i am glad " * 3, "no wait", "wait no no", "glad"]))
    return [
        replace(s, context=(turns if i < 6 else turns[::-1])[: (i // 2) % 4 + 1], text=f"{s.text} {'wait ' * (i % 3)}")
        for i, s in enumerate(samples)
    ]


def relative_difference(a, b) -> float:
    """Largest norm ratio of the difference over all parameters (those with a gradient)."""
    assert a["gradients"].keys() == b["gradients"].keys()
    worst = 0.0
    for name, gradient in a["gradients"].items():
        scale = max(gradient.norm().item(), 1e-3)
        worst = max(worst, (gradient - b["gradients"][name]).norm().item() / scale)
    return worst


@pytest.fixture(scope="module")
def measured(job, run_ranks, make_samples):
    """``{ranks: {name: measurement}}`` of every cut below; all of one number of ranks share one start of processes."""
    samples = make_samples(8, PATTERNS)
    spoken = dialogues(make_samples(10))
    one = {
        "eight": job(samples, 8),
        "eight, in micro-batches of two": job(samples, 2),
        "separate sequences": job(spoken, 10),
        "seven": job(samples[:7], 7),
        "whole backbone": job(samples, 8, tuning="full"),
        "layers computed again": job(samples, 8, gradient_checkpointing=True),
        "whole backbone, layers computed again": job(samples, 8, tuning="full", gradient_checkpointing=True),
        "distances, one number a row": job(spoken, 10, number="expected"),
        "branch": job(samples, 4, branch=True),
    }
    two = {
        "eight": job(samples, 4),
        "seven": job(samples[:7], 4),
        "seven, one at a time": job(samples[:7], 1),
        "forest": job(spoken, 5, packed=True),
        "forest, two at a time": job(spoken, 2, packed=True),
        "whole backbone": job(samples, 4, tuning="full"),
        "layers computed again": job(samples, 4, gradient_checkpointing=True),
        "distances": job(spoken, 2, packed=True, number="expected"),
        "branch": job(samples, 4, branch=True),  # last: its ranks mix up their weights
    }
    return {ranks: run_ranks("gradients.py", ranks, jobs) for ranks, jobs in ((1, one), (2, two))}


def test_two_ranks_of_four_give_the_gradient_of_one_rank_of_eight(measured):
    """Also with every pattern of missing modalities, unevenly over the ranks."""
    one, two = measured[1]["eight"], measured[2]["eight"]
    assert two["sums"] == pytest.approx(one["sums"], rel=1e-6)
    assert relative_difference(one, two) < 1e-5


def test_accumulation_in_micro_batches_of_two_gives_the_same(measured):
    assert relative_difference(measured[1]["eight"], measured[1]["eight, in micro-batches of two"]) < 1e-5


def test_uneven_shares_of_four_and_three_with_a_filler_give_the_same(measured):
    """Seven samples in micro-batches of one: rank 1 has three and fills its fourth with weight 0."""
    assert relative_difference(measured[1]["seven"], measured[2]["seven"]) < 1e-5
    assert relative_difference(measured[1]["seven"], measured[2]["seven, one at a time"]) < 1e-5


@pytest.mark.parametrize("name", ["forest", "forest, two at a time"])
def test_dialogues_that_share_their_context_give_the_gradient_of_separate_sequences(measured, name):
    """Contexts read once on two ranks, wherever a dialogue is cut, against one prompt a row on one."""
    one, two = measured[1]["separate sequences"], measured[2][name]
    assert two["tokens"] < one["tokens"] - 20
    assert two["sums"] == pytest.approx(one["sums"], rel=1e-6)
    assert relative_difference(one, two) < 1e-5


def test_numbers_distances_give_the_same_on_two_ranks(measured):
    """Trees on two ranks, micro-batches of two of either task and a filler, against every number a row on one."""
    one, two = measured[1]["distances, one number a row"], measured[2]["distances"]
    assert two["sums"] == pytest.approx(one["sums"], rel=1e-5)
    assert two["sums"][2] != pytest.approx(two["sums"][0] + 0.5 * two["sums"][1], rel=1e-2)
    assert relative_difference(one, two) < 1e-5


def test_a_backbone_that_is_trained_whole_has_one_processs_gradients(measured):
    """Its embedding, too, which reads the prompt, the answers and the experts' text."""
    # The backbone's; the fusion's are the other tests'.
    one, two = (
        {
            "gradients": {
                n: g for n, g in measured[r]["whole backbone"]["gradients"].items() if n.startswith("backbone.")
            }
        }
        for r in (1, 2)
    )
    assert relative_difference(one, two) < 1e-5
    (embedding,) = (g for name, g in one["gradients"].items() if "embed_tokens" in name)
    assert embedding.norm() > 0


@pytest.mark.parametrize(("ranks", "name"), [(1, "eight"), (2, "eight"), (1, "whole backbone")])
def test_layers_that_are_computed_again_give_the_same_gradients(measured, ranks, name):
    """Bitwise on CPUs: the same operations on the same numbers, under ZeRO-3 on partitioned weights, too."""
    again = "layers computed again" if name == "eight" else f"{name}, layers computed again"
    before, after = measured[ranks][name], measured[ranks][again]
    assert after["sums"] == before["sums"]
    assert relative_difference(before, after) == 0


def test_a_branch_on_the_samples_would_be_noticed(measured):
    """The same comparison with a model that chooses a module by what its samples hold: it must not agree."""
    assert relative_difference(measured[1]["branch"], measured[2]["branch"]) > 1e-2
