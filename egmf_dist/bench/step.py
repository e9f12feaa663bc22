"""What a training step costs beside other ways to train the same: samples a second in one run, on one rank, as ratios.

All contestants take turns over the same samples, round after round, so that a busy moment of the machine does not hit
one of them alone. A figure is the median of the rounds.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from egmf_dist import distributed
from egmf_dist.bench import contestants
from egmf_dist.bench.backbones import Made, write_backbone
from egmf_dist.bench.contestants import DENSE_BATCH, ENDLESS, Pass, Read
from egmf_dist.bench.dialogues import write_dialogues
from egmf_dist.bench.machine import machine, matmul_tflops, peak_tflops, wait_for_device
from egmf_dist.bench.step_options import StepOptions
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, PromptConfig, TrainingConfig
from egmf_dist.config.load import config_from_dict, read_settings
from egmf_dist.errors import EgmfError
from egmf_dist.training.trainer import Trainer
from egmf_shards import Sample

KIND = "training step"
CONTEXT_TURNS = 12
BRIEF, LENGTHY = 50, 2000
TITLES = {
    "forest": "dialogues, context read once",
    "packed": "rows packed end to end",
    "padded": "one prompt a row",
    "bare": "bare PyTorch loop, packed",
    "trainer": "transformers Trainer + PEFT",
    "ragged": "predecessor's modules, our loop",
    "predecessor": "predecessor, padded",
    "brief": f"packed, streams of {BRIEF} frames",
    "lengthy": f"packed, streams of {LENGTHY} frames",
}
RATIOS = {
    "vs_bare": ("packed", "bare"),
    "vs_trainer": ("packed", "trainer"),
    "vs_padded": ("ragged", "predecessor"),
    "forest_vs_packed": ("forest", "packed"),
    "packed_vs_padded": ("packed", "padded"),
    "lengthy_vs_brief": ("lengthy", "brief"),
}
"""Samples a second of the first over the second's."""
DENSE = ("trainer", "predecessor")
NOTES = (
    "One rank. All train on the same generated samples (of --shards each on as many random ones) with 12 turns of "
    "context at most. forest: data.shuffle dialogue, prompt.pseudo_tokens before_utterance, prompt.context stepped; "
    "the others see the pseudo tokens first and the last turns.",
    "forest, packed and padded are egmf train's loop with DeepSpeed ZeRO stage 1, LoRA and EGMF's fusion, reading and "
    "laying out included. bare has the same modules and batches, samples in memory, no DeepSpeed.",
    "trainer has the same prompts and LoRA and no fusion; it is given token ids, and making the Trainer counts. "
    "predecessor is a frozen LLM and MSE-Adapter's fusion, re-implemented. Both make logits of every position as they "
    f"are: batches of {DENSE_BATCH}, padded to the longest.",
    f"brief and lengthy are packed with audio and vision of {BRIEF} and of {LENGTHY} frames a clip "
    "(model.max_stream_tokens 128), on generated dialogues in any case.",
    "tokens/s counts each sample's sequence as if it stood alone, so it is samples/s times one number.",
    "TFLOP/s: tokens/s times 4 for each weight of the LLM's layers: 2 forward, 2 backward for activations alone, as "
    "frozen weights have no gradient. Attention's products and the output layer are left out. MFU is that over the "
    "data sheet's dense bf16 rate; forest has none, because it reads a token once for several samples.",
)


