"""What may be wrong with data."""


class DataError(ValueError):
    """Data that can't be used; the message names the file, the field and the mend."""


class BrokenImageError(DataError):
    """An image file that is missing or can't be decoded."""


class StalledError(DataError):
    """No batch came within the time limit. A thread may hang in a read that nothing can interrupt."""
