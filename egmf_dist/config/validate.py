"""Every rule that one setting or several together must keep, in one place."""

from __future__ import annotations

import re

from egmf_dist.config.schema import Config, DataConfig, ModelConfig
from egmf_dist.errors import EgmfError
from egmf_shards.format.sample import MAX_CONTEXT_TURNS


def validate(config: Config) -> None:
    """Check a configuration.

    Raises:
        EgmfError: names the first key that breaks a rule, its value, and what would be right.
    """
    model, data, training = config.model, config.data, config.training
    rules: list[tuple[bool, str, object, str]] = [
        (
            model.width >= 16 and model.width % 16 == 0,
            "model.width",
            model.width,
            "a positive multiple of 16, such as 128",
        ),
        (
            model.heads >= 1 and model.width % max(model.heads, 1) == 0,
            "model.heads",
            model.heads,
            f"a divisor of model.width ({model.width})",
        ),
        (
            len(model.kernel_sizes) > 0 and all(k > 0 and k % 2 == 1 for k in model.kernel_sizes),
            "model.kernel_sizes",
            model.kernel_sizes,
            "one or more odd numbers, such as [3, 5, 7]",
        ),
        (
            model.local_expert or model.semantic_expert or model.global_expert or model.pseudo_tokens == 0,
            "model",
            "every expert is off",
            "at least one of local_expert, semantic_expert, global_expert; or pseudo_tokens 0 for no fusion at all",
        ),
        (model.gate_temperature > 0, "model.gate_temperature", model.gate_temperature, "above 0"),
        (model.modality_temperature > 0, "model.modality_temperature", model.modality_temperature, "above 0"),
        (model.pseudo_tokens >= 0, "model.pseudo_tokens", model.pseudo_tokens, "0 or more"),
        *kernel_rules(model),
        (0 <= model.dropout < 1, "model.dropout", model.dropout, "in [0, 1)"),
        (model.auxiliary_weight >= 0, "model.auxiliary_weight", model.auxiliary_weight, "0 or more"),
        (
            0 <= data.context_turns <= MAX_CONTEXT_TURNS,
            "data.context_turns",
            data.context_turns,
            "0 to 12 (shards hold 12)",
        ),
        (data.max_text_tokens >= 1, "data.max_text_tokens", data.max_text_tokens, "1 or more"),
        (data.max_prompt_tokens >= 1, "data.max_prompt_tokens", data.max_prompt_tokens, "1 or more"),
        (data.max_frames >= 1, "data.max_frames", data.max_frames, "1 or more"),
        *data_rules(data),
        (config.backbone.lora_rank >= 0, "backbone.lora_rank", config.backbone.lora_rank, "0 or more"),
        (0 <= config.backbone.lora_dropout < 1, "backbone.lora_dropout", config.backbone.lora_dropout, "in [0, 1)"),
        (training.steps >= 1, "training.steps", training.steps, "1 or more"),
        (training.global_batch >= 1, "training.global_batch", training.global_batch, "1 or more"),
        (training.micro_batch >= 1, "training.micro_batch", training.micro_batch, "1 or more"),
        (training.weight_decay >= 0, "training.weight_decay", training.weight_decay, "0 or more"),
        (training.patience >= 0, "training.patience", training.patience, "0 (never) or more"),
        (
            training.validation_samples >= 0,
            "training.validation_samples",
            training.validation_samples,
            "0 (all) or more",
        ),
        (training.max_skipped_steps >= 1, "training.max_skipped_steps", training.max_skipped_steps, "1 or more"),
        (
            training.fusion_learning_rate is None or training.fusion_learning_rate > 0,
            "training.fusion_learning_rate",
            training.fusion_learning_rate,
            "above 0, or null for the adapter's",
        ),
        (config.backbone.lora_alpha > 0, "backbone.lora_alpha", config.backbone.lora_alpha, "above 0"),
        (training.learning_rate > 0, "training.learning_rate", training.learning_rate, "above 0"),
        (training.warmup_steps >= 0, "training.warmup_steps", training.warmup_steps, "0 or more"),
        (training.gradient_clipping >= 0, "training.gradient_clipping", training.gradient_clipping, "0 (none) or more"),
        (training.validate_every >= 1, "training.validate_every", training.validate_every, "1 or more"),
        (training.checkpoint_every >= 1, "training.checkpoint_every", training.checkpoint_every, "1 or more"),
        (training.keep_checkpoints >= 1, "training.keep_checkpoints", training.keep_checkpoints, "1 or more"),
        (training.log_every >= 1, "training.log_every", training.log_every, "1 or more"),
        (config.evaluation.batch_size >= 1, "evaluation.batch_size", config.evaluation.batch_size, "1 or more"),
        (config.launch.max_failures >= 0, "launch.max_failures", config.launch.max_failures, "0 or more"),
        (config.launch.cpus_per_worker >= 1, "launch.cpus_per_worker", config.launch.cpus_per_worker, "1 or more"),
        (
            config.backbone.lora_rank > 0 or model.pseudo_tokens > 0,
            "backbone.lora_rank",
            0,
            "above 0 when model.pseudo_tokens is 0: nothing would be trained",
        ),
    ]
    for holds, key, value, right in rules:
        if not holds:
            raise EgmfError(f"config: {key} is {value}; it must be {right}")
    if training.select_by and training.select_by.count(".") != 1:
        raise EgmfError(
            f"config: training.select_by is {training.select_by!r}; it must be TASK.METRIC, such as emotion.weighted_f1"
        )


def data_rules(data: DataConfig) -> list[tuple[bool, str, object, str]]:
    """How shards are read."""
    return [
        (
            not any(re.match(r"\w+://[^/]*@", folder) for folder in data.shards),
            "data.shards",
            "a URL with a user or password",
            "a URL without: it is written into the run's folder; credentials come from the environment",
        ),
        (
            not data.weights or (len(data.weights) == len(data.shards) and min(data.weights) > 0),
            "data.weights",
            data.weights,
            f"empty, or one number above 0 for each of the {len(data.shards)} folders in data.shards",
        ),
        (data.block_samples >= 1, "data.block_samples", data.block_samples, "1 or more"),
        (data.window_blocks >= 1, "data.window_blocks", data.window_blocks, "1 or more"),
        (data.workers is None or data.workers >= 0, "data.workers", data.workers, "0 or more, or null"),
        (data.prefetch >= 1, "data.prefetch", data.prefetch, "1 or more"),
        (data.max_bad_in_a_row >= 1, "data.max_bad_in_a_row", data.max_bad_in_a_row, "1 or more"),
        (0 <= data.max_bad_fraction <= 1, "data.max_bad_fraction", data.max_bad_fraction, "in [0, 1]"),
        (data.cache_gib > 0, "data.cache_gib", data.cache_gib, "above 0"),
        (data.retries >= 0, "data.retries", data.retries, "0 or more"),
    ]


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
