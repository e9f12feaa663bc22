"""Where the host would wait for a GPU, found without one: what asks for a value, or for a size that values decide."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from egmf_dist import distributed
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from egmf_dist.data.run_data import RunData
from egmf_dist.model.fusion import attention
from egmf_dist.run.checkpoints import Progress
from egmf_dist.training.loop import train_step
from egmf_dist.training.supervision import Supervision


class NoWait(TorchDispatchMode):
    """Fails on whatever a GPU would be waited for: numbers, truths and sizes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __enter__(self):
        # A CPU's numbers are read without any operation.
        self.patches = pytest.MonkeyPatch()
        for name in ("tolist", "numpy", "cpu"):
            self.patches.setattr(torch.Tensor, name, self.refuse)
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.undo()
        return super().__exit__(*error)

    @staticmethod
    def refuse(*arguments):
        raise AssertionError("reading numbers makes the host wait")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::").removesuffix("_static")
        # By a mask: its result's size is a value. (By indices it is not.)
        masks = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        assert name not in self.WAITS, f"{name} makes the host wait"
        assert not masks, "indexing by a mask makes the host wait"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def model_and_collator(request, random_backbone, tasks):
    config = Config(
        objective=ObjectiveConfig(number=getattr(request, "param", "tokens")),
        data=DataConfig(shards=["unused"]),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4, lora_alpha=8, lora_dropout=0.0),
        model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
        training=TrainingConfig(precision="fp32"),
    )
    data = RunData(tasks, ["en", "zh"], {"audio": [6], "vision": [5]}, {})
    capabilities, collator = read_backbone(config, data)
    model = build_egmf(config, capabilities, data).train()
    collator.packed = True
    return model, collator


class Engine:
    """What is ours of a step with DeepSpeed's engine."""

    def __init__(self, model):
        self.model, self.train = model, model.train

    def __call__(self, batch):
        return self.model(batch)

    def backward(self, loss):
        loss.backward()

    def step(self):
        pass


@pytest.mark.parametrize(
    ("model_and_collator", "packed"),
    [("tokens", False), ("tokens", True), ("soft", False), ("expected", True)],
    indirect=["model_and_collator"],
)
def test_forward_and_backward_wait_for_nothing(monkeypatch, model_and_collator, make_samples, packed):
    """Of the whole model, the backbone's included; with a 2-D mask it is the backbone that waits."""
    model, collator = model_and_collator
    batch = collator(make_samples(3, [(1, 1, 1), (1, 0, 1), (0, 1, 0)]), [1.0] * 3).to(torch.device("cpu"))
    if packed:
        monkeypatch.setattr(attention, "packs", lambda heads: True)
        monkeypatch.setattr(attention, "varlen_attn", lambda query, key, value, *rest: query + 0 * key.sum())
    with NoWait():
        model(batch).total.backward()
    collator.packed = False
    batch = collator(make_samples(3), [1.0] * 3).to(torch.device("cpu"))
    with pytest.raises(AssertionError, match="wait"), NoWait():
        model(batch)


def test_a_steps_losses_are_read_once_for_several_steps(monkeypatch, model_and_collator, make_samples):
    """Micro-batches, sums and the account of two steps ask for nothing; then one reading."""
    model, collator = model_and_collator
    samples = make_samples(4, [(1, 1, 1), (1, 0, 1), (0, 1, 0), (1, 1, 1)])
    batches = [collator(part, [1.0, 1.0]) for part in (samples[:2], samples[2:])]
    device = torch.device("cpu")
    batches = [batch.to(device) for batch in batches]  # where the boundaries are looked at
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    monkeypatch.setattr(distributed, "sum_on_device", lambda tensor: None)
    supervision = Supervision(Progress(), 100, records=None)
    with NoWait():
        for _ in range(2):
            sums_3 = train_step(Engine(model), batches, 4.0, device)
            supervision.add(sums_3, torch.ones(()), "s-0")
    losses = supervision.read()
    assert losses.total == pytest.approx(losses.answer + 0.5 * losses.auxiliary, rel=1e-5)
    supervision.add(sums_3, 1.0, "s-1")
    with pytest.raises(AssertionError, match="wait"), NoWait():
        supervision.read()
