"""Renders a set of faces from the face model: a small one to try things out, without photos.

python -m tools.render_faces OUT --count 2500              # for main_train.py --data OUT
python -m tools.render_faces OUT --layout aflw2000         # for benchmark.py --data OUT
"""

from pathlib import Path

import cv2

from utils.assets import find_face_model
from utils.cli import at_least, run_script, script_parser
from utils.morphable_model import load_morphable_model
from utils.synthetic_sets import write_benchmark_set, write_training_set

LAYOUTS = {"training": (write_training_set, 2500), "aflw2000": (write_benchmark_set, 240)}


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__, usage="OUT [options]", module="tools.render_faces")
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="training", help="which published layout"
    )
    counts = ", ".join(f"{layout} {count}" for layout, (_, count) in LAYOUTS.items())
    parser.add_argument("--count", type=at_least(1), help=f"number of faces (default: {counts})")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of everything random (default: 0)"
    )
    parser.add_argument("-j", "--jobs", type=at_least(1), default=2, help="threads (default: 2)")
    about = "3DMM folder or .npz (default: published, or starter)"
    parser.add_argument("--face-model", type=Path, help=about)
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)  # one thread a picture is faster than many for a part of one
    write, count = LAYOUTS[options.layout]
    count = count if options.count is None else options.count
    face_model = load_morphable_model(options.face_model or find_face_model())
    write(options.out, face_model, count, options.seed, options.jobs)
    print(f"{options.out}: {count} faces rendered from {face_model.source}")


if __name__ == "__main__":
    run_script(main)
