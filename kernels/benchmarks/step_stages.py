"""The stages of egmf_step.py: agree, attention, repeats, times, waits, profile, at each width."""

from __future__ import annotations

import argparse
import gzip
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from egmf_dist.config import Config, ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.run_data import RunData
from egmf_dist.model.backbone import Capabilities, LayerKind
from egmf_dist.model.egmf import EGMF
from egmf_dist.model.fusion import attention
from egmf_dist.objectives.base import make_objective
from egmf_kernels import bench
from egmf_shards import Sample, Task

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIZES = {
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
}  # fmt: skip
LENGTHS = {"0.5b": (40, 200, 150), "tiny": (4, 9, 7)}
"""Mean tokens of a sample's text, audio and vision."""
TASK = Task(
    name="emotion",
    kind="classification",
    labels=("joy", "anger", "neutral"),
    questions={"en": "Which emotion?"},
    answers={"en": ("joy", "anger", "neutral")},
)
DIMS = {"audio": 74, "vision": 35}
AGREE, ENOUGH = 0.15, 48
"""The largest error in bf16, kernels against reference as a ratio of norms, of a gradient with that many numbers.

Roundings of 4e-3 go through 24 layers and back: 0.08 was seen on an H100. Of a few numbers that nearly cancel (the
scale of the pseudo tokens) more of the value may be rounding; they are listed, not judged.
"""
OURS = ("ms_dwconv", "mix_norm", "ragged_pool", "modality_", "gated_tri", "expert_gate", "segment_sum")
"""How the kernels' names begin."""


