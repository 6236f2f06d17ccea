"""Sets of rendered faces in the published layouts, for training and for the benchmark.

Every picture depends on (seed, index) alone, so a set is the same however many threads render it.
A folder appears complete or not at all.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import aflw2000
from utils.datasets import DESCRIPTIONS, PUBLISHED_CROPS, write_published_labels
from utils.files import new_folder
from utils.geometry import decompose_camera, exact_angles
from utils.metrics import YAW_BINS, box_size
from utils.morphable_model import MorphableModel, split_camera
from utils.parallel import in_order
from utils.pictures import write_image
from utils.preprocessing import CROP_SIZE
from utils.synthetic import FaceRenderer, damage, random_background, random_parameters

PHOTO_SIDE = 450  # pixels, as AFLW2000-3D's pictures
ROI_SIDES = (191, 340)  # pixels, the range of AFLW2000-3D's roi boxes
# Standard deviation per coordinate, as a share of the landmark box's sqrt(w * h).
REANNOTATION_NOISE = 0.01
DESCRIPTION = DESCRIPTIONS[0]
VERSION = {"training": 1, "aflw2000": 4}  # goes up when the same seed gives something else


def write_training_set(
    folder: str | os.PathLike, face_model: MorphableModel, count: int, seed: int = 0, jobs: int = 1
) -> None:
    """Renders a set in the layout of the published training data (``datasets.PublishedFaces``).

    Half of the faces have a yaw normal with 30 degrees of deviation, half a uniform one up to 90.

    Args:
        folder: new or empty.
        face_model: numpy arrays; also whitens the parameters.
        count: of pictures, each of a person of its own.
        seed: of everything random, not negative.
        jobs: threads, at least 1.

    Raises:
        FileExistsError: ``folder`` is a file, or not empty.
        ValueError: a count, seed or number of threads out of range.
        OSError: the folder cannot be written.
    """
    rng = _generator(count, seed)
    yaw = np.where(
        rng.random(count) < 0.5, rng.normal(0, 30, count).clip(-90, 90), rng.uniform(-90, 90, count)
    )
    whitened = random_parameters(face_model, yaw, rng)
    parameters, renderer = face_model.dewhiten(whitened), FaceRenderer(face_model)
    names = _names(count)
    with new_folder(folder) as partial:
        crops = partial / PUBLISHED_CROPS
        crops.mkdir()

        def write(index: int) -> None:
            picture = np.random.default_rng((seed, index))
            crop = renderer.crop(parameters[index], picture)
            write_image(crops / names[index], crop, int(picture.integers(70, 98)))

        _for_each(write, count, jobs)
        write_published_labels(partial, names, whitened)
        (partial / DESCRIPTION).write_text(_describe("training", face_model, count, seed))


def write_benchmark_set(
    folder: str | os.PathLike, face_model: MorphableModel, count: int, seed: int = 0, jobs: int = 1
) -> None:
    """Renders a set in the layout of the published AFLW2000-3D benchmark, full pictures included.

    A third of the faces goes into each yaw bin; of the last, one in eight is turned more than 99
    degrees, so that the pose lists leave it out. All labels are those of the rendered parameters:
    landmarks and dense labels by ``crop_to_label_frame`` along the published boxes, angles by
    ``exact_angles``, as AFLW2000-3D's are. The re-annotated labels are the same landmarks plus
    normal noise (``REANNOTATION_NOISE``). ``parameters.npy`` (n, 62) float32, whitened, is what a
    perfect network would answer; the published set has no such file.

    Args, raises: as ``write_training_set``; ``count`` must be at least 3.
    """
    rng = _generator(count, seed, least=3)
    third = np.arange(count) % 3
    beyond = (third == 2) & (np.arange(count) % 24 == 23)
    low, high = np.array(YAW_BINS)[third].T
    low = np.where(beyond, aflw2000.ANGLE_LIMIT, low) + 0.5
    yaw = rng.uniform(low, np.where(beyond, 105, high))
    yaw *= rng.choice([-1, 1], count)
    whitened = random_parameters(face_model, yaw, rng)
    parameters, renderer = face_model.dewhiten(whitened), FaceRenderer(face_model)
    sides = rng.integers(*ROI_SIDES, count)
    corner = np.floor(rng.random((count, 2)) * (PHOTO_SIDE - sides[:, None]))
    seen = np.concatenate([corner, corner + sides[:, None]], 1)  # image frame
    roi_boxes = (seen + aflw2000.BOX_TO_LABEL_FRAME).astype(np.float32)

    def to_labels(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return aflw2000.crop_to_label_frame(points, boxes, face_model.pixel_centres)

    landmarks = to_labels(face_model.landmarks(parameters), roi_boxes)  # (n, 3, 68)
    size = box_size(landmarks)[:, None, None]
    noise = rng.normal(0, REANNOTATION_NOISE, landmarks[:, :2].shape) * size
    rotation = decompose_camera(split_camera(parameters))[1]
    angles = exact_angles(rotation)[:, [1, 0, 2]]  # pitch, yaw, roll
    marked = aflw2000.dense_indices(face_model.num_vertices)
    dense = np.concatenate(
        [
            to_labels(face_model.vertices(parameters[[i]])[:, :, marked], roi_boxes[[i]])
            for i in range(count)
        ]
    )  # (n, 3, P)
    names = _names(count)
    with new_folder(folder) as partial:
        photos, crops = (partial / name for name in (aflw2000.PHOTOS, aflw2000.CROPS))
        for path in (photos, crops):
            path.mkdir()

        def write(index: int) -> None:
            picture = np.random.default_rng((seed, index))
            photo = random_background(PHOTO_SIDE, PHOTO_SIDE, picture)
            box = tuple(map(int, seen[index]))
            photo = renderer.render(parameters[index], photo, box, picture)
            photo = damage(photo, picture, sides[index] / CROP_SIZE)
            write_image(photos / names[index], photo, 92)
            crop = aflw2000.crop_published(photo, roi_boxes[index])
            write_image(crops / names[index], crop, 95)

        _for_each(write, count, jobs)
        aflw2000.write_labels(
            partial,
            names,
            landmarks=landmarks,
            yaw=yaw,
            roi_boxes=roi_boxes,
            angles=angles,
            reannotated=landmarks[:, :2] + noise,
        )
        aflw2000.write_dense(partial, dense, marked, face_model.num_vertices)
        np.save(partial / "parameters.npy", whitened)
        (partial / DESCRIPTION).write_text(_describe("aflw2000", face_model, count, seed))


def _generator(count: int, seed: int, least: int = 1) -> np.random.Generator:
    if count < least:
        raise ValueError(f"a set needs at least {least} pictures, got a count of {count}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    return np.random.default_rng(seed)


def _names(count: int) -> list[str]:
    return [f"render_{index:06d}.jpg" for index in range(count)]


def is_rendered(
    folder: str | os.PathLike, face_model: MorphableModel, count: int, seed: int
) -> bool:
    """Whether ``write_training_set`` with these arguments has made the folder already."""
    path = Path(folder) / DESCRIPTION
    return path.is_file() and path.read_text() == _describe("training", face_model, count, seed)


def _describe(layout: str, face_model: MorphableModel, count: int, seed: int) -> str:
    content = {"layout": layout, "count": count, "seed": seed, "version": VERSION[layout]}
    return json.dumps({**content, "face_model": face_model.fingerprint}, indent=1) + "\n"


def _for_each(write: Callable[[int], None], count: int, jobs: int) -> None:
    for _ in tqdm(in_order(write, range(count), jobs), "rendering", count, unit="img"):
        pass
