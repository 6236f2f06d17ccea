"""Scores SynergyNet weights on the held-out photos, through the path that users take.

    python -m starter_kit.evaluate_network --photos DIR --jitter --end-to-end

Prints how far landmarks and head poses are off, the latter against fits to the labels. The roi box
is the middle of each picture; the photos are not part of this repository (CARD.md).
``--jitter`` moves the roi boxes by up to 10 % and scales them by up to 10 % at random, and also
tells how far the landmarks move. ``--end-to-end`` gives no box: the detector finds the face.
``--poses`` names a packed set of these photos and scores poses that they lack: photos turned in the
picture plane, and views that nod or lean (``rotate_views.py``); none of these people is in a
training view. ``--damage`` scores the same photos darkened, blurred, compressed, and with parts of
the face hidden.
"""

import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from FaceBoxes import FaceBoxes
from model_building import load_synergynet
from starter_kit.landmark_statistics import LABEL_UNIT
from starter_kit.rotate_views import (
    build_head,
    has_margins,
    render_view,
    rotation_to_euler,
    turn_labels,
    without_head,
)
from utils import assets
from utils.cli import at_least, run_script, script_parser
from utils.evaluation import jittered_boxes
from utils.files import map_npy, read_npz
from utils.fitting import fit_landmarks, similarity_align
from utils.geometry import (
    angle_differences,
    decompose_camera,
    facing_angles,
    nearest_rotation,
    rotation_to_angles,
)
from utils.inference import Face, FacePipeline
from utils.metrics import bin_means, box_size, geodesic, nme
from utils.morphable_model import MorphableModel, load_morphable_model, split_camera
from utils.pictures import read_zipped_image
from utils.preprocessing import crop_faces
from utils.runtime import TorchRegressor, choose_device

TILTS = (0, 25, 45, 65, 85)  # degrees in the picture plane, to both sides
NODS = (-40, -25, 0, 25, 40)  # degrees, negative is down
NODDING_YAWS = (None, 45.0)  # degrees; None: as the photo has it, below 30
LEANS = (0, 12, 24)  # degrees, towards the viewer and away
LEANING_YAW = 75.0
POSED = 200  # photos that are turned
HAND = (120, 150, 200)  # BGR
ROI_BOX = (16.0, 16.0, 144.0, 144.0)  # landmarks fill 0.70 of it, as in the AFLW2000-3D crops


def main() -> None:
    parser = script_parser(
        __doc__, usage="--photos DIR [options]", module="starter_kit.evaluate_network"
    )
    add, default = parser.add_argument, "(default: published, or starter)"
    add("--photos", type=Path, required=True, metavar="DIR", help="folder of faces_val.zip")
    add("-w", "--weights", type=Path, metavar="FILE", help=f"SynergyNet checkpoint {default}")
    add("--face-model", type=Path, metavar="PATH", help=f"3DMM folder or .npz {default}")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--jitter", action="store_true", help="random roi boxes too")
    add("--end-to-end", action="store_true", help="boxes by the detector too")
    add("--damage", action="store_true", help="damaged photos too")
    add("--poses", type=Path, metavar="PACKED", help="pack_photos' set of the photos, to be turned")
    add("--detector-weights", type=Path, metavar="FILE", help=f"FaceBoxes weights {default}")
    add("--seed", type=at_least(0), default=0, help="of boxes and made poses (default: 0)")
    options = parser.parse_args()

    face_model = load_morphable_model(options.face_model or assets.find_face_model())
    network = load_synergynet(options.weights or assets.find_weights(), face_model)
    regressor = TorchRegressor(network, choose_device(options.device))
    labels = read_npz(options.photos / "faces_val_labels.npz")
    with zipfile.ZipFile(options.photos / "faces_val.zip") as archive:
        images = [read_zipped_image(archive, str(name)) for name in labels["name"]]
    target = labels["landmarks"].astype(np.float64) * LABEL_UNIT
    human = labels["human_landmarks"].astype(np.float64)

    def fit(images: Sequence[np.ndarray], roi_boxes: np.ndarray) -> list[Face]:
        pipeline = FacePipeline(None, regressor, face_model)  # no detector: roi boxes are given
        crops = np.concatenate(
            [crop_faces(i, b[None]) for i, b in zip(images, roi_boxes, strict=True)]
        )
        detections = np.zeros((len(images), 5))
        return pipeline.faces_from_crops(crops, roi_boxes, detections, dense=False)

    def predict(images: Sequence[np.ndarray], roi_boxes: np.ndarray) -> np.ndarray:
        return np.stack([face.landmarks for face in fit(images, roi_boxes)])

    still = np.tile(ROI_BOX, (len(images), 1))
    faces = fit(images, still)
    landmarks = np.stack([face.landmarks for face in faces])
    yaw = label_yaw(target, face_model)
    report("centred roi box", landmarks, target, human, yaw, labels["source"])
    report_pose(np.stack([face.rotation for face in faces]), target, yaw, face_model)
    if options.jitter:
        moved = predict(images, jittered_boxes(still, options.seed))
        report("random roi box", moved, target, human, yaw, labels["source"])
        print(f"  landmarks moved by {nme(moved, landmarks).mean():.2f} % of their box")
    if options.damage:
        print("damaged photos, labels, NME by |yaw| <= 30 / 60 / 90")
        for name, damage in DAMAGES.items():
            rng = np.random.default_rng(options.seed)
            damaged = [damage(*pair, rng) for pair in zip(images, target, strict=True)]
            bins = bin_means(nme(predict(damaged, still), target), yaw)
            print(f"  {name:20} {bins.round(2)}  mean of bins {bins.mean():.2f}")
    if options.poses:
        score_poses(predict, options.poses, face_model, options.seed)
    if options.end_to_end:
        weights = options.detector_weights or assets.find_detector_weights()
        detector = FaceBoxes(weights, str(regressor.device))
        print(f"detector {assets.shown(weights)}, labels")
        pipeline = FacePipeline(detector, regressor, face_model)
        report_found(pipeline(images, dense=False), target, labels["source"])


