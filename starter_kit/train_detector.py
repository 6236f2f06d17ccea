"""Trains the starter kit's own FaceBoxes weights, from random initialisation.

First from labels alone, then against the outputs of the detector that made the labels:

    python -m tools.evaluate_detector FaceBoxes/weights/FaceBoxesProd.pth \\
        --data PHOTOS/detector/train --write-labels runs/detector/labels.json
    python -m starter_kit.train_detector --data PHOTOS \\
        --labels runs/detector/labels.json --views runs/starter/packed_rotated --minutes 90
    python -m starter_kit.train_detector --data PHOTOS --labels runs/detector/labels.json \\
        --init runs/detector/average.pth --teacher FaceBoxes/weights/FaceBoxesProd.pth \\
        --lr 1e-3 --minutes 75 --out runs/distilled
    python -m starter_kit.train_detector --out runs/distilled \\
        --export FaceBoxes/weights/starter_faceboxes.pth

The data folder holds ``detector/train.zip`` and ``.json`` (pictures; boxes ``x1 y1 x2 y2 score``,
where a score below 0.5 means "don't know"; where the json leaves those out, the first command
above supplies them) and ``faces_train_*.zip`` with ``faces_train_labels.npz`` (face crops with 68
landmarks); ``--views`` is a packed set of faces turned in 3D (``rotate_views.py``). Three kinds of
training picture are made: views of one picture, mosaics of many small faces, and portraits of one
face, most of them turned away. SSD's multibox loss (Liu et al., ECCV 2016) with hard negative
mining; AdamW, cosine decay, averaged weights. With ``--teacher`` the loss is the distance to
another detector's scores and boxes on the same pictures, so that doubt is learnt as well; only
portraits in which that detector misses the face are still learnt from their labels; and pictures
that no one labelled are made, of several beside and over each other. Runs on one CPU core;
``--resume`` goes on where a run was stopped.
"""

import argparse
import csv
import itertools
import json
import math
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from FaceBoxes import FaceBoxes
from FaceBoxes.anchors import anchors, encode
from FaceBoxes.detector import MEAN_BGR
from FaceBoxes.network import ANCHORS_PER_CELL, MAP_CHANNELS, FaceBoxesNet, load_weights
from utils.checkpoint import write_checkpoint
from utils.cli import run_script
from utils.files import read_npz

ROOT = Path(__file__).resolve().parents[1]

# Share of each kind of training picture; all but the first two are kinds of the picture set.
SHARES = {
    "mosaic": 0.28, "portrait": 0.24, "frame": 0.09, "photo": 0.08, "crowd": 0.11, "scene": 0.2,
}  # fmt: skip
# Sides of the square training pictures and how often each is drawn. Validation pictures are small
# (from 87x72), so the network must see many borders.
SIDES = {128: 0.08, 192: 0.15, 256: 0.21, 320: 0.24, 416: 0.15, 576: 0.1, 768: 0.07}
PIXELS_PER_BATCH = 20 * 256 * 256
SMALLEST = 14  # pixels of height; smaller faces are neither asked for nor punished
UNSURE = 0.15  # score from which a box that is no sure face is no sure background either
MATCH = 0.35  # intersection over union from which an anchor answers for a face (FaceBoxes, 3.4)
NEGATIVES = 7  # hardest background anchors per face anchor
# The rest is for training with a teacher, who knows faces of any size in any picture: more crowds,
# smaller faces, several pictures beside and over each other.
TAUGHT_SHARES = {
    "mosaic": 0.2, "tiles": 0.18, "portrait": 0.12, "frame": 0.05, "photo": 0.05, "crowd": 0.21,
    "scene": 0.19,
}  # fmt: skip
TILE_SHARES = {"frame": 0.35, "photo": 0.35, "crowd": 0.1, "scene": 0.2}
TURNED = 0.25  # share of the pictures that are turned in the plane, portraits not counted
MIXED = 0.5  # share of the pictures that another one shines through
PLAIN_FROM = 0.85  # share of the training after which none does: batch norm's statistics follow
DOUBTFUL = 0.5  # share of the views of scenes that are centred on what is nearly a face
NATIVE = 0.5  # share of the views that show a picture in its own size, as it will be detected in
HINT = 1.0  # weight of the distance of the feature maps
EVERYWHERE = 0.1  # weight of a cell of them in which the teacher sees nothing; a face's is 1 more
BLOCK = 128  # batches after which the first comes again; a multiple of the number of workers
FAINT = 0.05  # probability from which the box of a teacher's anchor is worth learning

