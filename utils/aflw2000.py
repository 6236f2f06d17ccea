"""AFLW2000-3D, or any set of faces, in the published benchmark layout.

    DIR/AFLW2000-3D_crop/*.jpg                     crops, 120x120
    DIR/AFLW2000-3D_crop.list                      their file names, in the arrays' order
    DIR/eval/AFLW2000-3D.pts68.npy                 (n, 3, 68) original labels, image frame
    DIR/eval/AFLW2000-3D.pose.npy                  (n,) yaw in degrees; decides the yaw bin
    DIR/eval/AFLW2000-3D_crop.roi_box.npy          (n, 4) x1 y1 x2 y2 of each crop, image frame
  optional:
    DIR/eval/AFLW2000-3D-Reannotated.pts68.npy     (n, 2, 68) other labels of the same faces
    DIR/eval/ALFW2000-3D_pose_3ANG_excl.npy        (m, 3) pitch, yaw, roll in degrees
    DIR/eval/ALFW2000-3D_pose_3ANG_skip.npy        (n - m,) indices without angles
    DIR/AFLW2000-3D/*.jpg                          the whole pictures, named as the crops

The misspelt ALFW is in the published names.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.files import read_image, read_npy
from utils.preprocessing import CROP_SIZE, crop_faces

DEFAULT_FOLDER = Path("aflw2000_data")
CROPS, LIST, PHOTOS = "AFLW2000-3D_crop", "AFLW2000-3D_crop.list", "AFLW2000-3D"
ORIGINAL = "eval/AFLW2000-3D.pts68.npy"
REANNOTATED = "eval/AFLW2000-3D-Reannotated.pts68.npy"
YAW = "eval/AFLW2000-3D.pose.npy"
ROI_BOXES = "eval/AFLW2000-3D_crop.roi_box.npy"
POSE = "eval/ALFW2000-3D_pose_3ANG_excl.npy"
POSE_SKIPPED = "eval/ALFW2000-3D_pose_3ANG_skip.npy"

WHERE = (
    "get the published benchmark data (README, 'Published files'; `make published NAMES=data`), "
    "or render a small set (`python -m tools.render_faces OUT --layout aflw2000`)"
)


@dataclass(frozen=True, eq=False)
class BenchmarkSet:
    """A benchmark's labels, and its pictures on demand. Arrays are read-only.

    Attributes:
        folder: where it lies.
        names: n file names.
        roi_boxes: (n, 4) float64 x1 y1 x2 y2, image frame.
        yaw: (n,) float64 degrees; decides the yaw bin.
        landmarks: ``original`` (n, 3, 68) and, where present, ``reannotated`` (n, 2, 68); float64,
            image frame.
        angles: (n, 3) float64 labelled yaw, pitch, roll in degrees, NaN where left out; None where
            the pose lists are not there.
        photos: the folder of the whole pictures; None where one is missing.
        missing: what is not there, and which rows that leaves out; a sentence each.
    """

    folder: Path
    names: list[str]
    roi_boxes: np.ndarray
    yaw: np.ndarray
    landmarks: dict[str, np.ndarray]
    angles: np.ndarray | None
    photos: Path | None
    missing: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def crops(self, indices: np.ndarray) -> np.ndarray:
        """(k, 120, 120, 3) uint8 BGR.

        Raises:
            OSError, ValueError: a crop is damaged or has another size.
        """
        crops = np.empty((len(indices), CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8)
        for crop, index in zip(crops, indices, strict=True):
            path = self.folder / CROPS / self.names[index]
            image = read_image(path)
            if image.shape != crop.shape:
                height, width = image.shape[:2]
                raise ValueError(
                    f"{path}: {width}x{height} pixels, expected a crop of {CROP_SIZE}x{CROP_SIZE}"
                )
            crop[:] = image
        return crops

    def photo(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 BGR, the whole picture of a face; only where ``photos`` is set."""
        return read_image(self.photos / self.names[index])

    def crops_at(
        self, indices: np.ndarray, roi_boxes: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """As ``crops``, cut from the whole pictures of the k faces at ``indices`` along other roi
        boxes (k, 4); what it takes counts from 0 to k - 1."""

        def crops(rows: np.ndarray) -> np.ndarray:
            return np.concatenate(
                [crop_faces(self.photo(indices[row]), roi_boxes[row][None]) for row in rows]
            )

        return crops


def open_benchmark(folder: str | os.PathLike) -> BenchmarkSet:
    """Reads the labels of a set in the published layout (see the module) and checks everything.

    Raises:
        FileNotFoundError: a required file is not there; the message says where to get it.
        ValueError: a file is damaged, or not of the shape that the list asks for.
    """
    folder = Path(folder)
    path = _required(folder / LIST, "the list of the crops' file names")
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    _check_names(path, names)
    n = len(names)
    roi_boxes = _read(folder, ROI_BOXES, (n, 4), "x1 y1 x2 y2 of each crop")
    _check_rows(
        folder / ROI_BOXES, roi_boxes[:, 2:] > roi_boxes[:, :2], "a box with x1 < x2, y1 < y2"
    )
    yaw = _read(folder, YAW, (n,), "yaw in degrees")
    landmarks = {"original": _read(folder, ORIGINAL, (n, 3, 68), "original landmarks")}
    missing = []
    if (folder / REANNOTATED).exists():
        landmarks["reannotated"] = _read(folder, REANNOTATED, (n, 2, 68), "landmarks")
    else:
        missing.append(f"no {REANNOTATED}: nothing is scored against the re-annotated labels")
    for name, points in landmarks.items():
        path = folder / (ORIGINAL if name == "original" else REANNOTATED)
        _check_rows(path, np.ptp(points[:, :2], axis=2) > 0, "landmarks that span a box")
    angles = None
    absent = [name for name in (POSE, POSE_SKIPPED) if not (folder / name).exists()]
    if absent:
        missing.append(f"no {' and no '.join(absent)}: head pose is not scored")
    else:
        angles = _read_angles(folder, n)
    _check_all_there(folder / CROPS, names)
    photos = folder / PHOTOS
    absent = [name for name in names if not (photos / name).is_file()]
    if absent:
        which = f"{len(absent)} of {n} pictures (first {absent[0]})" if len(absent) < n else "no"
        where = f"not in {PHOTOS}/" if len(absent) < n else f"{PHOTOS}/ with whole pictures"
        missing.append(f"{which} {where}: other boxes (--boxes) cannot be tried")
        photos = None
    for array in (roi_boxes, yaw, *landmarks.values()):
        array.flags.writeable = False
    return BenchmarkSet(
        folder, names, roi_boxes, yaw, landmarks, angles, photos, missing=tuple(missing)
    )


def _required(path: Path, what: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, expected {what}; {WHERE}")
    return path


def _read(folder: Path, name: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """An array of finite numbers as float64; its first axis must be as long as the list."""
    path = _required(folder / name, f"{what}, an array of shape {shape}")
    array = read_npy(path)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {array.dtype} of shape {array.shape}, expected {what}, numbers of shape "
            f"{shape}: {LIST} names {shape[0]} faces"
        )
    array = array.astype(np.float64)
    _check_rows(path, np.isfinite(array), "finite numbers")
    return array


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


def _check_all_there(folder: Path, names: list[str]) -> None:
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{folder / absent[0]}: not there, nor {len(absent) - 1} more of {len(names)} crops; "
            f"{WHERE}"
        )


def _read_angles(folder: Path, n: int) -> np.ndarray:
    """(n, 3) yaw, pitch, roll from the published lists; NaN for the samples they leave out."""
    path = folder / POSE_SKIPPED
    skipped = read_npy(path)
    fine = skipped.ndim == 1 and (skipped.dtype.kind in "iu" or not len(skipped))
    if not fine or len(np.unique(skipped)) < len(skipped) or not np.isin(skipped, range(n)).all():
        raise ValueError(
            f"{path}: {skipped.dtype} of shape {skipped.shape}, expected distinct indices below {n}"
        )
    listed = read_npy(folder / POSE)
    if listed.shape != (n - len(skipped), 3):
        raise ValueError(
            f"{folder / POSE}: shape {listed.shape}, expected {(n - len(skipped), 3)}: {LIST} names"
            f" {n} faces, {POSE_SKIPPED} leaves out {len(skipped)}"
        )
    listed = _read(folder, POSE, listed.shape, "pitch, yaw, roll in degrees")
    angles = np.full((n, 3), np.nan)
    angles[np.setdiff1d(np.arange(n), skipped)] = listed[:, [1, 0, 2]]
    angles.flags.writeable = False
    return angles
