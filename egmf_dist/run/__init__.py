"""A run on disk: its paths, its settings and who holds it, its identity, its records, and what is checked before it.

Nothing is imported here: :mod:`egmf_dist.config` needs ``formats`` and ``folder`` needs the configuration.
"""
