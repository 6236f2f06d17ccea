"""A first training run without data: renders faces, trains on them, shows what was learnt.

    python -m tools.train_demo                  # writes runs/train_demo

Two minutes or so on two cores. Left behind are the rendered sets (data/, held_out/), the run with
its curves (run/), and held_out.png: renders the network has not seen, with the true landmarks, its
landmarks before training and after, in crops of 64 pixels. It shows that training works. Such a
network knows nothing of photos, and even for renders it would need one more epoch, at 120 pixels
(docs/training.md).
"""

import shlex
from pathlib import Path

import cv2
import numpy as np
import torch

import main_train
from loss_definition import LOOPS
from model_building import SynergyNet, load_synergynet
from utils.assets import find_face_model
from utils.augmentation import Augment
from utils.cli import at_least, run_script, script_parser
from utils.datasets import Faces, open_training_set
from utils.draw import contact_sheet, draw_landmarks
from utils.metrics import nme
from utils.morphable_model import load_morphable_model
from utils.pictures import write_image
from utils.preprocessing import CROP_SIZE
from utils.synthetic_sets import is_rendered, write_training_set

TRAIN_SIZE = 64  # pixels: a quarter of the time at full size, and good enough to watch
HELD_OUT = 200
SHOWN, ZOOM = 10, 2
TRAINING = (
    "--train-size", str(TRAIN_SIZE), "--augment", "none", "--batch-size", "32",
    "--optimizer", "adamw", "--lr", "2e-3", "--weight-decay", "0.01", "--clip-norm", "5",
    "--schedule", "linear", "--warmup", "40", "--device", "cpu",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, module="tools.train_demo")
    add = parser.add_argument
    add("-o", "--out", type=Path, default=Path("runs/train_demo"), help="folder to write")
    add("--count", type=at_least(64), default=2000, help="faces to train on (default: 2000)")
    add("--epochs", type=at_least(1), default=4, help="default: 4")
    add("--loop", choices=LOOPS, default="full", help="as main_train.py's (default: full)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: 0)")
    add("-j", "--jobs", type=at_least(1), default=2, help="threads that render (default: 2)")
    options = parser.parse_args(arguments)
    data, held_out, run = (options.out / name for name in ("data", "held_out", "run"))

    cv2.setNumThreads(1)
    face_model = load_morphable_model(find_face_model())
    sets = ((data, options.count, options.seed), (held_out, HELD_OUT, options.seed + 1))
    for folder, count, seed in sets:
        if is_rendered(folder, face_model, count, seed):
            print(f"{folder}: rendered before, used again")
            continue
        try:
            write_training_set(folder, face_model, count, seed, options.jobs)
        except FileExistsError as error:
            parser.error(f"{error} (it was rendered with other options or another face model)")

    torch.manual_seed(options.seed)
    before = SynergyNet(face_model).eval()
    training = ["--data", str(data), "--val", str(held_out), "--out", str(run), "--overwrite"]
    training += [*TRAINING, "--epochs", str(options.epochs)]
    training += ["--cooldown", str(max(1, options.epochs // 3))]
    training += ["--loop", options.loop, "--seed", str(options.seed)]
    # the run ends with advice to go on with "the same command"
    print(f"python main_train.py {shlex.join(training)}", flush=True)
    code = main_train.main(training)
    if code:
        return code
    after = load_synergynet(run / "best.pth.tar", face_model)

    faces = open_training_set(held_out, face_model)
    truth = faces.landmarks(np.arange(len(faces)))
    predictions = [predict_landmarks(network, faces) for network in (before, after)]
    errors = [nme(prediction, truth) for prediction in predictions]
    sheet = options.out / "held_out.png"
    write_image(sheet, draw_sheet(faces, truth, *predictions))
    print(
        f"held-out landmarks, NME: {errors[0].mean():.1f} % before, {errors[1].mean():.1f} % after"
    )
    print(f"loss: {run / 'curves.png'}   landmarks: {sheet}")
    return 0


@torch.inference_mode()
def predict_landmarks(model: SynergyNet, faces: Faces) -> np.ndarray:
    """(n, 3, 68) raw landmarks of every face of a set, crop frame, at the training size."""
    augment, landmarks = Augment(), []
    for indices in np.array_split(np.arange(len(faces)), max(1, len(faces) // 100)):
        images = augment(faces.batch(indices), torch.Generator(), TRAIN_SIZE)[0]
        landmarks.append(model(images, "backbone").landmarks.float().numpy())
    return np.concatenate(landmarks)


def draw_sheet(
    faces: Faces, truth: np.ndarray, before: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """Rows: the first faces as they are, their true landmarks, the network's before and after."""
    side, scale = CROP_SIZE * ZOOM, np.float32(ZOOM)
    images = [cv2.resize(image, (side, side)) for image in faces.images(np.arange(SHOWN))]
    pictures, captions = list(images), ["render"] * SHOWN
    for name, rows in (("truth", truth), ("untrained", before), ("trained", after)):
        points = (rows[:SHOWN, :2] + 0.5) * scale - 0.5  # as resize places them
        pictures += [draw_landmarks(i.copy(), p) for i, p in zip(images, points, strict=True)]
        percent = nme(rows[:SHOWN], truth[:SHOWN])
        captions += [name if rows is truth else f"{name}: {e:.1f} %" for e in percent]
    return contact_sheet(pictures, SHOWN, (180, 180), captions)


if __name__ == "__main__":
    run_script(main)
