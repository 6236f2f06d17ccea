"""Arguments and files of every kind: a named error, or a result that is what it should be.

The examples are the same in every run; ``FUZZ=10000`` tries that many of each kind, at random.
"""

import io
import os
import pickle
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from conftest import tiny_face_arrays
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import Sim3DR
from FaceBoxes import nms as suppression
from Sim3DR import fallback
from utils.aflw2000 import AFLW_LIST, open_aflw21
from utils.array_pickle import read_array_pickle
from utils.benchmark_report import read_run
from utils.checkpoint import read_checkpoint
from utils.datasets import (
    PUBLISHED_CROPS,
    PUBLISHED_LIST,
    PUBLISHED_PARAMETERS,
    PublishedFaces,
)
from utils.files import read_npy, read_npz
from utils.matlab import read_mat
from utils.morphable_model import MorphableModel, build_morphable_model, load_morphable_model
from utils.pictures import read_image
from utils.preprocessing import CROP_SIZE, boxes_to_roi_boxes, crop_faces
from utils.unpack import Limits, unpack

settings.register_profile(
    "here",
    max_examples=int(os.environ.get("FUZZ", "60")),
    derandomize="FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("here")

# ------------------------------------------------------------------------------- odd arguments

SPECIAL = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-45, 1e-30, 1e5, -1e8, 1e8, 1.01e8, 3e38, 1e300]
SPECIAL += [np.inf, -np.inf, np.nan]
REAL = ["f4", "f8", "f2", "i1", "i4", "i8", "u1", "u8", ">f4", ">i4"]
OTHER = ["c8", "?", "O", "U3", "S2", "M8[s]"]
LEAST = {"i8": [-(2**63), 2**63 - 1], "i4": [-(2**31), 2**31 - 1], "u8": [2**64 - 1]}


@st.composite
def anything(draw, columns: int, low: float = -5, high: float = 35, whole: bool = False):
    """An array that is mostly (n, columns) of numbers, with any fault that there is."""
    rows = draw(st.integers(0, 7))
    shape = (rows, columns)
    if draw(st.integers(0, 7)) == 0:
        shape = draw(st.sampled_from([(), (0,), (3,), (rows, 0), (rows, 5), (1, rows, columns)]))
    kinds = ["i4", "i4", "i8", "u1"] if whole else ["f4", "f4", "f8"]
    dtype = draw(st.sampled_from(kinds * 4 + REAL + OTHER))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    values = rng.integers(low, high, shape) if whole else rng.uniform(low, high, shape)
    if draw(st.booleans()):
        values = np.asarray(np.round(values))  # equal and collinear corners, ties
    with np.errstate(all="ignore"):
        array = np.array(values.astype(dtype))
        if array.size and draw(st.integers(0, 3)) == 0 and dtype not in OTHER:
            odd = draw(st.sampled_from(LEAST.get(dtype, [-1, 9]) if whole else SPECIAL))
            if array.dtype.kind == "f" or abs(odd) > 2**62 or -128 <= odd <= 127 and odd == odd:
                array.flat[rng.integers(array.size)] = np.array(odd).astype(dtype)
    return array[::-1] if array.ndim and draw(st.integers(0, 5)) == 0 else array


def outcome(function, *arguments, **options) -> tuple[object, str]:
    """What a function returns and "", or None and how it refuses."""
    try:
        return function(*arguments, **options), ""
    except (ValueError, TypeError) as error:
        return None, str(error)


def equal_to_the_twin(function, names: str, *arguments, **options) -> object:
    """The result, which numpy's kernel must give too; None where the arguments are refused."""
    result, reason = outcome(function, *arguments, **options)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(Sim3DR, "_kernel", fallback)
        twin, reason_of_twin = outcome(function, *arguments, **options)
    assert reason == reason_of_twin
    if reason:
        assert re.search(names, reason), reason
        return None
    if isinstance(result, Sim3DR.ZBuffer):
        np.testing.assert_array_equal(result.depth, twin.depth)
        np.testing.assert_array_equal(result.triangle, twin.triangle)
    else:
        np.testing.assert_array_equal(result, twin)
    return result


