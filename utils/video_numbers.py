"""The numbers of a video's faces: a line of JSON for each frame, or arrays of all of them."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
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

    With the block's end the files appear, complete: PATH.jsonl with one line a frame (streamed, so
    that nothing is kept in memory), PATH.npz with the fields of ``ROW`` as arrays of one row a face
    and ``frame_time``, seconds of every frame. If the block ends by an exception, or there was no
    frame, they do not.

    Args:
        path: of the files, as ``file_of`` takes it.
        formats: some of ``FORMATS``.

    Attributes:
        written: after the block, the files that are there now.

    Raises:
        OSError: it cannot be written there.
    """

    def __init__(self, path: Path, formats: Sequence[str]) -> None:
        self.path, self.formats = path, formats
        self.times = array("d")
        self.written: list[Path] = []

    def __enter__(self) -> VideoNumbers:
        with ExitStack() as stack:
            if "jsonl" in self.formats:
                lines = atomic_write(file_of(self.path, "jsonl"), "w")
                self.lines = stack.enter_context(lines)
            if "npz" in self.formats:
                self.rows = stack.enter_context(tempfile.TemporaryFile())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace) -> None:
        rows = b""
        with self.stack.pop_all() as stack:  # the lines get their name, or go
            if kind is not None or not self.times:  # an earlier run's files stay
                stack.__exit__(kind or EOFError, error or EOFError("no frame"), trace)
                return
            if "npz" in self.formats:
                self.rows.seek(0)
                rows = self.rows.read()
        if "npz" in self.formats:
            table = np.frombuffer(rows, ROW)
            arrays = {name: table[name] for name in ROW.names}
            arrays["frame_time"] = np.array(self.times)
            write_npz(file_of(self.path, "npz"), arrays)
        self.written = [file_of(self.path, form) for form in self.formats]

    def add(self, frame: int, seconds: float, tracked: Sequence[tuple[int, Face]]) -> None:
        """The faces, each with its id, of a frame; what has been added is in the files' way."""
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
