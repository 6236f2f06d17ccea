"""Images per second of the training data path alone: the published way against ours.

    python -m benchmarks.train_data --workers 2

A small set in the published layout is cut at random from the photos in img/ and demo/, with made-up
parameters. Every repeat measures each way once, one after the other, over the whole set in batches
of 128: what another job takes meets all alike. Printed are median and quartiles of images per
second, CPU time per image (all threads and processes; less disturbed by other jobs), and the ratio
to the published way, the median over repeats.

The published way is a plain writing of it, sample by sample in the processes of a DataLoader:
OpenCV decode, brightness, contrast and saturation in random order by Pillow, 5-pixel border,
occlusion, normalisation, one float32 tensor, collated. Starting its processes is not counted.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.tables import median_and_quartiles
from utils.assets import ROOT, find_face_model
from utils.augmentation import AUGMENTATIONS, PublishedAugmentation
from utils.cli import at_least, run_script, script_parser
from utils.datasets import (
    PUBLISHED_CROPS,
    Faces,
    PackedFaces,
    PublishedFaces,
    batches,
    pack,
    write_published_labels,
)
from utils.memory import keep_freed_memory
from utils.morphable_model import CAMERA, MorphableModel, load_morphable_model
from utils.pictures import read_image, write_image
from utils.preprocessing import CROP_SIZE, PIXEL_MEAN, PIXEL_STD
from utils.runtime import choose_device

BATCH = 128


def write_set(folder: Path, count: int, face_model: MorphableModel) -> None:
    """``count`` random parts of our photos as a training set in the published layout."""
    rng = np.random.default_rng(0)
    photos = [
        read_image(path) for path in sorted([*ROOT.glob("img/*.jpg"), *ROOT.glob("demo/*.jpg")])
    ]
    names = [f"photo_{i}_0_1.jpg" for i in range(count)]
    for name in tqdm(names, desc="writing the set", unit="img"):
        photo = photos[rng.integers(len(photos))]
        side = rng.integers(CROP_SIZE, min(photo.shape[:2]) // 2)
        y, x = (rng.integers(0, size - side) for size in photo.shape[:2])
        part = cv2.resize(photo[y : y + side, x : x + side], (CROP_SIZE, CROP_SIZE))
        write_image(folder / PUBLISHED_CROPS / name, part)
    whitened = 0.5 * rng.normal(size=(count, 62)).astype(np.float32)
    upright = np.column_stack([5e-4 * np.eye(3), [60, 60, 0]]).ravel()
    camera = (upright - face_model.param_mean[:CAMERA]) / face_model.param_std[:CAMERA]
    whitened[:, :CAMERA] = camera
    write_published_labels(folder, names, whitened)


# ----------------------------------------------------------------------------- the published way


class SampleBySample(Dataset):
    """One picture at a time, as the published training does it."""

    def __init__(self, folder: Path, names: list[str], parameters: np.ndarray) -> None:
        self.paths = [str(folder / PUBLISHED_CROPS / name) for name in names]
        self.parameters = parameters

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(index)
        crop = jitter(cv2.imread(self.paths[index]), rng)
        crop = crop.copy()
        crop[:5] = crop[-5:] = 0
        crop[:, :5] = crop[:, -5:] = 0
        if rng.random() < PublishedAugmentation.occlusion:
            part = PublishedAugmentation.KEPT[rng.integers(7)]
            x1, y1, x2, y2 = (int(edge * CROP_SIZE) for edge in part)
            black = np.zeros_like(crop)
            black[y1:y2, x1:x2] = crop[y1:y2, x1:x2]
            crop = black
        image = torch.from_numpy(crop.transpose((2, 0, 1))).float()
        return image.sub_(PIXEL_MEAN).div_(PIXEL_STD), torch.from_numpy(self.parameters[index])


def jitter(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(120, 120, 3) uint8 with brightness, contrast and saturation changed in random order."""
    factors = rng.uniform(0.6, 1.4, 3)
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    image = Image.fromarray(crop)  # which channel comes first makes no difference in time
    for kind in rng.permutation(3):
        image = changes[kind](image).enhance(factors[kind])
    return np.asarray(image)


# -------------------------------------------------------------------------------- what is measured


def published_way(samples: SampleBySample, workers: int) -> Iterator[torch.Tensor]:
    """Batches of the DataLoader; what comes before the first one is start-up."""
    generator = torch.Generator().manual_seed(0)
    for images, _ in DataLoader(
        samples, BATCH, shuffle=True, num_workers=workers, drop_last=True, generator=generator
    ):
        yield images


def ours(
    faces: Faces, augmentation: str, workers: int, device: torch.device
) -> Iterator[torch.Tensor]:
    augment, generator = AUGMENTATIONS[augmentation](faces.face_model), torch.Generator()
    pinned = device.type == "cuda"
    for batch in batches(faces, None, len(faces), BATCH, 0, 0, workers=workers, pin_memory=pinned):
        yield augment(batch.to(device), generator)[0]


def measure(epoch: Callable[[], Iterator[torch.Tensor]]) -> tuple[float, float]:
    """Images per second after the first batch, and milliseconds of CPU per image of them all."""
    used = cpu_seconds()
    stream = epoch()
    count = first = len(next(stream))
    started = time.perf_counter()
    for images in stream:
        count += len(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    seconds = time.perf_counter() - started
    return (count - first) / seconds, 1e3 * (cpu_seconds() - used) / count


def cpu_seconds() -> float:
    """Of this process and its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.train_data")
    least = 8 * BATCH  # the first batch warms up, and others are made meanwhile
    add, workers = parser.add_argument, min(4, os.cpu_count() or 1)
    add("--count", type=at_least(least), default=2000, help="of pictures (default: 2000)")
    add("--repeats", type=at_least(1), default=5, help="default: 5")
    add("--workers", type=at_least(1), default=workers, help=f"that read (default: {workers})")
    add("--device", default="cpu", help="where our augmentation runs (default: cpu)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    keep_freed_memory()  # as training does
    device = choose_device(args.device)
    face_model = load_morphable_model(find_face_model())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_set(root, args.count, face_model)
        files = PublishedFaces(root, face_model)
        pack(files, root / "packed")
        packed = PackedFaces(root / "packed", face_model)
        samples = SampleBySample(root, files.names, files.parameters)
        ways = {
            "published way": lambda: published_way(samples, args.workers),
            "ours, JPEG files, published augmentation": lambda: ours(
                files, "published", args.workers, device
            ),
            "ours, packed, published augmentation": lambda: ours(packed, "published", 1, device),
            "ours, packed, strong augmentation": lambda: ours(packed, "strong", 1, device),
        }
        results = {name: [] for name in ways}
        for _ in tqdm(range(args.repeats), desc="repeats"):
            for name, way in ways.items():
                results[name].append(measure(way))
    print(
        f"{args.count} pictures, batches of {BATCH}, {args.workers} workers, "
        f"{torch.get_num_threads()} torch threads, our augmentation on {device}\n"
    )
    print("| way | images/s | quartiles | ratio | CPU ms per image | ratio |")
    print("|---|---|---|---|---|---|")
    base = np.array(results["published way"])  # (repeats, 2)
    for name, values in results.items():
        values = np.array(values)
        faster, cheaper = np.median(values / base, axis=0)
        print(
            f"| {name} | {median_and_quartiles(values[:, 0], '.0f')} | {faster:.1f} x "
            f"| {np.median(values[:, 1]):.2f} | {1 / cheaper:.1f} x |"
        )


if __name__ == "__main__":
    run_script(main)
