"""Fit the landmark model to every label of a photo set: 62 parameters per face, and the whitening.

    python -m starter_kit.fit_labels --photos ../shared/photos

Writes to `runs/starter/`:

- `fits.npz` and `fits_val.npz`: `name` (n,), `parameters` (n, 62) float32 un-whitened, in the
  frame of the 160x160 crop used 1:1 (y_crop = 121 - y holds there as it does for 120x120 crops),
  `fit_error` (n,) float32: mean 2D distance over sqrt(w·h) of the label's box;
- `landmark_model.npz`: `mean` (68, 3), `shape` (68, 3, 40), `expression` (68, 3, 10) float32, the
  signs of mirrored coefficients, and `param_mean`, `param_std` (62,) of simulated 120x120 training
  crops.

and adds the whitening to the landmark model that ships, `starter_kit/landmark_model.npz`.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from starter_kit.landmark_statistics import LABEL_UNIT, LANDMARK_MODEL, load_model, save_npz
from utils.fitting import Y_FLIP, LandmarkModel, fit_landmarks, landmarks_of

CROP = 120  # pixels
FACE_SHARE = 0.68  # of sqrt(w·h) of the landmarks' box in the crop's side


def fit_file(model: LandmarkModel, path: Path, batch: int = 1000) -> dict[str, np.ndarray]:
    """Names, parameters and fit errors of the labels in one file."""
    with np.load(path) as labels:
        names, landmarks = labels["name"], labels["landmarks"]
    fits = [
        fit_landmarks(model, landmarks[i : i + batch] * LABEL_UNIT)
        for i in tqdm(range(0, len(landmarks), batch), path.stem)
    ]
    parameters, errors = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    return {"name": names, "parameters": parameters, "fit_error": errors}


def mirror_parameters(parameters: np.ndarray, sign: np.ndarray, centre_x: float) -> np.ndarray:
    """Parameters (n, 62) of the crops mirrored about the column `centre_x`; sign (50,)."""
    camera = parameters[:, :12].reshape(-1, 3, 4).copy()
    camera[:, 0] *= -1  # D A D with D = diag(-1, 1, 1): the model is mirrored as well
    camera[:, :, 0] *= -1
    camera[:, 0, 3] += 2 * centre_x
    return np.concatenate([camera.reshape(-1, 12), parameters[:, 12:] * sign], axis=1)


def simulate_crops(
    model: LandmarkModel, parameters: np.ndarray, sign: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Parameters (2n, 62) as 120x120 training crops have them: turned, mirrored, scaled, shifted.

    In-plane rotation is normal with 15 degrees; the landmarks' box takes about 0.68 of the crop
    (standard deviation 0.04) and is off the centre by 0.03 of the crop (standard deviation).
    """
    parameters = np.concatenate([parameters, mirror_parameters(parameters, sign, 80.0)])
    n = len(parameters)
    camera = parameters[:, :12].reshape(-1, 3, 4).astype(np.float64)
    angle = np.radians(rng.normal(0, 15, n))
    turn = np.zeros((n, 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 1, 0] = np.sin(angle)
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = 1
    camera = turn @ camera
    points = landmarks_of(model, np.concatenate([camera.reshape(n, 12), parameters[:, 12:]], 1))
    low, high = points[:, :2].min(2), points[:, :2].max(2)  # (n, 2)
    share = rng.normal(FACE_SHARE, 0.04, n)
    camera *= (share * CROP / np.sqrt((high - low).prod(1)))[:, None, None]
    centre = (low + high) / 2
    centre[:, 1] = Y_FLIP - centre[:, 1]  # y up
    zoom = share * CROP / np.sqrt((high - low).prod(1))
    wanted = np.array([(CROP - 1) / 2, Y_FLIP - (CROP - 1) / 2]) + rng.normal(0, 3.6, (n, 2))
    camera[:, :2, 3] += wanted - zoom[:, None] * centre
    return np.concatenate([camera.reshape(n, 12), parameters[:, 12:]], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder with faces_*_labels.npz")
    parser.add_argument("--model", type=Path, default=LANDMARK_MODEL)
    parser.add_argument("--output", type=Path, default=Path("runs/starter"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, sign = load_model(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "fits.npz"), ("val", "fits_val.npz")):
        fits = fit_file(model, args.photos / f"faces_{split}_labels.npz")
        percent = np.percentile(fits["fit_error"] * 100, [50, 90, 99, 100]).round(4).tolist()
        print(f"{split}: fit error in % of the box: mean {fits['fit_error'].mean() * 100:.4f},")
        print(f"    median, 90th and 99th percentile, largest: {percent}")
        save_npz(args.output / name, fits)
        if split == "train":
            crops = simulate_crops(
                model, fits["parameters"], sign, np.random.default_rng(args.seed)
            )
    mean, std = crops.mean(0), crops.std(0)
    std[11] = 1.0  # t_z is zero by convention: a network's output there must not be blown up
    whitening = {"param_mean": mean.astype(np.float32), "param_std": std.astype(np.float32)}
    arrays = {"mean": model.mean, "shape": model.shape, "expression": model.expression}
    save_npz(args.output / "landmark_model.npz", arrays | {"mirror_sign": sign} | whitening)
    with np.load(args.model) as file:
        complete = dict(file) | whitening
    save_npz(args.model, complete)
    print(f"wrote fits.npz, fits_val.npz and landmark_model.npz to {args.output}")


if __name__ == "__main__":
    main()
