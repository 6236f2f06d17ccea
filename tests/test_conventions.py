"""The pictures of the conventions in docs/: up to date, legible, and right about the signs."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tools import draw_conventions as conventions
from utils.assets import ROOT, STARTER_FACE_MODEL
from utils.geometry import decompose_camera, rotation_to_angles
from utils.morphable_model import load_morphable_model, split_camera
from utils.pictures import read_image

CLAIMS = {  # README, "Conventions"
    "yaw": {1: "turns towards the left edge", -1: "turns towards the right edge"},
    "pitch": {1: "looks up", -1: "looks down"},
    "roll": {1: "tilts clockwise", -1: "tilts counter-clockwise"},
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


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", CLAIMS)
def test_the_signs_are_what_one_sees(face_model, name, sign):
    straight = conventions.mean_face(face_model, side=300)
    turned = conventions.mean_face(face_model, side=300, **{name: sign * conventions.TURNS[name]})
    seen = conventions.seen_turn(turned, straight)
    assert seen == dict.fromkeys(CLAIMS, "straight") | {name: CLAIMS[name][sign]}
    # the angles of the caption, from the camera of the rendered face
    camera = split_camera(turned.parameters[None])
    angles = dict(zip(CLAIMS, rotation_to_angles(decompose_camera(camera)[1])[0], strict=True))
    assert np.sign(angles[name]) == sign
    assert getattr(turned, name) == pytest.approx(angles[name])
    assert turned.vertices[:2].min() > 0
    assert turned.vertices[:2].max() < 299


def test_other_angles_than_asked_for_are_an_error(face_model, monkeypatch):
    mirrored = Rotation.from_euler("y", 10, degrees=True).as_matrix()[None]  # yaw -10
    monkeypatch.setattr(conventions, "angles_to_rotation", lambda _: mirrored)
    with pytest.raises(ValueError, match=r"asked for yaw 10.* give -10\.000"):
        conventions.mean_face(face_model, yaw=10)


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
    for name, claims in CLAIMS.items():
        for sign, claim in claims.items():
            title = f"{name} {sign * conventions.TURNS[name]:+.0f}"
            assert texts[texts.index(title) + 1] == claim


def test_every_landmark_is_in_one_group():
    parts = [part for part in conventions.PARTS if conventions._group(part)]
    assert [i for part in parts for i in range(part.first, part.last + 1)] == list(range(68))
    assert conventions.COLOURS.keys() == conventions.GROUPS.keys()
