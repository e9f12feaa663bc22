"""Whether a configuration can be used: each field's own rule, and what several settings must keep together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from egmf_dist.config.rules import MUST
from egmf_dist.config.schema import BackboneConfig, Config, ModelConfig, ObjectiveConfig
from egmf_dist.errors import EgmfError


def check_config(config: Config) -> None:
    """Check a configuration.

    Raises:
        EgmfError: names the first key that breaks a rule, its value, and what would be right.
    """
    for section in fields(config):
        settings = getattr(config, section.name)
        for setting in fields(settings):
            must, value = setting.metadata.get(MUST), getattr(settings, setting.name)
            if must is not None and value is not None and not must.holds(value):
                shown = repr(value) if isinstance(value, str) else value
                if section.name == "data" and setting.name == "shards":
                    shown = "a URL with a user or password"  # which must not be repeated
                raise EgmfError(f"config: {section.name}.{setting.name} is {shown}; it must be {must.right}")
    for holds, key, value, right in [*_together(config), *kernel_rules(config.model)]:
        if not holds:
            raise EgmfError(f"config: {key} is {value}; it must be {right}")


def _together(config: Config) -> Iterator[tuple[bool, str, object, str]]:
    """Rules between settings: whether one holds, its key, the value, and what would be right."""
    model, data = config.model, config.data
    yield (
        model.heads >= 1 and model.width % max(model.heads, 1) == 0,
        "model.heads",
        model.heads,
        f"a divisor of model.width ({model.width})",
    )
    yield (
        model.local_expert or model.semantic_expert or model.global_expert or model.pseudo_tokens == 0,
        "model",
        "every expert is off",
        "at least one of local_expert, semantic_expert, global_expert; or pseudo_tokens 0 for no fusion at all",
    )
    yield (
        not data.weights or (len(data.weights) == len(data.shards) and min(data.weights) > 0),
        "data.weights",
        data.weights,
        f"empty, or one number above 0 for each of the {len(data.shards)} folders in data.shards",
    )
    backbone = config.backbone
    yield (
        not config.training.profile_steps or backbone.attn_implementation != "flex_attention",
        "training.profile_steps",
        config.training.profile_steps,
        "0 with backbone.attn_implementation flex_attention, whose operators cannot be counted",
    )
    yield (
        backbone.tuning != "lora" or backbone.lora_rank > 0 or model.pseudo_tokens > 0,
        "backbone.lora_rank",
        0,
        "above 0 when model.pseudo_tokens is 0: nothing would be trained",
    )
    yield (
        backbone.tuning != "frozen" or model.pseudo_tokens > 0,
        "backbone.tuning",
        "frozen",
        "lora or full when model.pseudo_tokens is 0: nothing would be trained",
    )
    yield (
        config.objective.number == "tokens" or config.training.objective == "answers",
        "objective.number",
        repr(config.objective.number),
        f"tokens where training.objective is {config.training.objective}: the rows hold the right answers alone then",
    )
    profiled = config.training.profile_steps
    yield (
        not profiled or config.training.steps >= profiled + 4,
        "training.profile_steps",
        profiled,
        f"at most training.steps - 4 ({config.training.steps - 4}): two steps come before, two after them",
    )
    stage = config.training.zero_stage
    yield (
        backbone.quantise == "none" or (stage < 3 and backbone.tuning != "full"),
        "backbone.quantise",
        backbone.quantise,
        f"none under training.zero_stage 3 and backbone.tuning full (here {stage} and {backbone.tuning}): weights of "
        "four bits are neither partitioned nor trained",
    )
    yield (
        config.training.offload != "weights" or stage == 3,
        "training.offload",
        "weights",
        f"none or optimizer under training.zero_stage {stage}: stage 3 alone partitions weights",
    )


def without_effect(config: Config) -> list[str]:
    """A line each for what is set and does nothing: a recipe's settings of LoRA where the backbone is tuned otherwise,
    what another ``objective.number`` or ``data.shuffle`` would read."""
    said = []
    backbone, usual = config.backbone, BackboneConfig()
    named = [f.name for f in fields(backbone) if f.name.startswith("lora_")]
    odd = [f"backbone.{name}" for name in named if getattr(backbone, name) != getattr(usual, name)]
    if odd and backbone.tuning in ("full", "frozen"):
        said.append(f"{', '.join(odd)} have no effect: backbone.tuning is {backbone.tuning}")
    objective, plain = config.objective, ObjectiveConfig()
    for name, reads in (("width", "soft"), ("answer_weight", "expected")):
        if getattr(objective, name) != getattr(plain, name) and objective.number != reads:
            said.append(f"objective.{name} has no effect: objective.number is {objective.number}")
    if config.data.mixed_epochs and config.data.shuffle != "dialogue":
        said.append(f"data.mixed_epochs has no effect: data.shuffle is {config.data.shuffle}")
    if objective.ordered and objective.number == "tokens":
        said.append("objective.ordered has no effect: objective.number is tokens")
    return said


def kernel_rules(model: ModelConfig) -> list[tuple[bool, str, object, str]]:
    """What the Triton kernels can serve, where they were asked for by name; ``auto`` steps aside by itself."""
    if model.kernels != "triton":
        return []
    import egmf_kernels  # imports torch, which nobody should wait for who only asks for help

    fits = [
        k
        for k in range(1, egmf_kernels.MAX_QUERIES + 1)
        if egmf_kernels.query_elements(k, max(model.width, 1)) <= egmf_kernels.MAX_QUERY_ELEMENTS
    ]
    queries = max(fits, default=0)
    return [
        (
            model.width <= egmf_kernels.MAX_WIDTH,
            "model.width",
            model.width,
            f"at most {egmf_kernels.MAX_WIDTH} for model.kernels triton",
        ),
        (
            model.pseudo_tokens <= queries,
            "model.pseudo_tokens",
            model.pseudo_tokens,
            f"at most {queries} for model.kernels triton at width {model.width}",
        ),
        (
            max(model.kernel_sizes, default=1) <= egmf_kernels.MAX_KERNEL_SIZE,
            "model.kernel_sizes",
            model.kernel_sizes,
            f"none above {egmf_kernels.MAX_KERNEL_SIZE} for model.kernels triton",
        ),
    ]
