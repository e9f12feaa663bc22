"""Generated clips whose best possible scores are known."""