def report_found(faces: Sequence[list[Face]], target: np.ndarray, source: np.ndarray) -> None:
    """Prints how many of the labelled faces are found, and how well, by kind of photo.

    Args:
        faces: of each of the n photos; the one that is nearest to the label counts.
        target: (n, 3, 68) labels, pixels of the photo.
        source: (n,) names of the photos' sets.
    """
    nearest = np.array([
        min((nme(face.landmarks[None], points[None])[0] for face in some), default=np.inf)
        for some, points in zip(faces, target, strict=True)
    ])  # fmt: skip
    for name, prefix in (("frames", "p1"), ("profiles", "cfp"), ("all", "")):
        errors = nearest[np.char.startswith(source, prefix)]
        hits = errors[np.isfinite(errors)]
        print(
            f"  {name}: face found {len(hits) / len(errors):.1%}, NME below 8 % "
            f"{(errors < 8).mean():.1%}, NME where found {hits.mean():.2f}"
        )


# ----------------------------------------------------------------------------------- damaged photos


def _levels(change: Callable[[np.ndarray], np.ndarray]) -> "Damage":
    """Of a change of light in [0, 1]."""
    return lambda image, points, rng: (np.clip(change(image / 255), 0, 1) * 255).astype(np.uint8)


def _noise(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 8])[1]
    return cv2.imdecode(packed, cv2.IMREAD_COLOR)