# found by 20,000 random ones: opposite infinities as weights of a corner
THIN = np.array([[0, 1, 0], [4e-45, 0, 0], [0, 0, 0]], np.float32), np.array([[0, 1, 2]], np.int32)
sizes = st.one_of(st.integers(1, 40), st.sampled_from([0, -1, 2**25, 5.0, True, "5", np.int64(7)]))
triangle_arrays = anything(3, 0, 7, whole=True)


@example(*THIN, 1, 2, 0, 1)
@given(anything(3), triangle_arrays, sizes, sizes, st.integers(-9, 9), st.integers(1, 3))
def test_meshes_of_any_type(vertices, triangles, height, width, x0, threads):
    named = "vertices|triangles|height|width"
    normals = equal_to_the_twin(Sim3DR.vertex_normals, named, vertices, triangles)
    assert normals is None or (np.isfinite(vertices).all() and np.isfinite(normals).all())
    options = {"origin": (x0, -x0), "threads": threads}
    equal_to_the_twin(Sim3DR.zbuffer, named, vertices, triangles, height, width, **options)
    if isinstance(height, int) and isinstance(width, int):
        equal_to_the_twin(Sim3DR.bounds, named, vertices, height, width)


@given(
    st.integers(0, 999),
    anything(3, 0, 1),
    st.one_of(st.floats(0, 1), st.sampled_from([np.nan, -1, 1.01, np.inf])),
    st.booleans(),
    st.sampled_from([1.0, 30.0, 1e4, 1e8]),
    st.integers(1, 3),
)
def test_pictures_of_any_mesh(seed, colors, alpha, reverse, scale, threads):
    """Vertices up to the limit, slivers among them; colours and opacity of any kind."""
    rng = np.random.default_rng(seed)
    vertices = np.clip(15 + scale * rng.uniform(-1, 1, (9, 3)), -1e8, 1e8)
    if seed % 3 == 0:
        vertices[2::3] = (vertices[::3] + vertices[1::3]) / 2  # on the line between two others
    triangles = rng.integers(0, 9, (12, 3))
    background = rng.integers(0, 256, (20, 33, 3), np.uint8)
    options = {"alpha": alpha, "reverse": reverse, "threads": threads}
    arguments = vertices, triangles, colors, background
    named = "colors|alpha|triangles"
    equal_to_the_twin(Sim3DR.rasterize, named, *arguments, **options)


@given(anything(3, -9, 9), triangle_arrays)
def test_interpolation_of_anything(attributes, triangles):
    vertices = np.float32([[0, 0, 1], [30, 0, 2], [0, 30, 3], [30, 30, 0], [9, 9, 9]])
    buffer = Sim3DR.zbuffer(vertices, np.int32([[0, 1, 2], [1, 2, 3], [2, 3, 4]]), 20, 31)
    named = "attributes|triangles|triangle"
    equal_to_the_twin(Sim3DR.interpolate, named, buffer, triangles, attributes)


@given(anything(3), anything(3, -1, 1), st.sampled_from([Sim3DR.PUBLISHED, Sim3DR.RELIEF]))
def test_light_on_anything(vertices, normals, lighting):
    colors, reason = outcome(Sim3DR.shade, vertices, normals, lighting)
    if reason:
        assert re.search("vertices|normals", reason), reason
    else:
        assert colors.shape == vertices.shape
        assert ((colors >= 0) & (colors <= 1)).all()


odd = st.sampled_from([-1, 0, 1.5, np.nan])


@given(anything(5, 0, 40), st.one_of(st.floats(0.01, 1), odd), st.sampled_from(suppression.METHODS))
def test_detections_of_any_type(rows, threshold, method):
    def both():
        kept, reason = outcome(suppression.nms, rows, threshold)
        soft, reason_of_soft = outcome(suppression.soft_nms, rows, method=method)
        assert reason == reason_of_soft or "threshold" in reason
        return kept, soft, reason

    kept, soft, reason = both()
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(suppression, "kernel", None)
        twin, soft_twin, reason_of_twin = both()
    assert reason == reason_of_twin
    if reason:
        assert "detections" in reason or ("threshold" in reason and not 0 < threshold <= 1), reason
        return
    assert 0 < threshold <= 1
    np.testing.assert_array_equal(kept, twin)
    assert len(soft) == len(soft_twin)
    assert (np.diff(rows[kept, 4].astype(np.float32)) <= 0).all()


