"""Features of the face."""
