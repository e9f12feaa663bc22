"""Which sample is whose: the permutation of an epoch, and the stream of global batches."""
