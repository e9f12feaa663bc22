"""Names that the settings share with DeepSpeed."""

from __future__ import annotations

ROUNDS = "zero_quantized_nontrainable_weights"
"""Rounds the frozen weights, so a resumed run keeps it; what the others do is as exact with any value."""
ZERO_OPTIONS = (
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size",
    "reduce_bucket_size",
    "allgather_bucket_size",
    "zero_hpz_partition_size",
    ROUNDS,
)
"""What ``training.zero_options`` may name of DeepSpeed's section ``zero_optimization``."""
