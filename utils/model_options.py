"""The options that choose the model, and the model they choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from FaceBoxes import DETECT_SIZE
from utils.runtime import ENGINES

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``-w --face-model --detector-weights --device --engine --threshold --detect-size``."""
    add = parser.add_argument
    add("-w", "--weights", type=Path, help="SynergyNet checkpoint (default: published, or starter)")
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("--detector-weights", type=Path, help="FaceBoxes weights (default: published, or starter)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--engine", choices=ENGINES, default="auto",
        help="auto, torch or onnx: ONNX Runtime, on the CPU (default: auto)")  # fmt: skip
    add("--threshold", type=float, default=0.5, help="keep detections above it (default: 0.5)")
    add("--detect-size", type=int, default=DETECT_SIZE, metavar="PIXELS",
        help="for the detector photos are shrunk to this width, or two thirds of it in height "
        f"(default: {DETECT_SIZE}); more finds smaller faces in large photos")  # fmt: skip


def open_model(options: argparse.Namespace, threads: int | None = None) -> SynergyNet:
    """The model of the options, ``threads`` working on each call (None: as many as serve).

    Raises:
        OSError, ValueError, UnavailableError: a file is missing or does not fit, or the device or
            engine does not work.
    """
    from synergy3DMM import SynergyNet  # after the arguments are known to be right

    return SynergyNet(
        options.weights,
        options.face_model,
        options.detector_weights,
        options.device,
        options.threshold,
        options.engine,
        threads=threads,
        detect_size=options.detect_size,
    )