def _small(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    small = cv2.resize(image, (30, 30), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _shadow(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shaded = image.copy()
    shaded[:, : int(points[0].mean())] //= 4
    return shaded


def _hand(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = points[:2, rng.integers(points.shape[1])].astype(int).tolist()
    angle = float(rng.uniform(0, 180))
    return cv2.ellipse(image.copy(), ((x, y), (60, 36), angle), HAND, cv2.FILLED)


def _mask(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    outline = cv2.convexHull(points[:2, [*range(1, 16), 28]].T.astype(np.int32))
    colour = rng.integers(0, 256, 3).tolist()
    return cv2.fillConvexPoly(image.copy(), outline, colour)


def _sunglasses(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    covered, eyes = image.copy(), points[:2, 36:48].reshape(2, 2, 6).mean(2)  # x y, right left
    radius = max(3, int(np.ptp(points[0, 36:48]) / 4))
    for eye in eyes.T.astype(int).tolist():
        cv2.circle(covered, eye, radius, (20, 20, 20), cv2.FILLED)
    return covered


def _cut(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The photo ends at three tenths of the face: on its left, or from below."""
    low, high = points[:2].min(1), points[:2].max(1)
    cut = image.copy()
    if rng.random() < 0.5:
        cut[:, : int(low[0] + 0.3 * (high - low)[0])] = 0
    else:
        cut[int(high[1] - 0.3 * (high - low)[1]) :] = 0
    return cut


# (S, S, 3) photo, its (3, 68) label, random numbers -> (S, S, 3)
Damage = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
DAMAGES: dict[str, Damage] = {
    "none": lambda image, points, rng: image,
    "dark (gamma 3)": _levels(lambda light: light**3),
    "contrast x 2.5": _levels(lambda light: 0.5 + 2.5 * (light - 0.5)),
    "noise of 20 levels": _noise,
    "blur of 3 pixels": lambda image, points, rng: cv2.GaussianBlur(image, (0, 0), 3),
    "30 pixels a side": _small,
    "JPEG of quality 8": _jpeg,
    "one side in shadow": _shadow,
    "a hand before it": _hand,
    "a mask": _mask,
    "sunglasses": _sunglasses,
    "at the photo's edge": _cut,
}

# -------------------------------------------------------------------------------------- made poses

# (k, S, S, 3) pictures and (k, 3, 68) labels -> (k,) NME
Errors = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]


def score_poses(
    predict: Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray],
    folder: Path,
    face_model: MorphableModel,
    seed: int,
) -> None:
    """Prints the NME of held-out faces in poses that are made."""
    images, labels = map_npy(folder / "images.npy"), read_npz(folder / "labels.npz")
    labels["landmarks"] = labels["landmarks"].astype(np.float64)  # (n, 3, 68)
    rng = np.random.default_rng(seed)

    def errors(pictures: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
        low, high = target[:, :2].min(2), target[:, :2].max(2)
        middle, half = (low + high) / 2, (high - low).max(1, keepdims=True) / 2**0.5
        return nme(predict(pictures, np.concatenate([middle - half, middle + half], 1)), target)

    score_tilts(errors, images, labels["landmarks"], face_model, rng)
    score_turned(errors, images, labels, face_model, rng)


def score_tilts(
    errors: Errors,
    images: np.ndarray,
    landmarks: np.ndarray,
    face_model: MorphableModel,
    rng: np.random.Generator,
) -> None:
    """Of photos turned in the picture plane."""
    some = rng.permutation(len(images))[:POSED]
    yaw, side = label_yaw(landmarks[some], face_model), images.shape[1]
    print("tilted, NME by |yaw| <= 30 / 60 / 90")
    for tilt in TILTS:
        both = []
        for angle in {tilt, -tilt}:
            move = cv2.getRotationMatrix2D([(side - 1) / 2] * 2, angle, 1)  # (2, 3)
            pictures = [
                cv2.warpAffine(images[i], move, (side, side), borderMode=cv2.BORDER_REPLICATE)
                for i in some
            ]
            target = landmarks[some].copy()
            target[:, :2] = move[:, :2] @ target[:, :2] + move[:, 2:]
            both.append(bin_means(errors(pictures, target), yaw))
        print(f"  by {tilt:2} degrees {np.mean(both, 0).round(2)}")


def score_turned(
    errors: Errors,
    images: np.ndarray,
    labels: dict[str, np.ndarray],
    face_model: MorphableModel,
    rng: np.random.Generator,
) -> None:
    """Of views that nod, or lean from ear to shoulder in profile."""
    landmarks, parameters, valid = (labels[k] for k in ("landmarks", "parameters", "valid"))
    side = images.shape[1]
    angles = rotation_to_euler(decompose_camera(split_camera(parameters))[1])
    usable = has_margins(landmarks, valid) & (valid == (0, 0, side, side)).all(1)
    usable &= (np.abs(angles[:, 1:]) < 15).all(1)
    head = build_head(face_model)

    @cache
    def behind(i: int) -> np.ndarray:
        return without_head(images[i], landmarks[i])

    def score(some: np.ndarray, yaws: np.ndarray, nod: float = 0.0, lean: float = 0.0) -> float:
        """Mean NME of the views of some photos (k,), turned to yaws (k,)."""
        if not len(some):
            return np.nan
        views, points = [], []
        for i, yaw in zip(some, yaws, strict=True):
            angles = yaw, nod, 0.0, lean
            new, target = turn_labels(face_model, parameters[i], landmarks[i], angles, side)
            views.append(render_view(head, images[i], parameters[i], valid[i], new, behind(i)))
            points.append(target)
        return float(errors(views, np.stack(points)).mean())

    def choose(least: float, most: float) -> tuple[np.ndarray, np.ndarray]:
        """Photos with |yaw| between, degrees, and their yaws (k,)."""
        fits = usable & (np.abs(angles[:, 0]) > least) & (np.abs(angles[:, 0]) < most)
        some = rng.permutation(np.flatnonzero(fits))[:POSED]
        return some, angles[some, 0]

    for wanted in NODDING_YAWS:
        some, yaw = choose(0, 30) if wanted is None else choose(wanted - 30, wanted)
        yaw = yaw if wanted is None else np.copysign(wanted, yaw)
        print(f"yaw {wanted or 'below 30'}, {len(some)} photos, NME of views that nod by")
        for nod in NODS:
            print(f"  {nod:3} degrees {score(some, yaw, nod=nod):.2f}")
    some, yaw = choose(LEANING_YAW - 60, LEANING_YAW - 30)
    yaw = np.copysign(LEANING_YAW, yaw)
    print(f"yaw {LEANING_YAW}, {len(some)} photos, NME of views that lean by")
    for lean in LEANS:
        both = [score(some, yaw, lean=leaning) for leaning in {lean, -lean}]
        print(f"  {lean:2} degrees {np.mean(both):.2f}")


def label_yaw(target: np.ndarray, face_model: MorphableModel) -> np.ndarray:
    """(n,) degrees, of the labels themselves, by a rigid fit of the mean face."""
    points = target.transpose(0, 2, 1) * (1, -1, 1)  # (n, 68, 3), y up
    mean = np.broadcast_to(face_model.landmark_mean.T.astype(np.float64), points.shape)
    linear, _ = similarity_align(mean, points)
    return rotation_to_angles(linear / np.linalg.norm(linear, axis=2, keepdims=True))[:, 0]


def label_rotation(target: np.ndarray, face_model: MorphableModel) -> np.ndarray:
    """(n, 3, 3) rotations of the face model fitted to labels (n, 3, 68)."""
    return decompose_camera(split_camera(fit_landmarks(face_model, target)[0]))[1]


def report(
    title: str,
    landmarks: np.ndarray,
    target: np.ndarray,
    human: np.ndarray,
    yaw: np.ndarray,
    source: np.ndarray,
) -> None:
    """Prints NME in percent against the model-made labels and against people's labels.

    Args:
        landmarks, target: (n, 3, 68) found and labelled, pixels of the photo.
        human: (n, 2, 68) set by people, NaN where there are none.
        yaw: (n,) degrees.
        source: (n,) names of the photos' sets.
    """
    errors = nme(landmarks, target)
    bins = bin_means(errors, yaw)
    print(f"{title}, NME in % of sqrt(w * h)")
    print(f"  labels, by |yaw| <= 30 / 60 / 90: {bins.round(2)}  mean of bins {bins.mean():.2f}")
    frames, profiles = source == "p1", source == "cfp"
    print(f"  labels, frames {errors[frames].mean():.2f}  profiles {errors[profiles].mean():.2f}")
    by_people = nme(landmarks[frames], human[frames])
    print(f"  people's labels, video frames ({frames.sum()}): {by_people.mean():.2f}")
    distance = np.linalg.norm(landmarks[profiles, :2] - human[profiles], axis=1)
    by_people = 100 * np.nanmean(distance, axis=1) / box_size(target[profiles])
    print(f"  people's labels, profiles ({profiles.sum()}, visible points): {by_people.mean():.2f}")


def report_pose(
    rotation: np.ndarray, target: np.ndarray, yaw: np.ndarray, face_model: MorphableModel
) -> None:
    """Prints how far head poses are from that of the face model fitted to the labels, in degrees.

    Args:
        rotation: (n, 3, 3) as found.
        target: (n, 3, 68) labels, pixels of the photo.
        yaw: (n,) degrees.
    """
    fitted = label_rotation(target, face_model)
    errors = {"turn": geodesic(nearest_rotation(rotation), nearest_rotation(fitted))}
    for name, angles in (("facing", facing_angles), ("yaw, pitch, roll", rotation_to_angles)):
        errors[name] = angle_differences(angles(rotation), angles(fitted)).mean(1)  # (n,)
    for name, off in errors.items():
        print(f"  pose, {name}: {off.mean():.1f}, by |yaw| {bin_means(off, yaw).round(1)} degrees")


if __name__ == "__main__":
    run_script(main)
