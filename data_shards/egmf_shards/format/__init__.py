"""What shards hold: task, sample, their rules, bytes, manifest and index."""
