"""The one error that this package raises for a user's mistake or a broken file."""


class MediaError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""
