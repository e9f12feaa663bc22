"""A run on disk: its paths, who holds it, its identity, its manifest and records, where its data lies now."""
