"""``ragged_pool_gate``: reference, kernels, registration, bytes, and the function that users call."""
