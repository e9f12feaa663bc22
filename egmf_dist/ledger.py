"""What passes torch's dispatcher, counted: messages by kind, floating-point operations, bytes moved, bytes alive.

The same count is taken of a training that runs and of one on fake tensors (:mod:`egmf_dist.scale.rehearsal`), so that
one can be held against the other.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_": "all-to-all",
    "alltoall_base_": "all-to-all",
}
"""Operators of ``torch.ops.c10d`` by what they are called; others carry no numbers worth counting."""
K = TypeVar("K")
_SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_SDPA_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass
class Count:
    """What was counted; all of it adds up."""

    messages: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """How often a message of (kind, bytes, ranks) was handed over. Bytes are those of the whole message: what is
    reduced, what a gather gives, what a scatter takes."""
    work: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often an operator of (floating-point operations, bytes read and written) ran."""

    def __add__(self, other: Count) -> Count:
        return Count(_with(self.messages, other.messages, 1), _with(self.work, other.work, 1))

    def __sub__(self, other: Count) -> Count:
        return Count(_with(self.messages, other.messages, -1), _with(self.work, other.work, -1))

    def copy(self) -> Count:
        """As it is now."""
        return Count(self.messages.copy(), self.work.copy())

    def times(self, factor: int) -> Count:
        """So many of it."""
        return Count(
            Counter({key: n * factor for key, n in self.messages.items()}),
            Counter({key: n * factor for key, n in self.work.items()}),
        )

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes handed over by kind of message."""
        found: Counter[str] = Counter()
        for (kind, size, _), times in self.messages.items():
            found[kind] += size * times
        return dict(sorted(found.items()))

    @property
    def flops(self) -> int:
        """Floating-point operations of matrix products and attention; a product and a sum are two."""
        return sum(flops * times for (flops, _), times in self.work.items())

    def to_json(self) -> dict[str, Any]:
        """Lists of lists."""
        return {
            "messages": [[*key, times] for key, times in self.messages.items()],
            "work": [[*key, times] for key, times in self.work.items()],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Count:
        """The inverse of :meth:`to_json`."""
        return cls(
            Counter({(kind, size, ranks): times for kind, size, ranks, times in data["messages"]}),
            Counter({(flops, size): times for flops, size, times in data["work"]}),
        )


def _with(ours: Counter[K], theirs: Counter[K], factor: int) -> Counter[K]:
    """Counts below zero stay, which Counter's own operators drop: where a message grows with the layers, what deeper
    models send is so many times the longer one less so many times the shorter one."""
    found = ours.copy()
    for key, times in theirs.items():
        found[key] += factor * times
        if not found[key]:
            del found[key]
    return found


class Ledger(TorchDispatchMode):
    """Counts while it is entered.

    Args:
        alive: also follow which storages are alive; a weak reference a storage.
        work: also count operators.
    """

    def __init__(self, alive: bool = True, work: bool = True) -> None:
        super().__init__()
        self.count = Count()
        self.alive = self.peak = 0
        """Bytes of storages that were seen here and are alive; the most there were since :meth:`from_now`."""
        self._follow, self._work = alive, work
        self._sizes: dict[int, int] = {}

    def from_now(self) -> None:
        """Begin to look for a new peak."""
        self.peak = self.alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count it."""
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            self._message(func, args)
        out = func(*args, **kwargs)
        if self._work and func.namespace == "aten":
            self._operator(func, args, kwargs, out)
        if self._follow:
            for tensor in _tensors(out):
                self.follow(tensor)
        return out

    def follow(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known == size or (known is None and size == 0):
            return
        if known is None:
            weakref.finalize(storage, self._gone, key)
        self._sizes[key] = size
        self.alive += size - (known or 0)
        self.peak = max(self.peak, self.alive)

    def _gone(self, key: int) -> None:
        self.alive -= self._sizes.pop(key, 0)

    def _message(self, func: Any, args: Any) -> None:
        kind = KINDS.get(func._schema.name.split("::")[1])
        if kind is None:
            return
        whole = max(sum(t.numel() * t.element_size() for t in _tensors(part)) for part in args if list(_tensors(part)))
        ranks = next((_ranks(a) for a in args if isinstance(a, torch.ScriptObject)), 0)
        self.count.messages[kind, whole, ranks] += 1

    def _operator(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs = list(_tensors(out))
        if not outs or func.is_view:
            return
        moved = sum(t.numel() * t.element_size() for t in [*_tensors((args, kwargs)), *outs])
        self.count.work[_flops(func, args, kwargs, out), moved] += 1


def _ranks(group: Any) -> int:
    import torch.distributed as dist

    try:
        return int(dist.ProcessGroup.unbox(group).size())
    except (RuntimeError, TypeError, AttributeError):  # a reduce operation is boxed as a group is
        return 0


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet in (_SDPA, _SDPA_BACKWARD):
        q, k, v = args[1:4] if packet is _SDPA_BACKWARD else args[:3]
        # Two products forward; backward computes the scores again and has four.
        products = 5 if packet is _SDPA_BACKWARD else 2
        return int(products * 2 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3]) // 2)
    counted = flop_registry.get(packet)
    return int(counted(*args, **kwargs, out_val=out)) if counted is not None else 0
