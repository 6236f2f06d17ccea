"""What the small scripts share."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence

MAX_SHOWN = 10  # lines of a list on the screen


def first_lines(lines: Sequence[str]) -> str:
    """A list for the screen: indented, and past the tenth line only how many more there are."""
    more = [f"... and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:MAX_SHOWN], *more])


class ShortHelp(argparse.RawDescriptionHelpFormatter):
    """Help of one line an option wherever it fits: ``-f, --files PATH  a photo or a folder``."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if not names or action.nargs == 0:
            return super()._format_action_invocation(action)
        return (
            f"{names} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )


def script_parser(
    doc: str, epilog: str = "", usage: str = "[options]", module: str | None = None
) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring, its options, ``epilog`` and then the examples.

    Args:
        doc: paragraphs; those of command lines are the examples.
        epilog: what is written, units, exit codes.
        usage: what follows the script's name in the first line.
        module: what a tool is started by, ``python -m MODULE``.
    """
    is_example = re.compile(r"\s*(python|bash|torchrun) ").match
    paragraphs = doc.strip("\n").split("\n\n")
    description = [p for p in paragraphs if not is_example(p)]
    examples = [textwrap.indent(textwrap.dedent(p), "  ") for p in paragraphs if is_example(p)]
    parts = [epilog.strip("\n"), *(["examples:\n" + "\n".join(examples)] if examples else [])]
    return argparse.ArgumentParser(
        prog=f"python -m {module}" if module else None,
        usage=f"%(prog)s {usage}",
        description="\n\n".join(description).strip("\n"),
        epilog="\n\n".join(part for part in parts if part),
        formatter_class=ShortHelp,
    )


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
