"""The 3D morphable model (SynergyNet, section 3.1): the only place that turns parameters into
geometry, ``A (mean + W_shp alpha + W_exp beta) + t``.

Frames and units
    model   x right, y up, z towards the viewer, micrometres, as the mean face is stored.
    crop    the 120x120 network input: x right, y down, pixel centres at integers, z in the same
            unit towards the viewer. The camera maps the model to a y-up crop, of which only y
            differs: ``y_crop = 121 - y`` (``Y_FLIP``), so the last row, 119, lies at y = 2.

Parameters (62)
    12 camera, row-major (3, 4) ``[A | t]``; 40 shape; 10 expression. The network works with
    *whitened* parameters ``(p - mean) / std``.

Everything is batch-first. The algebra uses only operators that numpy arrays and torch tensors
share, so one implementation serves both; reading a model does not import torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from utils.array_pickle import read_array_pickle
from utils.files import read_npy, read_npz
from utils.matlab import read_mat

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

NUM_LANDMARKS = 68
CAMERA, SHAPE, EXPRESSION = 12, 40, 10
NUM_PARAMETERS = CAMERA + SHAPE + EXPRESSION
# Landmark i of a mirrored face is landmark MIRRORED_LANDMARKS[i] of the face (68-point scheme).
MIRRORED_LANDMARKS = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)
LARGEST = 1e30  # of a face model's numbers, so that float32 holds their sums
MAX_INDEX = 2**31 - 1
Y_FLIP = 121.0  # 120 + 1, as published: flips rows that count from 1, though ours count from 0


# the fields that take part in the algebra, and become tensors
_ALGEBRA = (
    "mean", "basis", "landmark_mean", "landmark_basis", "param_mean", "param_std", "flip",
    "flip_offset",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class MorphableModel:
    """A 3DMM of N vertices; arrays are float32 numpy, or torch tensors after ``to_torch``.

    Attributes:
        mean: (3, N) mean face, model frame.
        basis: (50, 3, N) shape then expression basis.
        landmark_mean, landmark_basis: the same at the 68 landmarks, (3, 68) and (50, 3, 68).
        param_mean, param_std: (62,) whitening.
        flip, flip_offset: (3, 1) the crop frame's y flip as a factor and an offset.
        landmark_indices: (68,) int64 vertex of each landmark.
        triangles: (T, 3) int32, 0-based, *clockwise* seen from outside in the y-up model frame, as
            published, hence outward by the right-hand rule in the coordinates of the y-down crop
            and image, where they are seen clockwise too; like the arrays below read-only, since
            all faces share them.
        uv: (N, 2) texture coordinates in [0, 1], v up; None where the model has none.
        kept_vertices: (K,) int64 vertices kept for textured meshes; None where there are none.
        kept_triangles: (T', 3) int32, 0-based into ``kept_vertices``; None likewise.
        source: the folder or file it was read from.
        pixel_centres: how networks trained with the model count a crop's pixels, see
            ``utils.preprocessing.crop_to_image``; False as published.
    """

    mean: Any
    basis: Any
    landmark_mean: Any
    landmark_basis: Any
    param_mean: Any
    param_std: Any
    flip: Any
    flip_offset: Any
    landmark_indices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray | None
    kept_vertices: np.ndarray | None
    kept_triangles: np.ndarray | None
    source: str
    pixel_centres: bool = False

    def __repr__(self) -> str:
        return f"MorphableModel({self.source}, {self.num_vertices} vertices)"

    @property
    def num_vertices(self) -> int:
        """N, of the dense mesh."""
        return self.mean.shape[1]

    # ------------------------------------------------------------------ algebra

    def dewhiten(self, whitened: Array) -> Array:
        """(B, 62) whitened network output -> (B, 62) parameters, ``p * std + mean``."""
        return whitened * self.param_std + self.param_mean

    def whiten(self, parameters: Array) -> Array:
        """(B, 62) parameters -> (B, 62) whitened; the inverse of ``dewhiten``."""
        return (parameters - self.param_mean) / self.param_std

    def landmarks(self, parameters: Array) -> Array:
        """(B, 62) parameters -> (B, 3, 68) landmarks in the crop frame; no dense mesh is made."""
        return self._decode(parameters, self.landmark_mean, self.landmark_basis)

    def vertices(self, parameters: Array) -> Array:
        """(B, 62) parameters -> (B, 3, N) dense mesh in the crop frame."""
        return self._decode(parameters, self.mean, self.basis)

    def shapes(self, parameters: Array) -> Array:
        """(B, 62) parameters -> (B, 3, N) dense mesh in the model frame, the camera left out."""
        return self._shape(parameters, self.mean, self.basis)

    def to_crop(self, points: Array) -> Array:
        """(..., 3, P) points of the camera's y-up crop -> crop frame; its own inverse."""
        return points * self.flip + self.flip_offset

    def _decode(self, parameters: Array, mean: Array, basis: Array) -> Array:
        camera = split_camera(parameters)  # (B, 3, 4)
        camera = camera * self.flip  # the y flip costs 12 numbers here, 3N after the product
        shape = self._shape(parameters, mean, basis)  # (B, 3, N)
        return camera[:, :, :3] @ shape + (camera[:, :, 3:] + self.flip_offset)

    @staticmethod
    def _shape(parameters: Array, mean: Array, basis: Array) -> Array:
        """mean + W_shp alpha + W_exp beta as one matrix product for all faces."""
        coefficients = parameters[:, CAMERA:NUM_PARAMETERS]  # (B, 50)
        basis = basis.reshape(len(basis), -1)  # (50, 3 * N)
        if isinstance(coefficients, np.ndarray):
            # without BLAS: its threads spin on for 0.1 s after a large product, one on each core
            offsets = np.einsum("bk,kn->bn", coefficients, basis)  # (B, 3 * N)
        else:
            offsets = coefficients @ basis
        return mean + offsets.reshape(-1, 3, mean.shape[1])  # (B, 3, N)

    # ------------------------------------------------------------------ conversion and identity

    def map(self, function: Callable[[Any], Any]) -> MorphableModel:
        """A copy with ``function`` applied to every array that takes part in the algebra."""
        return replace(self, **{name: function(getattr(self, name)) for name in _ALGEBRA})

    def __reduce_ex__(self, protocol: int):
        """A model as it was read is pickled as its file's name and fingerprint: otherwise every
        face that one process sends another would carry megabytes. A changed one is pickled whole.
        """
        if self in _AS_READ:
            return _read_again, (_AS_READ[self], self.fingerprint)
        return super().__reduce_ex__(protocol)

    def __copy__(self) -> MorphableModel:
        return self  # nothing changes it

    def __deepcopy__(self, memo: dict) -> MorphableModel:
        return self

    def to_torch(self, device: str | torch.device = "cpu") -> MorphableModel:
        """The same model in float32 torch tensors on ``device``."""
        import torch

        def tensor(array: Any) -> torch.Tensor:
            if isinstance(array, np.ndarray):
                array = array.copy()  # not the memory that the numpy model's faces are made from
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        return self.map(tensor)

    @cached_property
    def fingerprint(self) -> str:
        """Names the model's language: equal for equal mean, bases, landmarks and whitening."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self.mean, self.basis, self.param_mean, self.param_std):
            array = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        digest.update(self.landmark_indices.astype("<i8").tobytes())
        return digest.hexdigest()


_AS_READ: WeakKeyDictionary[MorphableModel, str] = WeakKeyDictionary()  # absolute paths


def split_camera(parameters: Array) -> Array:
    """(B, 62) or (B, 12) parameters -> (B, 3, 4) camera ``[A | t]``, y-up crop frame."""
    return parameters[:, :CAMERA].reshape(-1, 3, 4)


# ---------------------------------------------------------------------- moved pictures (torch only)


def similarity_on_parameters(
    parameters: torch.Tensor, linear: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """Parameters of a face after its picture was moved by ``p -> linear @ p + offset``.

    Args:
        parameters: (B, 62) not whitened.
        linear: (B, 2, 2) rotation times scale, y-down pixels.
        offset: (B, 2).

    Returns:
        (B, 62): landmarks decoded from them are the moved landmarks; z is scaled alike.
    """
    import torch

    camera = split_camera(parameters)  # (B, 3, 4), y up
    rows = linear @ torch.stack([camera[:, 0, :3], -camera[:, 1, :3]], 1)  # (B, 2, 3), y down
    centre = torch.stack([camera[:, 0, 3], Y_FLIP - camera[:, 1, 3]], 1)
    centre = (linear @ centre[..., None])[..., 0] + offset  # (B, 2)
    x = torch.cat([rows[:, 0], centre[:, :1]], 1)
    y = torch.cat([-rows[:, 1], Y_FLIP - centre[:, 1:]], 1)
    z = camera[:, 2] * _scale(linear)[:, None]
    return torch.cat([x, y, z, parameters[:, CAMERA:]], 1)


def similarity_on_points(
    points: torch.Tensor, linear: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """(B, 3, P) points moved likewise; z is scaled."""
    import torch

    moved = linear @ points[:, :2] + offset[..., None]
    return torch.cat([moved, points[:, 2:] * _scale(linear)[:, None, None]], 1)


def _scale(linear: torch.Tensor) -> torch.Tensor:
    """(B, 2, 2) -> (B,); torch.linalg.det would make the host wait for a GPU."""
    return (linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]).sqrt()


# ---------------------------------------------------------------------- reading


def load_morphable_model(path: str | os.PathLike) -> MorphableModel:
    """Reads a face model: a folder in the published ``3dmm_data`` layout, or one ``.npz`` file.

    The ``.npz`` form holds the same arrays under the same names (``tri``, ``uv`` and the two
    whitening vectors beside them); bases may be half precision with a float32 scale per column
    (``w_shp_scale``, ``w_exp_scale``). Any vertex count is read.

    Raises:
        FileNotFoundError: the folder, or a file in it that is needed, is missing.
        ValueError: a file is damaged or has another shape than the rest asks for.
    """
    path = Path(path)
    read = _read_folder if path.is_dir() else _read_npz
    face_model = build_morphable_model(read(path), path)
    for name in _ALGEBRA:
        getattr(face_model, name).flags.writeable = False  # copies are the model itself
    _AS_READ[face_model] = os.path.abspath(path)
    if doubt := _doubtful_convention(face_model):
        logger.warning("%s: %s (docs/face_model.md)", path, doubt)
    return face_model


def _doubtful_convention(face_model: MorphableModel) -> str:
    """What looks as if a model followed other conventions; empty where nothing does."""
    extent = np.ptp(face_model.mean, axis=1).max()
    if not 1e4 < extent < 1e7:
        return f"the mean face is {extent:g} long; in micrometres, the unit here, it has 200,000"
    right, chin, left, nose = face_model.landmark_mean[:, [0, 8, 16, 30]].T
    if right[0] > left[0] or chin[1] > nose[1] or min(right[2], left[2]) > nose[2]:
        return (
            "its landmarks are not those of a face with x right, y up and z towards the viewer; "
            "check its axes and keypoints_sim"
        )
    # the volume between the surface and its middle; corners that go clockwise make it negative
    centred = face_model.mean - face_model.mean.mean(1, keepdims=True)  # (3, N)
    some = face_model.triangles[:: len(face_model.triangles) // 2000 + 1]
    if np.linalg.det(centred.T[some].astype(np.float64)).sum() > 0:
        return (
            "its triangles seem to be wound counter-clockwise (from outside, y up), not clockwise; "
            "if it is dark in pictures, exchange two rows of tri"
        )
    return ""


@lru_cache(maxsize=4)
def _read_again(path: str, fingerprint: str) -> MorphableModel:
    """The face model of something that was pickled; one for all of them in a process."""
    try:
        face_model = load_morphable_model(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: the face model that the pickled faces were made with is not there any more"
        ) from error
    if face_model.fingerprint != fingerprint:
        raise ValueError(
            f"{path}: another face model (fingerprint {face_model.fingerprint}) than the pickled "
            f"faces were made with ({fingerprint})"
        )
    return face_model


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    """The published layout's arrays under the names of their files."""
    names = ["u_shp", "u_exp", "w_shp_sim", "w_exp_sim", "keypoints_sim"]
    needed = [*(f"{name}.npy" for name in names), "param_whitening.pkl", "tri.mat"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: the face model is incomplete, {', '.join(missing)} missing; complete the "
            "folder (README, 'Published files') or move it away to use the bundled starter model"
        )
    arrays = {name: read_npy(folder / f"{name}.npy") for name in names}
    arrays |= {
        key: read_npy(folder / f"{name}.npy")
        for key, name in {"uv": "BFM_UV", "keptInd": "keptInd", "deletedTri": "deletedTri"}.items()
        if (folder / f"{name}.npy").is_file()
    }
    whitening = read_array_pickle(folder / "param_whitening.pkl")
    if not isinstance(whitening, dict) or not {"param_mean", "param_std"} <= whitening.keys():
        raise ValueError(
            f"{folder / 'param_whitening.pkl'}: expected a dict with param_mean and param_std"
        )
    arrays |= {key: whitening[key] for key in ("param_mean", "param_std")}
    triangles = read_mat(folder / "tri.mat")
    if "tri" not in triangles:
        raise ValueError(f"{folder / 'tri.mat'}: holds no array of numbers named 'tri'")
    return {**arrays, "tri": triangles["tri"]}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no face model there (a folder or an .npz file)")
    arrays = read_npz(path)
    for basis in ("w_shp", "w_exp"):
        if {f"{basis}_scale", f"{basis}_sim"} <= arrays.keys():
            columns, scale = arrays[f"{basis}_sim"], arrays[f"{basis}_scale"]
            if columns.dtype.kind not in "fiu":
                raise ValueError(f"{path}: {basis}_sim must be numbers, found {columns.dtype}")
            if scale.dtype.kind != "f" or scale.shape != columns.shape[1:]:
                raise ValueError(
                    f"{path}: {basis}_scale has shape {scale.shape}, expected one number for each "
                    f"column of {basis}_sim {columns.shape}"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # refused when it is taken
                arrays[f"{basis}_sim"] = columns.astype(np.float32) * scale.astype(np.float32)
    return arrays


def build_morphable_model(arrays: dict[str, np.ndarray], path: str | os.PathLike) -> MorphableModel:
    """A model from arrays under the published names; ``path`` is what messages call it.

    The arrays are checked against each other and laid out for one matrix product.

    Raises:
        ValueError: an array is missing or has another shape than the rest asks for.
    """
    given = _Arrays(arrays, path)
    mean, basis = _mean_and_basis(given)  # (3, N), (50, 3, N)
    num_vertices = mean.shape[1]
    landmark_indices = _landmark_indices(given, num_vertices)  # (68,)
    param_mean, param_std = given.whitening("param_mean"), given.whitening("param_std")
    if (param_std <= 0).any():
        raise ValueError(f"{path}: param_std must be positive")
    uv = _texture_coordinates(given, num_vertices) if "uv" in arrays else None
    kept_vertices = kept_triangles = None
    if "keptInd" in arrays and "deletedTri" in arrays:
        kept_vertices = given.take("keptInd", largest=MAX_INDEX).astype(np.int64).ravel()
        given.check_range("keptInd", kept_vertices, num_vertices)
        kept_triangles = given.triangles("deletedTri", len(kept_vertices))
    triangles = given.triangles("tri", num_vertices)
    for shared in (landmark_indices, triangles, uv, kept_vertices, kept_triangles):
        if shared is not None:
            shared.flags.writeable = False  # by every face of the model
    return MorphableModel(
        mean=mean,
        basis=basis,
        landmark_mean=np.ascontiguousarray(mean[:, landmark_indices]),
        landmark_basis=np.ascontiguousarray(basis[:, :, landmark_indices]),
        param_mean=param_mean,
        param_std=param_std,
        flip=np.float32([[1], [-1], [1]]),
        flip_offset=np.float32([[0], [Y_FLIP], [0]]),
        landmark_indices=landmark_indices,
        triangles=triangles,
        uv=uv,
        kept_vertices=kept_vertices,
        kept_triangles=kept_triangles,
        source=str(path),
        pixel_centres="pixel_centres" in arrays and given.flag("pixel_centres"),
    )


def _mean_and_basis(given: _Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The mean face (3, N) and the shape and expression bases (50, 3, N)."""
    u_shp = given.take("u_shp")
    size = u_shp.size
    if size == 0 or size % 3:
        raise ValueError(f"{given.path}: u_shp has {size} numbers, expected 3 per vertex (xyz)")
    num_vertices = size // 3
    u_exp = given.take("u_exp", u_shp.shape)
    interleaved = u_shp.reshape(size).astype(np.float32) + u_exp.reshape(size).astype(np.float32)
    mean = np.ascontiguousarray(interleaved.reshape(num_vertices, 3).T)  # (3, N)

    w_shp, w_exp = (
        given.columns(name, size, count).reshape(num_vertices, 3, count)
        for name, count in (("w_shp_sim", SHAPE), ("w_exp_sim", EXPRESSION))
    )
    basis = np.empty((SHAPE + EXPRESSION, 3, num_vertices), np.float32)
    for start in range(0, num_vertices, 256):  # blocks that fit the cache: eight times as fast
        block = slice(start, start + 256)
        basis[:SHAPE, :, block] = w_shp[block].transpose(2, 1, 0)
        basis[SHAPE:, :, block] = w_exp[block].transpose(2, 1, 0)
    return mean, basis


def _landmark_indices(given: _Arrays, num_vertices: int) -> np.ndarray:
    """(68,) int64 vertices, from the indices of their coordinates in the interleaved mean."""
    keypoints = given.take("keypoints_sim", (3 * NUM_LANDMARKS,), largest=MAX_INDEX)
    keypoints = keypoints.reshape(NUM_LANDMARKS, 3)
    indices = keypoints[:, 0].astype(np.int64) // 3
    if (keypoints != 3 * indices[:, None] + np.arange(3)).any():
        raise ValueError(
            f"{given.path}: keypoints_sim must index the xyz of 68 vertices, in that order"
        )
    given.check_range("keypoints_sim", indices, num_vertices)
    return indices


def _texture_coordinates(given: _Arrays, num_vertices: int) -> np.ndarray:
    """(N, 2) float32 in [0, 1]; rounding beyond is cut off."""
    uv = given.take("uv", (num_vertices, 2)).astype(np.float32)
    if uv.min() < -1e-3 or uv.max() > 1 + 1e-3:
        raise ValueError(f"{given.path}: uv must lie in [0, 1], found {uv.min():g} to {uv.max():g}")
    return uv.clip(0, 1)


@dataclass(frozen=True)
class _Arrays:
    """A face model's arrays, checked as they are taken."""

    arrays: dict[str, np.ndarray]
    path: str | os.PathLike

    def take(
        self, name: str, shape: tuple[int, ...] | None = None, largest: float = LARGEST
    ) -> np.ndarray:
        if name not in self.arrays:
            raise ValueError(f"{self.path}: the array {name} is missing")
        array = self.arrays[name]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{self.path}: {name} must be an array, found {type(array).__name__}")
        if array.dtype.kind not in "fiu" or not _within(array, largest):
            raise ValueError(
                f"{self.path}: {name} must hold finite numbers within ±{largest:g}, found "
                f"{array.dtype}"
            )
        if shape is not None and array.shape != shape:
            raise ValueError(f"{self.path}: {name} has shape {array.shape}, expected {shape}")
        return array

    def flag(self, name: str) -> bool:
        stored = np.asarray(self.arrays[name])
        if stored.shape != () or stored.dtype.kind not in "bfiu" or stored not in (0, 1):
            raise ValueError(f"{self.path}: {name} must be one number, 0 or 1")
        return bool(stored)

    def columns(self, name: str, size: int, count: int) -> np.ndarray:
        """(3N, count) directions of a basis."""
        shape = getattr(self.arrays.get(name), "shape", ())
        if len(shape) == 2 and shape[0] == size and shape[1] < count:
            raise ValueError(
                f"{self.path}: {name} has {shape[1]} directions; the layout has {count}, so "
                "fill up with columns of zeros"
            )
        return self.take(name, (size, count))

    def whitening(self, name: str) -> np.ndarray:
        """(62,) float32; of 102 numbers as published, the first 62 count."""
        arrays = dict(self.arrays)
        if isinstance(arrays.get(name), np.ndarray):  # what follows the 62 may be anything
            arrays[name] = arrays[name].ravel()[:NUM_PARAMETERS]
        vector = _Arrays(arrays, self.path).take(name).astype(np.float32)
        if len(vector) < NUM_PARAMETERS:
            raise ValueError(
                f"{self.path}: {name} has {len(vector)} numbers, expected at least {NUM_PARAMETERS}"
            )
        return vector

    def triangles(self, name: str, num_vertices: int) -> np.ndarray:
        """Stored (3, T) from 1 -> (T, 3) int32 from 0."""
        stored = self.take(name, largest=MAX_INDEX)
        if stored.ndim != 2 or stored.shape[0] != 3:
            raise ValueError(
                f"{self.path}: {name} has shape {stored.shape}, expected (3, T), 1-based"
            )
        if (stored % 1).any():
            raise ValueError(f"{self.path}: {name} must hold whole numbers")
        triangles = stored.astype(np.int64).T - 1
        self.check_range(name, triangles, num_vertices)
        return np.ascontiguousarray(triangles, dtype=np.int32)

    def check_range(self, name: str, indices: np.ndarray, count: int) -> None:
        if indices.size and (indices.min() < 0 or indices.max() >= count):
            raise ValueError(
                f"{self.path}: {name} points to vertex {indices.min()}..{indices.max()} of {count}"
            )


def _within(array: np.ndarray, largest: float) -> bool:
    """Whether all numbers lie within ±largest; NaN does not."""
    return array.size == 0 or (-largest <= float(array.min()) and float(array.max()) <= largest)
