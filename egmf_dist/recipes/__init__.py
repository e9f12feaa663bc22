"""Recipes: what the demo and the real runs need beside their settings."""
