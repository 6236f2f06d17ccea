"""Whether the tests notice when the numerics are wrong.

python -m tools.mutation_check
python -m tools.mutation_check --only utils/geometry.py

Each mutation changes one line of a copy of the tree and runs the tests that should fail then; a
mutant that they pass is a gap in them. The unchanged copy must pass first. Run it after changing
numerics or their tests. It takes some three minutes, most of it to start tests and to compile.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from utils.assets import ROOT
from utils.cli import run_script, script_parser

EPILOG = "exit code: 0 all mutants are noticed, 1 some survive, 2 the tests fail anyway"
# what is not needed to run the tests, and large
LEFT_OUT = (".git", ".venv*", ".ci", "build", "runs", "inference_output", "__pycache__", ".*_cache")


@dataclass(frozen=True)
class Mutation:
    """One wrong line.

    Attributes:
        what: what it does to the numerics.
        file, old, new: ``old`` stands once in the file.
        tests: the file in which one must fail.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str


# file, tests: what a mutation does, the line as it is, as it becomes
_LINES = {
    ("utils/geometry.py", "test_geometry.py"): (
        (
            "sign of pitch",
            "pitch = np.arctan2(rotation[:, 1, 2], rotation[:, 2, 2])",
            "pitch = np.arctan2(-rotation[:, 1, 2], rotation[:, 2, 2])",
        ),
        (
            "third row of the rotation turned round",
            "np.cross(rows[:, 0], rows[:, 1])",
            "np.cross(rows[:, 1], rows[:, 0])",
        ),
    ),
    ("utils/preprocessing.py", "test_preprocessing.py"): (
        ("roi box 1.2 -> 1.25", "ROI_ENLARGEMENT = 1.2 ", "ROI_ENLARGEMENT = 1.25 "),
        (
            "pixels divided by 127.5",
            "PIXEL_MEAN, PIXEL_STD = 127.5, 128.0",
            "PIXEL_MEAN, PIXEL_STD = 127.5, 127.5",
        ),
        (
            "scale of y taken from x",
            "scale = (boxes[:, 2:4] - boxes[:, :2]) / CROP_SIZE",
            "scale = (boxes[:, [2, 2]] - boxes[:, [0, 0]]) / CROP_SIZE",
        ),
    ),
    ("utils/morphable_model.py", "test_morphable_model.py"): (
        (
            "mean and deviation swapped",
            "return whitened * self.param_std + self.param_mean",
            "return whitened * self.param_mean + self.param_std",
        ),
        ("y flip at 120, not 121", "Y_FLIP = 121.0", "Y_FLIP = 120.0"),
        (
            "camera transposed",
            "return camera[:, :, :3] @ shape",
            "return camera[:, :, :3].swapaxes(1, 2) @ shape",
        ),
    ),
    ("loss_definition.py", "test_losses.py"): (
        (
            "parameter loss without the camera",
            "squared[:, :CAMERA].mean(1) + squared[:, CAMERA:].mean(1)",
            "squared[:, CAMERA:].mean(1)",
        ),
        (
            "Wing loss: constant of the wrong sign",
            "near, distance - offset",
            "near, distance + offset",
        ),
    ),
    ("utils/metrics.py", "test_metrics.py"): (
        (
            "NME over the sum of the box's sides",
            "np.nanmin(xy, axis=2)).prod(1)",
            "np.nanmin(xy, axis=2)).sum(1)",
        ),
    ),
    ("FaceBoxes/anchors.py", "test_faceboxes.py"): (
        ("variances of anchors swapped", "VARIANCES = (0.1, 0.2)", "VARIANCES = (0.2, 0.1)"),
    ),
    # The compiled suppression would need Cython here; the same tests run on both.
    ("FaceBoxes/nms.py", "test_faceboxes.py"): (
        (
            "suppression above, not from, the threshold on",
            "boxes[order]).astype(np.float64) < threshold]",
            "boxes[order]).astype(np.float64) <= threshold]",
        ),
        (
            "boxes without their last pixel's width",
            "width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]) + one",
            "width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])",
        ),
    ),
    ("Sim3DR/rasterizer.cpp", "test_fuzz_native.py"): (
        (
            "equal depths: the last triangle wins",
            "inside(u, v) & (z > depths[k])",
            "inside(u, v) & (z >= depths[k])",
        ),
        (
            "weights of two corners swapped",
            "(1.0f - u - v) * a + v * b + u * c",
            "(1.0f - u - v) * a + u * b + v * c",
        ),
    ),
    ("backbone_nets/fused_norm_kernel.cpp", "test_fuzz_native.py"): (
        ("variance over n - 1", "squares / plan.rows : 0.0", "squares / (plan.rows - 1) : 0.0"),
        (
            "bfloat16 cut off, not rounded",
            "(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16",
            "bits >> 16",
        ),
    ),
    ("utils/smoothing.py", "test_smoothing.py"): (
        (
            "One-Euro filter: the cut-off does not rise with speed",
            "rate += self.motion * self._significance(difference, frames)",
            "rate += 0 * self._significance(difference, frames)",
        ),
    ),
    ("utils/tracking.py", "test_tracking.py"): (
        ("followed crops too low", "ROI_RISE = 0.105", "ROI_RISE = -0.105"),
    ),
    ("utils/morphable_model.py", "test_augmentation.py"): (
        (
            "mirroring swaps two landmarks wrongly",
            "[45, 44, 43, 42, 47, 46,",
            "[44, 45, 43, 42, 47, 46,",
        ),
    ),
    ("utils/training.py", "test_training.py"): (
        ("no schedule", 'group["lr"] = rate', 'group["lr"] = options.lr'),
        (
            "plain momentum",
            "weight_decay=weight_decay, nesterov=True",
            "weight_decay=weight_decay, nesterov=False",
        ),
        (
            "biases and norms decay, weights do not",
            "decayed = [p for p in parameters if p.ndim > 1]",
            "decayed = [p for p in parameters if p.ndim <= 1]",
        ),
    ),
    ("utils/augmentation.py", "test_augmentation.py"): (
        (
            "saturation turned round",
            '_blend_matrix(drawn["saturation"], 1 - drawn["saturation"])',
            '_blend_matrix(1 - drawn["saturation"], drawn["saturation"])',
        ),
    ),
}
MUTATIONS = tuple(
    Mutation(what, file, old, new, f"tests/{tests}")
    for (file, tests), lines in _LINES.items()
    for what, old, new in lines
)


