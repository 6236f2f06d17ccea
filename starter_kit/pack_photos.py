"""Packs the labelled photos and their fitted parameters into a training set.

    python -m starter_kit.pack_photos --photos DIR --split train --fits fits.npz --out DIR

The photos are not part of this repository (research data; see CARD.md).
"""

import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from starter_kit.fit_labels import LABEL_SIDE, label_landmarks
from starter_kit.landmark_statistics import load_model
from utils.cli import run_script, script_parser, within
from utils.datasets import write_packed
from utils.files import read_npz
from utils.pictures import read_zipped_image

USABLE_SPREAD = 0.035  # labels on which the labelling model disagreed with itself are left out


def main() -> None:
    needed = "--photos DIR --split S --fits NPZ --out DIR"  # with the rest on a line of 100
    parser = script_parser(__doc__, usage=f"{needed} [options]", module="starter_kit.pack_photos")
    add = parser.add_argument
    add("--photos", type=Path, required=True, metavar="DIR", help="photo zips and their labels")
    add("--split", choices=["train", "val"], required=True, metavar="S", help="train or val")
    add("--fits", type=Path, required=True, metavar="NPZ", help="from starter_kit.fit_labels")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--human-weight", type=within(0, 1, float), default=0.0, metavar="SHARE",
        help="of people's labels where there are any; the rest is the network's (0)")  # fmt: skip
    options = parser.parse_args()

    labels = read_npz(options.photos / f"faces_{options.split}_labels.npz")
    fits = read_npz(options.fits)
    if not np.array_equal(labels["name"], fits["name"]):
        raise SystemExit(f"{options.fits}: fits of other photos than {options.photos}")
    is_train = options.split == "train"
    ends = [f"_{shard}" for shard in labels["shard"]] if is_train else [""] * len(labels["name"])
    archives = {
        end: zipfile.ZipFile(options.photos / f"faces_{options.split}{end}.zip")
        for end in sorted(set(ends))
    }
    chosen = np.ones(len(labels["name"]), dtype=bool)
    if is_train:
        chosen = labels["spread"].astype(np.float32) <= USABLE_SPREAD
    chosen = np.flatnonzero(chosen)
    landmarks = label_landmarks(labels, options.human_weight)[chosen]
    # the labels' depth starts anywhere; the face model's starts at its origin
    fitted = fits["parameters"][chosen]
    face_model, _ = load_model()
    chunks = np.array_split(fitted, max(1, len(fitted) // 4096))
    depth = np.concatenate([face_model.landmarks(chunk)[:, 2].mean(1) for chunk in chunks])
    landmarks[:, 2] -= (landmarks[:, 2].mean(1) - depth)[:, None]

    def pictures():
        for index in tqdm(chosen, desc=f"packing {options.split}"):
            yield read_zipped_image(archives[ends[index]], str(labels["name"][index]))

    write_packed(
        options.out,
        pictures(),
        len(chosen),
        LABEL_SIDE,
        parameters=fitted,
        landmarks=landmarks,
        valid=labels["valid"][chosen],
        names=labels["name"][chosen],
    )


if __name__ == "__main__":
    run_script(main)
