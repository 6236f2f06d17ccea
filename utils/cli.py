"""What the scripts share."""

import argparse
import errno
import math
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, NoReturn

from utils.errors import UnavailableError

STOPPED = 130  # the exit code of a program that Ctrl-C ended
MAX_SHOWN = 10  # lines of a list on the screen
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """The text with ``\\x1b`` in place of an escape, so that strangers' file names move no cursor.

    All control characters but line breaks.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def say(line: str, file: IO[str] | None = None) -> None:
    """Writes one line to a stream (default: stdout), above the progress bar where one is shown."""
    line, stream = plain(line).replace("\n", "\\n"), file or sys.stdout
    _write(line, stream, above_bar="tqdm" in sys.modules)


def _write(text: str, stream: IO[str] | None, above_bar: bool = False) -> None:
    if stream is None:  # closed before Python began
        return
    try:
        if above_bar:
            sys.modules["tqdm"].tqdm.write(text, file=stream)
        else:
            stream.write(f"{text}\n")
        stream.flush()
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        # `| head` has read enough, the terminal is closed or the disk full; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if error.errno in _FULL and stream is not sys.stderr:
            _write("no space left for what is printed: nothing more of it is written", sys.stderr)


_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or one's own share of it
# What writing to a closed pipe or terminal gives, or to a full disk; Windows' pipes EINVAL.
_CLOSED = (errno.EPIPE, errno.EIO, *_FULL)
_CLOSED += (errno.EINVAL,) if sys.platform == "win32" else ()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, progress bars neither."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def complain(script: str, error: object) -> None:
    """What is wrong, on stderr: the script's name and an error's message, which begins with the
    file also where it is the system's."""
    if isinstance(error, OSError) and isinstance(error.filename, (str, os.PathLike)):
        error = f"{os.fspath(error.filename)}: {error.strerror}"
    _write(plain(f"{script}: {error}"), sys.stderr)


def at_least(least: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a finite number, ``int`` or ``float``, that is not below ``least``."""
    return _number(lambda value: least <= value < math.inf, f"{least:g} or more", kind)


def within(low: float, high: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number, ``int`` or ``float``, of ``low`` to ``high``, both included."""
    return _number(lambda value: low <= value <= high, f"{low:g} to {high:g}", kind)


def _number(is_right: Callable[[float], bool], range_: str, kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not is_right(value):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what}, {range_}, not {text!r}")
        return value

    return parse


def comma_list(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: ``a,b`` -> ("a", "b"), each of them one of ``allowed``."""

    def parse(text: str) -> tuple[str, ...]:
        parts = tuple(dict.fromkeys(p.strip().lower() for p in text.split(",") if p.strip()))
        if not parts or not set(parts) <= set(allowed):
            expected = ", ".join(allowed)
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a comma-separated list of {expected}"
            )
        return parts

    return parse


def first_lines(lines: Sequence[str]) -> str:
    """A list for the screen: indented, and past the tenth line only how many more there are.

    Control characters are shown as ``plain`` shows them.
    """
    more = [f"... and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    return "\n".join(f"  {plain(line)}" for line in [*lines[:MAX_SHOWN], *more])


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


class ScriptParser(argparse.ArgumentParser):
    """Its messages move no cursor, and an empty argument is refused: none of ours means anything,
    and ``Path("")`` is the current folder."""

    def parse_known_args(self, args=None, namespace=None):
        for argument in sys.argv[1:] if args is None else args:
            if not argument or (argument.startswith("-") and argument.endswith("=")):
                self.error(f"empty argument {argument!r}: a variable that is not set?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def script_parser(
    doc: str | None, epilog: str = "", usage: str = "[options]", module: str | None = None
) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring, its options, ``epilog`` and then the examples.

    Args:
        doc: paragraphs; those of command lines are the examples. None under ``python -OO``.
        epilog: what is written, units, exit codes.
        usage: what follows the script's name in the first line.
        module: what a tool is started by, ``python -m MODULE``.
    """
    is_example = re.compile(r"\s*(python|bash|torchrun) ").match
    paragraphs = (doc or "").strip("\n").split("\n\n")
    description = [p for p in paragraphs if not is_example(p)]
    examples = [textwrap.indent(textwrap.dedent(p), "  ") for p in paragraphs if is_example(p)]
    parts = [epilog.strip("\n"), *(["examples:\n" + "\n".join(examples)] if examples else [])]
    return ScriptParser(
        prog=f"python -m {module}" if module else None,
        usage=f"%(prog)s {usage}",
        description="\n\n".join(description).strip("\n"),
        epilog="\n\n".join(part for part in parts if part),
        formatter_class=ShortHelp,
    )


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's ``main`` and ends the process with its exit code.

    Wrong input (``OSError``, ``ValueError``: their messages name the file or value) and what is
    not there (``UnavailableError``) are one line on stderr and exit code 2, not a traceback; a full
    disk is one line and exit code 1; Ctrl-C ends with ``STOPPED``. What else politely asks a
    program to end (``timeout``, ``docker stop``, a batch system, a terminal that is closed) is
    taken as Ctrl-C, so that what is finished is kept; the exit code is then 128 + the signal's
    number.
    """
    script = Path(sys.argv[0]).name
    asked = _as_ctrl_c("SIGTERM", "SIGHUP")
    if sys.stderr is None:  # closed before Python began (pythonw): progress bars would fail
        sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every file name is text
    # A notebook's, for its own environment: in another one matplotlib refuses it when imported,
    # which is after an epoch of training or all of a benchmark.
    os.environ.pop("MPLBACKEND", None)
    try:
        code = main()
    except (OSError, ValueError, UnavailableError) as error:
        complain(script, error)
        code = 1 if getattr(error, "errno", None) in _FULL else 2
    except KeyboardInterrupt:
        complain(script, "stopped")
        code = STOPPED
    sys.exit(128 + asked[0] if asked and code == STOPPED else code)


def _as_ctrl_c(*names: str) -> list[int]:
    """Makes some signals raise KeyboardInterrupt; the list gets the number of the one that came.

    Not those that are ignored (``nohup``) and not under torchrun, which ends its processes itself.
    """
    own, came = os.getpid(), []

    def stop(number: int, _: object) -> None:
        # Python comes here only when native code returns, as for Ctrl-C; a second signal ends the
        # process at once.
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != own:  # a forked worker, which inherits this
            os.kill(os.getpid(), number)
        came.append(number)
        raise KeyboardInterrupt

    if (
        threading.current_thread() is threading.main_thread()
        and "TORCHELASTIC_RUN_ID" not in os.environ
    ):
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
    return came


def lasting(seconds: float) -> str:
    """``8.5 s``, ``2.0 minutes``, ``1.3 hours``."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def counted(number: int, thing: str) -> str:
    """``1 photo``, ``2 photos``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
