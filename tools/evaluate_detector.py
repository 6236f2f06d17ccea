"""Recall and precision of FaceBoxes weights, one file or two side by side.

    python -m tools.evaluate_detector FaceBoxes/weights/FaceBoxesProd.pth \\
        FaceBoxes/weights/starter_faceboxes.pth --data PHOTOS/detector/val

``--data`` names a zip of pictures and a json of boxes without their endings: file name to rows of
x1 y1 x2 y2 score. Boxes that score 0.5 or more are the truth; a detection on a weaker one counts
neither as right nor as wrong (``--unsure-from`` adds such boxes where the json has none). The kind
of a picture is its name up to the first underscore. ``--copies 0.65 1.5`` scores mirrored and
resized copies of the pictures in their place, labelled by ``--unsure-from``: more to compare two
files of weights on, where pictures are few.
``--faces`` names a zip of face crops with one face each beside its ``*_labels.npz`` (landmarks
(n, 3, 68) in 1/32 pixel): how many of the faces are found, by source, and how many more boxes
there are, of which people in the background are right. ``--height 720`` makes close-ups of them.
"""

import argparse
import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from FaceBoxes import FaceBoxes
from starter_kit.landmark_statistics import LABEL_UNIT
from utils.boxes import overlaps
from utils.cli import at_least, plain, run_script, script_parser
from utils.files import atomic_write, read_npz
from utils.pictures import read_zipped_image
from utils.runtime import choose_device

OVERLAP = 0.5  # intersection over union from which a detection is on a face
LEVELS = (0.9, 0.95, 0.98, 0.99)  # precisions at which recall is told


@dataclass
class Outcome:
    """What detections of some pictures were worth.

    Attributes:
        scores: (n,) of the detections that count.
        right: (n,) bool, whether each is on a face.
        faces: number of faces in the pictures.
    """

    scores: np.ndarray
    right: np.ndarray
    faces: int

    def at(self, threshold: float) -> tuple[float, float]:
        """Recall and precision of the detections scoring above a threshold; NaN for 0 of 0."""
        kept = self.scores > threshold
        found = int(self.right[kept].sum())
        return (
            found / self.faces if self.faces else np.nan,
            found / int(kept.sum()) if kept.any() else np.nan,
        )

    def recall_at_precision(self, precision: float) -> float:
        """The best recall of any threshold that reaches this precision; 0 where none does."""
        order = np.argsort(-self.scores, kind="stable")
        scores, found = self.scores[order], np.cumsum(self.right[order])
        is_last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # of equal ones
        reached = is_last & (found / np.arange(1, len(order) + 1) >= precision - 1e-12)
        return float(found[reached].max() / self.faces) if reached.any() and self.faces else 0.0


def judge(detections: np.ndarray, labels: np.ndarray) -> Outcome:
    """Match the detections (n, 5) of one picture, best first, to its labels (m, 5), each once."""
    truth, unsure = labels[labels[:, 4] >= 0.5], labels[labels[:, 4] < 0.5]
    iou = overlaps(detections, truth)
    excused = (overlaps(detections, unsure) >= OVERLAP).any(axis=1)
    right, counted = np.zeros(len(detections), bool), np.ones(len(detections), bool)
    for i in np.argsort(-detections[:, 4], kind="stable"):
        if len(truth) and iou[i].max() >= OVERLAP:
            right[i] = True
            iou[:, iou[i].argmax()] = 0
        else:
            counted[i] = not excused[i]
    return Outcome(detections[counted, 4], right[counted], len(truth))


def merge(outcomes: list[Outcome]) -> Outcome:
    return Outcome(
        np.concatenate([o.scores for o in outcomes]),
        np.concatenate([o.right for o in outcomes]),
        sum(o.faces for o in outcomes),
    )


