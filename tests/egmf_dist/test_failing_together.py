"""What one rank alone meets with a file is one line, on every rank."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors import SafetensorError

from egmf_dist import distributed
from egmf_dist.errors import EgmfError, MachineError
from egmf_dist.model.loading import in_one_line
from egmf_dist.model.trained import fill_parameters, shape_of, trained_parameters
from egmf_dist.training.supervision import next_step
from egmf_shards import ShardError
from egmf_shards.errors import UnreachableError


def test_a_file_that_the_system_does_not_give_is_one_line_on_every_rank(tmp_path: Path) -> None:
    """Rank 0 meets it alone; the others would wait for it, and its traceback says less."""
    lost = tmp_path / "lost"
    with pytest.raises(EgmfError, match=rf"^{lost}: No such file or directory$"):
        distributed.on_rank_zero(lost.read_text)
    with pytest.raises(EgmfError, match=rf"^{lost}: No such file or directory$"), distributed.failing_together():
        lost.read_text()
    with pytest.raises(ConnectionResetError), distributed.failing_together():
        raise ConnectionResetError(104, "Connection reset by peer")  # no file's


def fails(error: Exception) -> NoReturn:
    raise error


def test_what_a_machine_did_is_no_users_error() -> None:
    """Ray starts a training again after the one, and ends it by the other: a host's stale mount goes with the host."""
    for error, kind in (
        (OSError(errno.ESTALE, "Stale file handle", "f"), MachineError),
        (OSError(errno.EIO, "Input/output error", "f"), MachineError),
        (OSError(errno.ENOSPC, "No space left on device", "f"), EgmfError),
        (OSError(errno.EACCES, "Permission denied", "f"), EgmfError),
        (UnreachableError("f: the store does not answer"), MachineError),
        (ShardError("f: truncated"), EgmfError),
        (MachineError("f: killed"), MachineError),
        (EgmfError("f: odd"), EgmfError),
    ):
        with pytest.raises(kind, match=r"^f: ") as together, distributed.failing_together():
            fails(error)
        with pytest.raises(kind, match=r"^f: ") as on_zero:
            distributed.on_rank_zero(partial(fails, error))
        assert type(together.value) is type(on_zero.value) is kind
        if not isinstance(error, OSError):  # a loader has made a line of it
            with pytest.raises(kind, match=r"^f: "):
                next_step((fails(e) for e in [error]), None, False, False)  # type: ignore[arg-type, misc]
    stale = r"^backbone 'b': its weights cannot be loaded: .*Stale"
    with pytest.raises(MachineError, match=stale), in_one_line("b", "weights"):
        fails(OSError(errno.ESTALE, "Stale file handle", "f"))


def test_what_cannot_be_read_after_it_was_verified_is_said(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    shapes = {name: shape_of(parameter) for name, parameter in trained_parameters(model).items()}
    asked: list[str] = []
    refused: list[Exception] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        raise refused[0]

    for error, kind in (
        (OSError(errno.EIO, "Input/output error"), MachineError),
        (OSError(errno.EACCES, "Permission denied"), EgmfError),
        (SafetensorError("header too large"), EgmfError),
    ):
        asked.clear()
        refused[:] = [error]
        with pytest.raises(kind, match=r"c cannot be read "):
            fill_parameters(model, shapes, read, tmp_path / "c")
        assert len(asked) == 1