@given(anything(4, -20, 60), st.integers(1, 3), st.integers(1, 50))
def test_boxes_of_any_type(boxes, height, width):
    """Boxes through the door, and straight to the crops, which have their own check."""
    image = np.full((height, width, 3), 7, np.uint8)
    try:
        roi_boxes, reason = outcome(boxes_to_roi_boxes, boxes)
        assert not reason or "box" in reason or boxes.dtype.kind not in "fiu", reason
    except Warning:  # complex numbers: numpy's own
        assert boxes.dtype.kind == "c"
        return
    if not reason:
        crops = crop_faces(image, roi_boxes)
        assert crops.shape == (len(boxes), CROP_SIZE, CROP_SIZE, 3) and crops.max(initial=0) <= 7
    if boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.dtype.kind in "fiu":
        crops, reason = outcome(crop_faces, image, boxes)
        assert "roi box" in reason if reason else crops.shape[1:] == (CROP_SIZE, CROP_SIZE, 3)


# ------------------------------------------------------------------------------ strangers' files


@st.composite
def changes(draw) -> list[tuple[str, float, bytes]]:
    """What happens to a file: (kind, where in it, bytes)."""
    kinds = st.sampled_from(["cut", "flip", "flip", "put", "insert", "drop", "random"])
    where, content = st.floats(0, 1), st.binary(min_size=1, max_size=12)
    return draw(st.lists(st.tuples(kinds, where, content), min_size=1, max_size=4))


def changed(data: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, content in steps:
        at, size = int(where * len(data)), len(content)
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (content[0] or 1)]) + data[at + 1 :]
        elif kind == "put":
            data = data[:at] + content + data[at + size :]
        elif kind == "insert":
            data = data[:at] + content + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + size :]
        elif kind == "random":
            data = content
    return data


def refused_by_name(read, path: Path, errors=ValueError) -> object:
    """What is read; None where it is refused by an error that names the file."""
    try:
        return read(path)
    except errors as error:
        if path.name not in str(error):
            raise AssertionError(f"{error!r} does not name {path.name}") from error
        return None


def in_folder(content: bytes, name: str, read, errors=ValueError) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return refused_by_name(read, path, errors)


def saved(write, *arguments, **options) -> bytes:
    file = io.BytesIO()
    write(file, *arguments, **options)
    return file.getvalue()


Y, X = np.mgrid[:20, :30]
PHOTO = np.stack([7 * X, 9 * Y, 255 - 4 * X - 5 * Y], -1).astype(np.uint8)
DEEP = np.dstack([PHOTO, PHOTO[..., :1]]).astype(np.uint16) * 257
PICTURES = [
    (suffix, cv2.imencode(suffix, image)[1].tobytes())
    for suffix, image in [
        (".jpg", PHOTO),
        (".png", PHOTO),
        (".png", DEEP),
        (".bmp", PHOTO),
        (".webp", PHOTO),
        (".tiff", DEEP),
        (".ppm", PHOTO),
        (".hdr", PHOTO.astype(np.float32)),
        (".jp2", np.tile(PHOTO, (2, 2, 1))),  # smaller ones are refused
        (".gif", PHOTO),
        (".avif", PHOTO),
    ]
    if cv2.haveImageWriter(suffix)  # not every OpenCV has the last three
]


@given(st.sampled_from(PICTURES), changes())
def test_damaged_pictures(picture, steps):
    suffix, content = picture
    image = in_folder(changed(content, steps), f"photo{suffix}", read_image)
    if image is not None:
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size


FACE = tiny_face_arrays()
MODEL = build_morphable_model(FACE, "face.npz")
FACE_FILE = saved(np.savez, **FACE)
PACKED_FACE_FILE = saved(np.savez_compressed, **FACE)


@given(st.sampled_from([FACE_FILE, PACKED_FACE_FILE]), changes())
def test_damaged_face_models(content, steps):
    model = in_folder(changed(content, steps), "face.npz", load_morphable_model)
    assert model is None or isinstance(model, MorphableModel)


