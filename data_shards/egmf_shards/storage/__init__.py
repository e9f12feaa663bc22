"""Where a folder of shards lies: on a disk or behind a URL."""
