"""What training changes of an engine, by parameter name: fp32 weights and AdamW's moments, in flat pieces.

ZeRO spreads them over the ranks, each stage in its own way. A rank copies out the pieces that it holds, without a
collective, each under ``KIND/START/NAME``: KIND is ``weight``, ``exp_avg`` or ``exp_avg_sq``, START the number at which
the piece begins in the flat parameter NAME. A reader joins pieces, so nothing refers to ranks or stages: what four
ranks of stage 3 wrote goes into two of stage 1.

DeepSpeed's own calls for this (``safe_get_*``) gather whole parameters or give only a part of what is needed (version
0.19.8: no optimiser state of other groups than the first in stages 1 and 2, none at all before the first step). So
three of its attributes are read that it does not document: ``_hp_mapping``, ``grad_position`` and
``fp32_partitioned_groups_flat``; DeepSpeed's version is pinned, and a bitwise resume is tested in each stage.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from egmf_dist import distributed
from egmf_dist.engine import Engine
from egmf_dist.formats import DamagedError, unreadable
from egmf_dist.model.trained import fill_parameters, shape_of, trained_parameters
from egmf_dist.run.checkpoints import MOMENTS, WEIGHT, State

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""Of DeepSpeed's engine."""
_RANDOM = "random"
Buffers = dict[str, torch.Tensor]


class _Held(NamedTuple):
    """A piece of a parameter that this rank holds: in its fp32 tensor ``flat``, and at the same place in AdamW's
    moments of that."""

    name: str
    start: int
    """Where it begins in the parameter."""
    length: int
    flat: torch.Tensor
    offset: int
    """Where it begins in ``flat``."""


def file_name(rank: int) -> str:
    """Of the file in which a rank's pieces are."""
    return f"state-{rank:05d}.safetensors"


def state_of(engine: Engine) -> State:
    """What all ranks know alike."""
    shapes = {name: shape_of(parameter) for name, parameter in trained_parameters(engine.module).items()}
    counters = {name: int(getattr(engine, name)) for name in COUNTERS}
    return State(_steps(engine), distributed.world_size(), shapes, counters)


def copy_pieces(engine: Engine, state: State, into: Buffers) -> Buffers:
    """Copies, on the CPU, of everything that this rank holds, and of its random state; no collective.

    Args:
        engine: DeepSpeed's, between two steps.
        state: its own.
        into: what an earlier call returned, to be filled again where it fits; nobody else may use it.
    """
    found: Buffers = {}
    for held in _held(engine):
        for kind in state.kinds:
            key = f"{kind}/{held.start}/{held.name}"
            own = into.get(key)
            if own is None or own.numel() != held.length:
                own = torch.empty(held.length, dtype=torch.float32, pin_memory=held.flat.is_cuda)
            found[key] = own.copy_(_numbers(engine, held, kind))
    found[f"{_RANDOM}/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        found[f"{_RANDOM}/cuda"] = torch.cuda.get_rng_state()
    return found


def put_pieces(engine: Engine, state: State, folder: Path) -> None:
    """Fill an engine that has taken no step: weights, moments, counters; every rank must call this.

    The groups' learning rate, weight decay and betas stay what the configuration says.

    Args:
        engine: DeepSpeed's.
        state: what the checkpoint says of its pieces.
        folder: it.

    Raises:
        EgmfError: names or shapes are not this model's, or a piece is missing; on every rank alike.
        MachineError: a rank's machine does not give what was verified; on every rank alike.
    """
    pieces = Pieces(folder, state, distributed.on_rank_zero(lambda: index_of(folder, state)))
    # What the forward pass reads; the fp32 masters are apart from it.
    fill_parameters(engine.module, state.shapes, pieces.whole, folder)
    optimizer = engine.basic_optimizer
    for flat in flats(engine):
        # What AdamW itself would make at its first step: there is nothing yet to be filled.
        optimizer.state.pop(flat, None)
        if state.adamw_steps:
            step = torch.tensor(float(state.adamw_steps))
            optimizer.state[flat] = {"step": step} | {moment: torch.zeros_like(flat).detach() for moment in MOMENTS}
    with distributed.failing_together(), _readable(folder):
        for held in _held(engine):
            for kind in state.kinds:
                _numbers(engine, held, kind).copy_(pieces.read(kind, held.name, held.start, held.length))
    for name, value in state.counters.items():
        setattr(engine, name, value)


def put_random_state(folder: Path, seed: int, step: int, ranks: int) -> None:
    """Go on with this rank's random numbers; where another number of ranks drew them, with new ones of this step."""
    rank = distributed.rank()
    if ranks != distributed.world_size():
        torch.manual_seed(((seed * 1_000_003 + rank) * 1_000_003 + step) % 2**63)
        return
    with (
        distributed.failing_together(),
        _readable(folder),
        safe_open(folder / file_name(rank), framework="pt") as file,
    ):
        names = set(file.keys())
        torch.set_rng_state(file.get_tensor(f"{_RANDOM}/cpu"))
        if f"{_RANDOM}/cuda" in names and torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor(f"{_RANDOM}/cuda"))


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """It was verified a moment ago; where this rank's machine cannot read it now, that is said."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unreadable(folder, error) from error


Index = Mapping[tuple[str, str], list[tuple[int, int, int]]]
"""By kind and name the pieces in their order: where each begins, its length, which rank's file it is in."""


