"""A run on disk: its paths, its settings and who holds it, its identity, its records, and what is checked before it."""
