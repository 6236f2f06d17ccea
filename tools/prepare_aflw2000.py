"""Builds the published AFLW2000-3D layout from the raw download, for benchmark.py.

python -m tools.prepare_aflw2000 --raw AFLW2000 --out aflw2000_data

The raw download holds image00002.jpg and image00002.mat and so on, 2,000 pairs; of each .mat only
pt3d_68 and Pose_Para are read. Two parts of the result need other files and are left out without:
the re-annotated landmarks, which were never part of the download (--reannotated), and the dense
labels, since the .mat files hold coefficients of a whole face model (--bases, see
docs/benchmark.md).
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.aflw2000 import (
    ANGLE_LIMIT,
    CROPS,
    DEFAULT_FOLDER,
    PHOTOS,
    crop_published,
    dense_indices,
    published_roi_box,
    write_dense,
    write_labels,
)
from utils.cli import complain, first_lines, run_script, script_parser
from utils.files import new_folder, read_npy, read_npz
from utils.geometry import angles_to_rotation
from utils.matlab import read_mat
from utils.metrics import bin_masks
from utils.pictures import read_image, write_image

EPILOG = """\
written to OUT (rows in the order of the file names):
  AFLW2000-3D_crop/, AFLW2000-3D_crop.list        crops 120x120 and their names
  eval/AFLW2000-3D.pts68.npy                      (n, 3, 68) pt3d_68, 1-based pixels
  eval/AFLW2000-3D.pose.npy                       (n,) yaw, degrees
  eval/AFLW2000-3D_crop.roi_box.npy               (n, 4) x1 y1 x2 y2, 1-based pixels
  eval/ALFW2000-3D_pose_3ANG_excl.npy, _skip.npy  pitch, yaw, roll; rows beyond 99 degrees
  eval/AFLW2000-3D-Reannotated.pts68.npy          with --reannotated
  eval/AFLW2000-3D.dense.npz                      with --bases
  AFLW2000-3D/                                    the pictures, with --photos
  left_out.txt                                    with --skip-bad, where samples were left out

exit code: 0 all done, 1 some samples are bad, 2 wrong usage or nothing could be written
"""
# name: shape of what is read from a .mat file
LABELS = {"pt3d_68": (3, 68), "Pose_Para": (1, 7)}
COEFFICIENTS = {"Shape_Para": (199, 1), "Exp_Para": (29, 1), "Pose_Para": (1, 7)}
MAX_MISFIT = 1.0  # pixels, mean distance of pt3d_68 from the mesh's own landmarks
PUBLISHED = "2,000 samples, 1,312 / 383 / 305 by yaw, 31 beyond 99 degrees"


class BadSamples(ValueError):
    """Some samples cannot be used; the message names them."""


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks and angles of one ``.mat`` file of AFLW2000-3D or 300W-LP.

    Returns:
        landmarks (3, 68) float32: ``pt3d_68``, 1-based pixels (MATLAB's), y down; z in pixels;
        angles (3,) float32: pitch, yaw, roll of ``Pose_Para`` in degrees, in the file's own signs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a MATLAB file (version 7.2 or older), or its arrays are not what they
            should be. Only arrays of numbers of the right shape are read at all.
    """
    arrays = _read_arrays(path, LABELS)
    angles = np.degrees(arrays["Pose_Para"][0, :3].astype(np.float64))
    return arrays["pt3d_68"].astype(np.float32), angles.astype(np.float32)


