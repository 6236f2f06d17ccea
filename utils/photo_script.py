"""What the scripts that go through photos share: model options, the loop, the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils import results
from utils.files import read_image
from utils.inference import Face

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """``-f --png -o -w --face-model --detector-weights --device --threshold``."""
    add = parser.add_argument
    add("-f", "--files", type=Path, required=True, metavar="PATH", help="a photo or a folder")
    add("--png", action="store_true", help="of a folder, take the PNG files only")
    add("-o", "--out", type=Path, default=Path("inference_output"), help="where to write")
    add("-w", "--weights", type=Path, help="SynergyNet checkpoint (default: published, or starter)")
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("--detector-weights", type=Path, help="FaceBoxes weights (default: published, or starter)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--threshold", type=float, default=0.5, help="least score of a detection (default: 0.5)")


def parse_photo_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parses, and finds the photos: ``photos`` is a list of (name, path)."""
    options = parser.parse_args(arguments)
    try:
        options.photos = results.find_photos(options.files, options.png)
    except FileNotFoundError as error:
        parser.error(str(error))
    return options


def comma_list(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: ``a,b`` -> ("a", "b"), each of them one of ``allowed``."""

    def parse(text: str) -> tuple[str, ...]:
        parts = tuple(dict.fromkeys(p.strip().lower() for p in text.split(",") if p.strip()))
        if not parts or not set(parts) <= set(allowed):
            expected = ", ".join(allowed)
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a comma-separated list of {expected}"
            )
        return parts

    return parse


def load_model(options: argparse.Namespace) -> SynergyNet:
    """The model of the options, its description shown; the output folder is made.

    Raises:
        OSError, ValueError, RuntimeError: a file is missing or does not fit, the device does not
            work, or the folder cannot be made.
    """
    from synergy3DMM import SynergyNet  # after the arguments are known to be right

    model = SynergyNet(
        options.weights,
        options.face_model,
        options.detector_weights,
        options.device,
        options.threshold,
    )
    options.out.mkdir(parents=True, exist_ok=True)  # tried before any photo is read
    tqdm.write(model.description)
    return model


def run_on_photos(
    options: argparse.Namespace,
    find_faces: Callable[[np.ndarray], list[Face]],
    save: Callable[[str, Path, np.ndarray, list[Face]], None],
) -> int:
    """Reads each photo, finds its faces, saves; says what happened; 0, or 1 if a photo failed.

    Args:
        options: with ``photos`` and ``out``.
        find_faces: of a (H, W, 3) uint8 BGR picture.
        save: gets name, path, picture and faces, of which there may be none.
    """
    failures = without_face = 0
    for name, path in tqdm(options.photos, unit="photo", disable=len(options.photos) == 1):
        try:
            image = read_image(path)
            faces = find_faces(image)
            save(name, path, image, faces)
            if faces:
                tqdm.write(f"{path}: {results.summary(faces)}")
            else:
                without_face += 1
                tqdm.write(f"{path}: no face found")
        except (OSError, ValueError) as error:  # this photo's fault; the others go on
            failures += 1
            message = str(error)
            if str(path) not in message:
                message = f"{path}: {message}"
            tqdm.write(f"failed: {message}", file=sys.stderr)
    done = len(options.photos) - failures - without_face
    summary = [f"{results.count(done, 'photo')} with faces written to {options.out}"]
    if without_face:
        summary.append(f"{results.count(without_face, 'photo')} without a face")
    if failures:
        summary.append(f"{results.count(failures, 'photo')} failed")
    tqdm.write(", ".join(summary))
    return 1 if failures else 0
