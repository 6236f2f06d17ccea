"""The pipeline from photos to faces, the Python API around it, and the files that are written."""

import copy
import csv
import io
import json
import pickle
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from conftest import on_disk, tiny_face_arrays
from scipy.spatial.transform import Rotation

from FaceBoxes.network import FaceBoxesNet
from model_building import SynergyNet as Network
from synergy3DMM import SynergyNet
from utils import photos, results
from utils.checkpoint import write_checkpoint
from utils.draw import printable
from utils.inference import (
    MAX_BATCH,
    Face,
    FacePipeline,
    expression_of,
    frontal,
    with_expression,
    with_parameters,
)
from utils.morphable_model import MIRRORED_LANDMARKS
from utils.overlays import Overlays
from utils.photo_numbers import CSV_COLUMNS, FACE_ROW, join_tables, save_numbers, write_numbers
from utils.pictures import read_image, write_image
from utils.preprocessing import boxes_to_roi_boxes, crop_faces, crop_to_image, normalize_crops
from utils.runtime import choose_engine
from utils.smoothing import STRENGTHS
from utils.tracking import FaceTracker


class BrightSquares:
    """A detector that finds the white squares of a picture, and no others."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        assert image.dtype == np.uint8 and image.shape[2] == 3
        y, x = np.nonzero((image == 255).all(2))
        found = []
        for row in sorted(set(y // 100)):
            for column in sorted(set(x[y // 100 == row] // 100)):
                here = (y // 100 == row) & (x // 100 == column)
                x1, y1, x2, y2 = x[here].min(), y[here].min(), x[here].max() + 1, y[here].max() + 1
                found.append([x1, y1, x2, y2, 0.6 + 0.1 * len(found)])
        return np.array(found, np.float32).reshape(-1, 5)


class MeanColours:
    """A regressor whose parameters depend on each crop alone, and that counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.mix = np.random.default_rng(0).normal(size=(48, 62)).astype(np.float32)

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        assert crops.dtype == np.float32 and crops.shape[1:] == (3, 120, 120)
        self.batches.append(len(crops))
        cells = crops.reshape(len(crops), 3, 4, 30, 4, 30).mean((3, 5)).reshape(len(crops), 48)
        return np.stack([0.2 * cell @ self.mix for cell in cells])


def photo(*squares: tuple[int, int, int], size: tuple[int, int] = (200, 300)) -> np.ndarray:
    """Noise with white squares (x, y, side), one in each field of 100 x 100 pixels."""
    image = np.random.default_rng(len(squares)).integers(0, 255, (*size, 3)).astype(np.uint8)
    for x, y, side in squares:
        image[y : y + side, x : x + side] = 255
    return image


PHOTOS = [
    photo((20, 30, 40), (150, 120, 31)),
    photo(),
    photo((5, 5, 60), size=(100, 90)),
    photo((220, 10, 20), (10, 110, 50), (120, 120, 70)),
]


@pytest.fixture
def pipeline(face_model) -> FacePipeline:
    return FacePipeline(BrightSquares(), MeanColours(), face_model)


def test_each_picture_shows_what_it_is_called(pipeline):
    (faces,) = pipeline([PHOTOS[0]])
    drawn = dict(results.draw_pictures(PHOTOS[0], faces))
    published = {"rendering_overlay": "mesh", "landmarks": "landmarks", "poses": "pose"}
    assert drawn.keys() == published.keys()
    for name, what in published.items():
        numbers = [0, 1] if what == "pose" else None
        expected = Overlays(pipeline.face_model, what)(PHOTOS[0], faces, numbers)
        np.testing.assert_array_equal(drawn[name], expected)
    ((_, one),) = results.draw_pictures(PHOTOS[0], faces, {"drawn": ("pose", "box")})
    expected = Overlays(pipeline.face_model, ["box", "pose"])(PHOTOS[0], faces, [0, 1])
    np.testing.assert_array_equal(one, expected)


def assert_same_face(a: Face, b: Face, tolerance: float = 0.0) -> None:
    assert (a.vertices is None) == (b.vertices is None)
    names = [
        *FACE_ROW.names,
        "triangles",
        *(["vertices"] if a.vertices is not None else []),
    ]
    for name in names:
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=0, atol=tolerance, err_msg=name
        )


# ---------------------------------------------------------------------------------------- pipeline


def test_all_faces_of_all_photos_in_one_call(pipeline):
    faces = pipeline(PHOTOS)
    assert pipeline.regressor.batches == [6]
    assert [len(of_photo) for of_photo in faces] == [2, 0, 1, 3]
    boxes = [[face.box.tolist() for face in of_photo] for of_photo in faces]
    assert boxes[0] == [[20, 30, 60, 70], [150, 120, 181, 151]]
    assert boxes[2] == [[5, 5, 65, 65]]
    assert [face.score for face in faces[3]] == pytest.approx([0.6, 0.7, 0.8])


def test_a_batch_equals_its_photos_one_by_one(pipeline):
    together = pipeline(PHOTOS)
    for image, faces in zip(PHOTOS, together, strict=True):
        (alone,) = pipeline([image])
        assert len(alone) == len(faces)
        for a, b in zip(alone, faces, strict=True):
            assert_same_face(a, b, 1e-3)  # sums of another batch are rounded in another order


def test_nothing_to_do_does_not_reach_the_network(pipeline):
    assert pipeline([PHOTOS[1], np.zeros((1, 1, 3), np.uint8)]) == [[], []]
    assert pipeline([]) == []
    assert pipeline.regressor.batches == []


