"""Scores weights by the AFLW2000-3D protocol, and beyond it.

python benchmark.py                                      weights that singleImage.py would use
python benchmark.py -w mine.pth.tar --out runs/bench     other weights, another folder
python benchmark.py --compare runs/a runs/b              is the difference more than chance?
"""

import argparse
from pathlib import Path

from utils import evaluation
from utils.aflw2000 import DEFAULT_FOLDER
from utils.benchmark_script import BOXES, print_comparison, run_benchmark
from utils.cli import at_least, run_script, script_parser
from utils.preprocessing import PROTOCOL_BORDER

EPILOG = """\
written to OUT:
  NAME.jpg        the first 50 crops with their landmarks
  results.json    all numbers, and every face's errors; what --compare reads
  samples.csv     every face's errors
  plots.png       one page of plots (with matplotlib)
  report.html     the report with the worst 20 faces, in one self-contained file

exit code: 0 done, 1 stopped by a fault on the way, 2 wrong usage or unfit files, 130 Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG)
    add = parser.add_argument
    add("-w", "--weights", type=Path, help="SynergyNet checkpoint (default: published, or starter)")
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("--data", type=Path, default=DEFAULT_FOLDER, help="default: aflw2000_data")
    add("--aflw", type=Path, help="AFLW's 21 points (default: in the folder of --data, if there)")
    add("-o", "--out", type=Path, default=Path("results"), help="where to write (default: results)")
    add("--border", type=int, choices=(0, PROTOCOL_BORDER), default=PROTOCOL_BORDER, help="pixels "
        f"at each edge of the crops that are set to zero; {PROTOCOL_BORDER} is the protocol "
        "(default), 0 leaves them whole")  # fmt: skip
    add("--boxes", nargs="+", choices=BOXES, default=(), help="score other roi boxes too: moved "
        "and scaled by up to 10 %% at random, or from the detector")  # fmt: skip
    add("--detector-weights", type=Path, help="FaceBoxes weights (default: published, or starter)")
    add("--engine", choices=evaluation.NETWORKS, default="torch", help="default: torch")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--batch-size", type=at_least(1), help="crops at once (default: 128, on a CPU 16)")
    add("--seed", type=at_least(0), default=0, help="of jitter and bootstrap (default: 0)")
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs (OUT) on one set")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.compare:
        print_comparison(*options.compare, options.seed)
        return 0
    return run_benchmark(options)


if __name__ == "__main__":
    run_script(main)