def _read_arrays(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    arrays = read_mat(path)
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{path}: {name} is missing, found {', '.join(arrays) or 'nothing'}")
        if arrays[name].shape != shape:
            raise ValueError(
                f"{path}: expected {name} of shape {shape}, found {arrays[name].shape}"
            )
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{path}: {name} holds values that are not finite numbers")
    return arrays


@dataclass(frozen=True, eq=False)
class Bases:
    """The whole face model that the coefficients of the ``.mat`` files belong to, at some vertices.

    Attributes:
        mean: (3, P + 68) the vertices to label, then the landmarks; y up.
        basis: (228, 3, P + 68) 199 shape and 29 expression directions.
        indices: (P,) which vertices are to be labelled.
        num_vertices: how many there are.
    """

    mean: np.ndarray
    basis: np.ndarray
    indices: np.ndarray
    num_vertices: int


def read_bases(path: Path) -> Bases:
    """Reads an ``.npz`` of ``mean`` (3N,), ``shape`` (3N, 199), ``expression`` (3N, 29), xyz
    interleaved, and ``landmarks`` (68,), vertices from 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its arrays are not these.
    """
    arrays = read_npz(path)
    size = arrays["mean"].size if "mean" in arrays else 0
    shapes = {"mean": (size,), "shape": (size, 199), "expression": (size, 29), "landmarks": (68,)}
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype.kind not in "fiu" or size % 3:
            found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{path}: expected {name} of shape {shape}, found {found}")
    vertices, landmarks = size // 3, arrays["landmarks"].astype(np.int64)
    if landmarks.min() < 0 or landmarks.max() >= vertices:
        raise ValueError(f"{path}: landmarks must be vertices from 0 to {vertices - 1}")
    chosen = dense_indices(vertices)
    rows = np.concatenate([chosen, landmarks])

    def columns(name: str) -> np.ndarray:  # (3N, k) -> (k, 3, P + 68)
        return arrays[name].reshape(vertices, 3, -1)[rows].transpose(2, 1, 0).astype(np.float64)

    basis = np.concatenate([columns("shape"), columns("expression")])
    return Bases(columns("mean")[0], basis, chosen, vertices)


def dense_points(path: Path, bases: Bases, landmarks: np.ndarray, height: int) -> np.ndarray:
    """The labelled vertices of one ``.mat`` file: its coefficients, turned, scaled and moved.

    Args:
        bases: of the face model that the coefficients belong to.
        landmarks: (3, 68) of ``read_labels``; what the result is checked with.
        height: of the picture, pixels.

    Returns:
        (3, P) float32, 1-based pixels, y down.

    Raises:
        ValueError: an array is not as it should be, or the mesh does not lie on the landmarks.
    """
    arrays = _read_arrays(path, COEFFICIENTS)
    weights = np.concatenate([arrays["Shape_Para"], arrays["Exp_Para"]]).ravel()  # (228,)
    pitch, yaw, roll, *shift, scale = arrays["Pose_Para"][0].astype(np.float64)
    rotation = angles_to_rotation(np.degrees([[yaw, pitch, roll]]))[0]
    face = bases.mean + np.tensordot(weights, bases.basis, 1)  # (3, P + 68)
    points = scale * rotation @ face + np.array(shift)[:, None]
    points[1] = height + 1 - points[1]
    misfit = np.linalg.norm((points[:, -68:] - landmarks)[:2], axis=0).mean()
    if misfit > MAX_MISFIT:
        raise ValueError(
            f"{path}: its coefficients put the landmarks {misfit:.1f} pixels from its pt3d_68: "
            "--bases is not their face model"
        )
    return points[:, :-68].astype(np.float32)


def landmarks_to_roi_box(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """The published crop's box (``published_roi_box``), cut to the picture.

    Args:
        landmarks: (2+, 68) 1-based pixels.
        height, width: of the picture.

    Returns:
        (4,) float32 x1 y1 x2 y2, 1-based pixels, first and last belonging to the crop.

    Raises:
        ValueError: nothing of the box lies in the picture, or the landmarks have no extent.
    """
    box = published_roi_box(landmarks).clip(1, [width, height] * 2)
    if not (box[2:] > box[:2]).all():
        low, high = landmarks[:2].min(1), landmarks[:2].max(1)
        raise ValueError(
            f"expected landmarks in the picture of {width}x{height}, found x from {low[0]:.1f} to "
            f"{high[0]:.1f} and y from {low[1]:.1f} to {high[1]:.1f}"
        )
    return box.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Sample:
    """Labels of one face of the download.

    Attributes:
        landmarks: (3, 68) float32, label frame.
        angles: (3,) float32 pitch, yaw, roll, degrees.
        roi_box: (4,) float32 x1 y1 x2 y2, label frame.
        dense: (3, P) float32 labelled vertices, label frame; None without bases.
    """

    landmarks: np.ndarray
    angles: np.ndarray
    roi_box: np.ndarray
    dense: np.ndarray | None


def read_sample(raw: Path, name: str, bases: Bases | None) -> tuple[Sample, np.ndarray]:
    """The labels of one face, and its picture (H, W, 3) uint8 BGR.

    Args:
        raw: the folder of the download.
        name: of the picture and its ``.mat`` file, without extension.
        bases: of the face model that the coefficients belong to; None for no dense labels.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: one is damaged, or they do not fit together.
    """
    labels = raw / f"{name}.mat"
    landmarks, angles = read_labels(labels)
    image = read_image(raw / f"{name}.jpg")
    height, width = image.shape[:2]
    roi_box = landmarks_to_roi_box(landmarks, height, width)
    dense = None if bases is None else dense_points(labels, bases, landmarks, height)
    return Sample(landmarks, angles, roi_box, dense), image


def sample_names(raw: Path) -> list[str]:
    """Names without extension, sorted, of all pictures and ``.mat`` files of the download.

    Raises:
        FileNotFoundError: there are none; says where some are, if in a folder inside.
    """
    pattern = re.compile(r"(image\d+)\.(?:jpg|mat)")
    names = {match[1] for path in raw.iterdir() if (match := pattern.fullmatch(path.name))}
    if not names:
        inside = next((path.parent for path in sorted(raw.glob("*/image*.mat"))), None)
        hint = f"; there are some in {inside}, give that" if inside else ""
        raise FileNotFoundError(f"{raw}: no image00002.jpg and the like in it{hint}")
    return sorted(names)


def prepare(
    raw: Path,
    out: Path,
    reannotated: Path | None = None,
    skip_bad: bool = False,
    photos: bool = False,
    bases: Path | None = None,
) -> tuple[str, list[str]]:
    """Writes the published layout; the folder appears complete or not at all.

    Args:
        raw: the folder with image00002.jpg, image00002.mat and so on.
        out: new or empty.
        reannotated: .npy (n, 2, 68) re-annotated landmarks, a row for each name in ``raw``.
        skip_bad: leave out samples that cannot be used (in all files; listed in left_out.txt).
        photos: copy the pictures too.
        bases: .npz of ``read_bases``; labels the dense mesh.

    Returns:
        What was written, in words; the samples left out, each with its reason.

    Raises:
        BadSamples: some samples cannot be used and are not to be left out, or none is left.
        FileExistsError: ``out`` is a file, or not empty.
        ValueError: the re-annotated landmarks or the bases are not what they should be.
        OSError: a folder cannot be read or written.
    """
    names = sample_names(raw)
    second_labels = None if reannotated is None else _read_reannotated(reannotated, len(names))
    whole = None if bases is None else read_bases(bases)
    samples: dict[int, Sample] = {}  # by the row of ``names``
    bad = []
    with new_folder(out) as partial:
        for row, name in enumerate(tqdm(names, desc="cropping", unit="img")):
            picture = f"{name}.jpg"
            try:
                sample, image = read_sample(raw, name, whole)
            except FileNotFoundError as error:
                bad.append(f"{error.filename}: missing; each .jpg needs its .mat and vice versa")
                continue
            except ValueError as error:
                said = str(error)
                bad.append(said if name in said else f"{raw / name}.mat: {said}")
                continue
            write_image(partial / CROPS / picture, crop_published(image, sample.roi_box))
            if photos:
                (partial / PHOTOS).mkdir(exist_ok=True)
                shutil.copyfile(raw / picture, partial / PHOTOS / picture)
            samples[row] = sample
        if not samples or (bad and not skip_bad):
            advice = "get them again" + (", or leave them out with --skip-bad" if samples else "")
            raise BadSamples(f"{len(bad)} bad of {len(names)}: {advice}\n{first_lines(bad)}")
        rows = list(samples)
        angles = np.stack([sample.angles for sample in samples.values()])
        beyond = write_labels(
            partial,
            [f"{names[row]}.jpg" for row in rows],
            landmarks=np.stack([sample.landmarks for sample in samples.values()]),
            yaw=angles[:, 1],
            roi_boxes=np.stack([sample.roi_box for sample in samples.values()]),
            angles=angles,
            reannotated=None if second_labels is None else second_labels[rows],
        )
        if whole is not None:
            dense = np.stack([sample.dense for sample in samples.values()])
            write_dense(partial, dense, whole.indices, whole.num_vertices)
        if bad:
            lines = "".join(f"{line}\n" for line in bad)
            path = partial / "left_out.txt"
            path.write_text(lines, encoding="utf-8", errors="backslashreplace")
    bins = " / ".join(f"{chosen.sum():,}" for chosen in bin_masks(angles[:, 1]))
    words = f"{len(rows):,} samples, {bins} by yaw, {beyond} beyond {ANGLE_LIMIT:.0f} degrees"
    return words, bad


def _read_reannotated(path: Path, count: int) -> np.ndarray:
    array = read_npy(path)
    if array.shape != (count, 2, 68) or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(
            f"{path}: expected ({count}, 2, 68) finite floating-point numbers, a row for each "
            f"sample, found {array.shape} {array.dtype}"
        )
    return array.astype(np.float32)


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, EPILOG, "--raw DIR [options]", module="tools.prepare_aflw2000")
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="DIR", help="the unpacked download")
    add("-o", "--out", type=Path, default=DEFAULT_FOLDER, help="where to (default: aflw2000_data)")
    add("--reannotated", type=Path, metavar="NPY", help="(2000, 2, 68) re-annotated landmarks")
    add("--bases", type=Path, metavar="NPZ", help="face model of the .mat files: dense labels")
    add("--photos", action="store_true", help="copy the pictures too")
    add("--skip-bad", action="store_true", help="leave out bad samples instead of stopping")
    options = parser.parse_args(arguments)
    if not options.raw.is_dir():
        parser.error(f"--raw {options.raw}: no such folder")
    try:
        words, bad = prepare(**vars(options))
    except BadSamples as error:
        complain("prepare_aflw2000.py", error)
        return 1
    print(f"{options.out}: {words}")
    if words != PUBLISHED:
        print(f"    the published set: {PUBLISHED}")
    if options.bases is None:
        print("    no dense labels: they need the face model of the .mat files; give --bases FILE")
    if options.reannotated is None:
        print("    no re-annotated labels: they are not in the download; give --reannotated FILE")
    if bad:
        print(f"    left out {len(bad)} (left_out.txt):\n{first_lines(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    run_script(main)