def test_faces_lie_where_they_are_at_any_size(face_model):
    """With exact pixel centres an enlarged photo has the same faces, enlarged."""
    model = replace(face_model, pixel_centres=True)
    pipeline = FacePipeline(BrightSquares(), MeanColours(), model)
    box = np.array([[20.25, 30, 60, 70.5]])  # its roi box is cut at rounded corners
    (face,) = pipeline(PHOTOS[:1], [box])[0]
    np.testing.assert_array_equal(face.roi_box, np.round(boxes_to_roi_boxes(box))[0])
    times = 5
    crop = crop_faces(PHOTOS[0], face.roi_box[None])
    (other,) = pipeline.faces_from_crops(
        crop, times * face.roi_box[None], np.zeros((1, 5)), dense=True
    )
    for name in ("landmarks", "vertices", "translation"):
        where, expected = getattr(other, name), getattr(face, name).copy()
        expected[:2] = (expected[:2] + 0.5) * times - 0.5  # the same place of the larger picture
        np.testing.assert_allclose(where[:2], expected[:2], atol=2e-2, err_msg=name)


def test_crowds_go_through_in_parts(pipeline):
    boxes = np.tile([[10, 10, 50, 60]], (MAX_BATCH + 3, 1))
    (faces,) = pipeline([PHOTOS[0]], [boxes], dense=False)
    assert pipeline.regressor.batches == [MAX_BATCH, 3]
    assert len(faces) == MAX_BATCH + 3
    assert_same_face(faces[0], faces[-1], 1e-3)


def test_a_face_that_is_kept_keeps_no_other_ones_mesh(pipeline):
    ((first, *_),) = pipeline([PHOTOS[3]])
    assert first.vertices.base is None


def test_the_numbers_of_a_face(pipeline, face_model):
    """Every quantity once more, by hand, for one face."""
    image = PHOTOS[0]
    face = pipeline([image])[0][1]
    roi_box = boxes_to_roi_boxes(face.box[None])[0]
    np.testing.assert_array_equal(face.roi_box, roi_box)
    whitened = MeanColours()(normalize_crops(crop_faces(image, roi_box[None])))
    parameters = face_model.dewhiten(whitened)
    np.testing.assert_array_equal(face.parameters, parameters[0])
    sides = (roi_box[2:] - roi_box[:2]) / 120
    scale, corner = np.append(sides, sides.mean())[:, None], np.append(roi_box[:2], 0)[:, None]
    for found, crop in (
        (face.landmarks, face_model.landmarks(parameters)[0]),
        (face.vertices, face_model.vertices(parameters)[0]),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, crop * scale + corner, atol=1e-3)
    assert face.triangles is face_model.triangles

    # pose: where model points go, from scale, rotation and translation alone
    camera = parameters[0, :12].reshape(3, 4).astype(np.float64)
    lengths = np.linalg.norm(camera[:2, :3], axis=1)
    assert face.scale == pytest.approx(lengths.mean() * sides.mean())
    np.testing.assert_allclose(face.rotation[:2] * lengths[:, None], camera[:2, :3], atol=1e-9)
    np.testing.assert_allclose(face.rotation @ face.rotation[2], [0, 0, 1], atol=0.5)
    assert face.yaw == pytest.approx(np.degrees(np.arcsin(face.rotation[2, 0])))
    origin = np.array([camera[0, 3], 121 - camera[1, 3], camera[2, 3]])
    np.testing.assert_allclose(face.translation, origin * scale[:, 0] + corner[:, 0], atol=1e-3)


def test_a_face_is_shown_in_a_line(pipeline):
    (face,) = pipeline([photo((20, 30, 40))])[0]
    shown = repr(face)
    assert shown.startswith("Face(box=[") and f"facing=[{face.facing[0]:.1f}, " in shown
    assert shown.endswith(f"{face.vertices.shape[1]} vertices)") and len(shown) < 150
    expression_of(face)[:] = 7  # a copy: the face stays
    assert not (face.parameters[-10:] == 7).any()


def test_sparse_faces(pipeline):
    dense, sparse = pipeline([PHOTOS[2]])[0][0], pipeline([PHOTOS[2]], dense=False)[0][0]
    assert sparse.vertices is None
    np.testing.assert_array_equal(sparse.landmarks, dense.landmarks)


def test_own_boxes(pipeline):
    boxes = [np.array([[150, 120, 181, 151]]), None, [], [[10, 110, 60, 160, 0.9]]]
    faces = pipeline(PHOTOS, boxes)
    assert [len(of_photo) for of_photo in faces] == [1, 0, 0, 1]
    assert np.isnan(faces[0][0].score) and faces[3][0].score == pytest.approx(0.9)
    detected = pipeline([PHOTOS[0]])[0][1]
    np.testing.assert_array_equal(faces[0][0].landmarks, detected.landmarks)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([None], "got 2 images but boxes for 1"),
        ([None, [1, 2, 3, 4]], r"\(n, 4\)"),
        ([None, [[1, 2, 3]]], r"\(n, 4\)"),
        ([None, [[1, 2, np.nan, 4]]], "cannot be cropped"),
        ([[[50, 50, 40, 90]], None], "cannot be cropped"),
    ],
)
def test_bad_boxes(pipeline, boxes, message):
    with pytest.raises(ValueError, match=message):
        pipeline(PHOTOS[:2], boxes)


def test_one_rule_says_which_boxes_can_be_cropped(pipeline):
    """Detections by it are left out; the same boxes, given, are refused, with the true limit."""
    found = np.float32([[5, 5, 9, 7, 0.9], [5, 5, 9, 6.9, 0.8], [5, 5, 9, np.nan, 0.7]])
    pipeline.detector = lambda image: found
    assert [face.score for face in pipeline([PHOTOS[0]])[0]] == pytest.approx([0.9])
    for box in found[1:, :4]:
        with pytest.raises(ValueError, match="cannot be cropped: .* a height of 2 to 27306 pixels"):
            pipeline([PHOTOS[0]], [box[None]])


