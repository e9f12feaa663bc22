"""``egmf plan``: from a configuration to memory, messages, seconds, cost and advice, every figure predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from egmf_dist.config import Config
from egmf_dist.errors import EgmfError
from egmf_dist.scale.advice import UNPACKING, Judged, Machines, Work, advise
from egmf_dist.scale.hardware import GIB, find_hardware, in_fp32, with_rates
from egmf_dist.scale.loader import Loader, measure
from egmf_dist.scale.memory import PACKED, Sizes, parts_to_rehearse, sizes_of
from egmf_dist.scale.options import PlanOptions
from egmf_dist.scale.rehearsal import WARM, Part, Rehearsal, deeper, depths, rehearse
from egmf_dist.scale.subject import Share, Subject, read_subject
from egmf_dist.scale.sweep import sweep
from egmf_dist.scale.table import KIND as TABLE
from egmf_dist.scale.table import SIZES, table
from egmf_dist.scale.timing import StepTime, slowed, step_time

KIND = "plan"
PREDICTED = "predicted"


def check_options(options: PlanOptions) -> Machines:
    """Where is trained, by the options.

    Raises:
        EgmfError: one does not fit.
    """
    for name in ("hosts", "gpus_per_host", "cores_per_gpu"):
        if getattr(options, name) < 1:
            raise EgmfError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be 1 or more")
    for name in ("price", "store", "host_memory"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise EgmfError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    hardware = find_hardware(options.hardware, (options.inside, options.outside))
    if options.calibrate and not hardware.serial:
        raise EgmfError(f"--calibrate measures this machine's CPU; it goes with --hardware cpu, not {options.hardware}")
    if options.host_memory is not None:
        hardware = replace(hardware, host_memory=options.host_memory * 1e9)
    return Machines(hardware, options.hosts, options.gpus_per_host)


def plan(config: Config, options: PlanOptions) -> dict[str, Any]:
    """Plan a training.

    Args:
        config: its settings.
        options: where, and what else is asked.

    Returns:
        The summary, JSON-able.

    Raises:
        EgmfError, ShardError: bad options or settings, or a backbone or data that cannot be read.
    """
    machines = _in_precision(check_options(options), config)
    with read_subject(config, options.shape) as subject:  # in one line before any work
        layers, layer_numbers = shape_of(subject.config)
        stream = subject.stream(0, machines.ranks)
        loader = _measured(subject, machines, options)
        said, micro_batches = subject.said, stream.micro_batches
        heaviest = subject.heaviest(machines.ranks, WARM // min(micro_batches, 2))  # in the step that is counted
        shares = _shares(subject, machines.ranks) if options.dry_run else None
        lora = subject.config.backbone.tuning != "full"
    if options.calibrate:
        from egmf_dist.scale.calibrate import calibrate

        rates = calibrate(config, machines.ranks, options.clock)
        machines = replace(machines, hardware=with_rates(machines.hardware, rates))
    few = None if options.every_layer else depths(layers, layer_numbers, config)
    own = [Part(config, machines.ranks, depth) for depth in few or (None,)]
    found = rehearse([*own, *parts_to_rehearse(config, machines.ranks, layers)], options.shape, heaviest.rank)
    whole, shallow = found[0] if few is None else deeper(found[0], found[1], layers), found[len(own) :]
    sizes = sizes_of(shallow, whole, config)
    samples, reading = config.training.global_batch / machines.ranks, loader.waits(whole.samples)
    time = step_time(whole.step, machines.hardware, machines.hosts, machines.ranks_per_host, reading=reading)
    if config.backbone.quantise == "4bit":
        time = slowed(time, machines.hardware, UNPACKING)
    work = Work(whole.step, micro_batches, samples, lora, config.backbone.gradient_checkpointing, reading)
    advice = advise(sizes, work, machines, loader)
    summary = {
        "kind": KIND,
        "figures": PREDICTED,
        "machines": _machines(machines),
        "said": [*said, *_not_known(config, machines)],
        "model": _model(whole, heaviest),
        "memory": _memory(whole, sizes, config, machines),
        "messages": _messages(whole),
        "time": _time(whole, time, machines, loader, config, options.price, (heaviest.load, sizes.again)),
        "loader": asdict(loader),
        "advice": advice.words,
        "ways": [_judged(one, machines) for one in advice.judged],
    }
    if shares is not None:
        summary["dry_run"] = shares
    if options.sweep:
        summary["sweep"] = sweep(whole, machines, samples, loader)
    return summary


def plan_table(config: Config, options: PlanOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Sizes of backbones over numbers of GPUs (:mod:`egmf_dist.scale.table`).

    Args:
        config: settings but for the backbone's.
        options: where.
        say: called with what is done.

    Raises:
        EgmfError, ShardError: see :func:`plan`.
    """
    machines = _in_precision(check_options(options), config)
    with read_subject(config, SIZES[0]) as subject:
        loader = _measured(subject, machines, options)
        said = [line for line in subject.said if not line.startswith("backbone")]
    return {
        "kind": TABLE,
        "figures": PREDICTED,
        "machines": _machines(machines),
        "said": [*said, *_not_known(config, machines)],
        "rows": table(config, machines, loader, say),
    }