# Corners of the detector's box relative to the landmarks' box, in units of √(w·h) of the latter:
# rows are constant, nose tip's x and y offset from the centre; columns x1 y1 x2 y2. Least squares
# over 2,768 training crops on which the published detector was run (median IoU 0.89).
LANDMARKS_TO_BOX = np.array(
    [
        [0.0292, -0.3171, -0.0147, -0.0015],
        [0.1575, -0.0005, 0.1788, 0.0113],
        [0.0981, -0.1021, -0.0300, 0.0216],
    ],
    dtype=np.float32,
)


def boxes_from_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (n, 2, 68) in pixels to the boxes (n, 4) the detector is to give."""
    low, high = landmarks.min(axis=2), landmarks.max(axis=2)  # (n, 2)
    size = np.sqrt((high - low).prod(axis=1))[:, None]
    nose = (landmarks[:, :, 30] - (low + high) / 2) / size
    corners = np.column_stack([np.ones(len(nose), np.float32), nose]) @ LANDMARKS_TO_BOX
    return np.concatenate([low, high], axis=1) + corners * size


def read_image(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


class TrainingPictures(Dataset):
    """Item i is a batch, a function of the seed and i alone, so that a resumed run sees the same.

    Blocks of batches come ``repeats`` times in turn, because making one costs as much as learning
    from it ("data echoing", Choi et al., 2019).

    Each is images (B, S, S, 3) uint8, labels (B, A) int64 (1 face, 0 background, -1 not counted),
    offsets (B, A, 4) float32 and certain (B,) bool: whether the labels know every face in sight.
    """

    def __init__(
        self,
        data: Path,
        seed: int,
        labels: Path | None = None,
        views: Path | None = None,
        taught: bool = False,
        repeats: int = 1,
    ) -> None:
        self.seed = seed
        self.taught = taught
        self.repeats = repeats
        self.made: dict[int, tuple[Tensor, ...]] = {}  # the batches of one block
        labels = json.loads((labels or data / "detector" / "train.json").read_text())
        self.pictures: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        with zipfile.ZipFile(data / "detector" / "train.zip") as file:
            for name in tqdm(sorted(labels), desc="pictures", leave=False):
                image = read_image(file.read(name))
                boxes = np.array(labels[name], dtype=np.float32).reshape(-1, 5)
                boxes = boxes[boxes[:, 4] >= UNSURE]
                self.pictures.setdefault(name.split("_")[0], []).append((image, boxes))
        # Crowds have faces too small for a label, so they are no ground to paste faces on.
        self.empty = [picture for picture in self.pictures["scene"] if not len(picture[1])]
        self.doubtful = [
            picture
            for picture in self.pictures["scene"]
            if len(picture[1]) and (picture[1][:, 4] < 0.5).all()
        ]
        faces = np.load(data / "faces_train_labels.npz", allow_pickle=False)
        shards = [zipfile.ZipFile(data / f"faces_train_{i}.zip") for i in range(4)]
        names = zip(faces["name"], faces["shard"], strict=True)
        self.crops = [shards[shard].read(name) for name, shard in names]
        landmarks = faces["landmarks"][:, :2].astype(np.float32) / 32
        self.crop_landmarks = landmarks
        self.crop_boxes = boxes_from_landmarks(landmarks)
        self.crop_valid = faces["valid"].astype(np.float32)
        self.views = None
        if views:
            images = np.load(views / "images.npy", mmap_mode="r", allow_pickle=False)
            self.views = images, read_npz(views / "labels.npz")["landmarks"][:, :2]
        # Turned faces are rare: draw them more often. The nose tip's offset stands for the yaw.
        turn = np.abs(landmarks[:, 0, 30] - landmarks[:, 0].mean(axis=1)) / np.ptp(
            landmarks[:, 0], axis=1
        )
        weight = 1 + 4 * np.clip(turn / 0.35, 0, 1)
        self.crop_share = np.cumsum(weight / weight.sum())
        weight = 1 + 40 * np.clip(turn / 0.35, 0, 1) ** 3
        self.portrait_share = np.cumsum(weight / weight.sum())

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        block, place = divmod(index, self.repeats * BLOCK)
        batch = block * BLOCK + place % BLOCK
        if batch not in self.made:
            if batch % BLOCK == 0 or len(self.made) >= BLOCK:
                self.made.clear()
            self.made[batch] = self.make(batch)
        return self.made[batch]

    def doubt(self, weights: Path) -> None:
        """Add the scenes in which other weights take something for a face that is none."""
        detector = FaceBoxes(weights, "cpu", score_threshold=UNSURE)
        for image, boxes in tqdm(self.pictures["scene"], desc="scenes", leave=False):
            if not (boxes[:, 4] >= UNSURE).any() and len(found := detector(image)):
                found[:, 4] = UNSURE  # what these weights think is not worth more
                self.doubtful.append((image, found.astype(np.float32)))

    def make(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        side = int(rng.choice(list(SIDES), p=list(SIDES.values())))
        count = round(PIXELS_PER_BATCH / side**2)
        shares = TAUGHT_SHARES if self.taught else SHARES
        kinds = rng.choice(list(shares), size=count, p=list(shares.values()))
        images, labels, offsets = [], [], []
        for kind in kinds:
            makers = {"mosaic": self.mosaic, "portrait": self.portrait, "tiles": self.tiles}
            image, boxes = makers.get(str(kind), self.view)(rng, side, str(kind))
            if self.taught and kind != "portrait" and rng.random() < TURNED:
                image, boxes = turned(rng, image), np.empty((0, 5), np.float32)
            label, offset = targets(boxes, side)
            images.append(photometric(rng, image))
            labels.append(label)
            offsets.append(offset)
        certain = kinds == "portrait"
        return tuple(torch.from_numpy(np.stack(x)) for x in (images, labels, offsets, certain))

    def view(self, rng: np.random.Generator, side: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """A square view of one picture, most often around one of its faces."""
        is_doubtful = self.taught and kind == "scene" and rng.random() < DOUBTFUL
        pool = self.doubtful if is_doubtful else self.pictures[kind]
        image, boxes = mirrored(rng, *pool[rng.integers(len(pool))])
        height, width = image.shape[:2]
        canvas = self.background(rng, side, plain=0.5)
        stretch = math.exp(rng.uniform(-0.12, 0.12))
        faces = boxes[boxes[:, 4] >= (0 if is_doubtful else 0.5)]
        if len(faces) and rng.random() < 0.9:
            box = faces[rng.integers(len(faces))]
            least = 12 if self.taught else 20
            wanted = math.exp(rng.uniform(math.log(least), math.log(0.85 * side)))
            scale = wanted / (box[3] - box[1])
            centre = (box[:2] + box[2:4]) / 2
        else:
            scale = side / max(height, width) * math.exp(rng.uniform(-0.4, 0.9))
            centre = rng.uniform(0, 1, 2) * (width, height)
        # Larger, a crowd would show faces that nobody labelled because they were too small.
        unlabelled = kind == "crowd" and not self.taught
        scale = np.clip(scale, 0.1, 1.2 if unlabelled else 3.5)
        if self.taught and rng.random() < NATIVE:
            scale = stretch = 1.0
        centre = centre * scale
        spread = rng.uniform(0.15, 0.85, 2) * side
        # Half the time the picture's own border stays out of sight where it is large enough.
        corner = spread - centre
        if rng.random() < 0.5:
            slack = side - np.array([width, height]) * scale
            corner = np.clip(corner, np.minimum(slack, 0), np.maximum(slack, 0))
        return canvas, paste(canvas, image, boxes, scale * stretch, scale / stretch, corner)

    def tiles(self, rng: np.random.Generator, side: int, _: str) -> tuple[np.ndarray, np.ndarray]:
        """Views of several pictures beside each other, with small faces where they belong."""
        cells = int(rng.integers(2, 2 + min(4, side // 96)))
        edges = np.linspace(0, side, cells + 1).astype(int)
        canvas, placed = np.empty((side, side, 3), np.uint8), [np.empty((0, 5), np.float32)]
        for y, x in itertools.product(edges[:-1], edges[:-1]):
            cell = side // cells + 1
            kind = str(rng.choice(list(TILE_SHARES), p=list(TILE_SHARES.values())))
            image, boxes = self.view(rng, cell, kind)
            part = canvas[y : y + cell, x : x + cell]
            part[:] = image[: part.shape[0], : part.shape[1]]
            boxes[:, :4] = boxes[:, :4].clip(0, cell) + (x, y, x, y)
            placed.append(boxes)
        return canvas, np.concatenate(placed)

    def mosaic(self, rng: np.random.Generator, side: int, _: str) -> tuple[np.ndarray, np.ndarray]:
        """Many faces of similar size, and things that are none, on one background."""
        canvas = self.background(rng, side, plain=0.25)
        least = 12 if self.taught else 20
        typical = math.exp(rng.uniform(math.log(least), math.log(min(130, 0.6 * side))))
        wanted = max(1, int(rng.uniform(0.1, 0.6) * (side / typical) ** 2 / 2))
        placed = np.empty((0, 5), np.float32)
        for _ in range(min(wanted, 40 if self.taught else 20)):
            if rng.random() < 0.6:
                image, boxes = mirrored(rng, *self.patch(rng))
                height = float(boxes[0, 3] - boxes[0, 1])
            else:  # else whatever looks pasted would be a face
                image, boxes = self.distractor(rng), np.empty((0, 5), np.float32)
                height = image.shape[0] * rng.uniform(0.5, 1.3)
            scale = np.clip(typical * rng.uniform(0.75, 1.35) / height, 0.08, 2.5)
            stretch = math.exp(rng.uniform(-0.12, 0.12))
            size = np.array([image.shape[1] * scale * stretch, image.shape[0] * scale / stretch])
            for _ in range(4):
                corner = rng.uniform(*np.sort([-0.2 * size, side - 0.8 * size], axis=0))
                rectangle = np.concatenate([corner, corner + size])
                if not (intersections(rectangle[None], placed[:, :4]) > 0).any():
                    new = paste(
                        canvas, image, boxes, scale * stretch, scale / stretch, corner,
                        feather=rng.random() < 0.6,
                    )  # fmt: skip
                    placed = np.concatenate([placed, new])
                    break
        return canvas, placed

    def portrait(
        self, rng: np.random.Generator, side: int, _: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """One face of any size, turned in the plane; what surrounds it may be made up."""
        if self.views and rng.random() < 0.3:
            i = int(rng.integers(len(self.views[0])))
            image, landmarks = np.array(self.views[0][i]), self.views[1][i]
        else:
            i = min(int(np.searchsorted(self.portrait_share, rng.random())), len(self.crops) - 1)
            image, landmarks = read_image(self.crops[i]), self.crop_landmarks[i]
            if rng.random() < 0.5:
                image = filled_outside(image, self.crop_valid[i], rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            landmarks = landmarks * ((-1,), (1,)) + ((image.shape[1] - 1,), (0,))
        low, high = landmarks.min(axis=1), landmarks.max(axis=1)
        wanted = side * math.exp(rng.uniform(math.log(0.18), math.log(0.85)))
        scale = min(wanted / (1.3 * (high[1] - low[1])), 3.5)
        if scale < 0.6:  # the map below takes four pixels for one
            small = cv2.resize(
                image, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_AREA
            )
            landmarks = landmarks * (small.shape[1] / image.shape[1])
            image, low, high, scale = small, landmarks.min(axis=1), landmarks.max(axis=1), 0.5
        move = cv2.getRotationMatrix2D((0, 0), float(np.clip(rng.normal(0, 14), -40, 40)), scale)
        centre = move[:, :2] @ ((low + high) / 2)
        half = min(0.45, 0.5 * wanted / side)  # most often the whole face is in sight
        move[:, 2] = rng.uniform(0.8 * half, 1 - 0.8 * half, 2) * side - centre
        surroundings = rng.random()
        canvas = self.background(rng, side, plain=0.3)
        cv2.warpAffine(
            image, move, (side, side), dst=canvas, flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE if surroundings < 0.45 else cv2.BORDER_TRANSPARENT,
        )  # fmt: skip
        moved = (move[:, :2] @ landmarks + move[:, 2:]).astype(np.float32)
        return canvas, np.column_stack([boxes_from_landmarks(moved[None]), [[1.0]]])

    def patch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A small picture with one face or more: part of a crop, or a whole frame or photo."""
        if rng.random() < 0.15:
            kind = ("frame", "photo")[rng.integers(2)]
            picture = self.pictures[kind][rng.integers(len(self.pictures[kind]))]
            if len(picture[1]) and picture[1][0, 4] >= 0.5:
                return picture
        i = min(int(np.searchsorted(self.crop_share, rng.random())), len(self.crops) - 1)
        box, valid = self.crop_boxes[i], self.crop_valid[i]
        size = np.tile(box[2:] - box[:2], 2)
        margin = rng.uniform(0.03, 0.7, 4) * size * (-1, -1, 1, 1)
        image = read_image(self.crops[i])
        low = np.maximum(np.floor(box[:2] + margin[:2]), np.maximum(valid[:2], 0)).astype(int)
        high = np.minimum(np.ceil(box[2:] + margin[2:]), valid[2:]).astype(int)
        part = image[low[1] : high[1], low[0] : high[0]]
        if part.shape[0] < 32 or part.shape[1] < 32:  # hardly any of it is photo
            part, low = image, np.zeros(2)
        boxes = np.concatenate([np.clip(box[:2] - low, 0, None), box[2:] - low, [1]])
        boxes[2:4] = np.minimum(boxes[2:4], part.shape[1::-1])
        return part, boxes[None].astype(np.float32)

    def distractor(self, rng: np.random.Generator) -> np.ndarray:
        """A small picture without a face: skin and hair from a part of one, or a thing."""
        if rng.random() < 0.5:
            i = int(rng.integers(len(self.crops)))
            image, box = read_image(self.crops[i]), np.clip(self.crop_boxes[i], 0, 160)
            size = (rng.uniform(0.2, 0.5, 2) * (box[2:] - box[:2])).astype(int)
            low = rng.uniform(box[:2], box[2:] - size).astype(int)
        else:
            image, _ = self.empty[rng.integers(len(self.empty))]
            shape = np.array(image.shape[1::-1])
            size = (rng.uniform(0.15, 0.6, 2) * shape).astype(int)
            low = rng.uniform(0, shape - size).astype(int)
        part = image[low[1] : low[1] + max(size[1], 8), low[0] : low[0] + max(size[0], 8)]
        return np.rot90(part, rng.integers(4))

    def background(self, rng: np.random.Generator, side: int, plain: float) -> np.ndarray:
        """A canvas (S, S, 3): one colour, or part of a picture without faces."""
        if rng.random() < plain:
            colour = rng.integers(0, 256, 3) if rng.random() < 0.6 else rng.integers(0, 256)
            return np.full((side, side, 3), colour, np.uint8)
        image, _ = mirrored(rng, *self.empty[rng.integers(len(self.empty))])
        height, width = image.shape[:2]
        part = min(height, width, int(side * rng.uniform(0.4, 1.2)))
        y, x = rng.integers(height - part + 1), rng.integers(width - part + 1)
        return cv2.resize(image[y : y + part, x : x + part], (side, side))


