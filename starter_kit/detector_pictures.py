"""Training pictures for the detector: views, mosaics, portraits and tiles (train_detector.py).

Three kinds are made for every training: views of one picture, mosaics of many small faces, and
portraits of one face, most of them turned away. Three more need a teacher, who tells what is a
face in them: tiles (views of several pictures side by side), rows (people in front of each other)
and close-ups (a face that fills the picture, whose ears and mouth are none).
"""

import itertools
import json
import math
import zipfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from FaceBoxes import FaceBoxes
from starter_kit.detector_losses import targets
from starter_kit.fit_labels import LABEL_SIDE
from starter_kit.landmark_statistics import LABEL_UNIT
from utils.boxes import intersections
from utils.files import map_npy, read_npz
from utils.pictures import decode_image, read_image, read_zipped_image

SHARDS = 4  # zip files of face crops
# Share of each kind of training picture; all but the first two are kinds of the picture set.
SHARES = {
    "mosaic": 0.28, "portrait": 0.24, "frame": 0.09, "photo": 0.08, "crowd": 0.11, "scene": 0.2,
}  # fmt: skip
# Sides of the square training pictures and how often each is drawn. Validation pictures are small
# (from 87x72), so the network must see many borders.
SIDES = {128: 0.06, 192: 0.12, 256: 0.18, 320: 0.2, 416: 0.15, 576: 0.14, 768: 0.15}
PIXELS_PER_BATCH = 20 * 256 * 256
UNSURE = 0.15  # score from which a box that is no sure face is no sure background either
# The rest is for training with a teacher, who knows faces of any size in any picture: more crowds,
# also made-up ones, smaller faces, several pictures beside and over each other.
TAUGHT_SHARES = {
    "mosaic": 0.08, "rows": 0.1, "tiles": 0.13, "portrait": 0.08, "frame": 0.03, "photo": 0.06,
    "crowd": 0.18, "scene": 0.22, "closeup": 0.12,
}  # fmt: skip
# Photos are shrunk to 1080 x 720 before detection, so faces are up to 720 pixels high: half of the
# pictures of this side or more are close-ups too.
LARGE = 576
TILE_SHARES = {"frame": 0.35, "photo": 0.35, "crowd": 0.1, "scene": 0.2}
TURNED = 0.25  # share of the pictures that are turned in the plane, portraits not counted
MIXED = 0.5  # share of the pictures that another one shines through
DOUBTFUL = 0.5  # share of the views of scenes that are centred on what is nearly a face
NATIVE = 0.5  # share of the views that show a picture in its own size, as it will be detected in
CLOSE = (0.4, 1.1)  # height of a close-up's face over the picture's side
BLOCK = 128  # batches after which the first comes again; a multiple of the number of workers

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


