"""Packs the labelled photos and their fitted parameters into a training set.

    python -m starter_kit.pack_photos --photos DIR --split train --fits fits.npz --out DIR

The photos are not part of this repository (research data; see CARD.md).
"""

import argparse
import zipfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.datasets import write_packed

LABEL_UNIT = 1 / 32  # pixel
MAX_SPREAD = 0.035  # labels on which the labelling model disagreed with itself are left out
SIDE = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of the photo zips")
    parser.add_argument("--split", choices=["train", "val"], required=True)
    parser.add_argument("--fits", type=Path, required=True, help="from starter_kit.fit_labels")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()

    labels = np.load(options.photos / f"faces_{options.split}_labels.npz", allow_pickle=False)
    fits = np.load(options.fits, allow_pickle=False)
    if not np.array_equal(labels["name"], fits["name"]):
        raise SystemExit(f"{options.fits}: fits of other photos than {options.photos}")
    chosen = np.ones(len(labels["name"]), dtype=bool)
    if options.split == "train":
        chosen = labels["spread"].astype(np.float32) <= MAX_SPREAD
    chosen = np.flatnonzero(chosen)
    landmarks = labels["landmarks"][chosen].astype(np.float32) * LABEL_UNIT
    # the labels' depth starts anywhere; the face model's starts at its origin
    fitted = fits["parameters"][chosen]
    landmarks[:, 2] -= (landmarks[:, 2].mean(1) - _depth(fitted))[:, None]

    def pictures():
        shards = {}
        for index in tqdm(chosen, desc=f"packing {options.split}"):
            shard = f"_{labels['shard'][index]}" if options.split == "train" else ""
            if shard not in shards:
                path = options.photos / f"faces_{options.split}{shard}.zip"
                shards[shard] = zipfile.ZipFile(path)
            data = shards[shard].read(str(labels["name"][index]))
            yield cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    write_packed(
        options.out,
        pictures(),
        len(chosen),
        SIDE,
        parameters=fitted,
        landmarks=landmarks,
        valid=labels["valid"][chosen],
        names=labels["name"][chosen],
    )


def _depth(parameters: np.ndarray) -> np.ndarray:
    """(n,) mean depth of the fitted landmarks."""
    from starter_kit.landmark_statistics import load_model

    model, _ = load_model()
    shape = np.concatenate([model.shape, model.expression], 2)  # (68, 3, 50)
    centroid = model.mean.mean(0) + parameters[:, 12:] @ shape.mean(0).T  # (n, 3)
    camera = parameters[:, :12].reshape(-1, 3, 4)
    return (camera[:, 2, :3] * centroid).sum(1) + camera[:, 2, 3]


if __name__ == "__main__":
    main()
