"""``ms_dwconv``: reference, kernels, registration, bytes, and the function that users call."""
