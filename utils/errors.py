"""An error that scripts end with, and what is said of errors."""


class UnavailableError(RuntimeError):
    """A device, engine or window is not there or does not work; says what to take instead."""


def first_line(error: object) -> str:
    """An error's message, its first line; the kind of error where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
