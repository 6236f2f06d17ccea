"""What is said of errors."""


def first_line(error: object) -> str:
    """An error's message, its first line; the kind of error where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
