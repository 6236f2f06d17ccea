"""The numbers of a video's faces: a line of JSON for each frame, or arrays of all of them."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np

from utils.files import atomic_write, write_npz
from utils.inference import Face
from utils.results import FACE_ROW, face_to_json, fill_row
from utils.video_io import CODECS

FORMATS = ("jsonl", "npz")
# one row a face and frame
ROW = np.dtype(
    [
        ("frame", np.int64),
        ("time", np.float64),
        ("id", np.int32),
        *FACE_ROW.descr,
    ]
)


def file_of(path: Path, form: str) -> Path:
    """The file of numbers that belongs to a video, or to a name without a video's suffix."""
    own = path.suffix.lower() in (*CODECS, *(f".{form}" for form in FORMATS))
    return path.with_suffix(f".{form}") if own else path.with_name(f"{path.name}.{form}")


class VideoNumbers:
    """Takes the faces of one frame after the other; a context manager.

    With the block's end the files appear, complete: PATH.jsonl with one line a frame, PATH.npz with
    the fields of ``ROW`` as arrays of one row a face and ``frame_time``, seconds of every frame. If
    the block ends by an exception, or there was no frame, they do not. Until then what has been
    added is in temporary files, of which that of lines lies beside PATH and can be read.

    Args:
        path: of the files, as ``file_of`` takes it.
        formats: some of ``FORMATS``.

    Attributes:
        written: after the block, the files that are there now.

    Raises:
        OSError: at the block's end: the files cannot be written there.
    """

    def __init__(self, path: Path, formats: Sequence[str]) -> None:
        self.path, self.formats = path, formats
        self.times = array("d")  # seconds, of every frame
        self.written: list[Path] = []

    def __enter__(self) -> VideoNumbers:
        self.lines_file = ExitStack()  # empty: the first frame begins the file
        self.rows = tempfile.TemporaryFile() if "npz" in self.formats else nullcontext()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self.rows:
            self.lines_file.__exit__(kind, error, trace)  # it gets its name, or goes
            if kind is not None or not self.times:  # an earlier run's files stay
                return
            if "npz" in self.formats:
                self._write_table()
        self.written = [file_of(self.path, form) for form in self.formats]

    def _write_table(self) -> None:
        self.rows.seek(0)
        table = np.frombuffer(self.rows.read(), ROW)
        arrays = {name: table[name] for name in ROW.names}
        arrays["frame_time"] = np.array(self.times)
        write_npz(file_of(self.path, "npz"), arrays)

    def add(self, frame: int, seconds: float, tracked: Sequence[tuple[int, Face]]) -> None:
        """Writes the faces, each with its id, of a frame.

        Raises:
            OSError: they cannot be written.
        """
        if "jsonl" in self.formats and not self.times:
            lines = atomic_write(file_of(self.path, "jsonl"), "w")
            self.lines = self.lines_file.enter_context(lines)
        self.times.append(seconds)
        if "npz" in self.formats:
            for number, face in tracked:
                row = np.zeros((), ROW)
                row["frame"], row["time"], row["id"] = frame, seconds, number
                fill_row(row, face)
                self.rows.write(row.tobytes())
        if "jsonl" in self.formats:
            faces = [{"id": number} | face_to_json(face) for number, face in tracked]
            line = {"frame": frame, "time": round(seconds, 6), "faces": faces}
            self.lines.write(json.dumps(line, allow_nan=False) + "\n")
            self.lines.flush()
