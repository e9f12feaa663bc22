"""``gated_tri_proj``: reference, kernels, registration, bytes, and the function that users call."""