class TrainingPictures(Dataset):
    """Item i is a batch, a function of the seed and i alone, so that a resumed run sees the same.

    Blocks of batches come ``repeats`` times in turn, because making one costs as much as learning
    from it ("data echoing", Choi et al., 2019).

    Each is images (B, S, S, 3) uint8, labels (B, A) int64 (1 face, 0 background, -1 not counted),
    offsets (B, A, 4) float32 and certain (B,) bool: whether the labels know every face in sight.
    S differs from batch to batch (``SIDES``).

    Args:
        data: folder of ``detector/train.zip`` and of the face crops.
        labels: json of boxes; None: ``detector/train.json``.
        views: packed set of faces turned in 3D, for portraits.
        taught: for a student with a teacher (``TAUGHT_SHARES``).
        repeats: how often each block comes.
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
        # Crowds have faces too small for a label, so they are no ground to paste faces on.
        self.empty: list[tuple[np.ndarray, np.ndarray]] = []  # of the scenes
        self.doubtful: list[tuple[np.ndarray, np.ndarray]] = []
        with zipfile.ZipFile(data / "detector" / "train.zip") as file:
            for name in tqdm(sorted(labels), desc="pictures", leave=False):
                image = read_zipped_image(file, name)
                boxes = np.array(labels[name], dtype=np.float32).reshape(-1, 5)
                self._add(name.split("_")[0], image, boxes[boxes[:, 4] >= UNSURE])
        faces = read_npz(data / "faces_train_labels.npz")
        shards = [zipfile.ZipFile(data / f"faces_train_{i}.zip") for i in range(SHARDS)]
        names = zip(faces["name"], faces["shard"], strict=True)
        self.crops = [shards[shard].read(name) for name, shard in names]
        landmarks = faces["landmarks"][:, :2].astype(np.float32) * LABEL_UNIT
        self.crop_landmarks = landmarks
        self.crop_boxes = boxes_from_landmarks(landmarks)
        self.crop_valid = faces["valid"].astype(np.float32)
        self.views = None
        if views:
            points = read_npz(views / "labels.npz")["landmarks"][:, :2]
            self.views = map_npy(views / "images.npy"), points
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

    def _add(self, kind: str, image: np.ndarray, boxes: np.ndarray) -> None:
        self.pictures.setdefault(kind, []).append((image, boxes))
        if kind == "scene" and not len(boxes):
            self.empty.append((image, boxes))
        elif kind == "scene" and (boxes[:, 4] < 0.5).all():
            self.doubtful.append((image, boxes))

    def add_unlabelled(self, folder: Path, weights: Path) -> None:
        """Add a folder's pictures, with the boxes that the teacher's ``weights`` give them.

        Raises:
            OSError, ValueError: the folder is empty, or a file is no picture that OpenCV reads.
        """
        detector = FaceBoxes(weights, "cpu", score_threshold=UNSURE)
        if not (paths := sorted(folder.iterdir())):
            raise ValueError(f"{folder}: empty; --unlabelled is to hold pictures")
        for path in tqdm(paths, desc="unlabelled", leave=False):
            image = read_image(path)
            boxes = detector(image).astype(np.float32)
            sure = int((boxes[:, 4] >= 0.5).sum())
            kind = "crowd" if sure > 4 else "photo" if sure else "scene"
            self._add(kind, image, boxes)

    def add_doubtful(self, weights: Path) -> None:
        """Add the scenes in which other weights take something for a face that is none."""
        detector = FaceBoxes(weights, "cpu", score_threshold=UNSURE)
        for image, _ in tqdm(self.empty, desc="scenes", leave=False):
            if len(found := detector(image)):
                found[:, 4] = UNSURE  # what these weights think is not worth more
                self.doubtful.append((image, found.astype(np.float32)))

    def make(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Batch ``index``; the methods that it calls give a picture (S, S, 3) uint8 BGR and its
        boxes (n, 5) float32 x1 y1 x2 y2 score, pixels."""
        rng = np.random.default_rng((self.seed, index))
        side = int(rng.choice(list(SIDES), p=list(SIDES.values())))
        count = round(PIXELS_PER_BATCH / side**2)
        shares = TAUGHT_SHARES if self.taught else SHARES
        kinds = rng.choice(list(shares), size=count, p=list(shares.values()))
        if self.taught and side >= LARGE:
            kinds[rng.random(count) < 0.5] = "closeup"
        makers = {
            "mosaic": self.mosaic, "portrait": self.portrait, "tiles": self.tiles,
            "rows": self.rows, "closeup": self.closeup,
        }  # fmt: skip
        images, labels, offsets = [], [], []
        for kind in kinds.tolist():
            make = makers.get(kind, partial(self.view, kind=kind))
            image, boxes = make(rng, side)
            if self.taught and kind != "portrait" and rng.random() < TURNED:
                image, boxes = turned(rng, image), np.empty((0, 5), np.float32)
            label, offset = targets(boxes, side)
            images.append(photometric(rng, image))
            labels.append(label)
            offsets.append(offset)
        certain = kinds == "portrait"
        return tuple(torch.from_numpy(np.stack(x)) for x in (images, labels, offsets, certain))

    def closeup(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
        """A face that fills the picture, or more than that."""
        if rng.random() < 0.4:
            return self.portrait(rng, side, close=True)
        return self.view(rng, side, "frame" if rng.random() < 0.3 else "photo", close=True)

    def view(
        self, rng: np.random.Generator, side: int, kind: str, close: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
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
            if close:
                wanted = side * rng.uniform(*CLOSE)
            scale = wanted / (box[3] - box[1])
            centre = (box[:2] + box[2:4]) / 2
        else:
            scale = side / max(height, width) * math.exp(rng.uniform(-0.4, 0.9))
            centre = rng.uniform(0, 1, 2) * (width, height)
        # Larger, a crowd would show faces that nobody labelled because they were too small.
        unlabelled = kind == "crowd" and not self.taught
        scale = np.clip(scale, 0.1, 1.2 if unlabelled else 8.0 if close else 3.5)
        if self.taught and not close and rng.random() < NATIVE:
            scale = stretch = 1.0
        centre = centre * scale
        spread = rng.uniform(0.3 if close else 0.15, 0.7 if close else 0.85, 2) * side
        # Half the time the picture's own border stays out of sight where it is large enough.
        corner = spread - centre
        if rng.random() < 0.5:
            slack = side - np.array([width, height]) * scale
            corner = np.clip(corner, np.minimum(slack, 0), np.maximum(slack, 0))
        return canvas, paste(canvas, image, boxes, scale * stretch, scale / stretch, corner)

    def tiles(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
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

    def mosaic(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
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

    def rows(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
        """A made-up crowd: heads and shoulders, the nearer the larger and the lower, over others.

        There are no boxes: how much of whom is left to see, and is a face, is the teacher's to say.
        """
        canvas = self.background(rng, side, plain=0.1)
        nearest = math.exp(rng.uniform(math.log(26), math.log(max(30, min(90, 0.3 * side)))))
        farthest = max(19.0, nearest * rng.uniform(0.4, 1))
        spacing, y = rng.uniform(0.8, 2.0, 2), rng.uniform(0, 0.4) * side
        while y < side + 0.5 * nearest:
            typical = farthest + (nearest - farthest) * y / side  # height of a face of this row
            x = rng.uniform(-1, 0) * typical
            while x < side + typical:
                image, boxes = mirrored(rng, *self.patch(rng))
                box = boxes[0, :4]
                scale = np.clip(typical * rng.uniform(0.8, 1.25) / (box[3] - box[1]), 0.08, 2.5)
                at = (x, y) + rng.normal(0, 0.2, 2) * typical
                corner = at - scale * (box[:2] + box[2:]) / 2
                mask = person(image.shape[:2], box) if rng.random() < 0.7 else None
                paste(canvas, image, boxes, scale, scale, corner, feather=mask is None, mask=mask)
                x += typical * spacing[0] * rng.uniform(0.7, 1.3)
            y += typical * spacing[1] * rng.uniform(0.7, 1.3)
        if rng.random() < 0.4:  # from far away, as a camera sees it
            canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.1))
        return canvas, np.empty((0, 5), np.float32)

    def portrait(
        self, rng: np.random.Generator, side: int, close: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """One face of any size, turned in the plane; what surrounds it may be made up."""
        if self.views and rng.random() < 0.3:
            i = int(rng.integers(len(self.views[0])))
            image, landmarks = np.array(self.views[0][i]), self.views[1][i]
        else:
            i = min(int(np.searchsorted(self.portrait_share, rng.random())), len(self.crops) - 1)
            image, landmarks = decode_image(self.crops[i]), self.crop_landmarks[i]
            if rng.random() < 0.5:
                image = filled_outside(image, self.crop_valid[i], rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            landmarks = landmarks * ((-1,), (1,)) + ((image.shape[1] - 1,), (0,))
        low, high = landmarks.min(axis=1), landmarks.max(axis=1)
        wanted = side * math.exp(rng.uniform(math.log(0.18), math.log(0.85)))
        if close:
            wanted = side * rng.uniform(*CLOSE)
        scale = min(wanted / (1.3 * (high[1] - low[1])), 8.0 if close else 3.5)
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
        image = decode_image(self.crops[i])
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
            image, box = decode_image(self.crops[i]), np.clip(self.crop_boxes[i], 0, LABEL_SIDE)
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
    filled = np.full_like(image, colour)
    filled[y1:y2, x1:x2] = image[y1:y2, x1:x2]
    return filled


def person(shape: tuple[int, int], box: np.ndarray) -> np.ndarray:
    """Where head and shoulders are likely to be around the corner box of a face.

    Returns:
        (*shape, 1) float32 in 0..1, soft at the edges.
    """
    mask = np.zeros(shape, np.float32)
    (x, y), (width, height) = (box[:2] + box[2:4]) / 2, box[2:4] - box[:2]
    for centre, axes in (
        ((x, y - 0.1 * height), (0.8 * width, 0.8 * height)),
        ((x, y + 1.2 * height), (1.6 * width, 0.75 * height)),
    ):
        centre, axes = ([int(v) for v in pair] for pair in (centre, axes))
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1.0, cv2.FILLED)
    edge = 2 * int(0.08 * width) + 1
    mask = cv2.blur(mask, (edge, edge), borderType=cv2.BORDER_REPLICATE)
    return mask[..., None]


def mirrored(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its boxes (n, 4+), mirrored half of the time; the picture may be a view."""
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
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a scaled image on a square canvas; returns its boxes there.

    The image's top left corner lands on ``corner``, outside the canvas if need be. ``mask``
    (h, w, 1) float32, if there is one, says how much of the image is to be seen.
    """
    side = len(canvas)
    scale, size = np.array([scale_x, scale_y]), np.array(image.shape[1::-1])
    low = np.clip(np.floor(-corner / scale), 0, size).astype(int)
    high = np.clip(np.ceil((side - corner) / scale), 0, size).astype(int)
    start = np.round(corner + low * scale).astype(int)
    end = np.round(corner + high * scale).astype(int)
    if (high > low).all() and (end > start).all():
        x0, y0 = np.maximum(start, 0)
        x1, y1 = np.minimum(end, side)

        def scaled(image: np.ndarray) -> np.ndarray:
            patch = cv2.resize(
                np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]),
                tuple(int(v) for v in end - start),
                interpolation=cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR,
            )
            return patch[y0 - start[1] : y1 - start[1], x0 - start[0] : x1 - start[0]]

        patch, visible = scaled(image), None
        if feather and min(patch.shape[:2]) >= 8:
            visible = np.zeros(patch.shape[:2], np.float32)
            edge = max(1, min(patch.shape[:2]) // 16)
            visible[edge:-edge, edge:-edge] = 1
            visible = cv2.blur(visible, (2 * edge + 1, 2 * edge + 1))[..., None]
        elif mask is not None:
            visible = scaled(mask)[..., None]
        if visible is not None:
            patch = (patch * visible + canvas[y0:y1, x0:x1] * (1 - visible)).astype(np.uint8)
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
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 70))]
        image = decode_image(cv2.imencode(".jpg", image, quality)[1].tobytes())
    return image


def mixed(rng: np.random.Generator, images: Tensor, certain: np.ndarray) -> tuple[Tensor, Tensor]:
    """Some pictures with another of the batch shining through, and which they are.

    Nobody could label them, but the teacher can, so that the student learns from more pictures
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