@pytest.mark.parametrize("kind", ["grey", "one channel", "BGRA", "16 bit", "float"])
def test_pictures_of_other_kinds(pipeline, kind):
    grey = np.repeat(PHOTOS[0][..., :1], 3, axis=2)
    grey[PHOTOS[0].min(2) < 255] //= 2
    image = {
        "grey": grey[..., 0],
        "one channel": grey[..., :1],
        "BGRA": np.dstack([grey, np.full(grey.shape[:2], 255, np.uint8)]),
        "16 bit": grey.astype(np.uint16) * 257,
        "float": grey.astype(np.float64) / 255,
    }[kind]
    before = image.copy()
    for a, b in zip(pipeline([image])[0], pipeline([grey])[0], strict=True):
        assert_same_face(a, b)
    np.testing.assert_array_equal(image, before)


def test_arrays_that_are_no_pictures(pipeline):
    for bad in (np.zeros((5, 5, 7), np.uint8), "photo.jpg", np.full((5, 5, 3), 2.0)):
        with pytest.raises(ValueError, match="expected|must be"):
            pipeline([PHOTOS[0], bad])


# ----------------------------------------------------------------------------------- changed faces


@pytest.fixture
def two_faces(pipeline) -> list[Face]:
    return pipeline([PHOTOS[0]])[0]


def test_expression_of_factor_one_is_the_face(two_faces, face_model):
    for face in two_faces:
        assert_same_face(with_expression(face), face, 1e-4)


def test_neutral_has_no_expression_and_the_rest_as_it_was(two_faces, face_model):
    face = two_faces[0]
    neutral = with_expression(face, 0)
    np.testing.assert_array_equal(expression_of(neutral), np.zeros(10))
    np.testing.assert_array_equal(neutral.parameters[:52], face.parameters[:52])
    expected = face_model.vertices(neutral.parameters[None])
    expected = crop_to_image(expected, face.roi_box[None])[0]
    np.testing.assert_allclose(neutral.vertices, expected, atol=1e-4)
    for name in ("box", "score", "roi_box", "yaw", "pitch", "roll", "scale", "translation"):
        np.testing.assert_array_equal(getattr(neutral, name), getattr(face, name))
    # and the expression put back on it is the face again
    assert_same_face(with_expression(neutral, 1, expression_of(face)), face, 1e-4)


def test_expression_scales_the_deformation(two_faces, face_model):
    face = two_faces[0]
    zero, half, two = (with_expression(face, f).vertices for f in (0, 0.5, 2))
    assert np.abs(face.vertices - zero).max() > 0.1
    np.testing.assert_allclose(half - zero, (face.vertices - zero) / 2, atol=1e-3)
    np.testing.assert_allclose(two - zero, (face.vertices - zero) * 2, atol=1e-3)


def test_another_face_gives_its_expression_and_nothing_else(two_faces, face_model):
    face, other = two_faces
    before = face.parameters.copy()
    changed = with_expression(face, coefficients=expression_of(other))
    np.testing.assert_array_equal(changed.parameters[:52], face.parameters[:52])
    np.testing.assert_array_equal(changed.parameters[52:], other.parameters[52:])
    np.testing.assert_array_equal(changed.rotation, face.rotation)
    np.testing.assert_array_equal(face.parameters, before)
    moved = face_model.shapes(other.parameters[None]) - face_model.shapes(
        with_expression(other, 0).parameters[None]
    )  # the other's deformation, model frame
    neutral = face_model.shapes(with_expression(face, 0).parameters[None])
    actual = face_model.shapes(changed.parameters[None])
    np.testing.assert_allclose(actual - neutral, moved, rtol=1e-3, atol=1)  # micrometres


def test_frontal_has_no_pose_and_keeps_size_and_place(two_faces, face_model):
    face = two_faces[1]
    assert np.abs([face.yaw, face.pitch, face.roll]).max() > 1
    upright = frontal(face)
    np.testing.assert_allclose(upright.rotation, np.eye(3), atol=1e-9)
    np.testing.assert_allclose([upright.yaw, upright.pitch, upright.roll], 0, atol=1e-6)
    assert upright.scale == pytest.approx(face.scale, rel=1e-6)
    np.testing.assert_allclose(upright.translation, face.translation, atol=1e-4)
    np.testing.assert_array_equal(upright.parameters[12:], face.parameters[12:])
    # the model's own axes, y turned down
    shape = face_model.shapes(face.parameters[None])[0] * np.float32([[1], [-1], [1]])
    expected = face.scale * shape + face.translation[:, None]
    np.testing.assert_allclose(upright.vertices, expected, atol=1e-3)
    assert_same_face(frontal(upright), upright, 1e-4)
    # expression and pose do not know of each other
    one = frontal(with_expression(face, 0.3))
    assert_same_face(one, with_expression(upright, 0.3), 1e-4)


def test_a_frontal_mean_face_is_symmetric(two_faces, face_model):
    parameters = two_faces[0].parameters.copy()
    parameters[12:] = 0
    upright = frontal(replace(two_faces[0], parameters=parameters))
    landmarks = upright.landmarks - upright.translation[:, None]
    mirrored = landmarks[:, MIRRORED_LANDMARKS] * [[-1], [1], [1]]
    np.testing.assert_allclose(landmarks, mirrored, atol=1e-3)


def test_changed_faces_without_a_dense_mesh(pipeline, face_model):
    face = pipeline([PHOTOS[0]], dense=False)[0][0]
    assert with_expression(face, 2).vertices is None
    assert frontal(face).vertices is None


@pytest.mark.parametrize(
    "arguments", [(np.nan,), (1, np.zeros(9)), (1, np.full(10, np.inf)), (1, [[0.0] * 10])]
)
def test_expressions_that_are_none(two_faces, face_model, arguments):
    with pytest.raises(ValueError, match="10 finite expression coefficients"):
        with_expression(two_faces[0], *arguments)


