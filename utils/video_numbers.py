"""The numbers of a video's faces: a line of JSON a frame, of CSV a face, or arrays of them all."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.files import atomic_write, write_npz
from utils.inference import Face
from utils.photo_numbers import CSV_NUMBERS, FACE_ROW, csv_numbers, face_to_json, fill_row
from utils.video_io import CODECS

FORMATS = ("jsonl", "csv", "npz")
# one row a face and frame
ROW = np.dtype(
    [
        ("frame", np.int64),
        ("time", np.float64),
        ("id", np.int32),
        *FACE_ROW.descr,
    ]
)
CSV_COLUMNS = ["frame", "time", "id", *CSV_NUMBERS]


def file_of(path: Path, form: str) -> Path:
    """The file of numbers that belongs to a video, or to a name without a video's suffix."""
    own = path.suffix.lower() in (*CODECS, *(f".{form}" for form in FORMATS))
    return path.with_suffix(f".{form}") if own else path.with_name(f"{path.name}.{form}")


class VideoNumbers:
    """Takes the faces of one frame after the other; a context manager.

    With the block's end the files appear, complete: PATH.jsonl with one line a frame, PATH.csv with
    one a face and frame (``CSV_COLUMNS``), PATH.npz with the fields of ``ROW`` as arrays of one row
    a face and frame and ``frame_time``, seconds of every frame. If the block ends by an exception,
    or there was no frame, they do not. Until then what has been added is in temporary files, of
    which those of lines lie beside PATH and can be read. A full disk leaves no half line in them.

    Args:
        path: of the files, as ``file_of`` takes it.
        formats: some of ``FORMATS``.

    Attributes:
        files: after the block, those that are there now.

    Raises:
        OSError: at the block's end: the files cannot be written there.
    """

    def __init__(self, path: Path, formats: Sequence[str]) -> None:
        self.path, self.formats = path, formats
        self.times = array("d")  # seconds, of every frame
        self.files: list[Path] = []

    def __enter__(self) -> VideoNumbers:
        self.open_files = ExitStack()  # empty: the first frame begins the files of lines
        wants_rows = "npz" in self.formats
        self.rows = tempfile.TemporaryFile(buffering=0) if wants_rows else nullcontext()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None and not self.times:  # perhaps there was no room for the first one
            error = OSError("no frame")
        with self.rows:
            # they get their names, or go
            self.open_files.__exit__(error and type(error), error, trace)
            if error is not None:  # an earlier run's files stay
                return
            if "npz" in self.formats:
                self._write_table()
        self.files = [file_of(self.path, form) for form in self.formats]

    def _write_table(self) -> None:
        self.rows.seek(0)
        table = np.frombuffer(self.rows.read(), ROW)
        arrays = {name: table[name] for name in ROW.names}
        arrays["frame_time"] = np.array(self.times)
        write_npz(file_of(self.path, "npz"), arrays)

    def _begin(self) -> None:
        def opened(form: str) -> BinaryIO:
            return self.open_files.enter_context(atomic_write(file_of(self.path, form))).raw

        if "jsonl" in self.formats:
            self.lines = opened("jsonl")
        if "csv" in self.formats:
            self.sheet = opened("csv")
            _append(self.sheet, f"{','.join(CSV_COLUMNS)}\n".encode())

    def add(self, frame: int, seconds: float, tracked: Sequence[tuple[int, Face]]) -> None:
        """Writes the faces of a frame.

        Args:
            frame: its number, from 0.
            seconds: its time, from the first frame.
            tracked: (id, face), as ``FaceTracker`` gives them.

        Raises:
            OSError: they cannot be written.
        """
        if not self.times:
            self._begin()
        if "jsonl" in self.formats:
            faces = [{"id": face_id} | face_to_json(face) for face_id, face in tracked]
            line = {"frame": frame, "time": round(seconds, 6), "faces": faces}
            _append(self.lines, f"{json.dumps(line, allow_nan=False)}\n".encode())
        if "csv" in self.formats:
            start = (frame, round(seconds, 6))
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerows((*start, face_id, *csv_numbers(face)) for face_id, face in tracked)
            _append(self.sheet, text.getvalue().encode())
        if "npz" in self.formats:  # last: every row has its frame's time
            rows = np.zeros(len(tracked), ROW)
            for row, (face_id, face) in zip(rows, tracked, strict=True):
                row["frame"], row["time"], row["id"] = frame, seconds, face_id
                fill_row(row, face)
            _append(self.rows, rows.tobytes())
        self.times.append(seconds)


def _append(file: BinaryIO, content: bytes) -> None:
    """Writes all of it to an unbuffered file, or nothing of it where the disk is full."""
    end = file.tell()
    try:
        while content:  # the last that fits is written without an error
            content = content[file.write(content) :]
    except OSError:
        file.truncate(end)
        raise
