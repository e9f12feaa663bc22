"""Shards to samples."""
