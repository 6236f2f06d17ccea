"""Turns a training checkpoint into the half-precision weights that ship.

    python -m starter_kit.export_weights runs/starter/best.pth.tar [--init WEIGHTS --init-share 0.4]

Several checkpoints of one run are averaged, which smooths above all batch norm's statistics. With
``--init`` they are averaged with the weights that the training began from.

The network is trained on the landmark part of the face model, which is fixed before the dense mesh
is; the exported file carries the fingerprint of the whole model. Both must agree at the landmarks.
"""

import argparse
from pathlib import Path

import numpy as np

from utils import assets
from utils.checkpoint import (
    check_face_model,
    learnable_state,
    mixed_state,
    read_checkpoint,
    write_checkpoint,
)
from utils.cli import run_script
from utils.morphable_model import load_morphable_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", help="written by main_train.py, the last one last"
    )
    parser.add_argument("--trained-with", type=Path, help="face model of the run, if another")
    parser.add_argument("--face-model", type=Path, default=assets.STARTER_FACE_MODEL)
    parser.add_argument("-o", "--out", type=Path, default=assets.STARTER_WEIGHTS)
    parser.add_argument("--init", type=Path, help="weights that the training began from")
    parser.add_argument(
        "--init-share", type=float, default=0.0, help="of the weights of --init in the export (0)"
    )
    options = parser.parse_args()
    if not 0 <= options.init_share <= 1 or (options.init_share and not options.init):
        parser.error("--init-share is a share of 0 to 1 of the weights that --init names")

    contents = [read_checkpoint(path) for path in options.checkpoints]
    trained, shipped = (
        load_morphable_model(path)
        for path in (options.trained_with or options.face_model, options.face_model)
    )
    for path, content in zip(options.checkpoints, contents, strict=True):
        check_face_model(content, trained, path)
    for name in ("landmark_mean", "landmark_basis", "param_mean", "param_std"):
        if not np.array_equal(getattr(trained, name), getattr(shipped, name)):
            raise SystemExit(f"{name} differs between {trained.source} and {shipped.source}")
    state = learnable_state(contents[0])
    for number, path in enumerate(options.checkpoints[1:], 2):
        state = mixed_state(learnable_state(contents[number - 1]), state, 1 - 1 / number, path)
    if options.init:
        before = read_checkpoint(options.init)
        check_face_model(before, shipped, options.init)
        state = mixed_state(state, learnable_state(before), options.init_share, options.init)
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    # what published weights and older ones of ours don't say
    unsaid = {"epoch": 0, "backbone": "mobilenet_v2", "heads": "published", "trained_loop": "full"}
    kept = {key: contents[-1].get(key, value) for key, value in unsaid.items()}
    write_checkpoint(options.out, {"state_dict": state, "face_model": shipped.fingerprint, **kept})
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
