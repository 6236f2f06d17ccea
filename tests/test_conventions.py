"""The pictures of the conventions in docs/: up to date, legible, and right about the signs."""

import cv2
import numpy as np
import pytest

from tools import draw_conventions as conventions
from utils.assets import ROOT, STARTER_FACE_MODEL
from utils.morphable_model import load_morphable_model
from utils.pictures import read_image

# README, "Conventions": what a positive angle means, and the sign of what one sees of it (``seen``)
POSITIVE = {
    "yaw": ("turns towards the left edge", -1),
    "pitch": ("looks up", -1),
    "roll": ("tilts clockwise", 1),
}


@pytest.fixture(scope="module")
def face_model():
    return load_morphable_model(STARTER_FACE_MODEL)


def test_the_pictures_are_up_to_date(tmp_path, call):
    code, output = call(conventions.main, "-o", tmp_path)
    assert code == 0
    for name in ("landmarks.png", "pose_signs.png"):
        assert name in output
        ours, kept = read_image(tmp_path / name), read_image(ROOT / "docs" / name)
        assert ours.shape == kept.shape
        # loosely, and coarsely: OpenCV 4 and 5 have different letters
        small = [cv2.resize(p, (60, 60), interpolation=cv2.INTER_AREA) for p in (ours, kept)]
        assert cv2.absdiff(*small).mean() < 3
        assert (ROOT / "docs" / name).stat().st_size < 300_000
        border = np.concatenate([ours[[0, -1]].reshape(-1, 3), ours[:, [0, -1]].reshape(-1, 3)])
        assert (border == 255).all()  # nothing is cut


def seen(face) -> np.ndarray:
    """What one sees of yaw, pitch, roll in a picture: how far the nose tip lies right of the ears'
    middle and below it, along and across the line of the eyes, and how far that line falls to the
    right; in the unit of the model."""
    points = face.landmarks[:2].T  # (68, 2)
    eyes = points[45] - points[36]  # the outer corners, from left to right
    x, y = eyes / np.linalg.norm(eyes)
    tip = points[30] - (points[0] + points[16]) / 2
    return np.array([tip @ (x, y), tip @ (-y, x), eyes[1]]) / face.scale


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", POSITIVE)
def test_the_signs_are_what_one_sees(face_model, name, sign):
    angle = sign * conventions.TURNS[name][0]
    straight = conventions.mean_face(face_model, side=300)
    turned = conventions.mean_face(face_model, side=300, **{name: angle})
    moved = seen(turned) - seen(straight)
    words, way = POSITIVE[name]
    assert conventions.TURNS[name][2] == words
    expected = [sign * way * (axis == name) for axis in POSITIVE]
    assert np.sign(np.where(np.abs(moved) < 5000, 0, moved)).tolist() == expected
    asked = {axis: angle * (axis == name) for axis in POSITIVE}
    assert {axis: getattr(turned, axis) for axis in asked} == pytest.approx(asked, abs=1e-3)
    assert turned.vertices[:2].min() > 0
    assert turned.vertices[:2].max() < 299


def test_numbers_lie_apart_and_beside_their_landmarks(face_model):
    points = conventions.mean_face(face_model, side=936).landmarks[:2].T
    labels = conventions.place_labels(points)
    sizes = np.array([conventions.label_size(i) for i in range(68)])
    between = np.abs(labels[:, None] - labels) - (sizes[:, None] + sizes) / 2
    assert (between + 1e9 * np.eye(68)[..., None] > 0).any(2).all()
    assert np.linalg.norm(labels - points, axis=1).max() < 40
    with pytest.raises(ValueError, match="no room"):
        conventions.place_labels(0.05 * points)


def test_numbers_and_signs_stand_where_they_belong(face_model, monkeypatch):
    said = []

    def heard(canvas, text, place, *rest, **more):
        said.append((text, tuple(place)))

    monkeypatch.setattr(conventions, "_text", heard)
    conventions.landmark_picture(face_model)
    points = conventions.mean_face(face_model, side=2 * 936, fill=0.92).landmarks[:2].T / 2
    labels = conventions.place_labels(points)
    assert said[:68] == [(str(i), tuple(label)) for i, label in enumerate(labels)]
    said.clear()
    conventions.pose_picture(face_model)
    texts = [text for text, _ in said]
    for name, (angle, negative, positive) in conventions.TURNS.items():
        for title, words in (
            (f"{name} {-angle:+.0f}", negative),
            (f"{name} {angle:+.0f}", positive),
        ):
            assert texts[texts.index(title) + 1] == words


def test_every_landmark_is_in_one_group():
    parts = [part for part in conventions.PARTS if conventions._group(part)]
    assert [i for part in parts for i in range(part.first, part.last + 1)] == list(range(68))
    assert conventions.COLOURS.keys() == conventions.GROUPS.keys()