class Report:
    """What was found, in DIR/step.json after every stage."""

    def __init__(self, out: Path, seconds: float, missing: list[str]) -> None:
        self.path = out / "step.json"
        self.end = time.monotonic() + seconds
        self.failed: list[str] = []
        self.found: dict[str, Any] = {
            **bench.provenance(),
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "stood in for": missing,
            "complete": False,
            "stages": {},
        }

    def put(self, stage: str, value: Any) -> None:
        """Keep and say one stage's finding."""
        self.found["stages"][stage] = value
        self.write()
        print(stage, json.dumps(value, default=str)[:1500], flush=True)

    def write(self) -> None:
        """The whole file or the one before."""
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.write_text(json.dumps(self.found, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def run(self, stage: str, function: Callable[[], Any]) -> None:
        """Run a stage; one that fails is named and the next one still runs."""
        if time.monotonic() > self.end:
            self.failed.append(stage)
            self.put(stage, "left out: out of time")
            return
        try:
            value = function()
        except Exception as problem:
            value = {"failed": repr(problem)[:500], "where": traceback.format_exc()[-1500:]}
        if isinstance(value, dict) and (value.get("failed") or value.get("right") is False):
            self.failed.append(stage)
        self.put(stage, value)


class Stages:
    """All stages at one width."""

    def __init__(self, options: argparse.Namespace, width: int) -> None:
        self.options, self.width = options, width
        self.backbone, self.settings = backbone(options.size)
        self.batch = batch(options.batch, options.size, self.settings.vocab_size)
        self.names = ("triton", "reference") if CUDA else ("reference", "reference")

    def model(self, kernels: str) -> EGMF:
        """EGMF around the same backbone, with the same weights every time; in bf16 on a GPU."""
        torch.manual_seed(1)
        capabilities = Capabilities(
            architecture="qwen2",
            width=self.settings.hidden_size,
            vocabulary=self.settings.vocab_size,
            longest=32768,
            kinds=(LayerKind("full_attention"),),
            recurrent=False,
            sequence_only="",
            tied=True,
            start=(),
            eos=1,
            beyond=0,
        )
        config = replace(Config(), model=ModelConfig(width=self.width, heads=max(4, self.width // 64), kernels=kernels))
        data, objective = run_data(), make_objective(config, {TASK.name: TASK})
        made = EGMF(config.model, self.backbone, capabilities, 0.02, data, objective)
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(DEVICE, torch.bfloat16)
        return made.to(DEVICE).train()

    def step(self, model: EGMF) -> torch.Tensor:
        """Forward and backward of one batch; the loss."""
        model.zero_grad(set_to_none=True)
        loss: torch.Tensor = model(self.batch).total / len(self.batch.ids)
        loss.backward()
        return loss.detach()

    def agree(self) -> dict[str, Any]:
        """Loss and every gradient, kernels against reference, in bf16."""
        (ours, own), (theirs, exact) = (
            (float(self.step(model)), gradients(model)) for model in map(self.model, self.names)
        )
        errors = {name: float((own[name] - g).norm() / (g.norm() + 1e-30)) for name, g in exact.items() if name in own}
        worst = sorted(errors.items(), key=lambda item: item[1], reverse=True)[:12]
        judged = [error for name, error in errors.items() if exact[name].numel() >= ENOUGH]
        infinite = [name for name, g in own.items() if not torch.isfinite(g).all()]
        missing = sorted(set(own) ^ set(exact))
        return {
            "right": not infinite and not missing and bool(judged) and max(judged) <= AGREE,
            "loss": [ours, theirs],
            "tokens": int(self.batch.order_T.numel()),
            "gradients": len(errors),
            "worst": worst,
            "not finite": infinite,
            "missing": missing,
        }

    def attention(self) -> Any:
        """The attention experts over packed tokens against padded ones: gradients of the fusion, time, memory."""
        model = self.model(self.names[0])
        width, heads = model.config.width, model.config.heads
        if not attention.packs(torch.empty(1, heads, width // heads, device=DEVICE, dtype=torch.bfloat16)):
            return "no kernel for packed tokens here that agrees with the padded way"
        ways: dict[str, Callable[[torch.Tensor], bool]] = {"packed": attention.packs, "padded": lambda heads: False}
        found: dict[str, Any] = {}
        gradient: dict[str, dict[str, torch.Tensor]] = {}
        try:
            # Gradients first: timing takes the optimiser's steps, and the language model is one for all.
            for name, way in ways.items():
                attention.packs = way
                model = self.model(self.names[0])
                self.step(model)
                gradient[name] = {n: g for n, g in gradients(model).items() if n.startswith(("fusion", "encoders"))}
            for name, way in ways.items():
                attention.packs = way
                found[name] = self._times(self.names[0])["fuse"]
        finally:
            attention.packs = ways["packed"]
        judged = {n: g for n, g in gradient["padded"].items() if g.numel() >= ENOUGH}
        errors = {n: float((gradient["packed"][n] - g).norm() / (g.norm() + 1e-30)) for n, g in judged.items()}
        worst = sorted(errors.items(), key=lambda item: item[1], reverse=True)[:6]
        return {"right": worst[0][1] <= AGREE, "worst": worst, **found}

    def repeats(self) -> dict[str, Any]:
        """The same step five times: which gradients are not the same to the bit?"""
        model = self.model(self.names[0])
        self.step(model)
        first, moved = gradients(model), set()
        for _ in range(4):
            self.step(model)
            moved |= {name for name, g in gradients(model).items() if not torch.equal(g, first[name])}
        fusion = sorted(name for name in moved if "lora" not in name)
        return {"moved": len(moved), "of": len(first), "outside the language model": fusion[:20]}

    def times(self) -> dict[str, Any]:
        """Milliseconds of the fusion block and of the whole step, with the time that the host needs to issue them."""
        return {name: self._times(name) for name in dict.fromkeys(self.names)}

    def _times(self, kernels: str) -> dict[str, Any]:
        model = self.model(kernels)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

        def fuse() -> None:
            fused = model.fuse(self.batch)
            assert fused is not None
            fused.pooled_BKD.float().sum().backward()

        found = {}
        for what, run in (("fuse", fuse), ("step", lambda: self.step(model))):
            taken = []
            for repeat in range(16 if CUDA else 2):
                if CUDA and repeat == 4:
                    torch.cuda.reset_peak_memory_stats()
                synchronize()
                start = time.perf_counter()
                run()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                issued = time.perf_counter()
                synchronize()
                taken.append((time.perf_counter() - start, issued - start))
            # The first ones compile and fill the allocator.
            wall, host = sorted(taken[4 if CUDA else 1 :])[len(taken[4 if CUDA else 1 :]) // 2]
            found[what] = {
                "wall_ms": round(1e3 * wall, 3),
                "host_ms": round(1e3 * host, 3),
                "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if CUDA else None,
            }
        return found

    def waits(self) -> Any:
        """Every place of forward and backward where the host waits for the device."""
        if not CUDA:
            return "no device"
        model = self.model(self.names[0])
        self.step(model)
        synchronize()
        with watching_waits() as seen:
            self.step(model)
        return {"waits": sum(seen.values()), "where": seen}

    def profile(self) -> dict[str, Any]:
        """Time on the device by kernel; what share of it is ours."""
        from torch.profiler import ProfilerActivity, profile

        model = self.model(self.names[0])
        for _ in range(3 if CUDA else 1):
            self.step(model)
        synchronize()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
        with profile(activities=activities) as profiler:
            self.step(model)
            synchronize()
        column = "self_device_time_total" if CUDA else "self_cpu_time_total"
        # A torch operator repeats the time of the kernels it launched: only what ran on the device itself is counted.
        where = torch.autograd.DeviceType.CUDA if CUDA else torch.autograd.DeviceType.CPU
        events = [event for event in profiler.key_averages() if event.device_type == where]
        rows = [(round(float(getattr(event, column)), 1), event.count, event.key[:90]) for event in events]
        rows = sorted((row for row in rows if row[0]), reverse=True)
        ours = [row for row in rows if row[2].startswith(OURS)]
        whole = sum(row[0] for row in rows) or 1.0
        if CUDA and not self.options.no_trace:
            trace = self.options.out / f"trace-{self.width}.json"
            profiler.export_chrome_trace(str(trace))
            trace.with_suffix(".json.gz").write_bytes(gzip.compress(trace.read_bytes()))
            trace.unlink()
        return {
            "device_us": round(whole, 1),
            "kernels_us": round(sum(row[0] for row in ours), 1),
            "kernels_percent": round(100 * sum(row[0] for row in ours) / whole, 3),
            "ours": ours,
            "top": rows[:25],
        }


def run(options: argparse.Namespace, missing: list[str]) -> int:
    """Every stage at every width; 0 if all of them ran and what must agree agrees."""
    report = Report(options.out, options.seconds, missing)
    for width in options.width:
        stages = Stages(options, width)
        if width == options.width[0]:
            size = {"parameters": sum(p.numel() for p in stages.backbone.parameters()), "batch": options.batch}
            report.put("built", size | {"attention": stages.settings._attn_implementation})
        for name in ("agree", "attention", "repeats", "times", "waits", "profile"):
            report.run(f"{name} d={width}", getattr(stages, name))
        del stages
    report.found["complete"] = True
    report.found["red"] = report.failed
    report.write()
    print(f"{len(report.found['stages'])} stages; {'all right' if not report.failed else f'RED: {report.failed}'}")
    return 1 if report.failed else 0


def backbone(size: str) -> tuple[Any, Qwen2Config]:
    """A frozen Qwen2 of random weights in bf16 with LoRA on every linear layer."""
    torch.manual_seed(0)
    settings = Qwen2Config(**SIZES[size], tie_word_embeddings=True)
    with DEVICE:
        model = Qwen2ForCausalLM(settings).to(torch.bfloat16)
    model.config.use_cache = False
    model.requires_grad_(False)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear")
    return peft.get_peft_model(model, lora, autocast_adapter_dtype=False), model.config


def run_data() -> RunData:
    """One task in one language."""
    return RunData({TASK.name: TASK}, ["en"], {name: [dim] for name, dim in DIMS.items()}, {})


def batch(size: int, kind: str, vocabulary: int) -> RaggedBatch:
    """A batch of random samples, packed as in training: ragged, the first sample without audio, one token a letter."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    letters_only = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(letters))}, merges=[]))
    letters_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters_only)
    collator = run_data().collator(tokenizer, Config(), limits_of(vocabulary))
    draw = np.random.default_rng(0)

    def sample(number: int) -> Sample:
        text, audio, vision = (int(draw.integers(1, 2 * mean + 1)) for mean in LENGTHS[kind])
        frames = {"audio": audio if number else 0, "vision": vision}
        features = {
            name: draw.standard_normal((count, DIMS[name])).astype(np.float32)
            for name, count in frames.items()
            if count
        }
        return Sample(
            id=str(number),
            text="".join(draw.choice(list("abcdefgh "), text - 1)) + "x",
            language="en",
            task=TASK.name,
            dataset="random",
            split="train",
            modalities=("text", *features),
            label=TASK.labels[int(draw.integers(3))],
            features=features,
        )

    collator.packed = True  # as in a run whose answers are scored as a tree
    return collator([sample(number) for number in range(size)], [1.0] * size).to(DEVICE)


def limits_of(vocabulary: int) -> Any:
    """What the collator must know about the backbone."""
    from egmf_dist.data.prompt_ids import Limits

    return Limits(vocabulary, 1, 32000, (), ModelConfig().pseudo_tokens, 2**20)


def gradients(model: EGMF) -> dict[str, torch.Tensor]:
    """Every gradient in fp64, by name."""
    return {name: p.grad.detach().double() for name, p in model.named_parameters() if p.grad is not None}


def synchronize() -> None:
    """Wait for the device, where there is one."""
    if CUDA:
        torch.cuda.synchronize()


@contextmanager
def watching_waits() -> Iterator[dict[str, int]]:
    """Count, by the last four places on the way there, every wait of the host that torch knows of."""
    seen: dict[str, int] = {}

    def show(*rest: Any, **more: Any) -> None:
        stack = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in traceback.extract_stack()[:-1]]
        own = [place for place in stack if not place.startswith(("warnings", "step_stages", "egmf_step"))][-4:]
        where = " < ".join(reversed(own))
        seen[where] = seen.get(where, 0) + 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield seen
    finally:
        torch.cuda.set_sync_debug_mode("default")