def _measured(subject: Subject, machines: Machines, options: PlanOptions) -> Loader:
    workers = subject.config.data.workers
    processes = workers if workers is not None else (0 if machines.hardware.serial else 2)  # as training takes them
    store = None if options.store is None else options.store * 1e9
    return measure(subject, machines.ranks, store, options.cores_per_gpu, processes=processes)


def _in_precision(machines: Machines, config: Config) -> Machines:
    fp32 = config.training.precision == "fp32"
    return replace(machines, hardware=in_fp32(machines.hardware)) if fp32 else machines


def _not_known(config: Config, machines: Machines) -> list[str]:
    """What these figures leave out, where the settings ask for it."""
    said = []
    if config.training.precision == "fp32" and not machines.hardware.serial:
        said.append(
            f"products in fp32 are reckoned at {machines.hardware.name}'s data sheet's rate, which is not verified"
        )
    if config.backbone.quantise != "none":
        said.append(
            f"four bits: weights by formula, {PACKED:.3f} bytes each; operators {UNPACKING - 1:.0%} slower, which was "
            "measured of one model of 0.27B on an H200"
        )
    return said


def shape_of(config: Config) -> tuple[int, int]:
    """How many layers a backbone has, and the weights of the largest, by its configuration."""
    from egmf_dist.model.backbone import load_backbone_config
    from egmf_dist.model.loading import without_weights

    settings = load_backbone_config(config.backbone)
    layers = int(getattr(settings.get_text_config(), "num_hidden_layers", 0))
    model = without_weights(settings, torch.float32)
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
    return layers, max((sum(p.numel() for p in layer.parameters()) for m in lists for layer in m), default=0)


def _shares(subject: Any, ranks: int) -> dict[str, Any]:
    """Each rank's share of a global batch, by the stream that every rank makes for itself."""
    sizes, slots = [], []
    for stream in subject.streams(ranks, range(ranks)):
        parts = stream.plan(0)
        sizes.append([len(part) for part in parts])
        slots += [slot.position for part in parts for slot in part]
    whole = sorted(slots)
    if whole != list(range(subject.config.training.global_batch)):
        raise EgmfError(f"the ranks' shares of a global batch are {len(whole)} samples and not each sample once")
    return {
        "ranks": ranks,
        "global_batch": len(whole),
        "samples_a_rank": [min(map(sum, sizes)), max(map(sum, sizes))],
        "micro_batches": len(sizes[0]),
        "fillers": sum(part == 0 for own in sizes for part in own),
    }


def _machines(machines: Machines) -> dict[str, Any]:
    hardware = machines.hardware
    return {
        "hosts": machines.hosts,
        "ranks": machines.ranks,
        "hardware": hardware.name,
        "source": hardware.source,
        "inside": f"{hardware.inside.name}: {hardware.inside.source}",
        "outside": f"{hardware.outside.name}: {hardware.outside.source}",
    }


def _model(whole: Rehearsal, heaviest: Share) -> dict[str, Any]:
    return {
        "frozen": whole.frozen_numbers,
        "trained": whole.trained_numbers,
        "layers": whole.layers,
        "rehearsed_layers": list(whole.rehearsed) or [whole.layers],
        "samples_a_rank": whole.samples,
        "tokens_a_rank": whole.tokens,
        "rank": heaviest.rank,
        "load": heaviest.load,
        "micro_batches": whole.micro_batches,
        "stage": whole.stage,
    }


def _memory(whole: Rehearsal, sizes: Sizes, config: Config, machines: Machines) -> dict[str, Any]:
    saved = round(whole.quantisable_numbers * (sizes.width - PACKED)) if config.backbone.quantise == "4bit" else 0
    kept = sizes.checkpointed if config.backbone.gradient_checkpointing else sizes.activations
    return {
        "frozen": whole.frozen_bytes - saved,
        "trained": whole.trained_bytes,
        "optimizer": whole.optimizer_bytes,
        "gathered": whole.gathered_bytes,
        "activations": round(kept),
        "activations_checkpointed": round(sizes.checkpointed),
        "logits": whole.logits_bytes,
        "resident": whole.resident_bytes - saved,
        "usual_peak": whole.peak_bytes - saved,
        "peak": whole.longest_peak_bytes - saved,
        "usable": round(machines.usable),
    }