# ---------------------------------------------------------------------------------- the Python API


@pytest.fixture(scope="module")
def api(face_model, face_npz, tmp_path_factory) -> SynergyNet:
    """The real thing with small random weights; the squares' detector in place of FaceBoxes."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    write_checkpoint(folder / "w.pth", Network(face_model, "mobilenet_025").checkpoint())
    torch.save(FaceBoxesNet().state_dict(), folder / "detector.pth")
    model = SynergyNet(folder / "w.pth", face_npz, folder / "detector.pth", "cpu")
    model.pipeline.detector = BrightSquares()
    return model


def test_api_on_one_picture_and_several(api):
    faces = api(PHOTOS[3])
    assert len(faces) == 3 and all(isinstance(face, Face) for face in faces)
    of_each = api(PHOTOS)
    assert [len(found) for found in of_each] == [2, 0, 1, 3]
    for a, b in zip(of_each[3], faces, strict=True):
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=1e-3)
    assert [len(found) for found in api(iter(PHOTOS))] == [2, 0, 1, 3]
    assert len(api(PHOTOS[0], boxes=np.array([[10, 10, 50, 50.0]]))) == 1
    assert api(PHOTOS[1]) == []


def test_api_on_paths_and_iterables(api, tmp_path):
    path = tmp_path / on_disk("Zoë.png")
    write_image(path, PHOTOS[0])
    expected = api(PHOTOS[0])
    for faces in (api(path), api(str(path)), api([PHOTOS[1], path])[1], api((path,))[0]):
        for face, other in zip(faces, expected, strict=True):
            assert_same_face(face, other)
    with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
        api("nowhere.jpg")
    with pytest.raises(ValueError, match="got int"):
        api(3)


def test_iterables_are_taken_one_at_a_time(api):
    taken = []

    def frames():
        for i, image in enumerate(PHOTOS):
            taken.append(i)
            yield image

    results_of = api(frames(), dense=False)
    assert taken == []
    first = next(results_of)
    assert taken == [0]
    assert [len(faces) for faces in (first, *results_of)] == [
        len(faces) for faces in api(PHOTOS, dense=False)
    ]
    boxes = iter([None, np.array([[10, 10, 50, 50]]), None, []])
    assert [len(f) for f in api(frames(), boxes)][1::2] == [1, 0]


def red_corner(image: np.ndarray) -> list[list[float]]:
    """A detector of one's own, without scores."""
    return [[10, 20, 60, 90]] if (image[0, 0] == (0, 0, 255)).all() else []


def test_a_detector_of_ones_own(api, tmp_path):
    weights, face_model, _ = api.files
    model = SynergyNet(weights, face_model, device="cpu", detector=red_corner)
    assert "detector red_corner," in model.description and len(model.files) == 2
    again = pickle.loads(pickle.dumps(model))
    red, green = (np.full((120, 100, 3), colour, np.uint8) for colour in ((0, 0, 255), (0, 255, 0)))
    for own in (model, again):
        (face,) = own(red)
        assert face.box.tolist() == [10, 20, 60, 90] and np.isnan(face.score)
        assert_same_face(face, api(red, boxes=[[10, 20, 60, 90]])[0])
        assert own(green) == []


class Empty(list):
    """A detector that is false where its truth is asked for."""

    def __call__(self, image: np.ndarray) -> list[list[float]]:
        return [[10, 20, 60, 90, 0.5], [9000, 9000, 9100, 9100, 0.9]]


class Own(SynergyNet):
    def __init__(self, weights: Path, face_model: Path) -> None:
        self.tag = "mine"
        super().__init__(weights, face_model, device="cpu", detector=Empty())


def test_detectors_and_models_of_ones_own_classes(api):
    model = Own(*api.files[:2])
    for own in (model, pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert type(own) is Own and "detector Empty" in own.description and own.tag == "mine"
        (face,) = own(PHOTOS[0])  # the other box lies outside
        assert face.score == 0.5
    with pytest.raises(ValueError, match="detector_weights belong to FaceBoxes"):
        SynergyNet(*api.files, device="cpu", detector=red_corner)


@pytest.mark.parametrize("found", [[10, 20, 60, 90], [[1, 2, 3]] * 5, [[[1, 2, 3, 4, 5]]], None])
def test_a_detector_that_gives_no_boxes(api, found):
    weights, face_model, _ = api.files
    model = SynergyNet(weights, face_model, device="cpu", detector=lambda image: found)
    with pytest.raises(ValueError, match="expected boxes from the detector of shape"):
        model(PHOTOS[0])


def test_changed_faces_keep_the_texture_of_the_photo(api, tmp_path):
    face = api(PHOTOS[0])[0]
    changed = frontal(with_expression(face, 2))
    assert face.fitted is None and changed.fitted is face
    paths = [tmp_path / "fitted.ply", tmp_path / "changed.ply"]
    for saved, path in zip((face, changed), paths, strict=True):
        saved.save(path, PHOTOS[0])
    meshes = [trimesh.load(path, process=False) for path in paths]
    colours = [mesh.visual.vertex_colors for mesh in meshes]
    np.testing.assert_array_equal(*colours)
    assert np.abs(meshes[0].vertices - meshes[1].vertices).max() > 1e-5


def test_a_face_with_other_parameters(api):
    one, two = api(PHOTOS[0])
    mean = np.append(one.parameters[:12], (one.parameters[12:] + two.parameters[12:]) / 2)
    changed = with_parameters(one, mean)
    np.testing.assert_allclose(changed.parameters, mean, rtol=1e-6)
    assert changed.yaw == pytest.approx(one.yaw) and changed.fitted is one
    assert_same_face(with_parameters(changed, one.parameters), one, 1e-3)
    for wrong in (mean[:61], mean * np.nan):
        with pytest.raises(ValueError, match="62 finite parameters"):
            with_parameters(one, wrong)


def test_the_published_call(api):
    landmarks, vertices, poses = api.get_all_outputs(PHOTOS[0])
    faces = api(PHOTOS[0])
    assert len(landmarks) == len(vertices) == len(poses) == 2
    for i, face in enumerate(faces):
        assert landmarks[i].shape == (3, 68) and vertices[i].shape == (3, 150)
        np.testing.assert_array_equal(landmarks[i], face.landmarks)
        angles, translation = poses[i]
        assert angles == [face.yaw, face.pitch, face.roll]
        assert translation == face.translation.tolist()
    assert api.get_all_outputs(PHOTOS[1]) == ([], [], [])


def test_api_in_threads(api):
    expected = [api.get_all_outputs(image)[0] for image in PHOTOS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(api.get_all_outputs, PHOTOS * 4))
    for i, (landmarks, _, _) in enumerate(found):
        for a, b in zip(landmarks, expected[i % 4], strict=True):
            np.testing.assert_array_equal(a, b)


class Upload:
    """A file as web frameworks and ``tempfile`` have them: no ``io.IOBase``."""

    def __iter__(self):
        return self.readline()

    def readline(self) -> bytes:
        raise AssertionError("read as a stream of pictures")


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 9, 9), {"a": np.zeros((9, 9, 3), np.uint8)}, io.StringIO(), 7, None, Upload()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_picture_is_said_at_once(api, wrong):
    with pytest.raises(ValueError, match=f"expected a picture.*{type(wrong).__name__}"):
        api(wrong)


