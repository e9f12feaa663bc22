"""Many clips: what was done before, processes, one folder of features a stream."""
