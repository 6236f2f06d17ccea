"""Which photos of a folder are done, so that a run that was stopped can go on."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from utils.files import atomic_write

LIST_NAME = "finished.jsonl"


class FinishedPhotos:
    """The list ``OUT/finished.jsonl``: a line for each photo all of whose results are written.

    A photo, (name of its results, path), is ``in`` it where the last line of earlier runs about
    results of its name has its path, size and time of change and the settings of the run, and its
    result is still there. As soon as results of that name are begun again, by another photo or
    other settings, the line counts no more. Nor does one that a kill cut short. Photos of other
    names stay listed, whatever folder they are in.

    Args:
        out: the folder of the results.
        settings: what the results depend on besides the photo.
        resume: whether an earlier run's lines count.
        companion_of: of a photo's path, a file of its own that its results depend on too.

    Raises:
        OSError: the list cannot be read or written.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, object],
        resume: bool,
        companion_of: Callable[[Path], Path] | None = None,
    ) -> None:
        self.out, self.path, self.resume = out, out / LIST_NAME, resume
        self.companion_of = companion_of
        self.lock = threading.Lock()
        text = json.dumps({key: str(value) for key, value in settings.items()}, sort_keys=True)
        self.settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        # Of earlier runs, the last line about each name: [name, *state, result]; [name] of results
        # that were begun anew.
        self.lines: dict[str, list] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    name, *state = json.loads(line)
                    self.lines[name.casefold()] = [name, *state]
                except (ValueError, TypeError, AttributeError):
                    continue  # cut short, or another version's
        with atomic_write(self.path, "w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in self.lines.values() if line[1:])

    def __contains__(self, photo: tuple[str, Path]) -> bool:
        line = self.lines.get(photo[0].casefold(), [])
        if not self.resume or line[:-1] != self.state(photo):
            return False
        return line[-1] is None or (self.out / line[-1]).exists()

    def has_result(self, name: str) -> bool:
        """Whether the last line of earlier runs about results of that name says that there are any.

        A photo without faces has none, though files of that name may lie there. What ``add`` lists
        in this run does not count.
        """
        line = self.lines.get(name.casefold(), [])
        return len(line) > 1 and line[-1] is not None

    def state(self, photo: tuple[str, Path]) -> list:
        """What ``add`` lists of a photo, (name, path), as it is now; take it before it is read.

        Returns:
            Name, absolute path, size, time of change and a hash of the settings; then size and time
            of the companion, where there is one.
        """
        name, path = photo
        state = [name, str(path.absolute()), *_change(path), self.settings]
        if self.companion_of and (other := self.companion_of(path)).exists():
            state += _change(other)
        return state

    def begin(self, name: str) -> None:
        """From here on the results of that name are no longer what a line says they are."""
        if self.lines.pop(name.casefold(), None):
            self._append([name])

    def add(self, state: list, result: Path | None) -> None:
        """Adds a photo all of whose results are written.

        Args:
            state: of the photo when it was read.
            result: one of the files, which stands for all; None where there are none.
        """
        shown = None if result is None else result.relative_to(self.out).as_posix()
        self._append([*state, shown])

    def _append(self, line: list) -> None:
        # one at a time: Windows has no appending that two may do at once
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")


def _change(path: Path) -> list[int]:
    """What differs after a file was replaced: size and time of change."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
