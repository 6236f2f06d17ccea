"""Labels of 68 landmarks in the forms that they come in (``FORMS``)."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.files import is_inside
from utils.geometry import angles_to_rotation
from utils.matlab import read_mat
from utils.morphable_model import NUM_LANDMARKS
from utils.photos import PHOTO_SUFFIXES

FORMS = """\
  NAME.pts beside NAME.jpg    300W
  NAME.mat beside NAME.jpg    AFLW2000-3D: pt3d_68; else pt2d, where it has 68 points
  landmarks/DIR/NAME_pts.mat  300W-LP: pts_3d (x and y of points in 3D) of DIR/NAME.jpg. Taken
                              before the .mat beside the photo, whose pt2d is that of the photo
                              before it was turned
  FILE.json                   {"photo.jpg": [[x, y] or [x, y, z], 68 of them]}, or a list of such
                              faces; an unknown point: [null, null]
  FILE.csv                    photo.jpg,x0,y0,x1,y1,... or photo.jpg,x0,y0,z0,...: a line for each
                              face, empty where a number is unknown; a line of titles may be first
                              (points begin at its x0, as in singleImage.py's faces.csv, which
                              wants --photos .); semicolons (with decimal points or commas) or tabs
                              may stand for the commas
  The first pixel's centre is 1, 1 in .pts and .mat files, as in MATLAB, and 0, 0 in the others.
  x points right, y down, z (if any) to the viewer, in pixels."""
_FROM_ONE = np.array([[1.0], [1.0], [0.0]])  # the first pixel's centre in .pts and .mat files
_MAT_POINTS = ("pt3d_68", "pts_3d", "pt2d", "pts_2d")  # the best first


@dataclass(eq=False)
class LabelledFace:
    """A face somebody has marked.

    Attributes:
        photo: the picture's file; whether it is there has not been looked at.
        name: the photo's, relative to the folder of photos, with forward slashes.
        points: (2 or 3, 68) float64, image frame, NaN where unknown; None where ``reason`` says
            why there are none.
        visible_contour: whether the jaw's points lie on the visible contour.
        rotation: (3, 3) that the label file states, as ``angles_to_rotation`` gives it, or None.
        reason: why the face cannot be used; empty where it can.
    """

    photo: Path
    name: str
    points: np.ndarray | None = None
    visible_contour: bool = False
    rotation: np.ndarray | None = None
    reason: str = ""


def read_pts(path: Path) -> np.ndarray:
    """(2 or 3, 68) float64 points of a 300W ``.pts`` file, image frame.

    The file counts pixels from 1, as 300-W's annotations do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not 68 points between braces.
    """
    _, brace, rest = path.read_text(encoding="utf-8", errors="replace").partition("{")
    if not brace or "}" not in rest:
        raise ValueError(f"{path}: expected points between braces")
    rows = [line.split() for line in rest.partition("}")[0].splitlines() if line.strip()]
    return _points(rows, path)[0] - _FROM_ONE[: len(rows[0])]


def read_mat_labels(path: Path) -> tuple[np.ndarray, bool, np.ndarray | None]:
    """Labels of a ``.mat`` file of AFLW2000-3D or 300W-LP.

    Returns:
        points (2 or 3, 68) float64, image frame; whether their jaw is on the visible contour;
        the rotation (3, 3) of ``Pose_Para``, None without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a MATLAB file of version 5 to 7, or none of its arrays holds 68 points.
    """
    arrays = read_mat(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    fitting = [name for name, shape in shapes.items() if len(shape) == 2 and NUM_LANDMARKS in shape]
    name = next((name for name in _MAT_POINTS if name in fitting), None)
    if name is None:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
        raise ValueError(f"{path}: expected 68 points ({', '.join(_MAT_POINTS)}), found {found}")
    array = arrays[name]
    rows = array.T if array.shape[1] == NUM_LANDMARKS else array
    points = _points(rows, path)[0]
    if name == "pt2d":
        points[:, (points == -1).all(0)] = np.nan  # hidden
    points -= _FROM_ONE[: len(points)]
    pose = arrays.get("Pose_Para", np.zeros(0)).ravel()[:3]  # pitch, yaw, roll
    stated = len(pose) == 3 and np.isfinite(pose).all()
    rotation = angles_to_rotation(np.degrees(pose[[1, 0, 2]])[None])[0] if stated else None
    return points, name.endswith("2d"), rotation


def _points(faces: object, source: object) -> np.ndarray:
    """(n, 2 or 3, 68) from nested rows x, y(, z); one face or several."""
    try:
        points = np.array(faces, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{source}: expected 68 rows of numbers x, y or x, y, z (unknown: [null, null] in "
            ".json, nothing in .csv, nan in .pts)"
        ) from error
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[1] != NUM_LANDMARKS or points.shape[2] not in (2, 3):
        raise ValueError(
            f"{source}: expected {NUM_LANDMARKS} points x, y or x, y, z, found {points.shape[-2:]}"
        )
    return points.transpose(0, 2, 1)


def find_labels(source: Path, photos: Path | None = None) -> Iterator[LabelledFace]:
    """The labelled faces of a folder, a ``.json`` or a ``.csv`` file; bad ones with their reason.

    Args:
        source: a folder of photos with their labels beside them, or the file of labels.
        photos: the folder that a file's names of photos start from; where the file lies if None.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no labels at all.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_dir():
        yield from _of_folder(source)
        return
    read = {".json": _of_json, ".csv": _of_csv}.get(source.suffix.lower())
    if read is None:
        raise ValueError(f"{source}: expected a folder of photos, a .json or a .csv file")
    folder = photos or source.parent
    for place, name, rows in read(source):
        try:
            if not is_inside(name):
                raise ValueError(f"{place}: the photo must lie in {folder}; --photos names another")
            for points in _points(rows, place):
                flat = len(points) == 2
                yield LabelledFace(folder / name, name, points, visible_contour=flat)
        except ValueError as error:
            yield LabelledFace(folder / name, name, reason=str(error))


