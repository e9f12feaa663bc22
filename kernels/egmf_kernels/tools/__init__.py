"""What is known of the kernels without running them on a GPU, and the tuning of their tiles."""
