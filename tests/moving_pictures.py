"""Made-up videos: the astronaut's portrait, moved around on grey, with noise."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

PHOTO = Path(__file__).resolve().parents[1] / "img" / "astronaut.jpg"
SIZE = (180, 360)  # height, width
GREY = 110


def portrait() -> np.ndarray:
    """(120, 115, 3) the head and shoulders; the face is some 60 pixels high."""
    return cv2.resize(cv2.imread(str(PHOTO))[20:260, 110:340], (115, 120), cv2.INTER_AREA)


def scene(*corners: Sequence[float], noise: float = 6, seed: int = 0) -> np.ndarray:
    """A frame with the portrait at each upper left corner (x, y), a later one over an earlier."""
    head = portrait()
    frame = np.full((*SIZE, 3), GREY, np.float32)
    for x, y in corners:
        place = np.float32([[1, 0, x], [0, 1, y]])
        size = SIZE[::-1]
        mask = cv2.warpAffine(np.ones(head.shape[:2], np.float32), place, size)[..., None]
        frame = frame * (1 - mask) + cv2.warpAffine(head, place, size) * mask
    frame += noise * np.random.default_rng(seed).standard_normal(frame.shape, np.float32)
    return frame.clip(0, 255).round().astype(np.uint8)


def film(path: Callable[[int], Sequence[Sequence[float]]], count: int) -> list[np.ndarray]:
    """Frames with portraits at the corners ``path(frame)``."""
    return [scene(*path(t), seed=t) for t in range(count)]


def write_film(path: Path, frames: Sequence[np.ndarray], fps: float = 25) -> Path:
    """Motion JPEG for ``.avi``, MPEG-4 else."""
    code = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, fps, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def pause_film(path: Path, frame: int, seconds: float) -> None:
    """Makes a frame of an MP4 of ``write_film`` last longer, by its table of times (ISO 14496-12).

    As screen recordings are: frames only where something changes.
    """
    data = bytearray(path.read_bytes())

    def number(at: int) -> int:
        return struct.unpack_from(">I", data, at)[0]

    at = data.find(b"stts") - 4
    entries, frames, ticks = struct.unpack_from(">III", data, at + 12)
    assert entries == 1
    unit = number(data.find(b"mdhd") + 16)  # ticks a second
    more, milliseconds = round(seconds * unit), round(1000 * seconds)
    for name, offset, longer in (
        (b"mdhd", 20, more), (b"mvhd", 20, milliseconds), (b"tkhd", 24, milliseconds),
        (b"elst", 12, milliseconds),
    ):  # fmt: skip
        place = data.find(name) + offset
        struct.pack_into(">I", data, place, number(place) + longer)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):  # boxes that hold the table
        place = data.rfind(name, 0, at) - 4
        struct.pack_into(">I", data, place, number(place) + 16)
    rows = (frame, ticks, 1, ticks + more, frames - frame - 1, ticks)
    table = struct.pack(">I4s4xI6I", 40, b"stts", 3, *rows)
    path.write_bytes(data[:at] + table + data[at + number(at) :])


def read_film(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames
