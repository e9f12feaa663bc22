"""A training's steps on fake tensors in a fake process group: DeepSpeed and the model as they are, without numbers.

What is counted is what would happen on one rank of any number of them, on a machine that need not exist: bytes by
what they are, messages by kind, operations. It takes a process of its own (:func:`rehearse` starts it), because what
fakes a world spoils the process.

Operators are the CPU's. A GPU's attention and fused kernels keep other intermediate results; the difference is small
beside what the LLM's layers keep.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from egmf_dist.config import Config
from egmf_dist.config.load import config_from_dict
from egmf_dist.engine import deepspeed_settings, initialise, partitioned_loading
from egmf_dist.ledger import Count, Ledger
from egmf_dist.scale.engines import engine_bytes
from egmf_dist.scale.ranks import as_rank, on_ranks
from egmf_dist.scale.subject import Subject, read_subject
from egmf_dist.training.loop import train_step
from egmf_dist.training.schedule import parameter_groups

WARM = 2
"""Micro-batches at least before one is counted: DeepSpeed's stage 3 prefetches once it has seen two forward passes."""


LIVE = {
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}
"""Weights that stage 3 keeps whole, by DeepSpeed's settings and their usual values."""


@dataclass(frozen=True)
class Rehearsal:
    """What one rank holds, sends and computes. Bytes are of one rank."""

    ranks: int
    stage: int
    micro_batches: int
    """Of a step on one rank."""
    frozen_numbers: int
    """Frozen weights of the whole model."""
    trained_numbers: int
    frozen_bytes: int
    """What this rank holds of them between two steps."""
    trained_bytes: int
    """The same of the trained weights in the dtype that computes."""
    optimizer_bytes: int
    """fp32 copies and AdamW's two moments."""
    resident_bytes: int
    """Everything that is alive between two steps, DeepSpeed's buffers included."""
    peak_bytes: int
    """The most that is alive in a usual step."""
    longest_peak_bytes: int
    """The most that is alive in a step with the data's longest sample in it."""
    gathered_bytes: int
    """The most whole weights at once that stage 3 has gathered; 0 in other stages."""
    logits_bytes: int
    """Logits of a micro-batch with the longest sample in it, in the dtype that computes."""
    tokens: int
    """Tokens that this rank's LLM reads in the step, padding left out."""
    columns: int
    """The same with padding."""
    samples: int
    inner: Count
    """Of a micro-batch that is not the last."""
    last: Count
    """Of the last one, with the optimiser's step."""
    layers: int = 0
    """Of the backbone."""
    quantisable_numbers: int = 0
    """Frozen weights that ``backbone.quantise 4bit`` packs: those of linear layers but the output's."""
    rehearsed: tuple[int, ...] = ()
    """With how many layers it was rehearsed, where not with all."""
    said: tuple[str, ...] = ()

    @property
    def step(self) -> Count:
        """Of a whole step."""
        return self.inner.times(self.micro_batches - 1) + self.last

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        plain = {name: value for name, value in vars(self).items() if name not in ("inner", "last")}
        return plain | {"inner": self.inner.to_json(), "last": self.last.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rehearsal:
        """The inverse of :meth:`to_json`."""
        counts = {name: Count.from_json(data[name]) for name in ("inner", "last")}
        lists = {name: tuple(data[name]) for name in ("said", "rehearsed")}
        return cls(**{**data, **counts, **lists})


def deeper(low: Rehearsal, high: Rehearsal, layers: int) -> Rehearsal:
    """What a model of ``layers`` layers comes to, from two that are shallower.

    Everything that is counted grows with the layers in a straight line once there are more weights than stage 3 keeps
    whole (:func:`depths`); the padding behind a rank's part of the optimiser does not, and is off by some bytes.
    """
    step, more = high.layers - low.layers, layers - low.layers

    def at(first: int, second: int) -> int:
        return round(first + (second - first) * more / step)

    def count(first: Count, second: Count) -> Count:
        made = Count()
        for ours, theirs, into in (
            (first.messages, second.messages, made.messages),
            (first.work, second.work, made.work),
        ):
            into.update({key: at(ours[key], theirs[key]) for key in {**ours, **theirs}})  # type: ignore[misc]
        return made

    grows: dict[str, Any] = {
        name: at(getattr(low, name), getattr(high, name)) for name in vars(low) if name.endswith(("_bytes", "_numbers"))
    }
    return replace(
        low,
        layers=layers,
        rehearsed=(low.layers, high.layers),
        inner=count(low.inner, high.inner),
        last=count(low.last, high.last),
        **grows,
    )


def depths(layers: int, layer_numbers: int, config: Config) -> tuple[int, int] | None:
    """How many layers :func:`deeper` needs of a model; None where it would be no fewer than there are.

    Args:
        layers: of the model.
        layer_numbers: weights of one.
        config: the settings.
    """
    options = config.training.zero_options
    live = max(options.get(name, usual) for name, usual in LIVE.items())
    low = 4 if config.training.zero_stage < 3 else max(4, -(-2 * live // max(1, layer_numbers)) + 2)
    return None if config.backbone.lora_layers or low + 2 >= layers else (low, low + 2)


class Part(NamedTuple):
    """One rehearsal of several."""

    config: Config
    ranks: int
    layers: int | None = None
    """Of the backbone's layers so many; None: all."""


def rehearse(parts: Sequence[Part], shape: str | None = None, rank: int = 0) -> list[Rehearsal]:
    """Rehearse steps, one after the other, in a process of its own.

    Args:
        parts: among one number of ranks all.
        shape: see :func:`egmf_dist.scale.subject.read_subject`.
        rank: which of the ranks.

    Raises:
        EgmfError: bad settings, or something that cannot be read, in one line.
    """
    jobs = [{"config": asdict(part.config), "layers": part.layers} for part in parts]
    job = {"parts": jobs, "ranks": parts[0].ranks, "shape": shape, "rank": rank}
    (made,) = on_ranks("egmf_dist.scale.rehearsal", job, "the plan's rehearsal")
    return [Rehearsal.from_json(one) for one in made]


def _rehearse(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the process of its own does."""
    from egmf_dist.scale.fake import one_of, without_numbers

    found = []
    with one_of(job["ranks"], job["rank"]):  # DeepSpeed keeps the first group for ever
        for part in job["parts"]:
            with read_subject(config_from_dict(part["config"]), job["shape"]) as subject:
                plays = Plays(subject, job["ranks"], job["rank"])
                make = partial(unread_model, subject, part["layers"])
                with without_numbers(), Ledger() as ledger:
                    found.append(take_steps(plays, ledger, make).to_json())
            gc.collect()
    return found


class Plays:
    """What a rank trains on: steps that warm up and one that is counted, read and looked at where numbers are real."""

    def __init__(self, subject: Subject, ranks: int, rank: int) -> None:
        stream = subject.stream(rank, ranks)
        self.subject, self.ranks, self.micro_batches = subject, ranks, stream.micro_batches
        self.few = min(stream.micro_batches, 2)
        """So many micro-batches are trained on in a step: what the others cost is what the first does."""
        self.warm = WARM // self.few
        steps = [[b.to(torch.device("cpu")) for b in subject.batches(stream, step)] for step in range(self.warm + 1)]
        self.steps, whole = [batches[-self.few :] for batches in steps], steps[-1]
        self.longest = subject.longest(stream).to(torch.device("cpu"))
        self.read = max(int(b.rows.read_N.numel()) for b in (*whole, self.longest))
        self.sizes: dict[str, Any] = {
            "tokens": sum(int((b.rows.end_RC > 0).sum()) for b in whole),
            "columns": sum(int(b.rows.end_RC.numel()) for b in whole),
            "samples": sum(len(b.ids) for b in whole),
        }

    def engine(self, make: Callable[[], Any]) -> Any:
        """DeepSpeed's engine of the model that ``make`` gives, which is called where stage 3 partitions it."""
        config = self.subject.config
        settings = deepspeed_settings(config, self.few)
        with partitioned_loading(config, settings):
            model = make()
        return initialise(model, torch.optim.AdamW(parameter_groups(model, config.training)), settings)


def take_steps(plays: Plays, ledger: Ledger, make: Callable[[], Any]) -> Rehearsal:
    """Train as a run does, in the process group that is there, and count the last step.

    Args:
        plays: the rank's batches.
        ledger: entered.
        make: the model, under stage 3 called where it is partitioned.
    """
    config, few = plays.subject.config, plays.few
    engine = plays.engine(make)
    model: Any = engine.module
    gathered = Gathered(model)
    for batches in plays.steps[:-1]:
        train_step(engine, batches, 1.0, torch.device("cpu"))
    resident, take = ledger.alive, engine.step
    marks = [ledger.count.copy()]

    def marked() -> Any:
        done = take()
        marks.append(ledger.count.copy())
        return done

    engine.step = marked
    ledger.from_now()
    gathered.most = gathered.now
    train_step(engine, plays.steps[-1], 1.0, torch.device("cpu"))
    engine.step, peak, most = take, ledger.peak, gathered.most
    ledger.from_now()
    train_step(engine, [plays.longest], 1.0, torch.device("cpu"))
    held = engine_bytes(engine)
    quantisable = sum(_quantisable(model.backbone))
    engine.destroy()
    return Rehearsal(
        ranks=plays.ranks,
        stage=config.training.zero_stage,
        micro_batches=plays.micro_batches,
        resident_bytes=resident,
        peak_bytes=peak,
        longest_peak_bytes=max(peak, ledger.peak),
        gathered_bytes=most,
        logits_bytes=plays.read * plays.subject.capabilities.vocabulary * held.width,
        inner=marks[1] - marks[0] if few > 1 else Count(),
        last=marks[-1] - marks[-2],
        quantisable_numbers=quantisable,
        layers=int(getattr(model.backbone.config.get_text_config(), "num_hidden_layers", 0)),
        said=plays.subject.said,
        **plays.sizes,
        **held.fields,
    )


def unread_model(subject: Subject, layers: int | None = None) -> Any:
    """The whole model, made as a run makes it but for the LLM's weights, which are not read: random, or none on fake
    tensors.

    Args:
        subject: whose.
        layers: of the LLM's layers so many; None: all.
    """
    from transformers import AutoModelForCausalLM

    from egmf_dist.build import build_egmf
    from egmf_dist.model.backbone import fitted, load_backbone_config
    from egmf_dist.model.loading import partitioned
    from egmf_dist.model.precision import dtype_of

    config = subject.config
    # Its kernels need the GPU that is not here.
    config = replace(config, backbone=replace(config.backbone, liger=False))
    dtype = dtype_of(config.training.precision)
    settings = load_backbone_config(config.backbone)
    if config.backbone.attn_implementation in ("sdpa", "eager"):
        settings._attn_implementation = config.backbone.attn_implementation
    text = settings.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    if config.training.zero_stage == 3:
        backbone = partitioned(settings, dtype)
        backbone.tie_weights()
    else:
        backbone = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    return build_egmf(config, subject.capabilities, subject.data, fitted(backbone.eval(), config.backbone))


def _quantisable(backbone: Any) -> Iterator[int]:
    head = backbone.get_output_embeddings()
    for module in backbone.modules():
        if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad:
            yield int(getattr(module.weight, "ds_numel", module.weight.numel()))


class Gathered:
    """The most bytes of weights that stage 3 has whole at one time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.now = self.most = 0
        for parameter in model.parameters():
            if hasattr(parameter, "ds_id"):
                self._watch(parameter)

    def _watch(self, parameter: Any) -> None:
        size = parameter.ds_numel * parameter.ds_tensor.element_size()
        gather, part = parameter.all_gather_coalesced, parameter.partition

        def gathering(those: Any, *arguments: Any, **named: Any) -> Any:
            self.now += sum(p.ds_numel * p.ds_tensor.element_size() for p in those)
            self.most = max(self.most, self.now)
            return gather(those, *arguments, **named)

        def parting(*arguments: Any, **named: Any) -> Any:
            self.now -= size
            return part(*arguments, **named)

        parameter.all_gather_coalesced, parameter.partition = gathering, parting


if __name__ == "__main__":
    sys.exit(as_rank(_rehearse))