@given(
    st.sampled_from(sorted(FACE)),
    st.sampled_from(["drop", "type", "value", "transpose", "less", "flat", "object", "empty"]),
    st.sampled_from([*REAL, *OTHER]),
    st.sampled_from(SPECIAL),
    st.integers(0, 10**6),
)
def test_face_models_of_other_arrays(name, change, dtype, value, place):
    array = FACE[name]
    with np.errstate(all="ignore"):
        if change == "type":
            array = array.astype(dtype)
        elif change == "value":
            array = array.astype(np.float64)
            array.flat[place % array.size] = value
    if change == "transpose":
        array = array.T
    elif change == "less":
        array = array[:-1]
    elif change == "flat":
        array = array.ravel()
    elif change == "object":
        array = {"a": 1}
    elif change == "empty":
        array = array[:0]
    arrays = {**FACE, name: array}
    if change == "drop":
        del arrays[name]
    model, reason = outcome(build_morphable_model, arrays, "face.npz")
    if reason:
        assert "face.npz: " in reason
        return
    for array in (model.mean, model.basis, model.param_mean, model.param_std):
        assert np.isfinite(array).all()
    assert model.triangles.size == 0 or model.triangles.max() < model.num_vertices


STORED = {"param_mean": np.ones(62, np.float32), "more": [np.float64(2), (None, "text")]}
ARRAY_FILES = [
    *((f"{n}.pkl", pickle.dumps(STORED, n), read_array_pickle) for n in range(6)),
    ("a.npy", saved(np.save, FACE["tri"]), read_npy),
    ("a.npz", saved(np.savez_compressed, tri=FACE["tri"]), read_npz),
    ("a.mat", saved(scipy.io.savemat, {"tri": FACE["tri"]}), read_mat),
    ("b.mat", saved(scipy.io.savemat, {"tri": FACE["tri"]}, do_compression=True), read_mat),
]


@given(st.sampled_from(ARRAY_FILES), changes())
def test_damaged_arrays(kind, steps):
    name, content, read = kind
    in_folder(changed(content, steps), name, read)


WEIGHTS = {"state_dict": {"module.a": torch.zeros(3, 2), "b": torch.ones(2).half()}, "epoch": 3}
CHECKPOINTS = [
    saved(lambda file: torch.save(WEIGHTS, file)),
    saved(lambda file: torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)),
]


@given(st.sampled_from(CHECKPOINTS), changes())
def test_damaged_checkpoints(content, steps):
    weights = in_folder(changed(content, steps), "w.pth", read_checkpoint)
    if weights is not None:
        assert all(isinstance(value, torch.Tensor) for value in weights["state_dict"].values())


def archive(form: str) -> bytes:
    file = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("a/b.txt", b"text" * 50)
    else:
        with tarfile.open(fileobj=file, mode=form) as opened:
            info = tarfile.TarInfo("a/b.txt")
            info.size = 200
            opened.addfile(info, io.BytesIO(b"text" * 50))
    return file.getvalue()


ARCHIVES = [archive(form) for form in ("zip", "w", "w:gz", "w:bz2", "w:xz")]


@given(st.sampled_from(ARCHIVES), changes())
def test_damaged_archives(content, steps):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "archive", Path(folder) / "in" / "out"
        path.write_bytes(changed(content, steps))
        out.mkdir(parents=True)
        refused_by_name(lambda p: unpack(p, out, limits=Limits(size=1 << 20)), path)
        assert {p.name for p in Path(folder).iterdir()} == {"archive", "in"}
        assert list((Path(folder) / "in").iterdir()) == [out]


names = st.one_of(st.text(max_size=40).map(lambda t: t.encode(errors="replace")), st.binary())


@given(names)
def test_lists_of_anything(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in (AFLW_LIST, PUBLISHED_LIST):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        with pytest.raises((ValueError, OSError), match=re.escape(folder)):
            open_aflw21(folder)  # nothing but a list is there
        (Path(folder) / PUBLISHED_CROPS).mkdir()
        parameters = pickle.dumps(np.zeros((2, 62), np.float32))
        (Path(folder) / PUBLISHED_PARAMETERS).write_bytes(parameters)
        faces, reason = outcome(PublishedFaces, folder, MODEL)
        assert folder in reason if reason else len(faces.names) == 2
    in_folder(content, "results.json", read_run)


RESULTS = b'{"samples": {"yaw": [1, 2], "a": [0.5, null]}, "settings": {"labels": "original"}}'


@given(changes())
def test_damaged_results(steps):
    run = in_folder(changed(RESULTS, steps), "results.json", read_run)
    assert run is None or "yaw" in run["samples"]
