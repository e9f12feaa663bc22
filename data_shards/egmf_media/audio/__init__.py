"""Features of the voice."""
