"""Training sets: one packed, memory-mapped file of pictures beside their labels.

A packed set is a folder with
    images.npy      (n, S, S, 3) uint8 BGR
    labels.npz      parameters (n, 62) float32, not whitened, frame of the S x S picture;
                    landmarks (n, 3, 68) float32, same frame, optional (else from the parameters);
                    valid (n, 4) int16 x1 y1 x2 y2 of the part that is photo, optional
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from utils.augmentation import Batch
from utils.files import atomic_write, read_npz
from utils.geometry import decompose_camera, rotation_to_angles
from utils.morphable_model import NUM_PARAMETERS, MorphableModel, split_camera

# How much more often than frontal ones faces of a yaw are drawn: (from degrees, weight).
YAW_WEIGHTS = ((0, 1.0), (15, 1.3), (30, 2.5), (45, 5.0), (60, 6.0))


class PackedFaces:
    """A packed training or validation set.

    Args:
        folder: see the module's text.
        face_model: gives the landmarks where the set has none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: shapes that disagree.
    """

    def __init__(self, folder: str | os.PathLike, face_model: MorphableModel) -> None:
        self.folder = Path(folder)
        for name in ("images.npy", "labels.npz"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{self.folder / name}: not a packed set, no such file")
        self.images = np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = read_npz(self.folder / "labels.npz")
        if "parameters" not in labels or not len(self.images):
            raise ValueError(f"{self.folder}: an empty set, or labels.npz without parameters")
        self.parameters = labels["parameters"].astype(np.float32)
        self.landmarks, self.valid = labels.get("landmarks"), labels.get("valid")
        count, side = len(self.images), self.images.shape[1]
        if self.images.shape != (count, side, side, 3) or self.images.dtype != np.uint8:
            raise ValueError(f"{self.folder}: images must be (n, S, S, 3) uint8")
        if self.parameters.shape != (count, NUM_PARAMETERS):
            raise ValueError(
                f"{self.folder}: {count} pictures but parameters of shape {self.parameters.shape}"
            )
        if self.landmarks is None:
            chunks = np.array_split(self.parameters, max(1, count // 4096))
            self.landmarks = np.concatenate([face_model.landmarks(chunk) for chunk in chunks])
        self.landmarks = self.landmarks.astype(np.float32)
        if self.valid is None:
            self.valid = np.tile(np.int16([0, 0, side, side]), (count, 1))

    def __len__(self) -> int:
        return len(self.images)

    def yaw(self) -> np.ndarray:
        """(n,) degrees."""
        _, rotation, _ = decompose_camera(split_camera(self.parameters))
        return rotation_to_angles(rotation)[:, 0]

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of ``indices`` as tensors on the CPU."""
        return Batch(
            torch.from_numpy(self.images[indices]),
            torch.from_numpy(self.parameters[indices]),
            torch.from_numpy(self.landmarks[indices]),
            torch.from_numpy(self.valid[indices].astype(np.float32)),
        )


def pose_balanced_weights(yaw: np.ndarray) -> np.ndarray:
    """(n,) drawing probabilities that favour the rare large poses (``YAW_WEIGHTS``)."""
    weights = np.ones(len(yaw))
    for start, weight in YAW_WEIGHTS:
        weights[np.abs(yaw) >= start] = weight
    return weights / weights.sum()


def epoch_batches(
    probabilities: np.ndarray, samples: int, batch_size: int, seed: int
) -> Iterator[np.ndarray]:
    """Index batches of one epoch, drawn with replacement; the last short batch is dropped."""
    order = np.random.default_rng(seed).choice(len(probabilities), samples, p=probabilities)
    for start in range(0, samples - batch_size + 1, batch_size):
        yield np.sort(order[start : start + batch_size])  # sorted: the disk reads forward


def write_packed(
    folder: str | os.PathLike, images: Iterator[np.ndarray], count: int, side: int, **labels
) -> None:
    """Writes a packed set; ``images`` yields ``count`` pictures (S, S, 3) uint8 BGR."""
    folder = Path(folder)
    with atomic_write(folder / "images.npy") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for image in images:
            if image.shape != (side, side, 3) or image.dtype != np.uint8:
                raise ValueError(f"expected ({side}, {side}, 3) uint8, got {image.shape}")
            file.write(np.ascontiguousarray(image).tobytes())
            written += 1
        if written != count:
            raise ValueError(f"{folder}: {count} pictures announced, {written} given")
    with atomic_write(folder / "labels.npz") as file:
        np.savez(file, **labels)
