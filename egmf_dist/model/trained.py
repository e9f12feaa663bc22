"""The weights that training changes: by name, gathered whole to be saved, filled from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from egmf_dist import distributed
from egmf_dist.errors import EgmfError
from egmf_dist.formats import TRAINED_FILE, unreadable

_GATHERED = 2**26
"""The most numbers that ZeRO-3 gathers on every device at once to save or to fill them: 128 MiB in bf16."""


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shape_of(parameter: nn.Parameter) -> list[int]:
    """Its own shape, also where ZeRO-3 has partitioned it and shows an empty one."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def gather_trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights, whole, on rank 0's CPU (an empty dictionary elsewhere). Every rank must call this.

    A few at a time: where the whole backbone is trained, no device could hold all of them at once.
    """
    found: dict[str, torch.Tensor] = {}
    for group in _groups(trained_parameters(model)):
        with _whole(group):
            if distributed.rank() == 0:
                found |= {name: p.detach().cpu().clone().contiguous() for name, p in group.items()}
    return found


def _whole(group: Mapping[str, nn.Parameter], modifier_rank: int | None = None) -> AbstractContextManager[Any]:
    """Inside, those that ZeRO-3 has partitioned are whole; what ``modifier_rank`` writes into them all ranks get."""
    partitioned = [p for p in group.values() if hasattr(p, "ds_id")]
    if not partitioned:  # a model that is used alone needs no DeepSpeed
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    gathered: AbstractContextManager[Any] = GatheredParameters(partitioned, modifier_rank=modifier_rank)
    return gathered


def _groups(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """In order, so many as hold :data:`_GATHERED` numbers together, or one that holds more."""
    group: dict[str, nn.Parameter] = {}
    numbers = 0
    for name, parameter in parameters.items():
        size = getattr(parameter, "ds_numel", parameter.numel())
        if group and numbers + size > _GATHERED:
            yield group
            group, numbers = {}, 0
        group[name] = parameter
        numbers += size
    if group:
        yield group


def load_trained(model: nn.Module, folder: Path) -> None:
    """Fill the trained parameters of a model from ``folder/trained.safetensors``; every rank must call this.

    Raises:
        EgmfError: the file is missing or damaged, or its names or shapes are not this model's.
    """
    path = folder / TRAINED_FILE
    if not path.is_file():
        raise EgmfError(f"{path}: no such file; give the folder of a trained adapter")
    try:
        with safe_open(path, framework="pt") as saved:
            shapes = {name: saved.get_slice(name).get_shape() for name in saved.keys()}  # noqa: SIM118
            fill_parameters(model, shapes, saved.get_tensor, path)
    except (OSError, SafetensorError) as error:
        raise EgmfError(f"{path}: cannot be read: {error}; put it back from a copy") from error


def fill_parameters(
    model: nn.Module, shapes: Mapping[str, list[int]], read: Callable[[str], torch.Tensor], where: Path
) -> None:
    """Fill the trained parameters of a model, some at a time: a backbone that was trained whole is more than a rank may
    hold. Of those that ZeRO-3 has partitioned rank 0 alone reads, and all take their part; every rank must call this.

    Args:
        model: the module inside the engine, or one that is whole.
        shapes: of what there is, by name.
        read: gives a parameter's numbers, in its shape.
        where: they are from, for the message.

    Raises:
        EgmfError: names or shapes are not this model's, or a rank cannot read; on every rank alike.
        MachineError: a rank cannot read because its machine failed; on every rank alike.
    """
    own = trained_parameters(model)
    _check_fit(where, shapes, own)
    failed: Exception | None = None
    for group in _groups(own):
        with _whole(group, modifier_rank=0), torch.no_grad():
            for name, parameter in group.items():
                # One that cannot read goes on through the groups: the others wait for it in each.
                if failed is None and (not hasattr(parameter, "ds_id") or distributed.rank() == 0):
                    try:
                        parameter.copy_(read(name))
                    except (OSError, SafetensorError) as error:
                        failed = error
    with distributed.failing_together():
        if failed is not None:
            raise unreadable(where, failed) from failed


def _check_fit(path: Path, shapes: Mapping[str, list[int]], own: Mapping[str, nn.Parameter]) -> None:
    if shapes.keys() != own.keys():
        odd = sorted(shapes.keys() ^ own.keys())
        raise EgmfError(f"{path}: does not fit this model: {len(odd)} names differ, the first is {odd[0]}")
    for name, parameter in own.items():
        if shape_of(parameter) != shapes[name]:
            raise EgmfError(f"{path}: {name} is {shapes[name]}; this model's is {shape_of(parameter)}")