def measure_step(
    out: Path, options: StepOptions, progress: Callable[[str, int, int], None], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, in a process that is a world of one rank (the environment says so).

    Data and backbone lie in a folder inside ``out`` that is removed at the end.

    Args:
        out: folder that is there.
        options: what.
        progress: called with what is done, how many parts are, and how many there are.
        say: called with a line for a person.

    Returns:
        The summary, without its files.

    Raises:
        EgmfError: an option that does not fit.
    """
    if options.batch < 1 or options.micro_batch < 1 or options.batch % options.micro_batch:
        raise EgmfError(f"--batch is {options.batch}; it must be a multiple of --micro-batch, {options.micro_batch}")
    if options.samples < options.batch or options.samples % options.batch:
        raise EgmfError(f"--samples is {options.samples}; it must be a multiple of {options.batch}, the batch")
    if options.rounds < 1:
        raise EgmfError(f"--rounds is {options.rounds}; it must be 1 or more")
    only = [name for name in (options.only or "").split(",") if name]
    unknown = [name for name in only if name not in TITLES]
    if unknown:
        raise EgmfError(f"--only names {unknown[0]!r}; it may name {', '.join(TITLES)}")
    names = [name for name in TITLES if name in (only or TITLES)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix=".step-", dir=out) as folder, distributed.process_group():
        return _Bench(Path(folder), options, names, progress, say).run()


class _Bench:
    def __init__(
        self,
        folder: Path,
        options: StepOptions,
        names: list[str],
        progress: Callable[[str, int, int], None],
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.options, self.names = folder, options, names
        self.progress, self.say = progress, say
        self.done, self.parts = 0, 2 + len(names) * (2 + options.rounds)
        self.notes: list[str] = []

    def _doing(self, what: str) -> None:
        self.progress(what, self.done, self.parts)
        self.done += 1

    def run(self) -> dict[str, Any]:
        """Make data and backbone, then everyone, then measure."""
        self._doing("making data and backbone")
        data = self.options.shards or str(self.folder / "dialogues")
        if self.options.shards is None:
            write_dialogues(self.folder / "dialogues", self.options.samples)
        backbone = self.folder / "backbone"
        made = write_backbone(backbone, self.options.layers, self.options.backbone)
        forest = _config(data, str(backbone), self.options)
        packed = replace(forest, data=replace(forest.data, shuffle="full"), prompt=PromptConfig())
        configs = {"forest": forest, "packed": packed}
        configs["padded"] = replace(packed, training=replace(packed.training, packing="off"))
        for name, frames in (("brief", BRIEF), ("lengthy", LENGTHY)):
            if name in self.names:
                write_dialogues(self.folder / name, self.options.samples, (frames, frames))
                configs[name] = replace(packed, data=replace(packed.data, shards=[str(self.folder / name)]))
        seconds: dict[str, list[float]] = {name: [] for name in self.names}
        with contextlib.ExitStack() as stack:
            read = Read(packed)
            passes, trainer = self._all(stack, configs, read.samples)
            tokens = read.prompt_tokens()
            for _ in range(self.options.rounds):
                for name, once in passes.items():
                    self._doing(TITLES[name])
                    seconds[name].append(_timed(once, self._samples(name)) / self._samples(name))
            self._doing("where the time goes")
            parts = None if trainer is None else breakdown(passes["forest"], trainer, self.options.samples)
        if not any(seconds.values()):
            raise EgmfError(f"nothing was measured: {'; '.join(self.notes)}")
        return self._summary(seconds, tokens, made, parts)

    def _all(
        self, stack: contextlib.ExitStack, configs: dict[str, Config], samples: list[Sample]
    ) -> tuple[dict[str, Pass], Trainer | None]:
        """Everyone's pass, warmed up, and the trainer whose time is taken apart."""
        passes, trainer = dict[str, Pass](), None
        heard_and_seen = all(name in s.features for s in samples for name in ("audio", "vision"))
        for name in self.names:
            self._doing(f"making: {TITLES[name]}")
            if name in ("ragged", "predecessor") and not heard_and_seen:
                self._leave_out(
                    name, f"its fusion wants audio and vision with every clip; {self.options.shards} has not"
                )
                continue
            config, own = configs.get(name, configs["packed"]), self.folder / f"run-{name}"
            if name in configs:
                passes[name], made = stack.enter_context(contestants.ours(config, own))
                trainer = made if name == "forest" else trainer
            else:
                passes[name] = stack.enter_context(_other(name, configs["packed"], own, self._samples(name)))
            self._doing(f"warming up: {TITLES[name]}")
            passes[name](DENSE_BATCH if name in DENSE else self.options.batch)
        return passes, trainer

    def _leave_out(self, name: str, reason: str) -> None:
        self.notes.append(f"{TITLES[name]} is not measured: {reason}")
        self.say(self.notes[-1])

    def _samples(self, name: str) -> int:
        return min(self.options.dense_samples, self.options.samples) if name in DENSE else self.options.samples

    def _summary(
        self, seconds: dict[str, list[float]], tokens: float, made: Made, parts: dict[str, float] | None
    ) -> dict[str, Any]:
        import deepspeed
        import peft
        import transformers

        peak = peak_tflops()
        rows: list[dict[str, Any]] = [
            {
                "contestant": name,
                "title": TITLES[name],
                "samples_per_s": 1 / statistics.median(own),
                "min": 1 / max(own),
                "max": 1 / min(own),
                "tokens_per_s": tokens / statistics.median(own),
                "tflops": None if name == "forest" else 4e-12 * made.layer_weights * tokens / statistics.median(own),
                "samples": self._samples(name),
                "rounds": len(own),
            }
            for name, own in seconds.items()
            if own
        ]
        for row in rows:
            row["mfu"] = None if peak is None or row["tflops"] is None else row["tflops"] / peak
        speed = {row["contestant"]: row["samples_per_s"] for row in rows}
        ratios = {
            ratio: round(speed[a] / speed[b], 3) if a in speed and b in speed else None
            for ratio, (a, b) in RATIOS.items()
        }
        versions = {m.__name__: str(m.__version__) for m in (torch, deepspeed, transformers, peft)}
        return {
            "kind": KIND,
            "machine": machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, one thread a process",
            "versions": versions,
            "backbone": made.title,
            "layer_weights": made.layer_weights,
            "data": self.options.shards or "generated dialogues of MELD's lengths",
            "options": asdict(self.options),
            "tokens_a_sample": round(tokens, 1),
            "peak_tflops": peak,
            "matmul_tflops": matmul_tflops(),
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
            "figures": {f"{name}.samples_per_s": value for name, value in speed.items()},
            "ratios": ratios,
            "breakdown": parts,
            "notes": [*self.notes, *NOTES],
            "rows": rows,
        }


def _other(name: str, config: Config, folder: Path, samples: int) -> contestants.Making:
    """A contestant that is not this project's whole loop."""
    if name == "bare":
        return contestants.bare(config)
    if name == "trainer":
        return contestants.transformers_trainer(config, folder, samples)
    return contestants.predecessor_padded(config) if name == "predecessor" else contestants.predecessor_ragged(config)


def _config(shards: str, backbone: str, options: StepOptions) -> Config:
    """The recipe real-llm's shape of training, on dialogues, with what ``options.settings`` says put over it."""
    cuda = torch.cuda.is_available()
    config = Config(
        # No loader processes: the others have none.
        data=DataConfig(
            shards=[shards], shuffle="dialogue", context_turns=CONTEXT_TURNS, max_text_tokens=96, workers=0
        ),
        prompt=PromptConfig(pseudo_tokens="before_utterance", context="stepped"),
        backbone=BackboneConfig(path=backbone, lora_rank=16, lora_alpha=32),
        model=ModelConfig(dropout=0.1),
        training=TrainingConfig(
            steps=ENDLESS,
            global_batch=options.batch,
            micro_batch=options.micro_batch,
            precision="bf16" if cuda else "fp32",
            zero_stage=1,
        ),
    )
    if options.settings is None:
        return config
    sections, given = asdict(config), read_settings(options.settings)
    return config_from_dict(sections | {name: sections[name] | given[name] for name in given})


def _timed(once: Pass, samples: int) -> float:
    """Seconds that a pass takes."""
    wait_for_device()
    start = time.perf_counter()
    once(samples)
    wait_for_device()
    return time.perf_counter() - start


def breakdown(once: Pass, trainer: Trainer, samples: int) -> dict[str, float]:
    """Seconds a sample of each part of a step, in a pass of its own: waiting after each part costs on a GPU."""
    import egmf_dist.objectives.answers as answers

    model: Any = trainer.engine.module
    head = model.backbone.get_output_embeddings()
    spent: dict[str, float] = {}

    def around(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            wait_for_device()
            start = time.perf_counter()
            result = function(*arguments, **named)
            wait_for_device()
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
            return result

        return timed

    places: list[tuple[Any, str, str]] = [
        (trainer, "next_step", "reading and laying out"),
        (model, "fuse", "fusion"),
        (model, "speak", "fusion"),
        (model, "logits", "LLM forward"),
        (head, "forward", "output layer"),
        (answers, "log_probabilities", "loss"),
        (trainer.engine, "backward", "backward"),
        (trainer.engine, "step", "optimiser"),
    ]
    before = [getattr(where, name) for where, name, _ in places]
    try:
        for where, name, part in places:
            setattr(where, name, around(part, getattr(where, name)))
        whole = _timed(once, samples)
    finally:
        for (where, name, _), function in zip(places, before, strict=True):
            setattr(where, name, function)
    spent["LLM forward"] -= spent["output layer"]
    spent["everything else"] = max(0.0, whole - sum(spent.values()))
    return {part: round(seconds / samples, 6) for part, seconds in spent.items()}
