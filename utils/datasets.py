"""Training sets, opened by one function (``open_training_set``): where samples are stored and in
which order they come.

Two kinds, with one interface (``Faces``):

``PackedFaces``: a folder with one memory-mapped file of pictures beside their labels,
    images.npy      (n, S, S, 3) uint8 BGR
    labels.npz      parameters (n, 62) float32, not whitened, frame of the S x S picture;
                    landmarks (n, 3, 68) float32, same frame, optional (else from the parameters);
                    valid (n, 4) int16 x1 y1 x2 y2 of the part that is photo, optional;
                    names (n,) strings, optional; face_model fingerprint, optional

``PublishedFaces``: the published layout, below one folder
    3dmm_data/train_aug_120x120.list.train  one file name a line
    3dmm_data/param_all_norm_v201.pkl       (n, 102) or (n, 62), whitened; the first 62 count
    train_aug_120x120/*.jpg                 n crops, 120x120

``pack`` turns the second into the first, so that no JPEG is decoded twice.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.array_pickle import read_array_pickle
from utils.augmentation import Batch
from utils.cli import say
from utils.distributed import local_rank
from utils.files import atomic_write, is_inside, map_npy, new_folder, read_npz
from utils.geometry import camera_angles
from utils.morphable_model import NUM_PARAMETERS, MorphableModel, split_camera
from utils.parallel import in_order
from utils.pictures import read_crop
from utils.preprocessing import CROP_SIZE

YAW_BIN = 15.0  # degrees, of the bins that pose balancing knows

PUBLISHED_LIST = "3dmm_data/train_aug_120x120.list.train"
PUBLISHED_PARAMETERS = "3dmm_data/param_all_norm_v201.pkl"
PUBLISHED_CROPS = "train_aug_120x120"
NUM_STORED = 102  # numbers a row; after the 62 come 40 of a texture that is not used
# Beside the published files, of sets made here (rendered, from own photos): name their face model.
DESCRIPTIONS = ("rendered.json", "report.json")
# Stored cameras are scaled rotations to 1e-6; another model's whitening makes it 0.1 and more.
MAX_SKEW = 0.05
_FROM_DOWNLOAD = (
    "it comes with the published training data, a download (README, 'Published files'); expected "
    f"below one folder: {PUBLISHED_LIST}, {PUBLISHED_PARAMETERS}, {PUBLISHED_CROPS}/*.jpg"
)
_MAKE_AGAIN = "make the set again (to leave a face out, take it out of the labels first)"


class Faces:
    """A training or validation set of n faces; what the two kinds have in common.

    Attributes:
        folder: where it lies.
        face_model: gives the landmarks where none are stored.
        parameters: (n, 62) float32, not whitened, frame of the stored picture.
        names: n file names, or None where the set has none.
        side: of the stored pictures, pixels.
    """

    folder: Path
    parameters: np.ndarray
    names: Sequence[str] | None = None
    side: int = CROP_SIZE

    def __init__(self, folder: str | os.PathLike, face_model: MorphableModel) -> None:
        self.folder, self.face_model = Path(folder), face_model

    def __len__(self) -> int:
        return len(self.parameters)

    def yaw(self) -> np.ndarray:
        """(n,) degrees."""
        return camera_angles(split_camera(self.parameters))[:, 0]

    def images(self, indices: np.ndarray) -> np.ndarray:
        """(b, S, S, 3) uint8 BGR pictures of ``indices``, a fresh array."""
        raise NotImplementedError

    def landmarks(self, indices: np.ndarray) -> np.ndarray:
        """(b, 3, 68) float32 landmarks of ``indices``, frame of the stored pictures."""
        return self.face_model.landmarks(self.parameters[indices])

    def valid(self, indices: np.ndarray) -> np.ndarray:
        """(b, 4) x1 y1 x2 y2 of the part of each picture that is photo, real or whole numbers."""
        return np.tile(np.float32([0, 0, self.side, self.side]), (len(indices), 1))

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of ``indices`` as tensors on the CPU; safe to call from several threads."""
        indices = np.asarray(indices)
        arrays = self.parameters[indices], self.landmarks(indices), self.valid(indices)
        labels = (torch.from_numpy(array.astype(np.float32, copy=False)) for array in arrays)
        return Batch(torch.from_numpy(self.images(indices)), *labels)