def index_of(folder: Path, state: State) -> Index:
    """Where the pieces of a checkpoint are.

    Raises:
        DamagedError: a file cannot be read, or some numbers of a parameter are in none.
        MachineError: the machine does not give a file.
    """
    found: defaultdict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
    for rank in range(state.ranks):
        path = folder / file_name(rank)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # it is no dictionary
                    kind, start, *name = key.split("/", 2)
                    if kind != _RANDOM:
                        found[kind, name[0]].append((int(start), file.get_slice(key).get_shape()[0], rank))
        except (OSError, SafetensorError, ValueError, IndexError) as error:
            raise unreadable(path, error) from error
    index = {key: sorted(pieces) for key, pieces in found.items()}
    for name, shape in state.shapes.items():
        for kind in state.kinds:
            at = 0
            for start, count, _ in index.get((kind, name), []):
                at += count if start == at else 0
            if at != math.prod(shape):
                raise DamagedError(f"{folder}: {kind} of {name} has no number {at} of {math.prod(shape)}")
    return index


class Pieces:
    """Parts of parameters out of pieces; files are mapped, and opened when they are needed.

    Args:
        folder: the checkpoint.
        state: what it says of its pieces.
        index: of :func:`index_of`.
    """

    def __init__(self, folder: Path, state: State, index: Index) -> None:
        self.folder, self.state, self.index = folder, state, index
        self._files: dict[int, Any] = {}

    def whole(self, name: str) -> torch.Tensor:
        """The weights of a parameter, in its shape."""
        shape = self.state.shapes[name]
        return self.read(WEIGHT, name, 0, math.prod(shape)).reshape(shape)

    def read(self, kind: str, name: str, start: int, count: int) -> torch.Tensor:
        """``count`` numbers of a parameter from ``start`` on, float32."""
        parts = []
        for begin, length, rank in self.index[kind, name]:
            first, last = max(start, begin), min(start + count, begin + length)
            if first < last:
                parts.append(self._file(rank).get_slice(f"{kind}/{begin}/{name}")[first - begin : last - begin])
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _file(self, rank: int) -> Any:
        if rank not in self._files:
            self._files[rank] = safe_open(self.folder / file_name(rank), framework="pt")
        return self._files[rank]


def _held(engine: Engine) -> Iterator[_Held]:
    """The pieces that this rank holds, without the padding that ZeRO puts behind them."""
    parameter: Any  # DeepSpeed puts attributes on it
    for name, parameter in trained_parameters(engine.module).items():
        if engine.zero_optimization_stage() == 3:
            optimizer = engine.optimizer
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = size * distributed.rank()
            length = min(size, parameter.ds_numel - start)
            flat = optimizer.fp32_partitioned_groups_flat[group]
        elif parameter._hp_mapping is not None:  # None where this rank holds nothing of it
            mapping = parameter._hp_mapping
            start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            flat = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"][0]
            offset = mapping.hp_fragment_address.start
        else:
            continue
        if length > 0:
            yield _Held(name, start, length, flat, offset)


def _numbers(engine: Engine, held: _Held, kind: str) -> torch.Tensor:
    """What this rank holds of a kind, fp32 ``[length]``: the engine's own memory, to be read or filled."""
    flat = held.flat if kind == WEIGHT else engine.basic_optimizer.state[held.flat][kind]
    numbers: torch.Tensor = flat.detach().narrow(0, held.offset, held.length)
    return numbers


def flats(engine: Engine) -> list[torch.Tensor]:
    """The fp32 tensors that AdamW steps on; stage 3 keeps them out of the groups between steps."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [flat for group in engine.basic_optimizer.param_groups for flat in group["params"]]


def _steps(engine: Engine) -> int:
    """How many steps AdamW has taken."""
    state = engine.basic_optimizer.state
    counts = {int(state[flat]["step"]) for flat in flats(engine) if "step" in state.get(flat, {})}
    assert len(counts) <= 1, f"AdamW's groups have taken different numbers of steps: {sorted(counts)}"
    return counts.pop() if counts else 0