def read_pictures(
    data: Path, labeller: FaceBoxes | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """File name to picture and labels (m, 5); a labeller adds its boxes that score below 0.5."""
    labels = json.loads(beside(data, ".json").read_text())
    pictures = {}
    with zipfile.ZipFile(beside(data, ".zip")) as file:
        for name, rows in labels.items():
            image = read_zipped_image(file, name)
            boxes = np.array(rows, dtype=np.float32).reshape(-1, 5)
            if labeller is not None:
                unsure = labeller(image)
                boxes = np.concatenate([boxes, unsure[unsure[:, 4] < 0.5]])
            pictures[name] = (image, boxes)
    return pictures


def beside(prefix: Path, ending: str) -> Path:
    """A file of ``--data`` or ``--faces``, which are names without their ending."""
    return prefix.with_name(prefix.name + ending)


def copies(
    pictures: dict[str, tuple[np.ndarray, np.ndarray]], scales: list[float], labeller: FaceBoxes
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pictures mirrored and resized, ``NAME xSCALE`` to picture and the labeller's boxes."""
    made = {}
    for name, (image, _) in tqdm(pictures.items(), desc="copies", leave=False):
        for scale in scales:
            way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            copy = cv2.resize(image[:, ::-1], None, fx=scale, fy=scale, interpolation=way)
            made[f"{name} x{scale:g}"] = copy, labeller(copy)
    return made


def write_labels(detector: FaceBoxes, data: Path, path: Path) -> None:
    """All boxes of a detector on a zip of pictures, as the json beside such a zip holds them."""
    with zipfile.ZipFile(beside(data, ".zip")) as file:
        labels = {
            name: np.round(detector(read_zipped_image(file, name)).astype(float), 4).tolist()
            for name in tqdm(sorted(file.namelist()), leave=False)
        }
    with atomic_write(path, "w") as file:
        json.dump(labels, file)


def run(
    detector: FaceBoxes, pictures: dict[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, Outcome], float]:
    """Outcome by kind, ``all`` last, and median milliseconds a picture."""
    kinds: dict[str, list[Outcome]] = {}
    seconds = []
    for name, (image, labels) in tqdm(pictures.items(), leave=False):
        started = time.perf_counter()
        detections = detector(image)
        seconds.append(time.perf_counter() - started)
        kinds.setdefault(name.split("_")[0], []).append(judge(detections, labels))
    kinds["all"] = [outcome for outcomes in kinds.values() for outcome in outcomes]
    merged = {kind: merge(outcomes) for kind, outcomes in kinds.items()}
    return merged, 1000 * float(np.median(seconds))


def faces_found(
    detectors: list[FaceBoxes], faces: Path, height: int | None = None
) -> dict[str, list[str]]:
    """By source: of how many single-face crops the face has a box scoring above 0.5.

    Args:
        height: to which the crops are resized first.

    Returns:
        ``SOURCE (number of crops)`` to a percentage of each detector and, where there are any, the
        number of its boxes elsewhere, as text.

    A box is on the face when it holds the landmarks' mean and covers their box by an
    intersection over union of 0.4 (the detector's boxes include the forehead).
    """
    labels = read_npz(beside(faces, "_labels.npz"))
    landmarks = labels["landmarks"][:, :2].astype(np.float32) * LABEL_UNIT
    hits = np.zeros((len(detectors), len(landmarks)), bool)
    others = np.zeros((len(detectors), len(landmarks)), int)
    with zipfile.ZipFile(beside(faces, ".zip")) as file:
        for i, name in enumerate(tqdm(labels["name"], leave=False)):
            image, points = read_zipped_image(file, name), landmarks[i]
            if height:
                scale = height / len(image)
                way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=way)
                points = points * scale
            centre, box = points.mean(axis=1), np.append(points.min(axis=1), points.max(axis=1))
            for k, detector in enumerate(detectors):
                found = detector(image)
                found = found[found[:, 4] > 0.5]
                holds = ((found[:, :2] < centre) & (centre < found[:, 2:4])).all(axis=1)
                good = holds & (overlaps(found, box[None])[:, 0] >= 0.4)
                hits[k, i], others[k, i] = good.any(), (~good).sum()
    told = {}
    for source in np.unique(labels["source"]):
        where = labels["source"] == source
        told[f"{source} ({where.sum()})"] = [
            f"{100 * found.mean():.1f}" + (f" (+{more.sum()} boxes)" if more.any() else "")
            for found, more in zip(hits[:, where], others[:, where], strict=True)
        ]
    return told


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = script_parser(
        __doc__, usage="WEIGHTS [WEIGHTS] [options]", module="tools.evaluate_detector"
    )
    add = parser.add_argument
    add("weights", type=Path, nargs="+", metavar="WEIGHTS", help="of FaceBoxes; two are compared")
    add("--data", type=Path, help="PREFIX of PREFIX.zip and PREFIX.json")
    add("--unsure-from", type=Path, metavar="WEIGHTS", help="the detector that made the labels")
    add("--copies", type=float, nargs="+", metavar="SCALE",
        help="evaluate on mirrored copies of these sizes (1: as large); needs --unsure-from",
    )  # fmt: skip
    add("--write-labels", type=Path, metavar="JSON",
        help="write the boxes of the (first) weights above 0.05 on the pictures, and stop",
    )  # fmt: skip
    add("--faces", type=Path, help="PREFIX of PREFIX.zip and PREFIX_labels.npz")
    add("--height", type=at_least(1), metavar="PIXELS", help="resize the --faces to this height")
    add("--device", default="cpu", help="auto, cpu, cuda or mps (default: cpu)")
    options = parser.parse_args(arguments)
    if not (options.data or (options.faces and not options.write_labels)):
        parser.error("nothing to evaluate on: give --data or --faces")
    if options.copies and not (options.data and options.unsure_from):
        parser.error("--copies needs --data and --unsure-from, whose boxes are their labels")
    if options.copies and not all(0.1 <= scale <= 10 for scale in options.copies):
        parser.error("--copies takes factors of 0.1 to 10")
    try:
        options.device = str(choose_device(options.device))
    except RuntimeError as error:
        parser.error(str(error))
    return options


def print_outcomes(weights: list[Path], runs: list[tuple[dict[str, Outcome], float]]) -> None:
    """A table of each one's result of ``run``, and of two how they compare."""
    for path, (outcomes, milliseconds) in zip(weights, runs, strict=True):
        print(f"\n{path}  ({milliseconds:.1f} ms a picture)")
        print("score > 0.5:   faces  recall  precision   recall at precision", *LEVELS)
        for kind, outcome in outcomes.items():
            recall, precision = outcome.at(0.5)
            levels = "  ".join(f"{100 * outcome.recall_at_precision(p):5.1f}" for p in LEVELS)
            print(
                f"{plain(kind):>12}  {outcome.faces:6d}  {100 * recall:6.1f}  "
                f"{100 * precision:9.1f}   {'':19}  {levels}"
            )
    if len(runs) == 2:
        print("\nrecall at the precision that the other one has at score 0.5:")
        for mine, other in ((0, 1), (1, 0)):
            precision = runs[other][0]["all"].at(0.5)[1]
            recall = runs[mine][0]["all"].recall_at_precision(precision)
            print(f"{weights[mine]}: {100 * recall:.1f} at {100 * precision:.1f}")


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)

    def detector(weights: Path) -> FaceBoxes:
        return FaceBoxes(weights, options.device, score_threshold=0.05)

    detectors = [detector(path) for path in options.weights]
    if options.write_labels:
        write_labels(detectors[0], options.data, options.write_labels)
        return
    if options.data:
        labeller = detector(options.unsure_from) if options.unsure_from else None
        pictures = read_pictures(options.data, None if options.copies else labeller)
        if options.copies:
            pictures = copies(pictures, options.copies, labeller)
        print_outcomes(options.weights, [run(one, pictures) for one in detectors])
    if options.faces:
        print("\nsingle faces found at score 0.5, percent:", *options.weights)
        for source, shares in faces_found(detectors, options.faces, options.height).items():
            print(f"{plain(source):>12}", *shares)


if __name__ == "__main__":
    run_script(main)