def test_a_files_bytes_are_a_picture_as_its_path_is(api, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, np.dstack([PHOTOS[0], np.full((200, 300), 128, np.uint8)]))  # half clear
    expected, content = api(path), path.read_bytes()
    for given in (content, bytearray(content), memoryview(content)):
        for faces in (api(given), *api([given]), *api(iter([given]))):
            assert [face.to_dict() for face in faces] == [face.to_dict() for face in expected]
    assert [face.score for _, face in api.tracker()(content)] == []  # no face's geometry
    with pytest.raises(ValueError, match=r"the picture: not a picture.*convert HEIC"):
        api(b"jpeg")
    with pytest.raises(ValueError, match="the picture: the file is empty"):
        api(b"")
    monkeypatch.setenv("SYNERGYNET_MAX_PIXELS", "59999")
    with pytest.raises(ValueError, match="the picture: it says that it has 300x200 pixels"):
        api(content)


@pytest.mark.parametrize(("boxes", "said"), [(1, "more pictures than boxes"), (3, "more boxes")])
def test_a_stream_with_other_than_one_box_list_for_each_picture(api, boxes, said):
    found = api(iter([PHOTOS[0], PHOTOS[0]]), boxes=[[[10, 10, 50, 50]]] * boxes)
    with pytest.raises(ValueError, match=said):
        list(found)


def test_a_model_can_be_pickled(api, monkeypatch):
    image = photo((20, 30, 40))
    assert repr(api) == f"SynergyNet({api.description})"
    assert all(word in repr(api) for word in ("w.pth", "face.npz", "detector.pth", "cpu"))
    again = pickle.loads(pickle.dumps(api))
    assert again.description == api.description
    weights, *others = api.files
    monkeypatch.chdir(weights.parent)
    relative = SynergyNet(weights.name, *others, "cpu")
    monkeypatch.chdir(weights.parents[1])
    pickle.loads(pickle.dumps(relative))
    again.pipeline.detector = BrightSquares()
    for a, b in zip(api(image), again(image), strict=True):
        assert_same_face(a, b)


def test_faces_take_neither_the_face_model_nor_its_triangles_along(api):
    face = api(PHOTOS[0], dense=False)[0]
    content = pickle.dumps(face)
    assert len(content) < 5000
    for other in (pickle.loads(content), copy.deepcopy(face)):
        assert other.triangles is other.face_model.triangles
        np.testing.assert_array_equal(other.triangles, face.triangles)
    assert (
        repr(api.face_model)
        == f"MorphableModel({api.files[1]}, {api.face_model.num_vertices} vertices)"
    )
    for array in (face.face_model.mean, face.face_model.basis, face.triangles):
        with pytest.raises(ValueError, match="read-only"):
            array += 1  # it would change every face of this process


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu:0")])
def test_names_of_the_cpu(device):
    assert choose_engine("torch", device) == ("torch", "cpu")


@pytest.mark.parametrize("device", [0, None])
def test_what_is_no_device_is_said(device):
    with pytest.raises(ValueError, match="unknown device"):
        choose_engine("auto", device)


def test_weights_of_another_face_model_are_refused(face_model, tmp_path):
    np.savez(tmp_path / "other.npz", **tiny_face_arrays(seed=1))
    write_checkpoint(tmp_path / "w.pth", Network(face_model, "mobilenet_025").checkpoint())
    torch.save(FaceBoxesNet().state_dict(), tmp_path / "detector.pth")
    with pytest.raises(ValueError, match=face_model.fingerprint):
        SynergyNet(tmp_path / "w.pth", tmp_path / "other.npz", tmp_path / "detector.pth", "cpu")


