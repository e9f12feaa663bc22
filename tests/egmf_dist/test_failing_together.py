"""What one rank alone meets with a file is one line, on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.model.trained import fill_parameters, shape_of, trained_parameters


def test_a_file_that_the_system_does_not_give_is_one_line_on_every_rank(tmp_path: Path) -> None:
    """Rank 0 meets it alone; the others would wait for it, and its traceback says less."""
    lost = tmp_path / "lost"
    with pytest.raises(EgmfError, match=rf"^{lost}: No such file or directory$"):
        distributed.on_rank_zero(lost.read_text)
    with pytest.raises(EgmfError, match=rf"^{lost}: No such file or directory$"), distributed.failing_together():
        lost.read_text()
    with pytest.raises(ConnectionResetError), distributed.failing_together():
        raise ConnectionResetError(104, "Connection reset by peer")  # no file's


def test_what_cannot_be_read_after_it_was_verified_is_said(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    shapes = {name: shape_of(parameter) for name, parameter in trained_parameters(model).items()}
    asked: list[str] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        raise OSError(5, "Input/output error")

    with pytest.raises(EgmfError, match=r"c cannot be read .*Input/output error"):
        fill_parameters(model, shapes, read, tmp_path / "c")
    assert len(asked) == 1