def _of_folder(folder: Path) -> Iterator[LabelledFace]:
    def fail(error: OSError) -> None:  # rglob passes over folders that are closed to us
        raise error

    found = (Path(at, name) for at, _, names in os.walk(folder, onerror=fail) for name in names)
    files = sorted(path for path in found if path.is_file())
    # macOS leaves a second, hidden file beside each that it copies to a disk of another kind
    files = [path for path in files if not path.name.startswith(".")]
    photos = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES]
    labels = {path.with_suffix(path.suffix.lower()): path for path in files}
    pictured, used = {photo.with_suffix("") for photo in photos}, {}
    for photo in photos:
        inner = photo.relative_to(folder)
        apart = folder / "landmarks" / inner.with_name(f"{photo.stem}_pts.mat")
        candidates = (apart, *(photo.with_suffix(suffix) for suffix in (".mat", ".pts")))
        label = next((labels[path] for path in candidates if path in labels), None)
        if label is None:
            continue
        sample = LabelledFace(photo, inner.as_posix())
        first = used.setdefault(label, photo)
        if first != photo:
            sample.reason = f"{photo}: {label.name} is taken as that of {first.name}"
            yield sample
            continue
        try:
            if label.suffix.lower() == ".pts":
                sample.points = read_pts(label)
                sample.visible_contour = len(sample.points) == 2
            else:
                sample.points, sample.visible_contour, sample.rotation = read_mat_labels(label)
        except (OSError, ValueError) as error:
            sample.reason = str(error)
        yield sample
    if not used:
        raise ValueError(
            f"{folder}: {len(photos)} pictures, none with a .pts or .mat file of the same name "
            "beside it (of labels in a .json or .csv file that file is given)"
        )
    for path in files:
        is_label = path.suffix.lower() in (".pts", ".mat") and not path.stem.endswith("_pts")
        if is_label and path.with_suffix("") not in pictured:
            name = path.relative_to(folder).as_posix()
            yield LabelledFace(path, name, reason=f"{path}: has no picture")


def _of_json(path: Path) -> Iterator[tuple[str, str, object]]:
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected an object, file name to points")
    for name, rows in content.items():
        yield f"{path}, {name}", name, rows


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twin = next(name for name, times in names.items() if times > 1)
        raise ValueError(f"{twin!r} is in it twice; a photo with several faces has a list of them")
    return content


def _of_csv(path: Path) -> Iterator[tuple[str, str, object]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            beginning = file.read(2**16)
            # decimal commas may be as many as the semicolons between them
            delimiter = max("\t;,", key=beginning.count)
            file.seek(0)
            is_before_faces, first = True, 1
            for number, row in enumerate(csv.reader(file, delimiter=delimiter), 1):
                if delimiter != ",":
                    row[1:] = [value.replace(",", ".") for value in row[1:]]
                if not any(value.strip() for value in row):
                    continue
                if is_before_faces and _are_titles(row):
                    if "x0" in row[1:]:  # faces.csv of singleImage.py has other numbers before
                        first = row.index("x0")
                    continue
                is_before_faces = False
                values = [value.strip() or None for value in row[first:]]
                while len(values) % NUM_LANDMARKS and values[-1] is None:
                    values.pop()  # of rows filled up with commas
                step = len(values) // NUM_LANDMARKS or 1
                rows = [values[i : i + step] for i in range(0, len(values), step)]
                yield f"{path}, line {number}", row[0].strip(), rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error


def _are_titles(row: list[str]) -> bool:
    """Whether a line names columns: no photo first, and words or rising numbers behind."""
    numbers = []
    for value in row[1:]:
        try:
            numbers.append(float(value))
        except ValueError:
            continue
    is_photo = Path(row[0].strip()).suffix.lower() in PHOTO_SUFFIXES
    return not is_photo and numbers == sorted(numbers)
