"""Time and memory of `singleImage.py` on one photo, from process start to pictures written.

    python -m benchmarks.cold_start --photo mine.jpg

Runs of the two engines take turns: PyTorch, imported and filled with the weights every time, and
ONNX Runtime with a warm cache. Prints the median of the repeats with their quartiles: wall seconds,
CPU seconds (what other jobs on the machine take is left out), and the largest memory.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.tables import median_and_quartiles
from utils.assets import ROOT
from utils.cli import at_least, run_script, script_parser

ENGINES = ("torch", "onnx")


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and MB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / unit


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.cold_start")
    parser.add_argument("--repeats", type=at_least(1), default=7, help="default: 7")
    default = ROOT / "img" / "astronaut.jpg"
    parser.add_argument("--photo", type=Path, default=default, help="default: img/astronaut.jpg")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        common = ["singleImage.py", "-f", str(args.photo.resolve()), "--device", "cpu"]
        commands = [
            [*common, "--engine", engine, "-o", str(Path(folder) / engine)] for engine in ENGINES
        ]
        for command in commands:
            run(command)  # warm: the files are in memory, the networks exported
        runs = np.array([[run(command) for command in commands] for _ in range(args.repeats)])

    print("| engine | wall s | quartiles | CPU s | quartiles | MB |")
    print("|---|---|---|---|---|---|")
    for k, engine in enumerate(ENGINES):
        cells = [median_and_quartiles(times) for times in runs[:, k, :2].T]
        print(f"| {engine} | {' | '.join(cells)} | {np.median(runs[:, k, 2]):.0f} |")
    wall, cpu, memory = np.median(runs[:, 0], axis=0) / np.median(runs[:, 1], axis=0)
    print(f"| ratio | {wall:.1f} | | {cpu:.1f} | | {memory:.1f} |")


if __name__ == "__main__":
    run_script(main)
