"""The numbers of a photo's faces: json, csv, or arrays of them all."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.draw import printable
from utils.files import atomic_write, write_npz
from utils.inference import Face
from utils.morphable_model import NUM_LANDMARKS, NUM_PARAMETERS, MorphableModel

FORMATS = ("npz", "json", "csv")
ALL_FACES = "faces.csv"
# the numbers of a face, under the names of ``Face``; the dense mesh is stored apart from them
FACE_ROW = np.dtype(
    [
        ("box", np.float32, 4),
        ("score", np.float64),
        ("roi_box", np.float64, 4),
        ("parameters", np.float32, NUM_PARAMETERS),
        ("landmarks", np.float32, (3, NUM_LANDMARKS)),
        *((angle, np.float64) for angle in ("yaw", "pitch", "roll")),
        ("facing", np.float64, 3),
        ("rotation", np.float64, (3, 3)),
        ("scale", np.float64),
        ("translation", np.float64, 3),
        ("stretch", np.float64),
    ]
)
# a line of the csv: photo, the face's number in it, these, and x y z of one landmark after another
CSV_FIELDS = {
    "box": ("box_x1", "box_y1", "box_x2", "box_y2"),
    "score": ("score",),
    **{angle: (angle,) for angle in ("yaw", "pitch", "roll")},
    "facing": ("facing_yaw", "facing_pitch", "facing_roll"),
    "scale": ("scale",),
    "translation": ("translation_x", "translation_y", "translation_z"),
    "stretch": ("stretch",),
}
CSV_NUMBERS = [column for columns in CSV_FIELDS.values() for column in columns]
CSV_NUMBERS += [f"{axis}{i}" for i in range(NUM_LANDMARKS) for axis in "xyz"]
CSV_COLUMNS = ["photo", "face", *CSV_NUMBERS]


def save_numbers(
    out: Path,
    name: str,
    photo: Path,
    faces: Sequence[Face],
    formats: Sequence[str],
    face_model: MorphableModel,
) -> None:
    """Boxes, scores, parameters, landmarks, pose and (npz) vertices, under ``out/numbers``.

    The npz has one array per quantity with the faces, of which there may be none, along the first
    axis (no vertices where the faces have none) and the mesh's triangles once; the json has a list
    of faces, the csv a line a face with ``CSV_COLUMNS``. Frames and units are those of
    ``utils.inference.Face``.
    """
    about = {"photo": str(photo)}
    for form in FORMATS:
        if form in formats:
            write_numbers(out / "numbers" / f"{name}.{form}", faces, about, face_model)


def write_numbers(
    path: Path, faces: Sequence[Face], about: dict[str, str], face_model: MorphableModel
) -> None:
    """One file of ``save_numbers``, by its suffix; ``about`` goes into the json and the csv."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        with atomic_write(path, "w") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(CSV_COLUMNS)
            photo = no_formula(about.get("photo", ""))
            table.writerows([photo, i, *csv_numbers(face)] for i, face in enumerate(faces))
    elif suffix == ".npz":
        rows = np.zeros(len(faces), FACE_ROW)
        for row, face in zip(rows, faces, strict=True):
            fill_row(row, face)
        arrays = {key: np.ascontiguousarray(rows[key]) for key in FACE_ROW.names}
        if all(face.vertices is not None for face in faces):
            meshes = np.array([face.vertices for face in faces], np.float32)
            arrays["vertices"] = meshes.reshape(len(faces), *face_model.mean.shape)
        write_npz(path, arrays | {"triangles": face_model.triangles})
    else:
        assert suffix == ".json", path
        content = {**about, "faces": [face_to_json(face) for face in faces]}
        with atomic_write(path, "w") as file:
            json.dump(content, file, allow_nan=False)


def no_formula(name: str) -> str:
    """A file's name as a csv may hold it: what spreadsheets take for a formula begins otherwise."""
    name = printable(name)
    return f"./{name}" if name[:1] in set("=+-@\t\r") else name


def csv_numbers(face: Face) -> list[float | None]:
    """The values of ``CSV_NUMBERS``."""
    values = face_to_json(face)
    numbers = [values[key] for key in CSV_FIELDS] + [np.transpose(values["landmarks"]).ravel()]
    return np.hstack(numbers).tolist()


def join_tables(out: Path, names: Sequence[str]) -> None:
    """Writes ``out/faces.csv``: the lines of ``out/numbers/NAME.csv`` of those that are there."""
    with atomic_write(out / ALL_FACES, "w") as file:
        file.write(",".join(CSV_COLUMNS) + "\n")
        for path in (out / "numbers" / f"{name}.csv" for name in names):
            if path.is_file():
                _, _, lines = path.read_text(encoding="utf-8").partition("\n")
                file.write(lines)


def fill_row(row: np.void, face: Face) -> None:
    """Writes a face's numbers into a row that has the fields of ``FACE_ROW``."""
    for key in FACE_ROW.names:
        row[key] = getattr(face, key)


def face_to_json(face: Face) -> dict[str, object]:
    """A face as plain numbers; the dense mesh is left to the npz."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return np.round(value.astype(np.float64), 6).tolist()
        return round(float(value), 6) if np.isfinite(value) else None

    parameters = {"parameters": face.parameters.astype(np.float64).tolist()}  # tiny numbers count
    values = {k: plain(getattr(face, k)) for k in FACE_ROW.names if k != "parameters"}
    return values | {"scale": face.scale} | parameters
