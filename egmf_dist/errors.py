"""The one error that a user's mistake raises; the command line prints it in one line and exits non-zero."""


class EgmfError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""
