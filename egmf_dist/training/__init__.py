"""Training with DeepSpeed: the loop, its engine, checkpoints, health and records."""
