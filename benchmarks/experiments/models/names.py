"""What the commands of `purify models` share."""


class ModelsError(ValueError):
    """A name, file or option that a command cannot use."""


def megabytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 10**6:,.1f} MB"
