"""``gated_expert_mix``: reference, kernels, registration, bytes, and the function that users call."""
