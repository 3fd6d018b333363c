"""The error of all data sets."""


class DatasetError(ValueError):
    """A data set that is not there or not usable; the message says how to get it."""
