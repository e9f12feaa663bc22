"""How the backbone is tuned: with LoRA, not at all, or whole."""
