"""Clips to sound and pictures, on the clip's own clock."""
