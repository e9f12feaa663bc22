"""``hier_gate_mix_norm``: reference, kernels, registration, bytes, and the function that users call."""
