"""Background for training: a label that no face has, crops that lie in their scenes."""

import json
import sys
import zipfile

import cv2
import numpy as np
import pytest

from starter_kit import pack_background
from starter_kit.evaluate_network import ROI_BOX
from starter_kit.pack_background import FLATTENED, cut, flat_face, random_squares, squares_around
from starter_kit.rotate_views import FACE_SIDE
from utils import assets
from utils.datasets import write_packed
from utils.files import read_npz
from utils.inference import faces_from_parameters
from utils.morphable_model import load_morphable_model
from utils.preprocessing import boxes_to_roi_boxes

SIDE = 160


def test_the_label_is_a_face_in_the_middle_without_much_depth():
    face_model = load_morphable_model(assets.STARTER_FACE_MODEL)
    parameters, landmarks = flat_face(face_model)
    low, high = landmarks[:2].min(1), landmarks[:2].max(1)
    np.testing.assert_allclose((low + high) / 2, (SIDE - 1) / 2, atol=1e-3)
    assert (high - low).max() == pytest.approx(FACE_SIDE * SIDE)
    assert landmarks[1, 8] > landmarks[1, 27]  # the chin is below the nose
    (face,) = faces_from_parameters(
        face_model, parameters[None], np.array([ROI_BOX]), np.zeros((1, 5)), dense=False
    )
    assert face.stretch == pytest.approx(1 / FLATTENED)
    np.testing.assert_allclose(face.facing, 0, atol=1e-4)


def test_random_squares_lie_inside():
    image = np.zeros((50, 200, 3), np.uint8)
    squares = random_squares(image, 200, np.random.default_rng(0))
    sides = squares[:, 2:] - squares[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    assert squares.min() >= 0 and (squares[:, 2:] <= (200, 50)).all()
    assert 40 <= sides.min() < 42 and 48 < sides.max() <= 50


def test_the_roi_box_is_the_middle_of_a_square_around_a_box():
    boxes = np.array([[30.0, 40, 70, 100]])
    square = squares_around(boxes)[0]
    scale = (square[2] - square[0]) / SIDE
    inner = np.tile(square[:2], 2) + scale * np.array(ROI_BOX)
    np.testing.assert_allclose(inner, boxes_to_roi_boxes(boxes)[0])


@pytest.mark.parametrize("square", [(-30, -5, 50, 75), (70, 20, 150, 100), (-100, -100, 900, 900)])
def test_what_leaves_the_scene_is_moved_into_it(square):
    image = np.zeros((90, 110, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(110) + 1, (np.arange(90) + 1)[:, None]
    picture = cut(image, np.array(square, float))
    assert picture.shape == (SIDE, SIDE, 3) and picture[..., :2].min() > 0
    side = 80 if square[2] < 900 else 90
    assert np.ptp(picture[..., 0].astype(int)) == pytest.approx(side - 1, abs=1)
    assert np.ptp(picture[..., 1].astype(int)) == pytest.approx(side - 1, abs=1)


def test_scenes_with_a_box_are_left_out(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    names = {"scene_0.jpg": [], "scene_1.jpg": [[1, 2, 30, 40, 0.06]], "crowd_0.jpg": []}
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / "train.json").write_text(json.dumps(names))
    with zipfile.ZipFile(tmp_path / "detector" / "train.zip", "w") as archive:
        for level, name in zip((40, 120, 220), names, strict=True):
            noise = level + rng.integers(0, 20, (90, 120, 3))
            archive.writestr(name, cv2.imencode(".png", noise.astype(np.uint8))[1].tobytes())
    faces = {
        "parameters": rng.normal(size=(2, 62)).astype(np.float32),
        "landmarks": rng.normal(size=(2, 3, 68)).astype(np.float32),
        "valid": np.tile(np.int16([0, 0, SIDE, SIDE]), (2, 1)),
        "names": np.array(["a.jpg", "b.jpg"]),
    }
    pictures = np.full((2, SIDE, SIDE, 3), 200, np.uint8)
    write_packed(tmp_path / "faces", pictures, 2, SIDE, **faces)
    line = ["--photos", tmp_path, "--out", tmp_path / "out", "--with", tmp_path / "faces"]
    line += ["--combined", tmp_path / "all", "--per-scene", 3]
    monkeypatch.setattr(sys, "argv", ["pack_background", *map(str, line)])
    pack_background.main()

    labels, images = read_npz(tmp_path / "out" / "labels.npz"), np.load(tmp_path / "out/images.npy")
    assert len(images) == len(labels["parameters"]) >= 3
    assert ((images >= 30) & (images < 70)).all()  # of scene_0 alone
    combined = read_npz(tmp_path / "all" / "labels.npz")
    assert len(combined["names"]) == 2 + len(images)
    np.testing.assert_array_equal(combined["parameters"][2:], labels["parameters"])