def test_all_faces_on_one_picture_and_through_frames(api):
    faces = api(PHOTOS[3])
    drawn = api.draw(PHOTOS[3], faces, "landmarks")
    expected = PHOTOS[3]
    for face in faces:
        expected = face.draw(expected, "landmarks")
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn != PHOTOS[3]).any()
    np.testing.assert_array_equal(api.draw(PHOTOS[3], iter(faces), "landmarks"), drawn)
    for other in (list(enumerate(faces)), [faces]):
        with pytest.raises(ValueError, match="expected the faces of one picture; a tracker"):
            api.draw(PHOTOS[3], other)
    other = replace(api.face_model, mean=api.face_model.mean + 1)
    mixed = [faces[0], replace(faces[1], face_model=other)]
    np.testing.assert_array_equal(
        api.draw(PHOTOS[3], mixed, "box"), api.draw(PHOTOS[3], faces[:2], "box")
    )
    with pytest.raises(ValueError, match="a face of another face model"):
        api.draw(PHOTOS[3], mixed, "mesh")
    sent = pickle.loads(pickle.dumps(faces))
    np.testing.assert_array_equal(api.draw(PHOTOS[3], sent), api.draw(PHOTOS[3], faces))
    tracker = api.tracker("strong", detect_every=3)
    assert isinstance(tracker, FaceTracker) and tracker.pipeline is api.pipeline
    assert tracker.strength is STRENGTHS["strong"] and tracker.detect_every == 3


def test_a_stream_goes_on_after_a_bad_picture(api, tmp_path):
    found = api(iter([PHOTOS[0], tmp_path / "missing.jpg", PHOTOS[3]]), dense=False)
    assert len(next(found)) == 2
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        next(found)
    assert len(next(found)) == 3
    with pytest.raises(StopIteration):
        next(found)


@pytest.mark.parametrize("box", [[900, 10, 990, 90], [10, 900, 90, 990], [-90, 5, -10, 80]])
def test_boxes_outside_the_picture_are_refused(pipeline, box):
    height, width = PHOTOS[0].shape[:2]
    with pytest.raises(ValueError, match=f"outside the picture of {width}x{height} pixels"):
        pipeline([PHOTOS[0]], [[[10, 10, 50, 50], box]])
    assert len(pipeline([PHOTOS[0]], [[[-30, -30, 40, 40]]])[0]) == 1  # partly outside is fine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ""}, "no weights there"),
        ({"threads": 0}, "threads must be a whole number, 1 or more, got 0"),
        ({"threads": 1.5}, "threads must be a whole number, 1 or more, got 1.5"),
        ({"detect_size": 0}, "detect_size must lie in .* got 0"),
        ({"score_threshold": 2}, "score_threshold must lie in"),
        ({"detector": 5}, "a detector is a function from a picture to boxes, not int"),
    ],
)
def test_wrong_options_of_the_model_are_refused(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        SynergyNet(**{"device": "cpu", **options})


# -------------------------------------------------------------------------------------- the results


@pytest.mark.parametrize("dense", [True, False])
def test_numbers_round_trip(pipeline, tmp_path, dense):
    (faces,) = pipeline([PHOTOS[3]], dense=dense)
    photo = tmp_path / on_disk("Zoë.jpg")
    save_numbers(tmp_path, photo.stem, photo, faces, ("npz", "json", "csv"), pipeline.face_model)
    written = tmp_path / "numbers" / photo.name
    with np.load(written.with_suffix(".npz"), allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    assert ("vertices" in stored) == dense
    np.testing.assert_array_equal(stored.pop("triangles"), faces[0].triangles)
    for name, array in stored.items():
        expected = np.array([getattr(face, name) for face in faces])
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)

    content = json.loads(written.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["faces"] == [face.to_dict() for face in faces]
    assert content["photo"] == str(photo)
    assert len(content["faces"]) == 3
    for record, face in zip(content["faces"], faces, strict=True):
        assert set(record) == set(FACE_ROW.names)
        for name, value in record.items():
            exact = name in ("scale", "parameters")
            np.testing.assert_allclose(
                value, getattr(face, name), rtol=1e-12 if exact else 0, atol=0 if exact else 1e-6
            )

    with open(written.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    shown = printable(str(photo))
    assert [(line["photo"], line["face"]) for line in lines] == [(shown, c) for c in "012"]
    for line, face in zip(lines, faces, strict=True):
        values = {key: float(line[key]) for key in CSV_COLUMNS[2:]}
        np.testing.assert_allclose(
            [values[f"box_{key}"] for key in ("x1", "y1", "x2", "y2")], face.box
        )
        assert values["yaw"] == pytest.approx(face.yaw, abs=1e-6)
        assert values["facing_roll"] == pytest.approx(face.facing[2], abs=1e-6)
        assert values["scale"] == face.scale
        point = [values[f"{axis}67"] for axis in "xyz"]
        np.testing.assert_allclose(point, face.landmarks[:, 67], atol=1e-6)


def test_a_camera_of_two_rows_is_written(pipeline, tmp_path):
    face, *_ = pipeline([PHOTOS[0]])[0]
    parameters = face.parameters.copy()
    parameters[8:11] = 0  # weak perspective, of a fit that knows no third row
    face = with_parameters(face, parameters)
    assert face.stretch == np.inf and face.to_dict()["stretch"] is None
    for name in ("a.json", "a.csv", "a.npz"):
        face.save(tmp_path / name)


def test_a_photos_name_is_no_formula(pipeline, tmp_path):
    (faces,) = pipeline([PHOTOS[0]])
    write_numbers(tmp_path / "a.csv", faces, {"photo": "=1+1, 2.jpg"}, faces[0].face_model)
    with open(tmp_path / "a.csv", newline="") as file:
        assert {line["photo"] for line in csv.DictReader(file)} == {"./=1+1, 2.jpg"}
    write_numbers(tmp_path / "b.csv", faces, {"photo": "b\udcff.jpg"}, faces[0].face_model)
    assert "b?.jpg" in (tmp_path / "b.csv").read_text()


def test_one_table_of_all_photos(pipeline, tmp_path):
    tables = []
    for name, image in zip("abc", PHOTOS[:3], strict=True):
        (faces,) = pipeline([image], dense=False)
        save_numbers(tmp_path, name, Path(name), faces, ("csv",), pipeline.face_model)
        tables.append((tmp_path / "numbers" / f"{name}.csv").read_text().splitlines())
    assert [len(table) for table in tables] == [3, 1, 2]  # one has no face
    join_tables(tmp_path, ["a", "b", "failed", "c"])
    expected = [tables[0][0], *(line for table in tables for line in table[1:])]
    assert (tmp_path / "faces.csv").read_text().splitlines() == expected


def test_numbers_of_a_photo_without_faces_and_of_given_boxes(pipeline, tmp_path):
    face_model, formats = pipeline.face_model, ("npz", "json")
    save_numbers(tmp_path, "none", tmp_path / "none.jpg", [], formats, face_model)
    assert json.loads((tmp_path / "numbers" / "none.json").read_text())["faces"] == []
    with np.load(tmp_path / "numbers" / "none.npz", allow_pickle=False) as file:
        none = {name: file[name] for name in file.files}
    (faces,) = pipeline([PHOTOS[0]], [[[10, 10, 50, 50]]])
    save_numbers(tmp_path, "own", tmp_path / "own.jpg", faces, formats, face_model)
    with np.load(tmp_path / "numbers" / "own.npz", allow_pickle=False) as file:
        assert file.files == list(none)
        for name in set(none) - {"triangles"}:  # as those who put many files together count on
            assert len(np.concatenate([none[name], file[name]])) == 1
        np.testing.assert_array_equal(none["triangles"], file["triangles"])
    record = json.loads((tmp_path / "numbers" / "own.json").read_text())["faces"][0]
    assert record["score"] is None  # JSON knows no NaN


def test_of_the_pictures_one_is_in_memory_at_a_time(pipeline, tmp_path, monkeypatch):
    (faces,) = pipeline([PHOTOS[0]])
    written = []

    def write(path, picture):
        assert not any(earlier() is not None for earlier in written)
        written.append(weakref.ref(picture))

    monkeypatch.setattr(results, "write_image", write)
    results.save_pictures(tmp_path, "a", PHOTOS[0], faces)
    assert len(written) == 3


def test_a_face_saves_itself_by_suffix(two_faces, tmp_path):
    face, image = two_faces[0], PHOTOS[0]
    for name in ("a.npz", "a.json", "a.html", "deep/er/a.PNG", "a.ply"):
        files = face.save(tmp_path / name, image)
        assert files == [tmp_path / name] and files[0].stat().st_size > 100
    for name in ("b.obj", "b.ply"):  # no photo, no colours
        assert face.save(str(tmp_path / name)) == [tmp_path / name]
    write_image(tmp_path / "c.png", image)
    before = (tmp_path / "c.png").read_bytes()
    textured = face.save(tmp_path / "c.obj", image)
    write_image(tmp_path / "photo.png", image)
    again = face.save(tmp_path / "d.obj", str(tmp_path / "photo.png"))
    textures = [read_image(p) for p in (*textured, *again) if p.suffix == ".png"]
    np.testing.assert_array_equal(*textures)
    np.testing.assert_array_equal(face.draw(tmp_path / "photo.png"), face.draw(image))
    assert {p.name for p in textured} == {"c.obj", "c.mtl", "c_texture.png"}
    assert (tmp_path / "c.png").read_bytes() == before  # the photo, as likely as not
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["landmarks"], [face.landmarks])
    (record,) = json.loads((tmp_path / "a.json").read_text())["faces"]
    assert record["yaw"] == pytest.approx(face.yaw, abs=1e-6)
    np.testing.assert_array_equal(read_image(tmp_path / "deep/er/a.PNG"), face.draw(image))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[183, 59, 88, 121, 0.9]], "not x y width height"),
        ([[0.357, 0.115, 0.529, 0.352, 0.9]], "not fractions of the picture"),
        ([{"box": [1, 2, 3, 4]}], "boxes from the detector as rows of numbers"),
        (([[1, 2, 30, 40]], [0.9]), "boxes from the detector as rows of numbers"),
    ],
)
def test_detectors_with_another_idea_of_boxes_are_refused(pipeline, boxes, message):
    with pytest.raises(ValueError, match=message):
        FacePipeline(lambda image: boxes, pipeline.regressor, pipeline.face_model)([PHOTOS[0]])


