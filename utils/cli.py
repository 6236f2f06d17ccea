"""What the small scripts share."""

import sys
from collections.abc import Callable, Sequence

MAX_SHOWN = 10  # lines of a list on the screen


def first_lines(lines: Sequence[str]) -> str:
    """A list for the screen: indented, and past the tenth line only how many more there are."""
    more = [f"... and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:MAX_SHOWN], *more])


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's ``main`` and ends the process with its exit code.

    Wrong input (``OSError``, ``ValueError``: their messages name the file or value) is one line on
    stderr and exit code 2, not a traceback.
    """
    try:
        code = main()
    except (OSError, ValueError) as error:
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
