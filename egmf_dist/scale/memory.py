"""Bytes on one rank under other settings than those that were rehearsed, part by part.

With F frozen and T trained weights, N ranks and w bytes a weight (ZeRO: Rajbhandari et al. 2020; LoRA trains T alone):

* frozen: ``w F``, under stage 3 ``w F / N``, and ``w F / h`` more where each h ranks keep a copy (hpZ, Wang et al.
  2023); in four bits 0.516 bytes for each weight of a linear layer (NF4 with doubly quantised scales, Dettmers et al.
  2023: 4 bits, 8 for each 64 weights, 32 for each 64 x 256);
* trained: ``w T``, under stage 3 ``w T / N``; gradients in fp32: ``4 T``, under stages 2 and 3 ``4 T / N``;
* optimiser: ``12 T / N``, fp32 copies and two moments; nothing where it is offloaded;
* gathered: what stage 3 keeps whole, at most ``stage3_max_live_parameters`` and a layer;
* activations: rehearsed, logits and DeepSpeed's buffers with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from egmf_dist.config import Config
from egmf_dist.scale.rehearsal import Part, Rehearsal

PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in four bits."""
_LIVE = 1_000_000_000
_PREFETCH = 50_000_000
_BUCKET = 500_000_000
"""DeepSpeed's own values of ``stage3_max_live_parameters``, ``stage3_prefetch_bucket_size``, ``reduce_bucket_size``."""


_SMALL = 1_000_000


class Parts(NamedTuple):
    """Bytes of one rank at the fullest moment of a step."""

    frozen: float
    trained: float
    gradients: float
    optimizer: float
    gathered: float
    buffers: float
    activations: float
    """Logits included."""

    @property
    def whole(self) -> float:
        """All of them."""
        return sum(self)


@dataclass(frozen=True)
class Way:
    """Settings under which a model may be trained."""

    stage: Literal[1, 2, 3]
    checkpointing: bool = False
    offload: Literal["none", "optimizer", "weights"] = "none"
    quantised: bool = False
    micro: int = 1
    """Micro-batches are so many times smaller."""
    hpz: int = 1
    """Ranks that keep a copy of frozen weights between them; 1: all ranks keep one."""
    quantised_gathers: bool = False

    def said(self) -> str:
        """As options of ``egmf train``."""
        again, packed = ("true" if self.checkpointing else "false"), ("4bit" if self.quantised else "none")
        # What is off, too: the settings may have it on.
        words = [f"--training.zero_stage {self.stage} --backbone.gradient_checkpointing {again}"]
        words += [f"--training.offload {self.offload} --backbone.quantise {packed}"]
        words += [f"micro-batches {self.micro} times smaller"] if self.micro > 1 else []
        options = [f"zero_hpz_partition_size: {self.hpz}"] if self.hpz > 1 else []
        options += ["zero_quantized_nontrainable_weights: 1"] if self.quantised_gathers else []
        words += [f"--training.zero_options '{{{', '.join(options)}}}'"] if options else []
        return " ".join(words)