def test_a_face_has_no_texture_from_another_picture(two_faces, tmp_path):
    with pytest.raises(ValueError, match="picture of 4x3 pixels: it is not the photo"):
        two_faces[0].save(tmp_path / "a.glb", PHOTOS[0][:3, :4])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.docx", "a.docx: a face is written as .npz"), ("a", "a face is written as"),
     ("a.jpg", "a.jpg: needs the face's photo")],
)  # fmt: skip
def test_files_that_a_face_cannot_be(two_faces, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        two_faces[0].save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_face_draws_itself(two_faces, pipeline):
    image = PHOTOS[0].copy()
    mesh = two_faces[0].draw(image, ["mesh"])
    both = two_faces[0].draw(image)
    np.testing.assert_array_equal(image, PHOTOS[0])
    assert (mesh != image).any() and (both != mesh).any()
    np.testing.assert_array_equal(two_faces[0].draw(image, []), image)
    ((sparse, _),) = pipeline([image], dense=False)
    np.testing.assert_array_equal(sparse.draw(image, ["box"]), two_faces[0].draw(image, ["box"]))
    with pytest.raises(ValueError, match="mesh needs the dense mesh"):
        sparse.draw(image)
    np.testing.assert_array_equal(sparse.draw(image, "pose"), sparse.draw(image, ["pose"]))
    with pytest.raises(ValueError, match="cannot draw"):
        sparse.draw(image, ["moustache"])


def names(folder) -> dict[str, str]:
    return {path.name: name for name, path in photos.find_photos([folder])}


def test_photo_names(tmp_path):
    for name in ("b.jpg", "a.png", "c.JPEG", "notes.txt", "d.e.tiff"):
        (tmp_path / name).touch()
    assert names(tmp_path) == {"a.png": "a", "b.jpg": "b", "c.JPEG": "c", "d.e.tiff": "d.e"}
    assert list(names(tmp_path)) == ["a.png", "b.jpg", "c.JPEG", "d.e.tiff"]
    assert [p.name for _, p in photos.find_photos([tmp_path], png_only=True)] == ["a.png"]
    assert photos.find_photos([tmp_path / "notes.txt"]) == [("notes", tmp_path / "notes.txt")]


def test_photos_of_several_places(tmp_path):
    places = [tmp_path / name for name in ("x", "y", "z/x")]
    for folder, files in zip(places, ("a.jpg b.jpg", "a.jpg c.jpg", "b.jpg"), strict=True):
        folder.mkdir(parents=True)
        for name in files.split():
            (folder / name).touch()
    x, y, z = places
    assert photos.find_photos([x, x / "a.jpg", y / "c.jpg"]) == [
        ("a", x / "a.jpg"), ("b", x / "b.jpg"), ("c", y / "c.jpg"),
    ]  # fmt: skip
    assert [n for n, _ in photos.find_photos([x, y])] == [
        "x_a.jpg", "b.jpg", "y_a.jpg", "c.jpg",
    ]  # fmt: skip
    same = [name for name, _ in photos.find_photos([x, z])]  # folders of one name
    assert same[0] == "a.jpg" and len(set(same)) == 3
    assert all(name.endswith("x_b.jpg") and "/" not in name for name in same[1:])


def test_what_is_left_out_of_a_folder(tmp_path):
    for name in ("a.jpg", "._a.jpg", "b.HEIC", "notes.txt"):
        (tmp_path / name).touch()
    assert list(names(tmp_path)) == ["a.jpg"]
    assert ".heic files are not read: convert" in photos.unread(tmp_path.iterdir())
    assert photos.unread([tmp_path / "a.jpg", tmp_path / "notes.txt"]) == ""
    with pytest.raises(FileNotFoundError, match=r"no PNG file.*\.heic files are not read"):
        photos.find_photos([tmp_path], png_only=True)


@pytest.mark.parametrize(
    "files",
    [
        ["a.jpg", "a.png", "b.png"],
        ["a.jpg", "a.png", "a.jpg.png"],
        ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.bmp"],
        ["A.jpg", "a.png"],  # some systems' file names do not know the difference
    ],
)
def test_photos_that_would_share_a_name_do_not(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    found = names(tmp_path)
    assert sorted(found) == sorted(files)
    assert len({name.casefold() for name in found.values()}) == len(files)
    assert found["a.png"] == "a.png"
    assert found.get("b.png", "b") == "b"


def test_a_photo_named_twice_is_taken_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    Path("x/a.jpg").touch()
    twice = [Path("x"), tmp_path / "x" / "a.jpg", Path("x/../x/a.jpg")]
    assert photos.find_photos(twice) == [("a", Path("x/a.jpg"))]


def test_folders_in_folders(tmp_path):
    for name in ("a.jpg", "b/a.jpg", "b/c/d.png", ".hidden/e.jpg", "out/landmarks/a.jpg"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    album = tmp_path / "album"
    found = photos.find_photos([album], recursive=True, results=album / "out")
    assert found == [
        ("album_a.jpg", album / "a.jpg"),
        ("b_a.jpg", album / "b" / "a.jpg"),
        ("d.png", album / "b" / "c" / "d.png"),
    ]
    assert photos.find_photos([album]) == [("a", album / "a.jpg")]
    with pytest.raises(FileNotFoundError, match="-r searches the folders in it too"):
        photos.find_photos([tmp_path])


def test_no_photos(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            photos.find_photos([path])


def test_summary(pipeline):
    def turned(parameters: np.ndarray) -> np.ndarray:
        camera = parameters[:12].reshape(3, 4).copy()
        camera[:, :3] = camera[:, :3] @ Rotation.from_euler("xyz", [10, 20, 30], True).as_matrix()
        return np.append(camera, parameters[12:])

    (faces,) = pipeline([PHOTOS[3]])
    faces = [frontal(face) for face in faces]
    faces[0] = with_parameters(faces[0], turned(faces[0].parameters))
    number = r"-?\d+\.\d"
    told = results.summary(faces)
    assert re.sub(number, "#", told) == "3 faces: " + "; ".join(3 * ["yaw # pitch # roll #"])
    found = np.array(re.findall(number, told), float).reshape(3, 3)
    np.testing.assert_allclose(found, [face.facing for face in faces], atol=0.0501)
    assert np.abs(found[0]).min() > 0.5  # none could stand for another
    assert results.summary(faces * 2) == told.replace("3 faces", "6 faces") + "; ..."
    parameters = faces[1].parameters.copy()
    parameters[4:7] *= 1.2  # the camera's second row: no turn and scale of any head
    faces[1] = with_parameters(faces[1], parameters)
    assert [face.stretch for face in faces] == pytest.approx([1, 1.2, 1])
    assert results.summary(faces).endswith(" (face 1 fitted badly: upside down, or no face?)")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/a.jpg", "/tmp/a.jpg"], ["a.jpg", "tmp_a.jpg"]),  # never a path: results would leave -o
        (["/x/\u00e9.jpg", "/y/e\u0301.jpg"], ["x_\u00e9.jpg", "y_e\u0301.jpg"]),  # one to macOS
    ],
)
def test_names_of_photos_that_share_one(files, names):
    assert photos.result_names([Path(file) for file in files]) == names
