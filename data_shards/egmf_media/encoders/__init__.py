"""Hugging Face's encoders; the only place with torch, imported when one is used."""