@dataclass(frozen=True)
class Sizes:
    """What the formulas need of a model and its micro-batch."""

    frozen: int
    trained: int
    quantisable: int
    width: int
    """Bytes of a weight that computes."""
    largest: int
    """Weights of the largest module that stage 3 gathers at once."""
    activations: float
    """Bytes of a micro-batch with the longest sample in it."""
    checkpointed: float
    """The same where layers are computed again."""
    again: float = 4 / 3
    """Floating-point operations of a step where layers are computed again, over those where they are kept: with LoRA
    about 3/2, as frozen weights have no gradient, else 4/3."""
    live: int = _LIVE
    prefetch: int = _PREFETCH
    bucket: int = _BUCKET

    def under(self, way: Way, ranks: int) -> Parts:
        """Bytes of one of ``ranks`` ranks."""
        whole = way.stage < 3
        frozen = float(self.width * self.frozen)
        if way.quantised:
            frozen -= self.quantisable * (self.width - PACKED)
        copy = frozen / way.hpz if way.hpz > 1 else 0.0
        weights = self.frozen + self.trained
        gathered = 0.0 if whole else self.width * float(min(weights, self.live + self.largest) + self.prefetch)
        held = 1 if whole else ranks
        on_host = way.offload == "weights"
        kept = self.checkpointed if way.checkpointing else self.activations
        return Parts(
            frozen=0.0 if on_host else frozen / held + copy,
            trained=0.0 if on_host else self.width * self.trained / held,
            gradients=4.0 * self.trained / (1 if way.stage == 1 else ranks),
            optimizer=0.0 if way.offload != "none" else 12.0 * self.trained / ranks,
            gathered=min(gathered, 1.0 * self.width * weights),
            # Stage 1 in bf16 reduces in place.
            buffers=0.0 if way.stage == 1 and self.width == 2 else float(self.width * self.bucket),
            activations=kept / way.micro,
        )

    def at_rest(self, way: Way, ranks: int) -> float:
        """Bytes that one rank keeps in its host's memory."""
        if way.offload == "none":
            return 0.0
        kept = 16.0 * self.trained / ranks  # fp32 copies, moments, gradients
        return kept + (self.width * (self.frozen + self.trained) / ranks if way.offload == "weights" else 0.0)

    def on_host(self, way: Way, ranks: int) -> float:
        """Bytes that one rank moves between its host's memory and its own in a step of one micro-batch."""
        if way.offload == "none":
            return 0.0
        moved = (4.0 + self.width) * self.trained / ranks  # gradients there, weights back
        return moved + (2.0 * self.width * (self.frozen + self.trained) / ranks if way.offload == "weights" else 0.0)


def parts_to_rehearse(config: Config, ranks: int, layers: int) -> list[Part]:
    """What :func:`sizes_of` needs: a shallow and a less shallow model, with layers kept and computed again.

    Args:
        config: the settings.
        ranks: of the world.
        layers: of the backbone.
    """
    few = [None, None] if config.backbone.lora_layers or layers <= 4 else [2, 4]
    # DeepSpeed's bucket is counted by its own formula.
    training = replace(config.training, zero_stage=1, offload="none", zero_options={"reduce_bucket_size": _SMALL})
    plain = replace(config, training=training, backbone=replace(config.backbone, quantise="none", liger=False))
    again = replace(plain, backbone=replace(plain.backbone, gradient_checkpointing=True))
    plain = replace(plain, backbone=replace(plain.backbone, gradient_checkpointing=False))
    return [Part(one, ranks, depth) for one in (plain, again) for depth in few]


def sizes_of(shallow: list[Rehearsal], whole: Rehearsal, config: Config) -> Sizes:
    """From rehearsals of :func:`parts_to_rehearse` and the one of the configuration itself.

    What a layer keeps is the difference between two depths; memory grows with it in a straight line.
    """
    kept = []
    for low, high in (shallow[:2], shallow[2:]):
        first, second = (one.longest_peak_bytes - one.resident_bytes for one in (low, high))
        slope = (second - first) / (high.layers - low.layers) if high.layers > low.layers else 0.0
        kept.append(first + slope * (whole.layers - low.layers))
    options = config.training.zero_options
    width = 2 if config.training.precision == "bf16" else 4
    one_layer = whole.quantisable_numbers // max(1, whole.layers)
    return Sizes(
        frozen=whole.frozen_numbers,
        trained=whole.trained_numbers,
        quantisable=whole.quantisable_numbers,
        width=width,
        largest=max(one_layer, 1),
        activations=max(0.0, kept[0]),
        checkpointed=max(0.0, kept[1]),
        again=shallow[3].step.flops / max(1, shallow[1].step.flops),
        live=options.get("stage3_max_live_parameters", _LIVE),
        prefetch=options.get("stage3_prefetch_bucket_size", _PREFETCH),
        bucket=options.get("reduce_bucket_size", _BUCKET),
    )
