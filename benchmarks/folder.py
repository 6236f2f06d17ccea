"""Photos a second of a folder, pictures written: a plain loop over PyTorch, and singleImage.py's.

    python -m benchmarks.folder --jobs 2

The photos are crops of img/astronaut.jpg at many sizes (300 to 1,200 pixels), a fifth of them with
two faces. Both ways use the same weights and write the same three pictures for each photo; they
take turns.

- plain: one photo after the other through PyTorch, each call with all cores; the dense mesh by
  numpy's matrix product, whose threads spin for a while after it, as they do in any plain program.
- ours: ``singleImage.py``'s loop: ONNX Runtime, ``--jobs`` photos at once.

Prints photos per second (median of the repeats), the ratio, and the resident memory after the 50th
and the last photo of a first run of ours, before PyTorch's way has been in the process.
"""

import os
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.tables import SETTLE, median_and_quartiles
from singleImage import parse_options
from synergy3DMM import SynergyNet
from utils import assets, results
from utils.cli import at_least, quiet, run_script, script_parser
from utils.morphable_model import CAMERA, MorphableModel
from utils.photo_script import finished_photos, load_model, run_on_photos
from utils.pictures import read_image, write_image


def make_photos(folder: Path, count: int) -> None:
    """JPEG files of different sizes; the face is in all of them."""
    rng = np.random.default_rng(0)
    photo = read_image(assets.ROOT / "img" / "astronaut.jpg")
    for i in tqdm(range(count), desc="photos", leave=False):
        height, width = (rng.uniform(0.75, 1, 2) * photo.shape[:2]).astype(int)
        x = rng.integers(photo.shape[1] - width + 1)
        part = photo[:height, x : x + width]  # the face is near the upper edge
        if i % 5 == 0:
            part = np.concatenate([part, part[:, ::-1]], axis=1)
        scale = rng.uniform(300, 1200) / max(part.shape[:2])
        write_image(folder / f"{i:04d}.jpg", cv2.resize(part, None, fx=scale, fy=scale))


class PlainModel(MorphableModel):
    """The dense mesh as one writes it first."""

    @staticmethod
    def _shape(parameters: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
        offsets = parameters[:, CAMERA:] @ basis.reshape(len(basis), -1)  # (B, 3 * N)
        return mean + offsets.reshape(-1, 3, mean.shape[1])


def plain_loop(model: SynergyNet, photos: list[tuple[str, Path]], out: Path) -> None:
    for name, path in photos:
        image = read_image(path)
        faces = model(image)
        if faces:
            results.save_pictures(out, name, image, faces)


def resident_mb() -> float:
    """Of this process; NaN where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.folder")
    parser.add_argument("--count", type=at_least(1), default=200, help="of photos (default: 200)")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="default: 3")
    parser.add_argument("-j", "--jobs", type=at_least(1), help="default: singleImage.py's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_photos(folder / "photos", args.count)
        command = ["-f", str(folder / "photos"), "-o", str(folder / "ours"), "--device", "cpu"]
        options = parse_options(command + (["--jobs", str(args.jobs)] if args.jobs else []))
        memory = []

        def ours_once() -> float:
            start = time.perf_counter()
            with quiet():
                run_on_photos(options, ours, writer, finished)
            return time.perf_counter() - start

        ours = load_model(options)
        finished = finished_photos(options, ours)
        writer = results.PhotoResults(options, ours.face_model)
        writer.sheets = None  # the plain loop makes none
        writer.saved = lambda *_: memory.append(resident_mb())
        ours_once()
        resident = memory.copy()
        eager = SynergyNet(device="cpu", engine="torch")
        face_model = eager.face_model
        eager.pipeline.face_model = PlainModel(
            **{field.name: getattr(face_model, field.name) for field in fields(face_model)}
        )
        seconds = {"plain": [], "ours": []}
        for _ in tqdm(range(args.repeats), desc="repeats", leave=False):
            start = time.perf_counter()
            plain_loop(eager, options.photos, folder / "plain")
            seconds["plain"].append(time.perf_counter() - start)
            time.sleep(SETTLE)
            seconds["ours"].append(ours_once())
        written = [
            len(list((folder / way / "landmarks").glob("*.jpg"))) for way in ("plain", "ours")
        ]
    if written[0] != written[1]:
        raise SystemExit(f"faces in {written[0]} photos, and in {written[1]}: not the same result")
    print(f"{args.count} photos, {options.jobs} at once, with faces: {written[0]}\n")
    print("| way | photos/s | quartiles |")
    print("|---|---|---|")
    medians = []
    for name, times in zip(
        ("plain loop, PyTorch", "singleImage.py"), seconds.values(), strict=True
    ):
        speeds = args.count / np.array(times)
        medians.append(np.median(speeds))
        print(f"| {name} | {median_and_quartiles(speeds, '.1f')} |")
    print(f"| ratio | {medians[1] / medians[0]:.2f} | |")
    if len(resident) > 50:
        print(f"memory after photo 50 {resident[49]:.0f} MB, after the last {resident[-1]:.0f} MB")


if __name__ == "__main__":
    run_script(main)
