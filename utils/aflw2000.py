"""AFLW2000-3D, or any set of faces, in the published benchmark layout; AFLW's 21 points beside it.

    DIR/AFLW2000-3D_crop/*.jpg                     crops, 120x120
    DIR/AFLW2000-3D_crop.list                      their file names, in the arrays' order
    DIR/eval/AFLW2000-3D.pts68.npy                 (n, 3, 68) original labels, label frame
    DIR/eval/AFLW2000-3D.pose.npy                  (n,) yaw in degrees; decides the yaw bin
    DIR/eval/AFLW2000-3D_crop.roi_box.npy          (n, 4) x1 y1 x2 y2 of each crop, label frame
  optional:
    DIR/eval/AFLW2000-3D-Reannotated.pts68.npy     (n, 2, 68) other labels of the same faces
    DIR/eval/ALFW2000-3D_pose_3ANG_excl.npy        (m, 3) pitch, yaw, roll in degrees
    DIR/eval/ALFW2000-3D_pose_3ANG_skip.npy        (n - m,) indices without angles
    DIR/AFLW2000-3D/*.jpg                          the whole pictures, named as the crops
    DIR/eval/AFLW2000-3D.dense.npz                 our own: labels of mesh vertices, ``DenseLabels``
  AFLW with its 21 points, names after the same pattern (no such files were published):
    DIR/AFLW_crop/*.jpg, DIR/AFLW_crop.list        crops and their names
    DIR/eval/AFLW.pts21.npy                        (n, 2, 21) in AFLW's order; hidden: NaN or -1
    DIR/eval/AFLW.pose.npy, AFLW_crop.roi_box.npy  (n,) yaw; (n, 4) boxes

The misspelt ALFW is in the published names.

Label frame: pixels of the whole picture as MATLAB counts them. The first pixel's centre is 1, so
it is our image frame plus 1, and the pixels x1 and x2 of a box are its first and its last one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import assets, metrics
from utils.files import read_npy, read_npz, write_npz
from utils.pictures import read_crop, read_image
from utils.preprocessing import CROP_SIZE, crop_faces, crop_to_image

DEFAULT_FOLDER = assets.ROOT / "aflw2000_data"
CROPS, LIST, PHOTOS = "AFLW2000-3D_crop", "AFLW2000-3D_crop.list", "AFLW2000-3D"
ORIGINAL = "eval/AFLW2000-3D.pts68.npy"
REANNOTATED = "eval/AFLW2000-3D-Reannotated.pts68.npy"
YAW = "eval/AFLW2000-3D.pose.npy"
ROI_BOXES = "eval/AFLW2000-3D_crop.roi_box.npy"
POSE = "eval/ALFW2000-3D_pose_3ANG_excl.npy"
POSE_SKIPPED = "eval/ALFW2000-3D_pose_3ANG_skip.npy"
DENSE = "eval/AFLW2000-3D.dense.npz"
AFLW_CROPS, AFLW_LIST = "AFLW_crop", "AFLW_crop.list"
AFLW_LANDMARKS, AFLW_YAW = "eval/AFLW.pts21.npy", "eval/AFLW.pose.npy"
AFLW_ROI_BOXES = "eval/AFLW_crop.roi_box.npy"

ROI_SIDE = np.sqrt(2)  # of a crop's square, over the longer side of the landmarks' box
ANGLE_LIMIT = 99.0  # degrees; pose errors leave out faces with any angle beyond it
DENSE_POINTS = 1000  # so many vertices say as much as all, and 2,000 faces are 24 MB

# image frame, x2 y2 outside the box -> label frame, x2 y2 inside
BOX_TO_LABEL_FRAME = np.array([1.0, 1.0, 0.0, 0.0])

WHERE = (
    "get the published benchmark data (README, 'Published files'; `make published NAMES=data`), "
    "build them from the original download (`python -m tools.prepare_aflw2000 --raw DIR`) or from "
    "labels of your own (`python -m tools.prepare_data LABELS --layout aflw2000 --out DIR`), "
    "or render a small set (`python -m tools.render_faces OUT --layout aflw2000`)"
)
AFLW_WHERE = "docs/benchmark.md says what belongs there"


@dataclass(frozen=True, eq=False)
class CropSet:
    """Crops with their boxes and yaws. Arrays are read-only.

    Attributes:
        crop_folder: where the crops lie.
        names: n file names.
        roi_boxes: (n, 4) float64 x1 y1 x2 y2, label frame.
        yaw: (n,) float64 degrees; decides the yaw bin.
    """

    crop_folder: Path
    names: list[str]
    roi_boxes: np.ndarray
    yaw: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def crops(self, indices: np.ndarray) -> np.ndarray:
        """(k, 120, 120, 3) uint8 BGR.

        Raises:
            OSError, ValueError: a crop is damaged or has another size.
        """
        crops = np.empty((len(indices), CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8)
        for crop, index in zip(crops, indices, strict=True):
            crop[:] = read_crop(self.crop_folder / self.names[index])
        return crops


@dataclass(frozen=True, eq=False)
class DenseLabels:
    """Labels of some vertices of a face model; ``dense.npz`` holds these arrays by these names.

    Attributes:
        points: (n, 3, P) floating point (our tools write float32), label frame.
        indices: (P,) int64, which vertices they are.
        num_vertices: how many the face model has that they belong to.
    """

    points: np.ndarray
    indices: np.ndarray
    num_vertices: int


@dataclass(frozen=True, eq=False)
class BenchmarkSet(CropSet):
    """A benchmark's labels, and its pictures on demand. Arrays are read-only.

    Attributes (beside those of ``CropSet``):
        landmarks: ``original`` (n, 3, 68) and, where present, ``reannotated`` (n, 2, 68); float64,
            label frame.
        angles: (n, 3) float64 labelled yaw, pitch, roll in degrees, NaN where left out; None where
            the pose lists are not there.
        dense: labels of mesh vertices; None where there are none.
        photos: the folder of the whole pictures.
        pictured: (k,) int64 the faces whose whole picture is there.
        missing: what is not there, and which rows that leaves out; a sentence each.
    """

    landmarks: dict[str, np.ndarray]
    angles: np.ndarray | None
    dense: DenseLabels | None
    photos: Path
    pictured: np.ndarray
    missing: tuple[str, ...]

    def photo(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 BGR, the whole picture of one of the ``pictured`` faces."""
        return read_image(self.photos / self.names[index])

    def crops_at(
        self, indices: np.ndarray, roi_boxes: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """As ``crops``, cut from the whole pictures of the k faces at ``indices`` along other roi
        boxes (k, 4), label frame; what it takes counts from 0 to k - 1."""

        def crops(rows: np.ndarray) -> np.ndarray:
            return np.stack(
                [crop_published(self.photo(indices[row]), roi_boxes[row]) for row in rows]
            )

        return crops


@dataclass(frozen=True, eq=False)
class Aflw21(CropSet):
    """AFLW's labelled points.

    Attributes (beside those of ``CropSet``):
        landmarks: (n, 2, 21) float64, label frame, AFLW's order; NaN where hidden.
    """

    landmarks: np.ndarray


def published_roi_box(landmarks: np.ndarray) -> np.ndarray:
    """The square that the published crops are cut along, before it is cut to the picture.

    Its side is sqrt(2) times the longer side of the landmarks' box; corner and side are rounded
    each by itself. Found from the published labels and boxes: gives all 2,000 of them exactly.

    Args:
        landmarks: (2+, 68), label frame.

    Returns:
        (4,) float64 x1 y1 x2 y2, whole numbers, label frame: x2 y2 belong to the crop.
    """
    points = np.asarray(landmarks, dtype=np.float64)[:2]
    low, high = points.min(1), points.max(1)
    side = ROI_SIDE * (high - low).max()
    corner = np.round((low + high) / 2 - side / 2)
    return np.concatenate([corner, corner + np.round(side)])


def crop_published(image: np.ndarray, roi_box: np.ndarray) -> np.ndarray:
    """The (120, 120, 3) uint8 crop of a picture along a published roi box (4,), label frame."""
    return crop_faces(image, roi_box[None] - BOX_TO_LABEL_FRAME)[0]


def crop_to_label_frame(
    points: np.ndarray, roi_boxes: np.ndarray, pixel_centres: bool
) -> np.ndarray:
    """Points (n, 3, P) of crops that were cut along published roi boxes (n, 4) -> label frame.

    Args:
        pixel_centres: exactly, as ``crop_published`` cuts; else by the published protocol,
            ``crop_to_image``. See ``MorphableModel.pixel_centres``.
    """
    if not pixel_centres:
        return crop_to_image(points, roi_boxes)
    points = crop_to_image(points, np.round(roi_boxes - BOX_TO_LABEL_FRAME), pixel_centres=True)
    return points + np.array([[1], [1], [0]], points.dtype)  # which counts from 1


def open_benchmark(folder: str | os.PathLike) -> BenchmarkSet:
    """Reads the labels of a set in the published layout (see the module) and checks everything.

    Raises:
        FileNotFoundError: a required file is not there; the message says where to get it.
        ValueError: a file is damaged, or not of the shape that the list asks for.
    """
    folder = Path(folder)
    crops = _open_crops(folder, CROPS, LIST, YAW, ROI_BOXES, WHERE)
    names, n = crops.names, len(crops)
    landmarks = {"original": _read_landmarks(folder, ORIGINAL, (n, 3, 68))}
    missing = []
    if (folder / REANNOTATED).exists():
        landmarks["reannotated"] = _read_landmarks(folder, REANNOTATED, (n, 2, 68))
    else:
        missing.append(f"no {REANNOTATED}: nothing is scored against the re-annotated labels")
    angles = None
    absent = [name for name in (POSE, POSE_SKIPPED) if not (folder / name).exists()]
    if absent:
        missing.append(f"no {' and no '.join(absent)}: head pose is not scored")
    else:
        angles = _read_angles(folder, n)
    dense = None
    if (folder / DENSE).exists():
        dense = _read_dense(folder / DENSE, n)
    else:
        missing.append(
            f"no {DENSE}: the dense mesh is not scored (AFLW2000-3D's .mat files label it only "
            "together with the whole Basel bases; docs/benchmark.md, 'Dense labels')"
        )
    photos = folder / PHOTOS
    is_pictured = np.array([(photos / name).is_file() for name in names])
    pictured = np.flatnonzero(is_pictured)
    if not len(pictured):
        missing.append(f"no {PHOTOS}/ with whole pictures: other boxes (--boxes) cannot be tried")
    elif len(pictured) < n:
        first = names[is_pictured.argmin()]
        missing.append(
            f"{n - len(pictured)} of {n} pictures (first {first}) not in {PHOTOS}/: other boxes "
            "(--boxes) are tried on the rest"
        )
    pictured.flags.writeable = False
    return BenchmarkSet(
        **vars(crops),
        landmarks=landmarks,
        angles=angles,
        dense=dense,
        photos=photos,
        pictured=pictured,
        missing=tuple(missing),
    )


def write_labels(
    folder: Path,
    names: list[str],
    *,
    landmarks: np.ndarray,
    yaw: np.ndarray,
    roi_boxes: np.ndarray,
    angles: np.ndarray,
    reannotated: np.ndarray | None = None,
) -> int:
    """Writes the list and the labels of a set in the published layout (see the module).

    Args:
        names: of n crops, which are written apart from this.
        landmarks: (n, 3, 68), label frame.
        yaw: (n,) degrees; decides the yaw bin.
        roi_boxes: (n, 4) x1 y1 x2 y2, label frame.
        angles: (n, 3) pitch, yaw, roll in degrees. Faces with one beyond ``ANGLE_LIMIT`` are left
            out of the pose lists.
        reannotated: (n, 2, 68), label frame.

    Returns:
        How many faces the pose lists leave out.

    Raises:
        OSError: the folder cannot be written.
    """
    beyond = (np.abs(angles) > ANGLE_LIMIT).any(1)
    arrays = {ORIGINAL: landmarks, YAW: yaw, ROI_BOXES: roi_boxes, POSE: angles[~beyond]}
    if reannotated is not None:
        arrays[REANNOTATED] = reannotated
    arrays = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    (folder / ORIGINAL).parent.mkdir(exist_ok=True)
    for name, array in {**arrays, POSE_SKIPPED: np.flatnonzero(beyond)}.items():
        np.save(folder / name, array)
    (folder / LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return int(beyond.sum())


def dense_indices(num_vertices: int) -> np.ndarray:
    """(P,) int64 the vertices that our tools label: evenly spaced, ``DENSE_POINTS`` at most."""
    count = min(num_vertices, DENSE_POINTS)
    return np.linspace(0, num_vertices - 1, count).round().astype(np.int64)


def write_dense(folder: Path, points: np.ndarray, indices: np.ndarray, num_vertices: int) -> None:
    """Writes dense labels into a set (arrays as in ``DenseLabels``)."""
    arrays = {"points": points.astype(np.float32), "indices": indices, "num_vertices": num_vertices}
    write_npz(folder / DENSE, arrays)


def open_aflw21(folder: str | os.PathLike) -> Aflw21:
    """Reads AFLW's 21 points (see the module) and checks everything; raises as
    ``open_benchmark``."""
    folder = Path(folder)
    crops = _open_crops(folder, AFLW_CROPS, AFLW_LIST, AFLW_YAW, AFLW_ROI_BOXES, AFLW_WHERE)
    what, shape = "AFLW's landmarks", (len(crops), 2, 21)
    points = _read(folder, AFLW_LANDMARKS, shape, what, AFLW_LIST, AFLW_WHERE, finite=False)
    hidden = (points == -1).all(1) | ~np.isfinite(points).all(1)  # (n, 21)
    points = np.where(hidden[:, None], np.nan, points)
    scored = np.delete(points, metrics.AFLW_EARS, axis=2)
    spans = np.fmax.reduce(scored, axis=2) > np.fmin.reduce(scored, axis=2)  # false for NaN
    _check_rows(
        folder / AFLW_LANDMARKS, spans, "visible landmarks that span a box without the ears"
    )
    points.flags.writeable = False
    return Aflw21(**vars(crops), landmarks=points)


def _open_crops(
    folder: Path, crops: str, listing: str, yaws: str, boxes: str, where: str
) -> CropSet:
    path = _required(folder / listing, "the list of the crops' file names", where)
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    _check_names(path, names)
    n = len(names)
    roi_boxes = _read(folder, boxes, (n, 4), "x1 y1 x2 y2 of each crop", listing, where)
    _check_rows(folder / boxes, roi_boxes[:, 2:] > roi_boxes[:, :2], "a box with x1 < x2, y1 < y2")
    yaw = _read(folder, yaws, (n,), "yaw in degrees", listing, where)
    absent = [name for name in names if not (folder / crops / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{folder / crops / absent[0]}: not there, nor {len(absent) - 1} more of {n} crops; "
            f"{where}"
        )
    return CropSet(folder / crops, names, roi_boxes, yaw)


def _required(path: Path, what: str, where: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, expected {what}; {where}")
    return path


def _read(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    what: str,
    listing: str,
    where: str = WHERE,
    finite: bool = True,
) -> np.ndarray:
    """An array of finite numbers as float64, read-only; its first axis must be as long as the
    list."""
    path = _required(folder / name, f"{what}, an array of shape {shape}", where)
    array = read_npy(path)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {array.dtype} of shape {array.shape}, expected {what}, numbers of shape "
            f"{shape}: {listing} names {shape[0]} faces"
        )
    array = array.astype(np.float64)
    if finite:
        _check_rows(path, np.isfinite(array), "finite numbers")
    array.flags.writeable = False
    return array


def _read_landmarks(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    points = _read(folder, name, shape, "landmarks", LIST)
    _check_rows(folder / name, np.ptp(points[:, :2], axis=2) > 0, "landmarks that span a box")
    return points


def _check_rows(path: Path, fine: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(~fine.reshape(len(fine), -1).all(1))
    if len(bad):
        raise ValueError(
            f"{path}: row {bad[0]} (of {len(bad)} such): expected {what}; get the file again"
        )


def _check_names(path: Path, names: list[str]) -> None:
    if not names:
        raise ValueError(f"{path}: empty, expected a file name a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: names {twice} more than once")
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is no plain file name")


def _read_angles(folder: Path, n: int) -> np.ndarray:
    """(n, 3) yaw, pitch, roll from the published lists; NaN for the samples they leave out."""
    path = folder / POSE_SKIPPED
    stored = read_npy(path)
    skipped = stored.ravel()
    fine = skipped.dtype.kind in "fiu"  # MATLAB's are floats in a column
    if not fine or len(np.unique(skipped)) < len(skipped) or not np.isin(skipped, range(n)).all():
        raise ValueError(
            f"{path}: {stored.dtype} of shape {stored.shape}, expected distinct indices below {n}"
        )
    skipped = skipped.astype(np.int64)
    listed = read_npy(folder / POSE)
    if listed.shape != (n - len(skipped), 3):
        raise ValueError(
            f"{folder / POSE}: shape {listed.shape}, expected {(n - len(skipped), 3)}: {LIST} names"
            f" {n} faces, {POSE_SKIPPED} leaves out {len(skipped)}"
        )
    listed = _read(folder, POSE, listed.shape, "pitch, yaw, roll in degrees", LIST)
    angles = np.full((n, 3), np.nan)
    angles[np.setdiff1d(np.arange(n), skipped)] = listed[:, [1, 0, 2]]
    angles.flags.writeable = False
    return angles


def _read_dense(path: Path, n: int) -> DenseLabels:
    arrays = read_npz(path)
    wanted = {"points", "indices", "num_vertices"}
    if not wanted <= arrays.keys():
        raise ValueError(f"{path}: {', '.join(sorted(wanted - arrays.keys()))} missing")
    points, indices, count = (arrays[name] for name in ("points", "indices", "num_vertices"))
    fine = indices.ndim == 1 and len(indices) and indices.dtype.kind in "iu"
    fine = fine and count.shape == () and count.dtype.kind in "iu"
    if not fine or indices.min() < 0 or indices.max() >= count:
        raise ValueError(f"{path}: expected indices of vertices, (P,) from 0 to num_vertices - 1")
    if points.shape != (n, 3, len(indices)) or points.dtype.kind != "f":
        raise ValueError(
            f"{path}: points: {points.dtype} of shape {points.shape}, expected floating point of "
            f"shape {(n, 3, len(indices))}: {LIST} names {n} faces"
        )
    _check_rows(path, np.isfinite(points), "finite numbers")
    indices = indices.astype(np.int64)
    for array in (points, indices):
        array.flags.writeable = False
    return DenseLabels(points, indices, int(count))