def _messages(whole: Rehearsal) -> list[dict[str, Any]]:
    calls: dict[str, int] = {}
    for (kind, _, _), times in whole.step.messages.items():
        calls[kind] = calls.get(kind, 0) + times
    return [
        {"kind": kind, "bytes_a_step": size, "calls": calls[kind]} for kind, size in whole.step.bytes_by_kind.items()
    ]


def _time(
    whole: Rehearsal,
    time: StepTime,
    machines: Machines,
    loader: Loader,
    config: Config,
    price: float | None,
    shares: tuple[float, float],
) -> dict[str, Any]:
    load, again = shares
    ranks, samples = machines.ranks, config.training.global_batch
    tokens = whole.tokens * ranks / load
    epoch = loader.samples / samples * time.step
    flops = whole.step.flops / load
    model = flops / (again if config.backbone.gradient_checkpointing else 1.0)
    run = config.training.steps * time.step
    waits = loader.binds(samples / time.step, machines.hosts, machines.ranks_per_host)
    return {
        **time._asdict(),
        "binds": "loader" if waits else time.binds,
        "samples_per_s": samples / time.step,
        "tokens_per_s": tokens / time.step,
        "flops_a_rank": flops,
        "mfu": model / time.step / machines.hardware.flops,
        "hfu": flops / time.step / machines.hardware.flops,
        "epoch_s": epoch,
        "run_s": run,
        "cost": None if price is None else price * ranks * run / 3600,
        "cost_an_epoch": None if price is None else price * ranks * epoch / 3600,
    }


def _judged(one: Judged, machines: Machines) -> dict[str, Any]:
    return {
        "settings": one.way.said(),
        "fits": one.fits,
        **{f"{name}_gib": round(value / GIB, 3) for name, value in one.parts._asdict().items()},
        "whole_gib": round(one.parts.whole / GIB, 3),
        "step_s": one.time.step,
        "sent_gib": round(sum(one.sent.values()) / GIB, 4),
        "binds": one.time.binds,
    }


def said(summary: Mapping[str, Any]) -> list[str]:
    """The plan in lines for a person; tables come beside it."""
    time, machines = summary["time"], summary["machines"]
    lines = [f"note: {line}" for line in summary["said"]]
    lines += [
        f"{machines['ranks']} ranks on {machines['hosts']} hosts, {machines['hardware']}: {machines['source']}",
        f"links: inside {machines['inside']}; between hosts {machines['outside']}",
        "every figure is predicted, by DeepSpeed's and the model's own steps on fake tensors, with "
        f"{_depths(summary)} layers",
        *_waited_for(summary),
        "memory is that of a micro-batch with the data's longest sample in it",
        f"a step {_seconds(time['step'])}, {time['samples_per_s']:.3g} samples/s, {time['tokens_per_s']:.4g} tokens/s, "
        f"MFU {time['mfu']:.1%}, bound by {time['binds']}; an epoch {_seconds(time['epoch_s'])}, the run "
        f"{_seconds(time['run_s'])}",
    ]
    if time["cost"] is not None:
        lines.append(f"cost: {time['cost']:.2f} for the run, {time['cost_an_epoch']:.2f} an epoch")
    if "dry_run" in summary:
        dry = summary["dry_run"]
        low, high = dry["samples_a_rank"]
        lines.append(
            f"dry run: {dry['ranks']} ranks share a global batch of {dry['global_batch']}, {low} to {high} samples "
            f"each, {dry['micro_batches']} micro-batches, {dry['fillers']} fillers; every sample once"
        )
    return [*lines, *(f"advice: {line}" for line in summary["advice"])]


def _waited_for(summary: Mapping[str, Any]) -> list[str]:
    if summary["machines"]["ranks"] < 2:
        return []
    model = summary["model"]
    return [
        f"a step is that of rank {model['rank']}, whose prompts are {model['load'] - 1:.0%} longer than the ranks' mean"
    ]


def _depths(summary: Mapping[str, Any]) -> str:
    rehearsed, layers = summary["model"]["rehearsed_layers"], summary["model"]["layers"]
    return f"all {layers}" if rehearsed == [layers] else f"{' and '.join(map(str, rehearsed))} of {layers}"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    if value < 600:
        return f"{value:.3g} s"
    return f"{value / 3600:.3g} h" if value < 2 * 86400 else f"{value / 86400:.3g} days"
