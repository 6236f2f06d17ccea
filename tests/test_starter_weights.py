"""The weights that ship are as good as the README says: on every eighth held-out photo."""

import zipfile

import cv2
import numpy as np
import pytest
from conftest import ROOT

from FaceBoxes import FaceBoxes
from starter_kit.evaluate_network import DAMAGES, ROI_BOX, label_rotation
from starter_kit.landmark_statistics import LABEL_UNIT
from synergy3DMM import SynergyNet
from utils.assets import STARTER_DETECTOR_WEIGHTS, STARTER_FACE_MODEL, STARTER_WEIGHTS
from utils.boxes import overlaps
from utils.files import read_npz
from utils.geometry import nearest_rotation
from utils.inference import MAX_STRETCH
from utils.metrics import geodesic, nme
from utils.morphable_model import load_morphable_model
from utils.pictures import read_image, read_zipped_image

PHOTOS = ROOT.parent / "shared" / "photos"
BOX = [26.5, 26.5, 133.5, 133.5]  # its roi box is ``ROI_BOX``


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"labelled photos not present: {PHOTOS}")
def test_held_out_photos():
    labels = read_npz(PHOTOS / "faces_val_labels.npz")
    some = np.arange(0, len(labels["name"]), 8)
    with zipfile.ZipFile(PHOTOS / "faces_val.zip") as archive:
        images = [read_zipped_image(archive, str(name)) for name in labels["name"][some]]
    model = SynergyNet(device="cpu")
    target = labels["landmarks"][some] * float(LABEL_UNIT)
    faces = [model(image, boxes=[BOX])[0] for image in images]
    np.testing.assert_array_equal(faces[0].roi_box, ROI_BOX)
    found = np.stack([face.landmarks for face in faces])
    assert nme(found, target).mean() < 1.8
    rotation = np.stack([face.rotation for face in faces])
    fitted = label_rotation(target, model.face_model)
    assert geodesic(nearest_rotation(rotation), nearest_rotation(fitted)).mean() < 2.6
    frames = labels["source"][some] == "p1"
    human = labels["human_landmarks"][some][frames]
    assert nme(found[frames], human).mean() < 4.2


@pytest.mark.parametrize("margin", [0.25, 0.1, 0])
def test_in_a_close_up_the_face_is_found_and_nothing_on_it(margin):
    photo, face = read_image(ROOT / "img" / "astronaut.jpg"), np.array([179, 65, 268, 179])
    centre, half = (face[:2] + face[2:]) / 2, (0.5 + margin) * (face[3] - face[1])
    low, high = np.round(centre - half).astype(int), np.round(centre + half).astype(int)
    scale = 720 / (high[1] - low[1])
    cut = photo[low[1] : high[1], low[0] : high[0]]
    close = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = FaceBoxes(STARTER_DETECTOR_WEIGHTS, "cpu")(close)
    assert len(found) == 1
    box = found[0, :4] / scale + np.tile(low, 2)
    assert overlaps(box[None], face[None]) > 0.7


def test_background_looks_like_no_face():
    photo, face = read_image(ROOT / "img" / "astronaut.jpg"), np.array([165, 40, 285, 195])
    squares = []
    for side in (50, 75, 100):
        x, y = np.mgrid[0 : 512 - side : side // 2, 0 : 512 - side : side // 2].reshape(2, -1)
        squares.append(np.stack([x, y, x + side, y + side], 1))
    squares = np.concatenate(squares)  # (n, 4) roi boxes
    beside = (squares[:, :2] >= face[2:]).any(1) | (squares[:, 2:] <= face[:2]).any(1)
    centre, half = (squares[beside, :2] + squares[beside, 2:]) / 2, np.ptp(squares[beside, ::2], 1)
    half = half[:, None] / 2.4  # of detected boxes
    model = SynergyNet(STARTER_WEIGHTS, STARTER_FACE_MODEL, device="cpu", engine="torch")
    faces = model(photo, boxes=np.concatenate([centre - half, centre + half], 1), dense=False)
    assert len(faces) > 400
    # 0.8 %; of the weights that had seen faces only 3.3 %
    assert np.mean([face.stretch < MAX_STRETCH for face in faces]) < 0.02


def test_damage_changes_what_it_says_and_not_the_photo():
    mean = load_morphable_model(STARTER_FACE_MODEL).landmark_mean.astype(np.float64)  # (3, 68)
    points = mean * [[1], [-1], [1]] * (90 / np.ptp(mean[0])) + 80
    image = np.random.default_rng(0).integers(60, 200, (160, 160, 3), np.uint8)
    image.flags.writeable = False
    changed = {}
    for name, damage in DAMAGES.items():
        damaged = damage(image, points, np.random.default_rng(1))
        assert damaged.shape == image.shape and damaged.dtype == np.uint8, name
        changed[name] = (damaged != image).any(2).mean()
    assert changed.pop("none") == 0
    for name in ("a hand before it", "a mask", "sunglasses", "at the photo's edge"):
        assert 0.03 < changed.pop(name) < 0.5, name
    assert 0.4 < changed.pop("one side in shadow") < 0.6
    assert min(changed.values()) > 0.9
