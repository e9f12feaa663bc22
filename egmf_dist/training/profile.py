"""Where a training step's time goes, by phase; off it costs nothing.

Of a start ``training.profile_steps`` steps are timed, from the third on. Two more follow, whose seconds count for
nothing: one in which every operator and message is counted (:mod:`egmf_dist.ledger`), one that torch's profiler
records. What is wrapped for a step is put back when it is over: between two profiled steps, too, nothing is installed.

A phase's seconds are its own: what runs inside of it under another name is that one's. So phases add up to the step,
and ``host`` is what has no name. On a GPU the moments are CUDA events, which nobody waits for before the step is over.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from egmf_dist import distributed
from egmf_dist.files import write_json
from egmf_dist.ledger import Count, Ledger

if TYPE_CHECKING:
    from egmf_dist.training.trainer import Trainer

WARM = 2
"""Steps of a start before the first that is timed: DeepSpeed sees the order of modules, kernels are chosen."""
MORE = 2
"""Steps after the timed ones: a counted one, a recorded one."""
HOST = "host"
PHASES = (
    "data", "encoders", "experts", "gate", "pooling", "pseudo tokens", "LLM forward", "backward", "gathers", "reduces",
    "optimizer", HOST,
)  # fmt: skip
_GATHERS = ("all_gather", "all_gather_into_tensor", "allgather_fn", "all_gather_coalesced", "broadcast")
_REDUCES = ("all_reduce", "inference_all_reduce", "reduce", "reduce_scatter", "reduce_scatter_fn")
SUMMARY, TRACE = "summary.json", "trace.json"


class Phases:
    """Moments at which one phase ends and another begins."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stack = [HOST]
        self._marks: list[tuple[str, Any]] = []
        self.at: Callable[[str], None] | None = None
        """Called with the phase that ends, at each moment."""

    @property
    def now(self) -> str:
        """The phase that runs."""
        return self._stack[-1]

    def begin(self) -> None:
        """A step begins."""
        self._stack, self._marks = [HOST], []
        self._mark()

    def end(self) -> dict[str, float]:
        """The step is over: seconds by phase."""
        self._mark()
        if self._cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, first), (name, second) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] += first.elapsed_time(second) / 1e3 if self._cuda else second - first
        return seconds

    def enter(self, name: str) -> None:
        """From here on it is this phase."""
        self._mark()
        self._stack.append(name)

    def leave(self) -> None:
        """Back to the one around it."""
        self._mark()
        self._stack.pop()

    def _mark(self) -> None:
        if self.at is not None:
            self.at(self.now)
        moment: Any = time.perf_counter()
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((self.now, moment))

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a phase."""

        def phase(*arguments: Any, **named: Any) -> Any:
            self.enter(name)
            try:
                return function(*arguments, **named)
            finally:
                self.leave()

        return phase


@dataclass
class Timed:
    """A step that was timed by phase."""

    seconds: float = 0.0
    """Of the whole step, by the host's clock."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each of :data:`PHASES`."""


@contextlib.contextmanager
def timed(trainer: Trainer, phases: Phases) -> Iterator[Timed]:
    """Inside, one step is timed by phase; what is given has its seconds when it is over."""
    found = Timed()
    with wrapped(trainer, phases):
        begin = time.perf_counter()
        phases.begin()
        try:
            yield found
        finally:
            found.phases = phases.end()
            found.seconds = time.perf_counter() - begin