def killed_by(mutation: Mutation, tree: Path) -> str:
    """The first test that fails on a tree with the mutation, or "" where none does."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.file}: {mutation.old!r} stands {text.count(mutation.old)} times"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        done = run_tests([mutation.tests], tree)
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return ""
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode != 1 or not failed:  # a mutant that cannot be imported proves nothing
        raise RuntimeError(f"{mutation.what}: pytest did not run\n{done.stdout}{done.stderr}")
    return failed[0].removeprefix("tests/")


def run_tests(tests: list[str], tree: Path) -> subprocess.CompletedProcess:
    """The tests on a tree, up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, EPILOG, module="tools.mutation_check")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations of files with TEXT")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTATIONS if options.only in m.file]
    if not chosen:
        parser.error(f"no mutation of a file with {options.only!r}")
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        unchanged = run_tests(sorted({m.tests for m in chosen}), tree)
        if unchanged.returncode:
            print(f"The tests fail without any mutation:\n{unchanged.stdout}", file=sys.stderr)
            return 2
        print("| file | mutation | noticed by | s |\n|---|---|---|---|", flush=True)
        for mutation in chosen:
            start = time.monotonic()
            killer = killed_by(mutation, tree)
            survivors += not killer
            seconds = time.monotonic() - start
            verdict = f"`{killer}`" if killer else "**nothing**"
            print(f"| {mutation.file} | {mutation.what} | {verdict} | {seconds:.0f} |", flush=True)
    print(f"\n{len(chosen)} mutants, {survivors} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    run_script(main)
