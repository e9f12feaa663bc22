"""The gradient of a global batch does not depend on how it was cut, nor on which rank a missing modality falls to."""

from __future__ import annotations

import pytest

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig

pytestmark = pytest.mark.distributed
# The first half falls to rank 0 and the second to rank 1: one rank without audio, one without vision, one sample with
# nothing.
PATTERNS = [(1, 0, 1), (1, 0, 1), (0, 0, 1), (1, 0, 0), (1, 1, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0)]


@pytest.fixture(scope="module")
def job(random_backbone, tasks):
    """``job(samples, micro_batch, branch=False, tuning="lora")`` for gradients.py: ZeRO-3, fp32, dropout 0."""

    def make(samples, micro_batch, branch=False, tuning="lora"):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=BackboneConfig(
                path=str(random_backbone), tuning=tuning, lora_rank=4, lora_alpha=8, lora_dropout=0.0
            ),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32", zero_stage=3, micro_batch=micro_batch),
        )
        return {
            "config": config,
            "samples": samples,
            "tasks": tasks,
            "streams": {"audio": [6], "vision": [5]},
            "branch": branch,
        }

    return make


def relative_difference(a, b) -> float:
    """Largest norm ratio of the difference over all parameters (those with a gradient)."""
    assert a["gradients"].keys() == b["gradients"].keys()
    worst = 0.0
    for name, gradient in a["gradients"].items():
        scale = max(gradient.norm().item(), 1e-3)
        worst = max(worst, (gradient - b["gradients"][name]).norm().item() / scale)
    return worst


@pytest.fixture(scope="module")
def eight(job, run_ranks, make_samples):
    """One rank, eight samples, one micro-batch."""
    return run_ranks("gradients.py", 1, job(make_samples(8, PATTERNS), 8))


def test_two_ranks_of_four_give_the_gradient_of_one_rank_of_eight(job, run_ranks, make_samples, eight):
    """Also with every pattern of missing modalities, unevenly over the ranks."""
    two = run_ranks("gradients.py", 2, job(make_samples(8, PATTERNS), 4))
    assert two["sums"] == pytest.approx(eight["sums"], rel=1e-6)
    assert relative_difference(eight, two) < 1e-5


def test_accumulation_in_micro_batches_of_two_gives_the_same(job, run_ranks, make_samples, eight):
    assert relative_difference(eight, run_ranks("gradients.py", 1, job(make_samples(8, PATTERNS), 2))) < 1e-5


def test_uneven_shares_of_four_and_three_with_a_filler_give_the_same(job, run_ranks, make_samples):
    """Seven samples in micro-batches of one: rank 1 has three and fills its fourth with weight 0."""
    samples = make_samples(8, PATTERNS)[:7]
    one = run_ranks("gradients.py", 1, job(samples, 7))
    assert relative_difference(one, run_ranks("gradients.py", 2, job(samples, 4))) < 1e-5
    assert relative_difference(one, run_ranks("gradients.py", 2, job(samples, 1))) < 1e-5


def test_a_backbone_that_is_trained_whole_has_one_processs_gradients(job, run_ranks, make_samples):
    """Its embedding, too, which reads the prompt, the answers and the experts' text."""
    samples = make_samples(8, PATTERNS)
    one = run_ranks("gradients.py", 1, job(samples, 8, tuning="full"))
    two = run_ranks("gradients.py", 2, job(samples, 4, tuning="full"))
    # The backbone's; the fusion's are the other tests'.
    for result in (one, two):
        result["gradients"] = {n: g for n, g in result["gradients"].items() if n.startswith("backbone.")}
    assert relative_difference(one, two) < 1e-5
    (embedding,) = (g for name, g in one["gradients"].items() if "embed_tokens" in name)
    assert embedding.norm() > 0


def test_a_branch_on_the_samples_would_be_noticed(job, run_ranks, make_samples):
    """The same comparison with a model that chooses a module by what its samples hold: it must not agree."""
    samples = make_samples(8, PATTERNS)
    one = run_ranks("gradients.py", 1, job(samples, 4, branch=True))
    two = run_ranks("gradients.py", 2, job(samples, 4, branch=True))
    assert relative_difference(one, two) > 1e-2
