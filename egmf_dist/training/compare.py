"""``training.compare_modules``: ranks that call different modules are stopped, and told where they part.

ZeRO-3 gathers a module's weights where the module is called, so a rank that leaves one out, or takes another, leaves
the others waiting for ever, and neither says why. With this setting every call is first shared: one number between
the hosts a call, which costs too much for anything but finding such a fault. Calls of the backward pass are not
compared (what gradient checkpointing calls again in it is), nor is scoring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from egmf_dist import distributed
from egmf_dist.errors import EgmfError

_SHOWN = 3
"""Calls in common that are named."""


class _Calls:
    """The calls of this rank's pass, shared one by one."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model, self.names, self.before = model, names, list[str]()

    def share(self, number: int) -> None:
        """Say what this rank calls. Scoring is not compared: below stage 3 ranks need not score alike.

        Raises:
            EgmfError: on every rank, another one calls another module.
        """
        if not self.model.training:
            return
        everyone = [int(called) for (called,) in distributed.share_numbers([float(number)])]
        if len(set(everyone)) == 1:
            self.before = [*self.before, self.names[number]][-_SHOWN:]
            return
        by_call: dict[int, list[int]] = {}
        for other, called in enumerate(everyone):
            by_call.setdefault(called, []).append(other)
        said = "; ".join(f"{_ranks(those)} {self.names[called]}" for called, those in by_call.items())
        behind = f", after {', '.join(self.before)} on all" if self.before else ""
        raise EgmfError(f"training.compare_modules: ranks call different modules: {said}{behind}")


def compare_modules(model: nn.Module) -> None:
    """Have every forward call of a module compared over the ranks from here on; every rank must call this.

    Raises:
        EgmfError: on every rank, the ranks do not have the same modules.
    """
    named = list(model.named_modules())
    names = [f"calls {name or 'the model'}" for name, _ in named] + ["has come to the end of its forward pass"]
    lists = distributed.share_objects([tuple(names)])
    if len(set(lists)) > 1:
        other = next(rank for rank, those in enumerate(lists) if those != lists[0])
        differ = sorted(set(lists[0]) ^ set(lists[other])) or ["their order"]
        raise EgmfError(f"training.compare_modules: rank {other} has other modules than rank 0; the first: {differ[0]}")
    calls = _Calls(model, names)
    for number, (_, module) in enumerate(named):
        # First of all hooks: DeepSpeed's gathers, in which a rank would already wait.
        module.register_forward_pre_hook(_sharing(calls, number), prepend=True)
    model.register_forward_hook(_sharing(calls, len(named)))


def _sharing(calls: _Calls, number: int) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        calls.share(number)

    return hook


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))}"
