"""The one error that this package raises for a user's mistake or a broken file."""


class ShardError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


class UnreachableError(ShardError):
    """The store or this machine is at fault: it cannot be reached, lets nobody in, has no descriptor or memory left.

    No fault of a sample, so no policy for bad samples covers it.
    """
