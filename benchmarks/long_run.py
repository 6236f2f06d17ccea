"""Whether memory or open files grow in a long run: many photos, and a long video.

    python -m benchmarks.long_run --photos 2000 --frames 2000

- photos: ``singleImage.py``'s loop (``--jobs`` at once) over crops of img/astronaut.jpg of 20 sizes
  (160 to 312 pixels), again and again; numbers and pictures are written, over the last ones.
- frames: a made-up video (320 x 180) through the tracker of ``video.py``: one face always moves,
  another comes and goes, every 500th frame is a cut.

Prints resident memory and open file handles after the ``--at``-th photo or frame and after the
last, and the differences. Linux (/proc).
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.folder import resident_mb
from singleImage import parse_options
from utils import assets, results
from utils.cli import at_least, quiet, run_script, script_parser
from utils.photo_script import finished_photos, load_model, run_on_photos
from utils.pictures import read_image, write_image

SIZES = 20


class Meter:
    """Reads memory and open handles after each photo or frame; the largest values count too."""

    def __init__(self, what: str, total: int, at: int) -> None:
        self.what, self.total, self.at, self.done = what, total, min(at, total), 0
        self.read: dict[int, tuple[float, int]] = {}
        self.most = 0.0
        self.bar = tqdm(total=total, desc=what, leave=False, file=sys.__stderr__, mininterval=5)

    def step(self) -> None:
        self.done += 1
        self.bar.update()
        if self.done % 50 == 0 or self.done in (self.at, self.total):
            memory, handles = resident_mb(), len(os.listdir("/proc/self/fd"))
            self.most = max(self.most, memory)
            if self.done in (self.at, self.total):
                self.read[self.done] = memory, handles

    def row(self) -> str:
        self.bar.close()
        (memory, handles), (last_memory, last_handles) = self.read[self.at], self.read[self.total]
        return (
            f"| {self.what} | {self.total:,} | {memory:.0f} MB, {handles} | "
            f"{last_memory:.0f} MB, {last_handles} | "
            f"{last_memory - memory:+.1f} MB, {last_handles - handles:+d} | {self.most:.0f} MB |"
        )


def make_photos(folder: Path) -> None:
    """Small JPEG files, each of a size of its own; every fifth shows two faces."""
    photo = read_image(assets.ROOT / "img" / "astronaut.jpg")
    for i in range(SIZES):
        part = photo[:, 4 * i :]
        if i % 5 == 0:
            part = np.concatenate([part, part[:, ::-1]], axis=1)
        scale = (160 + 8 * i) / part.shape[0]
        write_image(folder / f"{i:02d}.jpg", cv2.resize(part, None, fx=scale, fy=scale))


def frames(count: int) -> Iterator[np.ndarray]:
    """(180, 320, 3) uint8 BGR: portraits that move over a grey that jumps at a cut."""
    portrait = cv2.resize(read_image(assets.ROOT / "img" / "astronaut.jpg")[20:260, 110:340],
        (115, 120), interpolation=cv2.INTER_AREA)  # fmt: skip
    rng = np.random.default_rng(0)
    for t in range(count):
        scene = t // 500
        frame = np.full((180, 320, 3), (70, 110, 160)[scene % 3], np.uint8)
        places = [(20 + 15 * np.sin(t / 15) + 10 * (scene % 3), 30 + 10 * np.cos(t / 22))]
        if t % 200 < 120:
            places.append((185 + 12 * np.sin(t / 18), 40 + 8 * np.sin(t / 9)))
        for place in places:
            x, y = (int(value) for value in place)
            frame[y : y + 120, x : x + 115] = portrait
        yield cv2.add(frame, rng.integers(0, 12, frame.shape, dtype=np.uint8))


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.long_run")
    add, count = parser.add_argument, at_least(1)
    add("--photos", type=count, default=10_000, metavar="N", help="how many (default: 10,000)")
    add("--frames", type=count, default=10_000, metavar="N", help="how many (default: 10,000)")
    add("--at", type=count, default=1000, metavar="N", help="first reading (default: 1000)")
    add("-j", "--jobs", type=count, default=2, help="photos at once (default: 2)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_photos(folder / "photos")
        options = parse_options(
            ["-f", str(folder / "photos"), "-o", str(folder / "out"), "--device", "cpu"]
            + ["--save", "npz,json"]
        )
        options.jobs = args.jobs
        files = options.photos
        options.photos = [files[i % SIZES] for i in range(args.photos)]
        model = load_model(options)
        meter = Meter("photos", args.photos, args.at)
        writer = results.PhotoResults(options, model.face_model)
        writer.sheets = None  # hundreds of pages of the same few photos
        writer.saved = lambda *_: meter.step()
        with quiet():
            run_on_photos(options, model, writer, finished_photos(options, model))
        rows.append(meter.row())

        tracker = model.tracker()
        meter, faces = Meter("frames", args.frames, args.at), 0
        for frame in frames(args.frames):
            faces += len(tracker(frame))
            meter.step()
        rows.append(meter.row())
    print(
        f"| of | number | after {args.at:,}: memory, handles | after the last | difference | most |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"{faces:,} faces seen in the frames, {tracker.last_id} ids")


if __name__ == "__main__":
    run_script(main)
