"""Packs crops of background for training, labelled as a mean face of little depth.

    python -m starter_kit.pack_background --photos PHOTOS --out runs/starter/background \\
        --with runs/starter/packed_all --combined runs/starter/packed_background

A network that has seen only faces finds one in whatever it is shown. These crops' label is the mean
face, seen from the front, whose camera scales depth by ``FLATTENED``. No face's camera does that,
so ``Face.stretch`` tells background from faces.

The scenes are those of ``detector/train.zip`` in which the published detector saw nothing
(``detector/train.json``). Some crops are squares at random, the others lie around what the starter
detector nearly takes for a face. What the starter network takes for a face is left out: it may be
one.
"""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from FaceBoxes import FaceBoxes
from model_building import load_synergynet
from starter_kit.evaluate_network import ROI_BOX
from starter_kit.fit_labels import LABEL_SIDE
from starter_kit.rotate_views import FACE_SIDE, join
from utils import assets
from utils.cli import at_least, run_script, script_parser
from utils.datasets import write_packed
from utils.inference import FacePipeline
from utils.morphable_model import CAMERA, NUM_PARAMETERS, MorphableModel, load_morphable_model
from utils.pictures import read_zipped_image
from utils.preprocessing import boxes_to_roi_boxes, crop_faces
from utils.runtime import TorchRegressor, choose_device

FLATTENED = 0.65  # depth's scale over the others': a stretch of 1.54
NEARLY = 0.05  # score from which the detector nearly takes something for a face
LEAST_SIDE = 40  # pixels of the scene, of a square at random
LIKE_A_FACE = 1.1  # stretch below which a crop may show an overlooked face


def flat_face(face_model: MorphableModel) -> tuple[np.ndarray, np.ndarray]:
    """The label of background: (62,) parameters, not whitened, and (3, 68) landmarks.

    Both in the frame of a packed picture, in whose middle the face lies.
    """
    scale = FACE_SIDE * LABEL_SIDE / np.ptp(face_model.landmark_mean[:2], axis=1).max()
    parameters = np.zeros(NUM_PARAMETERS, np.float32)
    camera = parameters[:CAMERA].reshape(3, 4)  # a view
    camera[:, :3] = np.diag([scale, scale, scale * FLATTENED])
    points = face_model.landmarks(parameters[None])[0, :2]  # (2, 68), y down
    offset = (LABEL_SIDE - 1) / 2 - (points.min(1) + points.max(1)) / 2
    camera[:2, 3] = offset * (1, -1)  # the camera's y is up
    return parameters, face_model.landmarks(parameters[None])[0]


def random_squares(image: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) squares x1 y1 x2 y2 inside a picture, of any size alike."""
    most = min(image.shape[:2])
    sides = np.exp(rng.uniform(np.log(min(LEAST_SIDE, most)), np.log(most), (count, 1)))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array(image.shape[1::-1]) - sides)
    return np.concatenate([corners, corners + sides], 1)


def squares_around(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) boxes of a detector -> (n, 4) squares whose middle is the roi box."""
    roi_boxes = boxes_to_roi_boxes(boxes)
    border = (roi_boxes[:, 2:] - roi_boxes[:, :2]) * ROI_BOX[0] / (ROI_BOX[2] - ROI_BOX[0])
    return roi_boxes + np.concatenate([-border, border], 1)


def cut(image: np.ndarray, square: np.ndarray) -> np.ndarray:
    """(S, S, 3) packed picture of a square, which is moved and shrunk into the picture."""
    height, width = image.shape[:2]
    side = int(min(round(square[2] - square[0]), height, width))
    x, y = (
        min(max(round(v), 0), m - side) for v, m in zip(square[:2], (width, height), strict=True)
    )
    shrinks = side > LABEL_SIDE
    return cv2.resize(
        image[y : y + side, x : x + side],
        (LABEL_SIDE, LABEL_SIDE),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )


def background(folder: Path, per_scene: int, seed: int) -> np.ndarray:
    """(n, S, S, 3) uint8 BGR crops of the scenes in ``folder``."""
    rng = np.random.default_rng(seed)
    detector = FaceBoxes(assets.STARTER_DETECTOR_WEIGHTS, "cpu", score_threshold=NEARLY)
    labels = json.loads((folder / "train.json").read_text())
    empty = [name for name in sorted(labels) if name.startswith("scene") and not labels[name]]
    pictures = []
    with zipfile.ZipFile(folder / "train.zip") as archive:
        for name in tqdm(empty, desc="scenes"):
            image = read_zipped_image(archive, name)
            around = squares_around(detector(image))
            squares = np.concatenate([random_squares(image, per_scene, rng), around])
            pictures += [cut(image, square) for square in squares]
    return np.stack(pictures)


def like_a_face(pictures: np.ndarray, face_model: MorphableModel) -> np.ndarray:
    """(n,) bool: which packed pictures the starter network takes for a face."""
    network = load_synergynet(assets.STARTER_WEIGHTS, face_model)
    pipeline = FacePipeline(None, TorchRegressor(network, choose_device("auto")), face_model)
    crops = np.concatenate([crop_faces(picture, np.array([ROI_BOX])) for picture in pictures])
    roi_boxes = np.tile(ROI_BOX, (len(crops), 1))
    faces = pipeline.faces_from_crops(crops, roi_boxes, np.zeros((len(crops), 5)), dense=False)
    return np.array([face.stretch < LIKE_A_FACE for face in faces])


def main() -> None:
    needed = "--photos DIR --out DIR --with DIR --combined DIR"  # with the rest on a line of 100
    parser = script_parser(__doc__, usage=needed, module="starter_kit.pack_background")
    add = parser.add_argument
    add("--photos", type=Path, required=True, metavar="DIR", help="folder of detector/train.zip")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--with", dest="join_with", type=Path, required=True, metavar="DIR",
        help="packed faces (starter_kit.rotate_views)")  # fmt: skip
    add("--combined", type=Path, required=True, metavar="DIR",
        help="folder to write faces and background to, as one set")  # fmt: skip
    add("--per-scene", type=at_least(0), default=9, help="random crops of each scene (9)")
    add("--seed", type=at_least(0), default=0, help="of the random crops (0)")
    options = parser.parse_args()

    face_model = load_morphable_model(assets.STARTER_FACE_MODEL)
    pictures = background(options.photos / "detector", options.per_scene, options.seed)
    maybe = like_a_face(pictures, face_model)
    print(f"{len(pictures)} crops, {maybe.sum()} left out: they may show a face")
    pictures = pictures[~maybe]
    count = len(pictures)
    labels = [np.repeat(label[None], count, axis=0) for label in flat_face(face_model)]
    write_packed(
        options.out,
        pictures,
        count,
        LABEL_SIDE,
        parameters=labels[0],
        landmarks=labels[1],
        valid=np.tile(np.int16([0, 0, LABEL_SIDE, LABEL_SIDE]), (count, 1)),
        names=np.array([f"background {i}" for i in range(count)]),
        source=np.full(count, -1, np.int32),
    )
    join(options.join_with, options.out, options.combined)


if __name__ == "__main__":
    run_script(main)
