"""A plan's seconds against a training's on this machine's CPU, and what the profiler costs the steps that it times.

Each case is planned as ``egmf plan --hardware cpu --calibrate`` does, then trained on as many processes. Half of its
steps are timed by the clock alone and half with the profiler installed, in the order ABBA on the same global batches,
so that the median of each four's ratio is what profiling costs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from egmf_dist.bench.backbones import write_backbone
from egmf_dist.bench.dialogues import write_dialogues
from egmf_dist.bench.machine import machine
from egmf_dist.config import BackboneConfig, Config, DataConfig, LoggingConfig, TrainingConfig
from egmf_dist.config.load import config_from_dict
from egmf_dist.errors import EgmfError
from egmf_dist.scale.calibrate import CLOCKS
from egmf_dist.scale.measured_options import PlanBenchOptions
from egmf_dist.scale.ranks import as_rank, on_ranks

KIND = "plan-bench"
MOST_OFF, MOST_COST, MOST_LOST = 0.25, 0.05, 0.05
"""Bounds: of the plan's seconds against a training's, of what profiling costs, of what phases leave out of a step."""
WARM = 4
_LIMIT = 1800.0
_BATCHES = 2
"""Global batches of an epoch: each is timed with the profiler as often as without."""


class Case(NamedTuple):
    """One training."""

    layers: int
    like: str
    """Of :data:`egmf_dist.bench.backbones.SMALL`."""
    stage: Literal[1, 2, 3]
    ranks: int
    again: bool
    """Layers are computed again in the backward pass."""

    @property
    def title(self) -> str:
        """In words."""
        again = ", layers computed again" if self.again else ""
        return f"{self.like.replace('-', ' ')}, ZeRO {self.stage}, {self.ranks} rank{'s' * (self.ranks > 1)}{again}"


CASES = {
    "small-1": Case(6, "6-layers-of-256", 1, 1, False),
    "small-3": Case(6, "6-layers-of-256", 3, 2, False),
    "wide-1": Case(8, "8-layers-of-384", 1, 2, False),
    "wide-3": Case(8, "8-layers-of-384", 3, 2, True),
}
SAMPLES, MICRO = 16, 8
"""Of a rank's step, and of a micro-batch."""