class Profiler:
    """Profiles a trainer's steps as ``training.profile_steps`` says; every rank has one, rank 0's is written.

    A run is profiled once: who goes on with it, after a worker's death or by ``--resume``, leaves what is there.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.steps = trainer, trainer.config.training.profile_steps
        self._done = 0
        self._phases = Phases(trainer.device)
        self._timed: list[Timed] = []
        self._counted: dict[str, Any] = {}

    def __enter__(self) -> Profiler:
        if self.steps and distributed.on_rank_zero(self.trainer.run.profile.exists):
            self.steps = 0
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to undo: each step puts back what it has wrapped."""

    def step(self) -> contextlib.AbstractContextManager[None]:
        """Around one step, reading included; the same context that does nothing where nothing is profiled."""
        if not self.steps or self._done >= WARM + self.steps + MORE:
            return _NOTHING
        self._done += 1
        place = self._done - 1 - WARM
        if place < 0:
            return _NOTHING
        if place < self.steps:
            return self._time()
        return self._count() if place == self.steps else self._record()

    @contextlib.contextmanager
    def _time(self) -> Iterator[None]:
        with timed(self.trainer, self._phases) as found:
            yield
        self._timed.append(found)

    @contextlib.contextmanager
    def _count(self) -> Iterator[None]:
        flops: Counter[str] = Counter()
        timeline: list[tuple[str, int]] = []
        ledger = Ledger(alive=self.trainer.device.type == "cpu")
        known = 0

        def at(phase: str) -> None:
            nonlocal known
            flops[phase] += ledger.count.flops - known
            known = ledger.count.flops
            cuda = self.trainer.device.type == "cuda"
            timeline.append((phase, torch.cuda.memory_allocated() if cuda else ledger.alive))

        self._phases.at = at
        try:
            with timed(self.trainer, self._phases), ledger:
                yield
        finally:
            self._phases.at = None
            self._counted = {
                "messages": _messages(ledger.count),
                "flops": dict(flops),
                "timeline": timeline,
                "peak_bytes": ledger.peak if ledger.alive else max(size for _, size in timeline),
            }

    @contextlib.contextmanager
    def _record(self) -> Iterator[None]:
        own = distributed.rank() == 0
        if not own:
            yield
            return
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        with profile(activities=kinds) as recorded:
            yield
        try:
            self._write(recorded)
        except OSError as error:  # training is what the run is for
            progress = self.trainer.progress
            message = f"the profile could not be written: {self.trainer.run.profile}: {error.strerror or error}"
            self.trainer.records.write({"kind": "warning", "step": progress.step, "message": message})

    def _write(self, recorded: Any) -> None:
        folder = self.trainer.run.profile
        folder.mkdir()
        recorded.export_chrome_trace(str(folder / TRACE))
        config = self.trainer.config
        steps = len(self._timed)
        write_json(
            folder / SUMMARY,
            {
                "kind": "profile",
                "steps": steps,
                "ranks": distributed.world_size(),
                "stage": config.training.zero_stage,
                "device": self.trainer.device.type,
                "step_s": sum(one.seconds for one in self._timed) / steps,
                "phases": {name: sum(one.phases[name] for one in self._timed) / steps for name in PHASES},
                "checkpointing": config.backbone.gradient_checkpointing,
                "kernels": _kernels(recorded),
                **self._counted,
            },
        )


_NOTHING = contextlib.nullcontext()


def _messages(count: Count) -> dict[str, dict[str, int]]:
    calls: Counter[str] = Counter()
    for (kind, _, _), times in count.messages.items():
        calls[kind] += times
    return {kind: {"bytes": size, "calls": calls[kind]} for kind, size in count.bytes_by_kind.items()}


def _kernels(recorded: Any) -> list[dict[str, Any]]:
    """A GPU's kernels by name: seconds and calls, the longest first; none without a GPU."""
    rows = [
        {"name": event.key, "seconds": event.self_device_time_total / 1e6, "calls": event.count}
        for event in recorded.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def wrapped(trainer: Trainer, phases: Phases) -> contextlib.ExitStack:
    """Have what a step does say which phase it is; closing what is returned puts everything back."""
    stack = contextlib.ExitStack()
    engine: Any = trainer.engine
    model: Any = engine.module
    fusion = getattr(model, "fusion", None)
    modules = {
        "encoders": [getattr(model, "encoders", None)],
        "experts": [getattr(fusion, name, None) for name in ("local", "attention")],
        "gate": [getattr(fusion, name, None) for name in ("gate", "mix")],
        "pooling": [getattr(fusion, "pool", None)],
        "pseudo tokens": [getattr(model, "pseudo_tokens", None)],
        "LLM forward": [model.backbone],
    }
    for name, own in modules.items():
        for module in filter(None, own):
            _watch(stack, module, name, phases)
    _replace(stack, trainer, "next_step", "data", phases)
    _replace(stack, engine, "backward", "backward", phases)
    _replace(stack, engine, "step", "optimizer", phases)
    import deepspeed.comm

    for name, functions in (("gathers", _GATHERS), ("reduces", _REDUCES)):
        for function in functions:
            if hasattr(deepspeed.comm, function):
                _replace(stack, deepspeed.comm, function, name, phases)
    if engine.zero_optimization_stage() == 3:
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        _replace(stack, coordinator, "fetch_sub_module", "gathers", phases)
    return stack


def _watch(stack: contextlib.ExitStack, module: torch.nn.Module, name: str, phases: Phases) -> None:
    # Hooks of others run inside of ours as far as torch lets them: DeepSpeed's fetch before, its release after.
    before = module.register_forward_pre_hook(lambda *_: phases.enter(name), prepend=True)
    after = module.register_forward_hook(lambda *_: phases.leave())
    stack.callback(before.remove)
    stack.callback(after.remove)


def _replace(stack: contextlib.ExitStack, where: Any, name: str, phase: str, phases: Phases) -> None:
    own = vars(where).get(name)
    setattr(where, name, phases.around(phase, getattr(where, name)))
    if own is not None:
        stack.callback(setattr, where, name, own)
    else:
        stack.callback(delattr, where, name)
