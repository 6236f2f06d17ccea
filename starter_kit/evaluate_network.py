"""Scores SynergyNet weights on the held-out photos, through the path that users take.

    python -m starter_kit.evaluate_network --photos DIR [-w WEIGHTS --face-model MODEL]

The roi box is the middle of each picture; the photos are not part of this repository (CARD.md).
``--jitter`` moves the roi boxes by up to 10 % and scales them by up to 10 % at random, and also
tells how far the landmarks move. ``--end-to-end`` gives no box: the detector finds the face.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np

from FaceBoxes import FaceBoxes
from model_building import load_synergynet
from starter_kit.landmark_statistics import LABEL_UNIT
from utils import assets
from utils.cli import run_script
from utils.evaluation import jittered_boxes
from utils.files import read_npz, require_files
from utils.fitting import similarity_align
from utils.geometry import rotation_to_angles
from utils.inference import FacePipeline
from utils.metrics import bin_means, nme
from utils.morphable_model import load_morphable_model
from utils.pictures import read_zipped_image
from utils.preprocessing import crop_faces
from utils.runtime import TorchRegressor, choose_device

ROI_BOX = (16.0, 16.0, 144.0, 144.0)  # landmarks fill 0.70 of it, as in the AFLW2000-3D crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of faces_val.zip")
    parser.add_argument("-w", "--weights", type=Path, help="SynergyNet checkpoint")
    parser.add_argument("--face-model", type=Path, help="3DMM folder or .npz")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jitter", action="store_true", help="random roi boxes")
    parser.add_argument("--end-to-end", action="store_true", help="boxes by the detector")
    parser.add_argument("--detector-weights", type=Path, help="FaceBoxes weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    held_out = [options.photos / f"faces_val{end}" for end in (".zip", "_labels.npz")]
    require_files((path, "--photos is the folder of the held-out photos") for path in held_out)
    face_model = load_morphable_model(options.face_model or assets.find_face_model())
    network = load_synergynet(options.weights or assets.find_weights(), face_model)
    regressor = TorchRegressor(network, choose_device(options.device))
    labels = read_npz(held_out[1])
    with zipfile.ZipFile(held_out[0]) as archive:
        images = [read_zipped_image(archive, str(name)) for name in labels["name"]]
    target = labels["landmarks"].astype(np.float64) * LABEL_UNIT
    human = labels["human_landmarks"].astype(np.float64)

    def predict(roi_boxes: np.ndarray) -> np.ndarray:
        pipeline = FacePipeline(None, regressor, face_model)  # no detector: roi boxes are given
        crops = np.concatenate(
            [crop_faces(i, b[None]) for i, b in zip(images, roi_boxes, strict=True)]
        )
        detections = np.zeros((len(images), 5))
        faces = pipeline.faces_from_crops(crops, roi_boxes, detections, dense=False)
        return np.stack([face.landmarks for face in faces])

    still = np.tile(ROI_BOX, (len(images), 1))
    landmarks = predict(still)
    yaw = label_yaw(target, face_model)
    report("centred roi box", landmarks, target, human, yaw, labels["source"])
    if options.jitter:
        moved = predict(jittered_boxes(still, options.seed))
        report("random roi box", moved, target, human, yaw, labels["source"])
        print(f"  landmarks moved by {nme(moved, landmarks).mean():.2f} % of their box")
    if options.end_to_end:
        weights = options.detector_weights or assets.find_detector_weights()
        detector = FaceBoxes(weights, str(regressor.device))
        pipeline = FacePipeline(detector, regressor, face_model)
        found = [
            min((nme(face.landmarks[None], points[None])[0] for face in faces), default=np.inf)
            for faces, points in zip(pipeline(images, dense=False), target, strict=True)
        ]
        print(f"detector {assets.shown(weights)}, labels")
        for name, source in (("frames", "p1"), ("profiles", "cfp"), ("all", "")):
            errors = np.array(found)[np.char.startswith(labels["source"], source)]
            hits = errors[np.isfinite(errors)]
            print(
                f"  {name}: face found {len(hits) / len(errors):.1%}, NME below 8 % "
                f"{(errors < 8).mean():.1%}, NME where found {hits.mean():.2f}"
            )


def label_yaw(target: np.ndarray, face_model) -> np.ndarray:
    """(n,) degrees, of the labels themselves, by a rigid fit of the mean face."""
    points = target.transpose(0, 2, 1) * (1, -1, 1)  # (n, 68, 3), y up
    mean = np.broadcast_to(face_model.landmark_mean.T.astype(np.float64), points.shape)
    linear, _ = similarity_align(mean, points)
    return rotation_to_angles(linear / np.linalg.norm(linear, axis=2, keepdims=True))[:, 0]


def report(title, landmarks, target, human, yaw, source) -> None:
    """Prints NME in percent against the model-made labels and against people's labels."""
    errors = nme(landmarks, target)
    bins = bin_means(errors, yaw)
    print(f"{title}, NME in % of sqrt(w * h)")
    print(f"  labels, by |yaw| <= 30 / 60 / 90: {bins.round(2)}  mean of bins {bins.mean():.2f}")
    frames, profiles = source == "p1", source == "cfp"
    print(f"  labels, frames {errors[frames].mean():.2f}  profiles {errors[profiles].mean():.2f}")
    by_people = nme(landmarks[frames], human[frames])
    print(f"  people's labels, video frames ({frames.sum()}): {by_people.mean():.2f}")
    distance = np.linalg.norm(landmarks[profiles, :2] - human[profiles], axis=1)
    sides = np.ptp(target[profiles, :2], axis=2)
    by_people = 100 * np.nanmean(distance, axis=1) / np.sqrt(sides.prod(1))
    print(f"  people's labels, profiles ({profiles.sum()}, visible points): {by_people.mean():.2f}")


if __name__ == "__main__":
    run_script(main)
