"""Which photos of a folder are done, so that a run that was stopped can go on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

NAME = "finished.jsonl"


class FinishedPhotos:
    """The list ``OUT/finished.jsonl``: a line for each photo all of whose results are written.

    A photo counts as done where a line has its path, the name of its results, its size and time of
    change, and the settings of the run. A line that a kill cut short counts for nothing.

    Args:
        out: the folder of the results; the list is begun anew there unless ``resume``.
        settings: what the results depend on besides the photo.
        resume: whether an earlier run's lines count.

    Raises:
        OSError: the list cannot be read or written.
    """

    def __init__(self, out: Path, settings: Mapping[str, object], resume: bool) -> None:
        self.path = out / NAME
        text = json.dumps({key: str(value) for key, value in settings.items()}, sort_keys=True)
        self.settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.lines: set[str] = set()
        if resume and self.path.exists():
            self.lines.update(self.path.read_text(encoding="utf-8", errors="replace").splitlines())
        begun = "\n" if self.lines else ""  # a line that was cut short ends here
        with open(self.path, "a" if resume else "w", encoding="utf-8") as file:
            file.write(begun)

    def __contains__(self, photo: tuple[str, Path]) -> bool:
        return bool(self.lines) and self._line(*photo) in self.lines

    def add(self, photo: tuple[str, Path]) -> None:
        """Adds a photo, (name, path), all of whose results are written."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{self._line(*photo)}\n")

    def _line(self, name: str, path: Path) -> str:
        about = path.stat()
        state = [about.st_size, about.st_mtime_ns, self.settings]
        return json.dumps([str(path.absolute()), name, *state])
