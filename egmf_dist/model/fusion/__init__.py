"""Fusions: the protocol (``base``) and ours, three experts under a two-level gate."""