class PackedFaces(Faces):
    """A packed set (see the module's text).

    Args:
        folder: holds images.npy and labels.npz.
        face_model: gives the landmarks where the set has none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: damaged files, an empty set, another shape or dtype, numbers that are not
            finite, cameras of zeros, parameters that put the faces elsewhere than the pictures,
            landmarks in one line, empty ``valid`` parts, or a set that was packed with another
            face model.
    """

    def __init__(self, folder: str | os.PathLike, face_model: MorphableModel) -> None:
        super().__init__(folder, face_model)
        pictures_file, labels_file = self.folder / "images.npy", self.folder / "labels.npz"
        for path in (pictures_file, labels_file):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: not a packed set, no such file")
        images, labels = map_npy(pictures_file), read_npz(labels_file)
        if images.ndim != 4 or images.shape[1:] != (images.shape[1],) * 2 + (3,):
            raise ValueError(f"{self.folder}: images must be (n, S, S, 3), found {images.shape}")
        if images.dtype != np.uint8:
            raise ValueError(f"{self.folder}: images must be uint8, found {images.dtype}")
        if "parameters" not in labels or not len(images):
            raise ValueError(f"{self.folder}: an empty set, or labels.npz without parameters")
        count, self.side = len(images), images.shape[1]
        self._images = np.asarray(images)  # the plain view indexes faster than the memmap
        shapes = {"parameters": (count, NUM_PARAMETERS), "landmarks": (count, 3, 68)}
        shapes |= {"valid": (count, 4), "names": (count,)}
        for name, shape in shapes.items():
            if name in labels and labels[name].shape != shape:
                raise ValueError(
                    f"{self.folder}: {count} pictures, so {name} should have shape {shape}, but "
                    f"has {labels[name].shape}"
                )
        for name in ("parameters", "landmarks", "valid"):
            if name in labels:
                _check_finite(labels[name], f"{labels_file}: {name}")
        self.parameters = labels["parameters"].astype(np.float32)
        _check_cameras(self.parameters, f"{labels_file}: parameters")
        theirs = str(labels.get("face_model", face_model.fingerprint))
        if theirs != face_model.fingerprint:
            raise ValueError(
                f"{self.folder}: packed with face model {theirs}, but {face_model.source} is face "
                f"model {face_model.fingerprint}; its parameters would draw wrong faces. Give the "
                "face model it was packed with, or pack the set again."
            )
        self._check_frame(f"{labels_file}: parameters")
        self._landmarks, self._valid = labels.get("landmarks"), labels.get("valid")
        if self._landmarks is not None:
            self._landmarks = self._landmarks.astype(np.float32, copy=False)
            extent = np.ptp(self._landmarks[:, :2], axis=2)  # (n, 2)
            _refuse(extent.min(1) <= 0, f"{labels_file}: landmarks", "in one line")
        if self._valid is not None:
            extent = self._valid[:, 2:] - self._valid[:, :2]
            _refuse(extent.min(1) <= 0, f"{labels_file}: valid", "empty")
        if "names" in labels:
            names = labels["names"]
            if names.dtype.kind not in "SU":
                raise ValueError(f"{labels_file}: names must be text, found {names.dtype}")
            if names.dtype.kind == "S":
                names = np.char.decode(names, "utf-8", "backslashreplace")
            self.names = names.tolist()

    def _check_frame(self, what: str) -> None:
        """Refuses parameters whose faces lie elsewhere than the pictures."""
        sample = self.parameters[:: max(1, len(self) // 2000)]
        with np.errstate(over="ignore", invalid="ignore"):  # such points are not near
            points = self.face_model.landmarks(sample)[:, :2]
        nearby = np.mean((points > -self.side) & (points < 2 * self.side))
        if nearby < 0.5:
            raise ValueError(
                f"{what}: {nearby:.0%} of their landmarks lie near the pictures of "
                f"{self.side}x{self.side}; they must be of that frame, not whitened, and of face "
                f"model {self.face_model.source}"
            )

    def images(self, indices: np.ndarray) -> np.ndarray:
        return np.take(self._images, indices, axis=0)

    def landmarks(self, indices: np.ndarray) -> np.ndarray:
        return super().landmarks(indices) if self._landmarks is None else self._landmarks[indices]

    def valid(self, indices: np.ndarray) -> np.ndarray:
        return super().valid(indices) if self._valid is None else self._valid[indices]


class PublishedFaces(Faces):
    """The published training set, its JPEGs decoded when they are asked for.

    Args:
        root: the folder that holds ``3dmm_data`` and ``train_aug_120x120``.
        face_model: undoes the whitening of the stored parameters. Sets made here carry the
            fingerprint of theirs. The published one does not, so a sample is checked: cameras must
            come out as scaled rotations, faces inside the crop.

    Raises:
        FileNotFoundError: a file is missing; it is named.
        ValueError: files that disagree, are damaged, or belong to another face model.
    """

    def __init__(self, root: str | os.PathLike, face_model: MorphableModel) -> None:
        super().__init__(root, face_model)
        for name in (PUBLISHED_LIST, PUBLISHED_PARAMETERS, PUBLISHED_CROPS):
            if not (self.folder / name).exists():
                raise FileNotFoundError(f"{self.folder / name}: missing; {_FROM_DOWNLOAD}")
        listing = self.folder / PUBLISHED_LIST
        try:
            lines = listing.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{listing}: not a list of file names ({error})") from error
        self.names = [line.strip() for line in lines if line.strip()]
        outside = next((name for name in self.names if not is_inside(name)), None)
        if outside is not None:
            raise ValueError(f"{listing}: {outside!r} leads out of {PUBLISHED_CROPS}")
        path = self.folder / PUBLISHED_PARAMETERS
        whitened = read_array_pickle(path)
        if (
            not isinstance(whitened, np.ndarray)
            or whitened.ndim != 2
            or whitened.shape[1] not in (NUM_PARAMETERS, NUM_STORED)
        ):
            found = getattr(whitened, "shape", type(whitened).__name__)
            raise ValueError(f"{path}: expected an array (n, 62) or (n, 102), found {found}")
        if len(whitened) != len(self.names) or not self.names:
            raise ValueError(
                f"{path} has {len(whitened)} rows, but {listing} names "
                f"{len(self.names)} pictures; the two must come from the same download"
            )
        self._check_face_model()
        self.parameters = face_model.dewhiten(whitened[:, :NUM_PARAMETERS].astype(np.float32))
        _check_finite(self.parameters, str(path))
        self._check_whitening(path)
        _check_cameras(self.parameters, str(path))

    def _check_face_model(self) -> None:
        """Refuses a set whose description names another face model."""
        for name in DESCRIPTIONS:
            path = self.folder / name
            if not path.is_file():
                continue
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # somebody else's file
                continue
            made_with = content.get("face_model") if isinstance(content, dict) else None
            if isinstance(made_with, str) and made_with != self.face_model.fingerprint:
                raise ValueError(
                    f"{self.folder}: made with face model {made_with} ({name}), but "
                    f"{self.face_model.source} is {self.face_model.fingerprint}; give the one it "
                    "was made with (--face-model), or make the set again"
                )

    def _check_whitening(self, path: Path) -> None:
        """Refuses parameters that this face model's mean and deviation do not turn into faces."""
        sample = self.parameters[:: max(1, len(self) // 2000)]
        points = self.face_model.landmarks(sample)[:, :2]
        nearby = np.mean((points > -CROP_SIZE / 2) & (points < 1.5 * CROP_SIZE))
        size = np.median(np.ptp(points, axis=2).max(1)) / CROP_SIZE
        rows = split_camera(sample)[:, :, :3].astype(np.float64)
        gram = rows @ rows.transpose(0, 2, 1)  # of a scaled rotation: a multiple of the identity
        scale = np.trace(gram, axis1=1, axis2=2)[:, None, None] / 3
        skews = np.abs(gram / np.maximum(scale, 1e-300) - np.eye(3)).max((1, 2))
        skew = np.percentile(skews, 90)
        if nearby < 0.95 or not 0.2 < size < 1.5 or skew > MAX_SKEW:
            raise ValueError(
                f"{path}: undone with the mean and deviation of {self.face_model.source}, its "
                f"whitening gives no faces ({nearby:.0%} of landmarks near the crop, median size "
                f"{size:.2f} crops, cameras {skew:.3f} off a scaled rotation, at most {MAX_SKEW}). "
                "It was made with another face model: give that one (the published set needs the "
                "published 3dmm_data)."
            )

    def images(self, indices: np.ndarray) -> np.ndarray:
        crops = np.empty((len(indices), CROP_SIZE, CROP_SIZE, 3), np.uint8)
        for crop, index in zip(crops, indices, strict=True):
            path = self.folder / PUBLISHED_CROPS / self.names[index]
            try:
                crop[:] = read_crop(path)
            except FileNotFoundError as error:
                is_own = any((self.folder / name).is_file() for name in DESCRIPTIONS)
                remedy = _MAKE_AGAIN if is_own else _FROM_DOWNLOAD
                raise FileNotFoundError(f"{path}: missing; {remedy}") from error
        return crops


def _check_finite(rows: np.ndarray, what: str) -> None:
    """Refuses rows with NaN or infinite numbers: one would cost its whole batch, in every epoch."""
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"{what}: expected numbers, found {rows.dtype}")
    fine = np.abs(rows) <= np.finfo(np.float32).max  # what they become
    _refuse(~fine.reshape(len(rows), -1).all(axis=1), what, "not finite")


def _check_cameras(parameters: np.ndarray, what: str) -> None:
    """Refuses cameras with an axis of length zero: they have no pose."""
    lengths = np.linalg.norm(split_camera(parameters)[:, :2, :3], axis=2)  # (n, 2)
    _refuse(~(lengths > 0).all(axis=1), what, "cameras of zeros")


def _refuse(bad: np.ndarray, what: str, how: str) -> None:
    """Raises a ValueError where one of the rows (n,) is bad."""
    if bad.any():
        raise ValueError(
            f"{what}: {bad.sum()} of {len(bad)} rows are {how}, the first is row {np.argmax(bad)} "
            "(from 0); take these faces out"
        )


class Subset(Faces):
    """Some faces of a set: those at ``indices`` (k,), in their order, or of a mask (n,) bool."""

    def __init__(self, faces: Faces, indices: np.ndarray) -> None:
        super().__init__(faces.folder, faces.face_model)
        self.faces, self.indices = faces, np.arange(len(faces))[indices]  # a mask's numbers too
        self.parameters, self.side = faces.parameters[self.indices], faces.side
        if faces.names is not None:
            self.names = [faces.names[index] for index in self.indices]

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.faces.images(self.indices[indices])

    def landmarks(self, indices: np.ndarray) -> np.ndarray:
        return self.faces.landmarks(self.indices[indices])

    def valid(self, indices: np.ndarray) -> np.ndarray:
        return self.faces.valid(self.indices[indices])


def open_training_set(path: str | os.PathLike, face_model: MorphableModel) -> Faces:
    """The set that lies at ``path``: packed where there is an images.npy, else published.

    Raises:
        FileNotFoundError: neither lies there, or a file of it is missing.
        ValueError: as the two classes say.
    """
    path = Path(path)
    if (path / "images.npy").exists():
        return PackedFaces(path, face_model)
    if any((path / name).exists() for name in (PUBLISHED_LIST, PUBLISHED_PARAMETERS)):
        return PublishedFaces(path, face_model)
    raise FileNotFoundError(
        f"{path}: no training set there; looked for a packed one (images.npy, labels.npz) and for "
        f"the published layout ({PUBLISHED_LIST}, {PUBLISHED_PARAMETERS}, {PUBLISHED_CROPS}/*.jpg)"
        "; get the published data (README, 'Published files'), make a set of photos of your own "
        "(`python -m tools.prepare_data LABELS --out DIR`), or render one (`python -m "
        "tools.render_faces OUT`)"
    )


# --------------------------------------------------------------------------------- held-out faces


def source_photo(name: str) -> str:
    """The photo a crop was made from, so that no photo is on both sides of a split.

    300W-LP names its renderings after the photo, with running numbers for pose and crop behind and
    ``Flip`` in mirrored ones: ``HELEN_Flip_HELEN_232194_1_0_3.jpg`` -> ``HELEN_HELEN_232194``.
    Dropped: directories, extension, ``Flip``, and of the numbers at the end all but the first. The
    second may tell apart two faces of one photo; keeping those together errs on the safe side.
    Of other names (``alice/photo_1.jpg``) the extension is dropped, and the folder ``face2`` in
    front, in which ``tools.prepare_data`` puts a photo's second faces.
    """
    *folders, last = name.replace("\\", "/").split("/")
    stem = Path(last).stem
    if re.match("(AFW|HELEN|IBUG|LFPW)_", stem, re.IGNORECASE):
        stem = re.sub(r"_?flip", "", stem, flags=re.IGNORECASE)
        return re.sub(r"^(.*?_\d+)(_\d+)+$", r"\1", stem)
    if folders and re.fullmatch(r"face([2-9]|[1-9]\d+)", folders[0]):
        folders = folders[1:]
    return "/".join([*folders, stem])


def split_held_out(faces: Faces, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out indices of a set, split by source photo.

    Which side a photo is on depends on its name and the seed alone, not on the set's order or
    size. Sets without names are split by index.

    Args:
        faces: anything with ``names``, a length and a ``folder``, which messages name.
        fraction: of the photos that is held out, in (0, 1).
        seed: another one holds out others.

    Returns:
        Two sorted index arrays that share no photo.

    Raises:
        ValueError: a fraction out of range, or a side without faces.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    names = faces.names
    photos = [source_photo(name) for name in names] if names else list(map(str, range(len(faces))))
    side = {photo: _fraction_of(f"{seed}:{photo}") < fraction for photo in set(photos)}
    held_out = np.array([side[photo] for photo in photos])
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"{faces.folder}: {len(photos)} faces of {len(side)} photos (the first is "
            f"{photos[0]!r}) cannot be split with {fraction:.1%} held out; give a larger fraction, "
            "or a validation set of its own"
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def count_shared_faces(faces: Faces, others: Faces) -> int:
    """How many faces of the set ``others`` are in ``faces`` too: their parameters are equal."""
    looked_for = [row.tobytes() for row in others.parameters]
    found = set(looked_for).intersection(row.tobytes() for row in faces.parameters)
    return sum(row in found for row in looked_for)


def _fraction_of(text: str) -> float:
    """A number in [0, 1) that looks random and is always the same for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56


# ---------------------------------------------------------------------------------------- drawing


def pose_balanced_probabilities(yaw: np.ndarray) -> np.ndarray:
    """(n,) drawing probabilities that favour the rare large poses.

    A bin of 15 degrees of |yaw| is drawn in proportion to the root of the number of its faces:
    between one by one (profiles hardly ever) and bin by bin (a few profiles again and again).
    """
    bins = np.minimum(np.abs(yaw) // YAW_BIN, 90 // YAW_BIN - 1).astype(int)
    weights = 1 / np.sqrt(np.bincount(bins)[bins])
    return weights / weights.sum()


def epoch_batches(
    count: int,
    probabilities: np.ndarray | None,
    samples: int,
    batch_size: int,
    seed: int | Sequence[int],
) -> Iterator[np.ndarray]:
    """Index batches of one epoch of a set of ``count`` faces; the last short batch is dropped.

    With (n,) probabilities faces are drawn with replacement; without, each comes once before one
    comes twice.
    """
    rng = np.random.default_rng(seed)
    if probabilities is None:
        rounds = -(-samples // count)
        order = np.concatenate([rng.permutation(count) for _ in range(rounds)])[:samples]
    else:
        order = rng.choice(count, samples, p=probabilities)
    for start in range(0, samples - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def batches(
    faces: Faces,
    probabilities: np.ndarray | None,
    samples: int,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """One epoch's batches, read and decoded ahead by ``workers`` threads.

    The order depends on ``seed`` and ``epoch`` alone. Threads, not processes: OpenCV and numpy let
    go of the interpreter while they decode and copy, nothing has to be sent, an error keeps its
    place and text, and no worker can die alone. Closing the iterator stops them.

    Args:
        faces: the set.
        probabilities: (n,) with which faces are drawn, with replacement; None: all in random
            order, each once before one comes twice (the published way).
        samples: of the epoch; what does not fill a batch is dropped.
        batch_size: of all processes together, a multiple of ``world_size``.
        seed, epoch: decide the order.
        start_step: batches of the epoch that are skipped, unread.
        rank, world_size: this process takes its contiguous share of every batch.
        workers: threads, at least 1; each works on a batch of its own.
        pin_memory: put batches into page-locked memory, from which they are copied to a CUDA
            device while the host goes on.

    Yields:
        ``Batch`` of ``batch_size // world_size`` samples on the CPU.
    """
    share = batch_size // world_size

    def mine() -> Iterator[np.ndarray]:
        order = epoch_batches(len(faces), probabilities, samples, batch_size, (seed, epoch))
        for step, indices in enumerate(order):
            if step >= start_step:
                yield indices[rank * share : (rank + 1) * share]

    def load(indices: np.ndarray) -> Batch:
        batch = faces.batch(indices)
        return Batch(*(tensor.pin_memory() for tensor in batch)) if pin_memory else batch

    return in_order(load, mine(), workers)


# ---------------------------------------------------------------------------------------- packing


def write_packed(
    folder: str | os.PathLike, images: Iterable[np.ndarray], count: int, side: int, **labels
) -> None:
    """Writes a packed set.

    Args:
        images: yields ``count`` pictures (side, side, 3) uint8 BGR.
        labels: the arrays of labels.npz by name (see the module's text).

    Raises:
        ValueError: another shape, dtype or number of pictures.
    """
    folder = Path(folder)
    with atomic_write(folder / "images.npy") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for image in images:
            if image.shape != (side, side, 3) or image.dtype != np.uint8:
                raise ValueError(
                    f"{folder}: expected pictures of shape ({side}, {side}, 3) uint8, got "
                    f"{image.dtype} of shape {image.shape}"
                )
            file.write(np.ascontiguousarray(image).data)
            written += 1
        if written != count:
            raise ValueError(f"{folder}: {count} pictures announced, {written} given")
    with atomic_write(folder / "labels.npz") as file:
        np.savez(file, **labels)


def pack(faces: Faces, folder: str | os.PathLike, workers: int = 4) -> None:
    """Decodes a set once into a packed one, with its names and its face model's fingerprint.

    The folder appears complete or not at all; what a killed run leaves is a ``.partial`` folder
    beside it, which may be removed.

    Raises:
        FileExistsError: ``folder`` is a file, or not empty.
        OSError: the disk has no room for it.
        FileNotFoundError, ValueError: a picture is missing or damaged; it is named.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = len(faces) * faces.side**2 * 3, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(
            f"{folder}: the packed set takes {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f}"
        )
    everything = np.arange(len(faces))
    labels = {"parameters": faces.parameters}
    if not isinstance(faces, PublishedFaces):  # there both follow from the parameters and the crop
        labels["landmarks"] = faces.landmarks(everything)
        labels["valid"] = faces.valid(everything).astype(np.int16)
    labels["face_model"] = np.array(faces.face_model.fingerprint)
    if faces.names is not None:
        labels["names"] = np.char.encode(faces.names, "utf-8")  # a quarter of numpy's own strings

    def pictures() -> Iterator[np.ndarray]:
        chunks = np.array_split(everything, max(1, len(faces) // 128))
        with tqdm(total=len(faces), desc=f"packing {folder.name}", unit="img") as bar:
            for images in in_order(faces.images, chunks, workers):
                yield from images
                bar.update(len(images))

    with new_folder(folder) as partial:
        write_packed(partial, pictures(), len(faces), faces.side, **labels)


def provide_pack(
    data: str | os.PathLike,
    folder: str | os.PathLike,
    face_model: MorphableModel,
    workers: int = 4,
) -> None:
    """Packs the set at ``data`` into ``folder`` unless that is done already.

    Of the processes that ``torchrun`` started on a machine the first one packs, and the others wait
    for it. Machines that share a disk may pack at the same time; the first result is used.

    Raises:
        OSError, ValueError: see ``open_training_set`` and ``pack``.
    """
    folder = Path(folder)
    done = folder / "labels.npz"  # written last
    if done.exists():
        say(f"{folder}: packed already, used as it is; --data is not read")
        return
    if local_rank() == 0:
        try:
            pack(open_training_set(data, face_model), folder, max(workers, 4))
        except OSError:
            if not done.exists():
                raise
            say(f"{folder}: packed by another process meanwhile; using that")
    while not done.exists():
        time.sleep(1)


def write_published_labels(folder: Path, names: Sequence[str], whitened: np.ndarray) -> None:
    """Writes list and parameters of a training set in the published layout (see the module).

    Args:
        folder: where the crops are written to, too.
        names: of n crops, in the parameters' order.
        whitened: (n, 62) parameters.

    Raises:
        OSError: the folder cannot be written.
    """
    stored = np.zeros((len(names), NUM_STORED), np.float32)
    stored[:, :NUM_PARAMETERS] = whitened
    (folder / PUBLISHED_PARAMETERS).parent.mkdir(exist_ok=True)
    (folder / PUBLISHED_PARAMETERS).write_bytes(pickle.dumps(stored, protocol=4))
    (folder / PUBLISHED_LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