def filled_outside(image: np.ndarray, valid: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A picture (S, S, 3) with one colour outside the corner box ``valid``."""
    x1, y1, x2, y2 = np.clip(valid, 0, image.shape[0]).astype(int)
    filled = np.empty_like(image)
    filled[:] = colour
    filled[y1:y2, x1:x2] = image[y1:y2, x1:x2]
    return filled


def mirrored(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < 0.5:
        return image, boxes
    boxes = boxes.copy()
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return image[:, ::-1], boxes


def turned(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The picture turned, sheared and mirrored at its borders."""
    side = len(image)
    move = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.normal(0, 12)), 1.0)
    move[:, :2] += rng.normal(0, 0.06, (2, 2))
    move[:, 2] += rng.normal(0, 0.05 * side, 2)
    return cv2.warpAffine(image, move, (side, side), borderMode=cv2.BORDER_REFLECT_101)


def paste(
    canvas: np.ndarray,
    image: np.ndarray,
    boxes: np.ndarray,
    scale_x: float,
    scale_y: float,
    corner: np.ndarray,
    feather: bool = False,
) -> np.ndarray:
    """Draw a scaled image on a square canvas; returns its boxes there.

    The image's top left corner lands on ``corner``, outside the canvas if need be.
    """
    side = len(canvas)
    scale, size = np.array([scale_x, scale_y]), np.array(image.shape[1::-1])
    low = np.clip(np.floor(-corner / scale), 0, size).astype(int)
    high = np.clip(np.ceil((side - corner) / scale), 0, size).astype(int)
    start = np.round(corner + low * scale).astype(int)
    end = np.round(corner + high * scale).astype(int)
    if (high > low).all() and (end > start).all():
        patch = cv2.resize(
            np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]),
            tuple(int(v) for v in end - start),
            interpolation=cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR,
        )
        x0, y0 = np.maximum(start, 0)
        x1, y1 = np.minimum(end, side)
        patch = patch[y0 - start[1] : y1 - start[1], x0 - start[0] : x1 - start[0]]
        if feather and min(patch.shape[:2]) >= 8:
            mask = np.zeros(patch.shape[:2], np.float32)
            edge = max(1, min(patch.shape[:2]) // 16)
            mask[edge:-edge, edge:-edge] = 1
            mask = cv2.blur(mask, (2 * edge + 1, 2 * edge + 1))[..., None]
            patch = (patch * mask + canvas[y0:y1, x0:x1] * (1 - mask)).astype(np.uint8)
        canvas[y0:y1, x0:x1] = patch
    moved = boxes.copy()
    moved[:, :4] = boxes[:, :4] * np.tile(scale, 2) + np.tile(corner, 2)
    return moved.astype(np.float32)


def photometric(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, colour balance, gamma, grey, blur, noise; uint8 to uint8."""
    ramp = np.arange(256, dtype=np.float32)
    gain = rng.uniform(0.65, 1.4) * rng.uniform(0.9, 1.1, 3)
    shift = rng.uniform(-30, 30)
    curve = 255 * (ramp / 255) ** math.exp(rng.uniform(-0.35, 0.35))
    table = np.clip((curve[:, None] - 128) * gain + 128 + shift, 0, 255)
    image = cv2.LUT(image, table.astype(np.uint8)[None])
    if rng.random() < 0.12:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.12:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.6))
    if rng.random() < 0.1:
        noise = rng.normal(0, rng.uniform(3, 14), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        quality = int(rng.integers(20, 70))
        image = read_image(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
    return image


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (len(a), len(b)) common to corner boxes (n, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)


def targets(boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """What each anchor of a square picture should say about boxes (n, 5) in pixels.

    Faces count when their centre is in the picture, and are cut at its border. The rest, faces
    that are too small and "don't know" boxes are neither face nor background.
    """
    priors = anchors(side, side)  # (A, 4) relative
    label = np.zeros(len(priors), np.int64)
    offset = np.zeros((len(priors), 4), np.float32)
    cut = np.clip(boxes[:, :4], 0, side)
    cut = cut[(visible := areas(cut) > 0)]
    boxes = boxes[visible]
    if not len(boxes):
        return label, offset
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    wanted = ((centre > 0) & (centre < side)).all(axis=1) & (boxes[:, 4] >= 0.5)
    wanted &= (cut[:, 3] - cut[:, 1] >= SMALLEST) & (cut[:, 2] - cut[:, 0] >= SMALLEST / 2)
    cut = cut / side
    corners = np.concatenate(
        [priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1
    )
    common = intersections(corners, cut)  # (A, n)
    overlap = common / (areas(corners)[:, None] + areas(cut) - common)
    unsure = ~wanted
    if unsure.any():
        inside = common[:, unsure] / areas(corners)[:, None]
        enough = np.minimum(0.25, 0.8 * overlap[:, unsure].max(axis=0))  # tiny faces overlap little
        label[((overlap[:, unsure] > enough) | (inside > 0.5)).any(axis=1)] = -1
    if wanted.any():
        faces, overlap = cut[wanted], overlap[:, wanted]
        best_face = overlap.argmax(axis=1)  # (A,)
        positive = overlap.max(axis=1) >= MATCH
        best_anchor = overlap.argmax(axis=0)  # (n,): every face has at least one anchor
        positive[best_anchor] = True
        best_face[best_anchor] = np.arange(len(faces))
        label[positive] = 1
        offset[positive] = encode(faces[best_face[positive]], priors[positive])
    return label, offset


def multibox_loss(
    loc: Tensor, logits: Tensor, labels: Tensor, offsets: Tensor
) -> dict[str, Tensor]:
    """Smooth L1 over face anchors, cross entropy over them and the hardest background anchors.

    Args:
        loc, offsets: (B, A, 4). logits: (B, A, 2). labels: (B, A), 1 face, 0 background, -1 none.

    Returns:
        ``box`` and ``score``, each a sum over the batch per face anchor.
    """
    face, background = labels == 1, labels == 0
    count = int(face.sum())
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.clamp(min=0).flatten(), reduction="none")
    entropy = entropy.view_as(labels)
    hard = entropy[background].topk(min(NEGATIVES * max(count, 20), int(background.sum()))).values
    total = max(count, 20)
    return {
        "box": F.smooth_l1_loss(loc[face], offsets[face], reduction="sum") / total,
        "score": (entropy[face].sum() + hard.sum()) / total,
    }


def distillation_loss(
    loc: Tensor,
    logits: Tensor,
    taught_loc: Tensor,
    taught_logits: Tensor,
    labels: Tensor,
    offsets: Tensor,
    certain: Tensor,
) -> dict[str, Tensor]:
    """Cross entropy with a teacher's probabilities and smooth L1 to its boxes, over all anchors.

    The entropy is weighted by the distance of the probabilities (Li et al., Generalized Focal
    Loss, NeurIPS 2020, equation 3, exponent 1), in place of mining. Where the labels have a face
    that the teacher misses, the labels decide if they are certain; else only the box is learnt.

    Args:
        loc, taught_loc, offsets: (B, A, 4). logits, taught_logits: (B, A, 2).
        labels: (B, A), 1 face, 0 background, -1 none. certain: (B,) bool.

    Returns:
        ``box`` and ``score``, each a sum over the batch per face anchor.
    """
    probability = taught_logits.softmax(dim=2)[..., 1]  # (B, A)
    face = labels == 1
    missed = face & (probability < 0.5)
    seen = (face & (probability >= 0.5)).any(dim=1)
    by_label = certain & ~seen & face.any(dim=1)  # (B,)
    taught = ~by_label[:, None]
    margin = logits[..., 1] - logits[..., 0]
    distance = (margin.detach().sigmoid() - probability).abs()
    entropy = F.binary_cross_entropy_with_logits(margin, probability, reduction="none")
    score = (entropy * distance * (taught & ~missed)).sum()
    sure = torch.where(probability > FAINT, probability, 0.0) * taught
    box = (F.smooth_l1_loss(loc, taught_loc, reduction="none").sum(dim=2) * sure).sum()
    labelled = 0.5 * (missed & taught)
    box = box + (F.smooth_l1_loss(loc, offsets, reduction="none").sum(dim=2) * labelled).sum()
    total = sure.sum().clamp(min=20)
    terms = {"box": box / total, "score": score / total}
    if by_label.any():
        count = face[by_label].sum()
        extra = multibox_loss(loc[by_label], logits[by_label], labels[by_label], offsets[by_label])
        share = count / (total + count)
        terms = {key: value + share * extra[key] for key, value in terms.items()}
    return terms


class Hints(nn.Module):
    """How well a teacher's feature maps can be read off a pupil's, through one linear map each.

    Romero et al., "FitNets: hints for thin deep nets", ICLR 2015. Faces are few, so the outputs
    alone say little about the rest of a picture; the maps say something in every cell of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers = nn.ModuleList([nn.Conv2d(c, c, 1) for c in MAP_CHANNELS])

    def forward(
        self,
        maps: tuple[Tensor, ...],
        taught_maps: tuple[Tensor, ...],
        taught_logits: Tensor,
        used: Tensor,
    ) -> Tensor:
        """Mean square error relative to the variance of the teacher's maps in the batch.

        Args:
            maps, taught_maps: (B, C, h, w) each. taught_logits: (B, A, 2), which say where the
                faces are. used: (B,) bool, the pictures that count.
        """
        probability = taught_logits.softmax(dim=2)[..., 1]  # (B, A)
        sizes = [x[0, 0].numel() * n for x, n in zip(maps, ANCHORS_PER_CELL, strict=True)]
        terms = []
        for reader, map_, taught, count, face in zip(
            self.readers, maps, taught_maps, ANCHORS_PER_CELL, probability.split(sizes, 1),
            strict=True,
        ):  # fmt: skip
            weight = EVERYWHERE + face.unflatten(1, (-1, count)).amax(2)  # (B, h * w)
            weight = (weight * used[:, None]).view(-1, 1, *map_.shape[2:])
            weight = weight / weight.sum().clamp(min=1e-6)
            mean = (taught * weight).sum((0, 2, 3), keepdim=True)
            variance = ((taught - mean) ** 2 * weight).sum()  # of all channels
            error = ((reader(map_).float() - taught) ** 2 * weight).sum()
            terms.append(error / variance.clamp(min=1e-6))
        return torch.stack(terms).mean()


def mixed(rng: np.random.Generator, images: Tensor, certain: np.ndarray) -> tuple[Tensor, Tensor]:
    """Some pictures with another of the batch shining through, and which they are.

    Nobody could label them, but a teacher has an opinion, and its pupil hears it on more pictures
    than there are (Beyer et al., "A good teacher is patient and consistent", CVPR 2022).

    Args:
        images: (B, 3, S, S). certain: (B,) bool, pictures that are left as they are.

    Returns:
        Pictures like ``images``; (B,) bool.
    """
    count = len(images)
    is_mixed = (rng.random(count) < MIXED) & ~certain
    share = np.where(is_mixed, rng.uniform(0.05, 0.5, count), 0).astype(np.float32)
    others = (np.arange(count) + rng.integers(1, max(count, 2))) % count
    share = torch.from_numpy(share).to(images.device)[:, None, None, None]
    return images.lerp(images[others], share), torch.from_numpy(is_mixed).to(images.device)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(0)
    device = torch.device(args.device)
    network = FaceBoxesNet().to(device, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    for head in (*network.loc, *network.conf):
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.zeros_(head.bias)
    hints = Hints().to(device, memory_format=torch.channels_last)
    parameters = [*network.parameters(), *hints.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain}],
        lr=args.lr, weight_decay=0,
    )  # fmt: skip
    if args.init:
        network.load_state_dict(load_weights(args.init))
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    step, elapsed = 0, 0.0
    last = args.out / "last.pth"
    if args.resume:
        state = torch.load(last, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        hints.load_state_dict(state["hints"])
        optimiser.load_state_dict(state["optimiser"])
        average, step, elapsed = state["average"], state["step"], state["elapsed"]
    args.out.mkdir(parents=True, exist_ok=True)

    teacher = None
    if args.teacher:
        teacher = FaceBoxesNet().to(device, memory_format=torch.channels_last).eval()
        teacher.load_state_dict(load_weights(args.teacher))
    pictures = TrainingPictures(
        args.data, args.seed, args.labels, args.views, teacher is not None, args.repeats
    )
    if teacher is not None and args.init:
        pictures.doubt(args.init)
    loader = DataLoader(
        pictures, batch_size=None, sampler=itertools.count(step), num_workers=args.workers
    )
    mean = torch.tensor(MEAN_BGR, device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    bar = tqdm(total=args.steps, initial=step, desc="train")
    names = ["box", "score", "hint"] if teacher is not None else ["box", "score"]
    sums, counted = dict.fromkeys(names, 0.0), 0
    with open(args.out / "log.csv", "a" if args.resume else "w", newline="") as file:
        log = csv.writer(file)
        if not args.resume:
            log.writerow(["step", "seconds", "lr", *names])
        started = time.monotonic() - elapsed
        for images, labels, offsets, certain in loader:
            elapsed = time.monotonic() - started
            progress = step / args.steps
            if args.minutes:
                progress = max(progress, elapsed / 60 / args.minutes)
            if progress >= 1:
                break
            lr = args.lr * min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * progress))
            for group in optimiser.param_groups:
                group["lr"] = lr
            network.train()
            images = images.to(device).to(torch.float32).sub_(mean).permute(0, 3, 1, 2)
            labels, offsets = labels.to(device), offsets.to(device)
            if teacher is not None and progress < PLAIN_FROM:
                rng = np.random.default_rng((args.seed, step, 1))
                images, is_mixed = mixed(rng, images, certain.numpy())
                labels = labels.masked_fill(is_mixed[:, None], 0)  # the batch comes again
            with half:
                maps = network.maps(images)
                predicted = [rows.float() for rows in network.predict(maps)]
            if teacher is not None:
                certain = certain.to(device)
                with torch.no_grad():
                    taught_maps = teacher.maps(images)
                    taught = teacher.predict(taught_maps)
                terms = distillation_loss(*predicted, *taught, labels, offsets, certain)
                with half:
                    terms["hint"] = hints(maps, taught_maps, taught[1], ~certain)
            else:
                terms = multibox_loss(*predicted, labels, offsets)
            loss = 2 * terms["box"] + terms["score"] + HINT * terms.get("hint", 0)
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"the loss is {loss.item()} at step {step}: try a smaller --lr")
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 20.0)
            optimiser.step()
            step += 1
            keep = min(0.999, (1 + step) / (10 + step))
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - keep)
            for name, value in terms.items():
                sums[name] += value.item()
            counted += 1
            bar.update()
            if step % 50 == 0:
                means = {name: value / counted for name, value in sums.items()}
                log.writerow(
                    [step, f"{elapsed:.0f}", f"{lr:.2e}", *(f"{v:.4f}" for v in means.values())]
                )
                file.flush()
                bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()})
                sums, counted = dict.fromkeys(sums, 0.0), 0
            if step % args.save_every == 0:
                checkpoint(last, network, hints, optimiser, average, step, elapsed)
    checkpoint(last, network, hints, optimiser, average, step, elapsed)


