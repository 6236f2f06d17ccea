"""Turns a training checkpoint into the half-precision weights that ship.

    python -m starter_kit.export_weights runs/starter/best.pth.tar [--init WEIGHTS --init-share 0.4]

Several checkpoints of one run are averaged, which smooths above all batch norm's statistics. With
``--init`` they are averaged with the weights that the training began from.

The network is trained on the landmark part of the face model, which is fixed before the dense mesh
is; the exported file carries the fingerprint of the whole model. Both must agree at the landmarks.
"""

from pathlib import Path

import numpy as np

from utils import assets
from utils.checkpoint import (
    UNSAID,
    check_face_model,
    learnable_state,
    mixed_state,
    read_checkpoint,
    require_in_half,
    write_checkpoint,
)
from utils.cli import run_script, script_parser, within
from utils.morphable_model import load_morphable_model


def check_alike(content: dict, like: dict, path: Path) -> None:
    """Refuses to average two kinds of network: their tensors have the same shapes.

    Raises:
        ValueError: backbone or heads of ``content`` are not those of ``like``.
    """
    for key in ("backbone", "heads"):
        theirs, ours = (one.get(key, UNSAID[key]) for one in (content, like))
        if theirs != ours:
            raise ValueError(
                f"{path}: has {key} {theirs}, the weights it is to be averaged with have {ours}"
            )


def main() -> None:
    parser = script_parser(
        __doc__, usage="CHECKPOINT ... [options]", module="starter_kit.export_weights"
    )
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
        help="written by main_train.py, the last one last")  # fmt: skip
    add("--trained-with", type=Path, metavar="PATH", help="face model of the run, if another")
    add("--face-model", type=Path, default=assets.STARTER_FACE_MODEL, metavar="PATH",
        help="that the export belongs to (default: starter)")  # fmt: skip
    add("-o", "--out", type=Path, default=assets.STARTER_WEIGHTS, metavar="FILE",
        help="default: the weights that ship, which are replaced")  # fmt: skip
    add("--init", type=Path, metavar="FILE", help="weights that the training began from")
    add("--init-share", type=within(0, 1, float), default=0.0, metavar="SHARE",
        help="of the weights of --init in the export (default: 0)")  # fmt: skip
    options = parser.parse_args()
    if options.init_share and not options.init:
        parser.error("--init-share is the share of the weights that --init names: it needs --init")

    contents = [read_checkpoint(path) for path in options.checkpoints]
    trained, shipped = (
        load_morphable_model(path)
        for path in (options.trained_with or options.face_model, options.face_model)
    )
    for path, content in zip(options.checkpoints, contents, strict=True):
        check_face_model(content, trained, path)
        check_alike(content, contents[-1], path)
    for name in ("landmark_mean", "landmark_basis", "param_mean", "param_std", "pixel_centres"):
        if not np.array_equal(getattr(trained, name), getattr(shipped, name)):
            raise SystemExit(f"{name} differs between {trained.source} and {shipped.source}")
    state = learnable_state(contents[0])
    for number, path in enumerate(options.checkpoints[1:], 2):
        state = mixed_state(learnable_state(contents[number - 1]), state, 1 - 1 / number, path)
    if options.init:
        before = read_checkpoint(options.init)
        check_face_model(before, shipped, options.init)
        check_alike(before, contents[-1], options.init)
        state = mixed_state(state, learnable_state(before), options.init_share, options.init)
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    require_in_half(state, options.checkpoints[-1])
    # what published weights and older ones of ours don't say
    kept = {k: contents[-1].get(k, v) for k, v in {"epoch": 0, **UNSAID}.items()}
    write_checkpoint(options.out, {"state_dict": state, "face_model": shipped.fingerprint, **kept})
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
