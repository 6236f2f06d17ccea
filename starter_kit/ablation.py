"""Does the synergy loop help? Trains five variants of it at equal budget, several seeds each.

    python -m starter_kit.ablation --data runs/starter/packed_train --val runs/starter/packed_val

Runs of one seed see the same faces in the same batches; they differ in the loss terms (`LOOPS`)
and in the heads alone. The last epoch is scored, so nothing is chosen on the validation set. A run
that was stopped goes on when the script is started again; results are in OUT/results.csv and
printed.
"""

import csv
from pathlib import Path

import numpy as np

import main_train
from utils.cli import STOPPED, at_least, complain, run_script, say, script_parser
from utils.files import atomic_write

VARIANTS = {
    "backbone alone": ("--loop", "backbone"),
    "+ refiner": ("--loop", "refiner"),
    "+ inverse": ("--loop", "inverse"),
    "full loop": ("--loop", "full"),
    "full loop, signed heads": ("--loop", "full", "--heads", "signed"),
}
SCORES = ("nme_balanced", "nme", "nme_refined", "nme_60_90", "pose_mae")


def main() -> int:
    usage = "--data SET --val SET [options] [-- options of main_train.py]"
    parser = script_parser(__doc__, usage=usage, module="starter_kit.ablation")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="SET", help="packed training set")
    add("--val", type=Path, required=True, metavar="SET", help="packed validation set")
    add("-o", "--out", type=Path, default=Path("runs/ablation"), help="default: runs/ablation")
    add("--seeds", type=at_least(1), default=3, help="runs of each variant (default: 3)")
    add("--limit", type=at_least(0), default=6000,
        help="train on this many faces, drawn by the seed; 0: all (default: 6000)")  # fmt: skip
    add("--epochs", type=at_least(1), default=10, help="default: 10")
    add("options", nargs="*", help="after --: more options of main_train.py")
    options = parser.parse_args()

    rows = []
    for seed in range(options.seeds):  # a seed of every variant first: a part is a result too
        for name, settings in VARIANTS.items():
            out = options.out / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            arguments = [
                *("--data", options.data, "--val", options.val, "--out", out, "--resume"),
                *("--limit", options.limit, "--epochs", options.epochs, "--seed", seed),
                *settings,
                *options.options,
            ]
            say(f"{name}, seed {seed}")
            check_settings(out / "settings.txt", " ".join(map(str, arguments)))
            if code := main_train.main([str(value) for value in arguments]):
                verdict = "stopped" if code == STOPPED else "the run failed"
                complain("ablation.py", f"{name}, seed {seed}: {verdict}")
                return code
            with (out / "log.csv").open(newline="", encoding="utf-8") as file:
                last = list(csv.DictReader(file))[-1]
            rows.append({"variant": name, "seed": seed, **{key: last[key] for key in SCORES}})
            with atomic_write(options.out / "results.csv", "w") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    print_table(rows)
    return 0


def check_settings(path: Path, settings: str) -> None:
    """Refuses to take a run with other settings for one of this table.

    One that ended before its first checkpoint, for want of memory or of an option, is no run.
    """
    has_begun = path.exists() and (path.parent / "last.pth.tar").exists()
    if has_begun and path.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{path}: a run with other settings; give another --out")
    with atomic_write(path, "w") as file:
        file.write(settings)


def print_table(rows: list[dict]) -> None:
    """Mean and standard deviation over the seeds, a variant a line, as Markdown."""
    say("| | " + " | ".join(SCORES) + " |")
    say("|---" * (len(SCORES) + 1) + "|")
    for name in VARIANTS:
        values = np.array([[float(r[key]) for key in SCORES] for r in rows if r["variant"] == name])
        spread = values.std(0, ddof=1) if len(values) > 1 else np.full(len(SCORES), np.nan)
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(values.mean(0), spread, strict=True)]
        say(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run_script(main)