def measure_plan(
    out: Path,
    options: PlanBenchOptions,
    progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Plan and train the cases.

    Args:
        out: folder that is there; data, backbones and runs lie in a folder inside that is removed at the end.
        options: what.
        progress: called with what is done, how many parts are, and how many there are.
        say: called with a line for a person, when a case is over.

    Returns:
        The summary; ``met`` says whether every bound was kept.

    Raises:
        EgmfError: an option that does not fit, or a plan or training that failed.
    """
    names = [name for name in (options.cases or ",".join(CASES)).split(",") if name]
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise EgmfError(f"--cases names {(unknown or ['nothing'])[0]!r}; it may name {', '.join(CASES)}")
    if options.steps < 4 or options.steps % 4:
        raise EgmfError(f"--steps is {options.steps}; it must be a multiple of 4")
    rows = []
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=out) as folder:
        for number, name in enumerate(names):
            progress(f"planning: {CASES[name].title}", 2 * number, 2 * len(names))
            config = _config(Path(folder, name), CASES[name])
            predicted = _predicted(config, CASES[name], options.clock)
            progress(f"training: {CASES[name].title}", 2 * number + 1, 2 * len(names))
            job = {
                "config": asdict(config),
                "run": str(Path(folder, name, "run")),
                "steps": options.steps,
                "clock": options.clock,
            }
            found = on_ranks("egmf_dist.scale.measured", job, f"the training {name}", CASES[name].ranks, _LIMIT)
            rows.append(row_of(name, predicted, found))
            say(line_of(rows[-1]))
    import deepspeed
    import torch

    return {
        "kind": KIND,
        "machine": machine(),
        "versions": {m.__name__: str(m.__version__) for m in (torch, deepspeed)},
        "options": asdict(options),
        "seed": 0,
        "figures": {f"{row['case']}.measured_s": row["measured_s"] for row in rows},
        "ratios": {f"{row['case']}.{name}": row[name] for row in rows for name in ("ratio", "profiled", "phases")},
        "met": all(row["met"] for row in rows),
        "rows": rows,
    }


def row_of(name: str, predicted: dict[str, float], found: list[dict[str, Any]]) -> dict[str, Any]:
    """A case's row.

    Args:
        name: of the case.
        predicted: seconds of a step, ``step`` among them.
        found: of each rank the seconds of its steps, ``plain`` and ``profiled``, and ``phases``: of each profiled step
            what part of it they add up to.
    """
    plain, profiled = (_slowest(found, kind) for kind in ("plain", "profiled"))
    measured, timed = statistics.median(plain), statistics.median(profiled)
    # A step with the profiler and one without on each of the two global batches.
    pairs = zip(zip(*[iter(plain)] * 2, strict=True), zip(*[iter(profiled)] * 2, strict=True), strict=True)
    cost = statistics.median(sum(with_it) / sum(without) for without, with_it in pairs)
    lost = max(abs(part - 1) for one in found for part in one["phases"])
    ratio = predicted["step"] / measured
    return {
        "case": name,
        "title": CASES[name].title,
        "predicted_s": predicted["step"],
        "measured_s": measured,
        "profiled_s": timed,
        "ratio": ratio,
        "profiled": cost,
        "phases": 1 - lost,
        "steps": len(plain),
        "met": abs(ratio - 1) <= MOST_OFF and cost - 1 <= MOST_COST and lost <= MOST_LOST,
        **{f"predicted_{part}_s": predicted[part] for part in ("compute", "host", "inside", "reading")},
    }


def line_of(row: Mapping[str, Any]) -> str:
    """A case's row in words."""
    return (
        f"{row['title']}: predicted {row['predicted_s']:.3g} s, measured {row['measured_s']:.3g} s, ratio "
        f"{row['ratio']:.2f}; profiled steps {row['profiled']:.3f} of others, phases {row['phases']:.3f} of it"
    )


def _slowest(found: list[dict[str, Any]], kind: str) -> list[float]:
    return [max(same) for same in zip(*(one[kind] for one in found), strict=True)]


def _config(folder: Path, case: Case) -> Config:
    """Data and backbone of a case in a new folder, and the settings of its training."""
    folder.mkdir()
    batch = SAMPLES * case.ranks
    write_dialogues(folder / "data", _BATCHES * batch)
    write_backbone(folder / "backbone", case.layers, case.like)
    return Config(
        data=DataConfig(shards=[str(folder / "data")], context_turns=5, workers=0),
        backbone=BackboneConfig(path=str(folder / "backbone"), lora_rank=8, gradient_checkpointing=case.again),
        training=TrainingConfig(
            steps=10**6,  # it ends when it is measured
            global_batch=batch,
            micro_batch=MICRO,
            precision="fp32",
            zero_stage=case.stage,
            zero_options={"reduce_bucket_size": 1_000_000},
        ),
        logging=LoggingConfig(to=[]),
    )


def _predicted(config: Config, case: Case, clock: Literal["wall", "cpu"]) -> dict[str, float]:
    from egmf_dist.scale.options import PlanOptions
    from egmf_dist.scale.plan import plan

    options = PlanOptions(gpus_per_host=case.ranks, hardware="cpu", calibrate=True, clock=clock)
    found: dict[str, float] = plan(config, options)["time"]
    return found


def _train(job: dict[str, Any]) -> dict[str, list[float]]:
    """What each rank does: train, and time its steps, half of them with the profiler, whose installing counts."""
    import torch.distributed as dist

    from egmf_dist import distributed
    from egmf_dist.distributed import process_group
    from egmf_dist.run.folder import Run, open_run
    from egmf_dist.training.loop import train_step
    from egmf_dist.training.profile import Phases, timed
    from egmf_dist.training.trainer import Start, Trainer, started

    clock = CLOCKS[job["clock"]]
    config, run = config_from_dict(job["config"]), Run(Path(job["run"]))
    found: dict[str, list[float]] = {"plain": [], "profiled": [], "phases": []}

    def step(trainer: Trainer) -> None:
        own, facts = trainer.next_step()
        sums_3 = train_step(trainer.engine, own.batches, facts.valid, trainer.device)
        trainer.count(own, facts, sums_3)

    with process_group():
        distributed.on_rank_zero(lambda: open_run(config, run, "never") and None)
        with started(config, run, Start()) as trainer:
            phases = Phases(trainer.device)
            for _ in range(WARM):
                step(trainer)
            for number in range(job["steps"]):
                dist.barrier()
                if number % 4 in (1, 2):
                    begin = clock()
                    with timed(trainer, phases) as seen:
                        step(trainer)
                    found["profiled"].append(clock() - begin)
                    found["phases"].append(sum(seen.phases.values()) / seen.seconds)
                else:
                    begin = clock()
                    step(trainer)
                    found["plain"].append(clock() - begin)
    return found


if __name__ == "__main__":
    sys.exit(as_rank(_train))
