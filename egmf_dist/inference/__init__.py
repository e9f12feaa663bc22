"""Scoring of legal answers, and evaluation of a split."""
