"""Recipes: what the demo and the run on real rows are made of; the launcher starts them."""