def checkpoint(
    path: Path,
    network: FaceBoxesNet,
    hints: Hints,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    elapsed: float,
) -> None:
    """Everything to go on from, and beside it the averaged weights alone, as the detector reads."""
    write_checkpoint(
        path,
        {
            "network": network.state_dict(),
            "hints": hints.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "step": step,
            "elapsed": elapsed,
        },
    )
    plain = {key: value.cpu().contiguous() for key, value in average.items()}
    write_checkpoint(path.with_name("average.pth"), plain)


def export(source: Path, target: Path, other: Path | None = None, share: float = 0.0) -> None:
    """Kernels in half precision; batch-norm statistics and biases, a few kB, stay in float32.

    Args:
        other: weights from which the training began, of which ``share`` is mixed in (Wortsman et
            al., "Robust fine-tuning of zero-shot models", CVPR 2022): what they knew is kept.
    """
    state = load_weights(source)
    if other:
        before = load_weights(other)
        state = {
            k: v.lerp(before[k], share) if v.is_floating_point() else v for k, v in state.items()
        }
    small = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}
    for key, value in small.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{source}: {key} does not fit half precision")
    write_checkpoint(target, small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the photos (PHOTOS above)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "detector")
    parser.add_argument("--labels", type=Path, help="in place of DATA/detector/train.json")
    parser.add_argument("--views", type=Path, help="packed set of faces turned in 3D")
    parser.add_argument("--init", type=Path, help="weights to begin with")
    parser.add_argument(
        "--teacher", type=Path, help="weights of the detector whose outputs are to be learnt"
    )
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--minutes", type=float, help="finish by then, the schedule included")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=20211)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make pictures")
    parser.add_argument("--repeats", type=int, default=1, help="times that each batch is used")
    parser.add_argument("--bf16", action="store_true", help="half precision in the network")
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export", type=Path, help="write the averaged weights there and stop")
    parser.add_argument(
        "--init-share", type=float, default=0.0, help="of the weights of --init in the export (0)"
    )
    args = parser.parse_args()
    if not (args.export or args.data):
        parser.error("training needs --data")
    if args.export:
        export(args.out / "average.pth", args.export, args.init, args.init_share)
    else:
        train(args)


if __name__ == "__main__":
    run_script(main)
