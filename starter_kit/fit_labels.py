"""Fit the landmark model to every label of a photo set: 62 parameters per face, and the whitening.

    python -m starter_kit.fit_labels --photos PHOTOS

Writes to `runs/starter/`:

- `fits.npz` and `fits_val.npz`: `name` (n,), `parameters` (n, 62) float32 un-whitened, in the
  frame of the 160x160 crop used 1:1 (y_crop = 121 - y holds there as it does for 120x120 crops),
  `fit_error` (n,) float32: mean 2D distance over sqrt(w·h) of the label's box;

and adds the whitening, of simulated 120x120 training crops, to the landmark model that ships,
`starter_kit/landmark_model.npz`.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from starter_kit.landmark_statistics import LABEL_UNIT, LANDMARK_MODEL, load_model
from utils.augmentation import Mirror
from utils.cli import at_least, run_script, script_parser
from utils.files import read_npz, write_npz
from utils.fitting import fit_landmarks, whitening
from utils.morphable_model import MorphableModel, similarity_on_parameters
from utils.preprocessing import CROP_SIZE

LABEL_SIDE = 160  # pixels, of the labelled pictures
FACE_SHARE = 0.68  # sqrt(w·h) of the landmarks' box over the crop's side


def label_landmarks(labels: dict[str, np.ndarray], human_weight: float = 0.0) -> np.ndarray:
    """(n, 3, 68) float32 landmarks of a label file, pixels of the pictures.

    Where people have marked a point too, ``human_weight`` (0 to 1) of x and y is theirs.
    (Parameters are fitted to the labels alone: they are consistent in 3D, and the mixture is not.)
    """
    landmarks = labels["landmarks"].astype(np.float32) * LABEL_UNIT
    human = labels["human_landmarks"].astype(np.float32)  # (n, 2, 68), NaN where not marked
    blend = (1 - human_weight) * landmarks[:, :2] + human_weight * human
    landmarks[:, :2] = np.where(np.isnan(human), landmarks[:, :2], blend)
    return landmarks


def fit_split(face_model: MorphableModel, labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names, parameters and fit errors of the labels of one file."""
    names, landmarks = labels["name"], label_landmarks(labels)
    fits = [
        fit_landmarks(face_model, landmarks[i : i + 1000])
        for i in tqdm(range(0, len(landmarks), 1000), "fitting")
    ]
    parameters, errors = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    return {"name": names, "parameters": parameters, "fit_error": errors}


def simulate_crops(
    face_model: MorphableModel, parameters: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Parameters (2n, 62) as 120x120 training crops have them: turned, mirrored, scaled, shifted.

    In-plane rotation is normal with 15 degrees; the landmarks' box takes about 0.68 of the crop
    (standard deviation 0.04) and is off the centre by 0.03 of the crop (standard deviation).
    """
    originals = torch.from_numpy(parameters)
    mirrored = Mirror(face_model).parameters(originals, LABEL_SIDE)
    originals = torch.cat([originals, mirrored])
    n = len(originals)
    angle = np.radians(rng.normal(0, 15, n))
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], 1)
    turn = turn.reshape(n, 2, 2)
    turned = similarity_on_parameters(
        originals, torch.from_numpy(turn).float(), torch.zeros(n, 2)
    ).numpy()
    chunks = np.array_split(turned, max(1, n // 4096))
    points = np.concatenate([face_model.landmarks(chunk)[:, :2] for chunk in chunks])
    low, high = points.min(2), points.max(2)  # (n, 2)
    zoom = rng.normal(FACE_SHARE, 0.04, n) * CROP_SIZE / np.sqrt((high - low).prod(1))
    wanted = (CROP_SIZE - 1) / 2 + rng.normal(0, 3.6, (n, 2)) * (1, -1)
    offset = wanted - zoom[:, None] * (low + high) / 2
    linear = torch.from_numpy(turn * zoom[:, None, None]).float()
    return similarity_on_parameters(originals, linear, torch.from_numpy(offset).float()).numpy()


def main() -> None:
    parser = script_parser(__doc__, usage="--photos DIR [options]", module="starter_kit.fit_labels")
    add = parser.add_argument
    add("--photos", type=Path, required=True, metavar="DIR", help="folder with faces_*_labels.npz")
    add("--landmark-model", type=Path, default=LANDMARK_MODEL, metavar="NPZ",
        help="what is fitted, and gets the whitening (default: the one that ships)")  # fmt: skip
    add("-o", "--out", type=Path, default=Path("runs/starter"),
        help="folder of the fits (default: runs/starter)")  # fmt: skip
    add("--seed", type=at_least(0), default=0, help="of the simulated crops (default: 0)")
    options = parser.parse_args()
    labels = {
        split: read_npz(options.photos / f"faces_{split}_labels.npz") for split in ("train", "val")
    }
    face_model, _ = load_model(options.landmark_model)
    for split, name in (("train", "fits.npz"), ("val", "fits_val.npz")):
        fits = fit_split(face_model, labels[split])
        percent = np.percentile(fits["fit_error"] * 100, [50, 90, 99, 100]).round(4).tolist()
        print(f"{split}: fit error in % of the box: mean {fits['fit_error'].mean() * 100:.4f},")
        print(f"    median, 90th and 99th percentile, largest: {percent}")
        write_npz(options.out / name, fits)
        if split == "train":
            rng = np.random.default_rng(options.seed)
            crops = simulate_crops(face_model, fits["parameters"], rng)
    mean, std = whitening(crops)
    path = options.landmark_model
    write_npz(path, read_npz(path) | {"param_mean": mean, "param_std": std})
    print(f"wrote fits.npz and fits_val.npz to {options.out}, and the whitening to {path}")


if __name__ == "__main__":
    run_script(main)
