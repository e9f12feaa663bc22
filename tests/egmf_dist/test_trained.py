"""What was trained, back into a model."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from egmf_dist.errors import EgmfError
from egmf_dist.model import trained


def test_an_adapter_is_read_a_little_at_a_time(tmp_path, monkeypatch):
    """That of a backbone trained whole is more than a rank may hold: weights are taken one by one from the file."""
    taken: list[str] = []

    class Watched:
        def __init__(self, opened):
            self.opened = opened

        def __enter__(self):
            self.inside = self.opened.__enter__()
            return self

        def __exit__(self, *rest):
            return self.opened.__exit__(*rest)

        def __getattr__(self, name):
            return getattr(self.inside, name)

        def get_tensor(self, name):
            taken.append(name)
            return self.inside.get_tensor(name)

    monkeypatch.setattr(trained, "safe_open", lambda *a, **k: Watched(safe_open(*a, **k)))
    monkeypatch.setattr(trained, "_GATHERED", 20)
    model, other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    save_file(dict(model.state_dict()), tmp_path / trained.TRAINED_FILE)
    trained.load_trained(other, tmp_path)
    assert taken == [name for name, _ in model.named_parameters()]
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(EgmfError, match=r"0.weight is \[4, 4\]; this model's is \[4, 5\]"):
        trained.load_trained(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), tmp_path)
    with pytest.raises(EgmfError, match=r"does not fit this model: 2 names differ, the first is 1\.bias"):
        trained.load_trained(nn.Sequential(nn.Linear(4, 4)), tmp_path)
    (tmp_path / trained.TRAINED_FILE).write_bytes(b"torn")
    with pytest.raises(EgmfError, match="cannot be read"):
        trained.load_trained(other, tmp_path)


@pytest.mark.distributed
def test_under_zero_3_rank_0_alone_reads_and_a_group_at_a_time_is_whole(run_ranks, tmp_path):
    """Bitwise what was saved, on two ranks; between groups no parameter stays gathered."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    weights = dict(model.state_dict())
    save_file(weights, tmp_path / trained.TRAINED_FILE)
    group = 80  # a layer of 8 by 8 with its bias, not two
    found = run_ranks("trained_weights.py", 2, {"folder": tmp_path, "group": group})
    assert found["saved"].keys() == weights.keys()
    assert all(torch.equal(found["saved"][name], weight) for name, weight in weights.items())
    assert found["read"] == [list(weights), []]
    assert (0 < found["whole"] <= group, found["after"]) == (True, 0)
