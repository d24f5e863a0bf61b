"""Errors of the data."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the field and the remedy."""


class BrokenImageError(DataError):
    """An image file that is missing or cannot be decoded."""


class StalledError(DataError):
    """No batch arrived within the time limit. A thread may hang in a read that cannot be interrupted."""
