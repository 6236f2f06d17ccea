"""What the small scripts share."""

import sys
from collections.abc import Callable


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
