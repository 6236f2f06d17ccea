"""Turning photos: labels that turn exactly, pictures that agree with a render in the new pose."""

import sys

import cv2
import numpy as np
import pytest

import Sim3DR
from starter_kit import rotate_views
from starter_kit.rotate_views import (
    FACE_SIDE,
    TURNS,
    build_head,
    choose_views,
    euler_to_rotation,
    render_view,
    rotation_to_euler,
    texture_coordinates,
    turn_labels,
    without_head,
)
from utils import assets
from utils.datasets import write_packed
from utils.files import read_npz
from utils.geometry import decompose_camera, rotation_to_angles
from utils.morphable_model import load_morphable_model, split_camera

SIDE = 160
WHOLE = np.array([0, 0, SIDE, SIDE])


@pytest.fixture(scope="module")
def model():
    return load_morphable_model(assets.STARTER_FACE_MODEL)


@pytest.fixture(scope="module")
def head(model):
    return build_head(model)


def pose(yaw: float, pitch: float = 0, roll: float = 0, seed: int = 0) -> np.ndarray:
    """(62,) parameters of a face in the middle of the picture."""
    linear = 6e-4 * euler_to_rotation(yaw, pitch, roll)
    camera = np.concatenate([linear, [[80], [40], [0]]], 1)
    coefficients = np.random.default_rng(seed).normal(0, 0.7, 50)
    return np.concatenate([camera.ravel(), coefficients]).astype(np.float32)


def waves(model) -> np.ndarray:
    """(N, 3) smooth colours on the face."""
    x, y, z = model.mean / 1e3
    return (np.stack([np.sin(x / 15), np.cos(y / 17), np.sin((z - y) / 20)], 1) + 1) / 2


def draw(model, parameters: np.ndarray) -> np.ndarray:
    """A face in its colours before grey, (SIDE, SIDE, 3) uint8."""
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    points = model.vertices(parameters[None])[0].T
    return Sim3DR.rasterize(points, model.triangles, waves(model), background=grey)


def inside(model, parameters: np.ndarray, margin: int) -> np.ndarray:
    """(SIDE, SIDE) bool: the face without a rim of its pixels, round the mouth too."""
    points = model.vertices(parameters[None])[0].T
    covered = Sim3DR.zbuffer(points, model.triangles, SIDE, SIDE).covered
    return cv2.erode(covered.astype(np.uint8), np.ones((2 * margin + 1,) * 2)) > 0


def test_angles_come_back_and_the_yaw_is_the_one_that_is_measured():
    angles = np.random.default_rng(0).uniform(-80, 80, (50, 3))
    rotations = np.stack([euler_to_rotation(*row) for row in angles])
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(rotation_to_euler(rotations), angles, atol=1e-9)
    np.testing.assert_allclose(rotation_to_angles(rotations)[:, 0], angles[:, 0], atol=1e-9)
    for axis in range(3):
        one = np.zeros(3)
        one[axis] = 30
        measured = rotation_to_angles(euler_to_rotation(*one)[None])[0]
        np.testing.assert_allclose(measured, one, atol=1e-9)


def test_positive_yaw_moves_the_nose_to_the_left(model):
    nose = [model.landmarks(pose(yaw)[None])[0][0, 30] for yaw in (-40, 0, 40)]
    assert nose[0] > nose[1] > nose[2]


@pytest.mark.parametrize("angles", [(88, 10, -8), (-62, -20, 12), (35, 0, 0)])
def test_landmarks_of_the_new_parameters_are_the_turned_landmarks(model, angles):
    parameters = pose(np.sign(angles[0]) * 25, 8, 5)
    landmarks = model.landmarks(parameters[None])[0]
    new, turned = turn_labels(model, parameters, landmarks, angles, SIDE)
    assert new.dtype == turned.dtype == np.float32
    np.testing.assert_allclose(model.landmarks(new[None])[0], turned, atol=0.05)
    np.testing.assert_array_equal(new[12:], parameters[12:])
    assert new[11] == 0
    _, rotation, _ = decompose_camera(split_camera(new[None]))
    np.testing.assert_allclose(rotation_to_euler(rotation)[0], angles, atol=0.05)
    low, high = turned[:2].min(1), turned[:2].max(1)
    np.testing.assert_allclose((low + high) / 2, (SIDE - 1) / 2, atol=1e-3)
    np.testing.assert_allclose((high - low).max(), FACE_SIDE * SIDE, atol=1e-3)


def test_what_the_label_differs_from_its_fit_turns_along(model):
    parameters = pose(20)
    landmarks = model.landmarks(parameters[None])[0]
    moved = landmarks.copy()
    moved[:, 40] += (1, 2, 3)
    _, plain = turn_labels(model, parameters, landmarks, (60, 0, 0), SIDE)
    _, turned = turn_labels(model, parameters, moved, (60, 0, 0), SIDE)
    scale = np.linalg.norm(plain[:, 8] - plain[:, 27])
    scale /= np.linalg.norm(landmarks[:, 8] - landmarks[:, 27])
    difference = np.delete(turned - plain, 40, axis=1)
    np.testing.assert_allclose(difference, difference[:, :1].repeat(67, 1), atol=1e-3)
    own = np.linalg.norm(turned[:, 40] - plain[:, 40] - difference[:, 0])
    np.testing.assert_allclose(own, scale * np.sqrt(14), rtol=1e-3)


def test_a_turn_by_nothing_gives_the_photo_back(model, head):
    parameters = pose(20, 5, 3)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    photo = np.stack([255 * x, 255 * y, 127 + 120 * np.sin(9 * x + 7 * y)], 2).astype(np.uint8)
    view = render_view(head, photo, parameters, WHOLE, parameters, np.zeros_like(photo))
    face = inside(model, parameters, 1)
    assert face.sum() > 4000
    difference = np.abs(view.astype(int) - photo)[face]
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 3


@pytest.mark.parametrize(("yaw", "new_yaw"), [(20, 55), (-35, -80)])
def test_the_view_agrees_with_a_render_in_the_new_pose(model, head, yaw, new_yaw):
    parameters = pose(yaw)
    landmarks = model.landmarks(parameters[None])[0]
    new, _ = turn_labels(model, parameters, landmarks, (new_yaw, 5, -5), SIDE)
    behind = np.full((SIDE, SIDE, 3), 128, np.uint8)
    view = render_view(head, draw(model, parameters), parameters, WHOLE, new, behind)
    face = inside(model, new, 3)
    assert face.sum() > 3000
    difference = np.abs(view.astype(int) - draw(model, new))[face].mean(1)
    assert np.median(difference) < 5
    assert (difference < 25).mean() > 0.9  # the rest: what the photo does not show
    mirrored = np.abs(view[:, ::-1].astype(int) - draw(model, new))[face].mean(1)
    assert np.median(mirrored) > 25


def test_the_head_is_opaque_around_the_face_and_only_there(model, head):
    parameters = pose(40)
    landmarks = model.landmarks(parameters[None])[0]
    new, turned = turn_labels(model, parameters, landmarks, (85, 0, 0), SIDE)
    white, black = np.full((SIDE, SIDE, 3), 255, np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    view = render_view(head, white, parameters, WHOLE, new, black)
    assert (view[landmarks_inside(turned)] == 255).all()
    nose = turned[:2, 30].round().astype(int)
    assert (view[nose[1], : nose[0] - 6] == 0).all()  # before the nose: what stands behind
    assert (view[nose[1], nose[0] + 8 : 150] == 255).all()  # from there to behind the ear: head


def landmarks_inside(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of points well within the face: halfway from landmarks to their mean."""
    middle = landmarks[:2].mean(1, keepdims=True)
    x, y = ((landmarks[:2] + middle) / 2).round().astype(int)
    return y, x


def test_colours_come_from_the_photo_only(model, head):
    parameters = pose(30)
    points = np.zeros((3, len(head.alpha)), np.float32)
    camera = split_camera(parameters[None])[0] * model.flip
    points = camera[:, :3] @ head.shape(parameters) + (camera[:, 3:] + model.flip_offset)
    valid = np.array([20, 30, 140, 150])
    uv = texture_coordinates(head, points, valid)
    assert (uv >= valid[:2]).all() and (uv <= valid[2:] - 1).all()
    well_inside = np.abs(uv - 80).max(1) < 20
    face = np.arange(len(uv)) < model.num_vertices
    np.testing.assert_allclose(uv[well_inside & face], points[:2].T[well_inside & face])


def test_a_picture_without_its_head_is_smooth_there_and_itself_elsewhere(model):
    landmarks = model.landmarks(pose(10)[None])[0]
    low, high = landmarks[:2].min(1), landmarks[:2].max(1)
    picture = np.random.default_rng(0).integers(90, 120, (SIDE, SIDE, 3)).astype(np.uint8)
    x, y = landmarks[:2].round().astype(int)
    picture[y, x] = 255
    changed = without_head(picture, landmarks)
    assert changed.dtype == np.uint8
    assert changed.min() >= 90 and changed.max() < 120  # no landmark is left
    below = int(high[1] + 0.15 * (high[1] - low[1]))
    assert below < SIDE - 5
    np.testing.assert_array_equal(changed[below:], picture[below:])


def test_a_lean_is_seen_from_the_side():
    """A head in profile leans towards the viewer or away, which no nod and no tilt does."""
    for yaw, pitch, roll in ((0, 10, 5), (60, 0, 0), (90, 20, -10)):
        rotation = euler_to_rotation(yaw, pitch, roll, 20)
        head_roll = euler_to_rotation(yaw, pitch, roll).T @ rotation
        np.testing.assert_allclose(head_roll, euler_to_rotation(0, 0, 20), atol=1e-12)
    top = euler_to_rotation(90, 0, 0, 20) @ (0, 1, 0)  # of the head: x, y, towards the viewer
    np.testing.assert_allclose(
        np.abs(top), (0, np.cos(np.radians(20)), np.sin(np.radians(20))), atol=1e-12
    )
    level = euler_to_rotation(90, 20, 20) @ (0, 1, 0)
    assert abs(level[2]) < 1e-12


def test_views_are_spread_evenly_and_turn_no_head_back():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-1, 1, (500, 3)) * (60, 20, 20)
    usable = rng.random(500) < 0.8
    photos, new = choose_views(angles, usable, TURNS[0], 300, np.random.default_rng(1))
    assert usable[photos].all()
    added = np.abs(new[:, 0]) - np.abs(angles[photos, 0])
    assert (np.sign(new[:, 0]) == np.sign(angles[photos, 0])).all()
    assert added.min() > 15 - 1e-9 and added.max() < 60 + 1e-9
    counts, _ = np.histogram(np.abs(new[:, 0]), np.linspace(35, 100.01, 6))
    assert np.ptp(counts) <= 2
    assert 8 < new[:, 3].std() < 12 and np.abs(new[:, 3]).max() <= 24
    again, _ = choose_views(angles, usable, TURNS[0], 300, np.random.default_rng(1))
    np.testing.assert_array_equal(photos, again)
    with pytest.raises(ValueError, match="no usable photo"):
        choose_views(angles, np.zeros(500, bool), TURNS[0], 5, rng)


def test_the_script_writes_the_views_and_the_combined_set(model, tmp_path, monkeypatch):
    parameters = np.stack([pose(yaw) for yaw in (20, 45, -1, -35)])
    pictures = [draw(model, row) for row in parameters]
    names = np.array([f"{i}.jpg" for i in range(4)])
    landmarks = model.landmarks(parameters)
    valid = np.tile(WHOLE.astype(np.int16), (4, 1))
    labels = {"parameters": parameters, "landmarks": landmarks, "valid": valid, "names": names}
    write_packed(tmp_path / "packed", iter(pictures), 4, SIDE, **labels)
    np.savez(tmp_path / "faces_train_labels.npz", name=names, spread=np.zeros(4, np.float16))
    arguments = {"photos": tmp_path, "packed": tmp_path / "packed", "out": tmp_path / "views"}
    arguments |= {"combined": tmp_path / "all", "count": 5}
    line = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["rotate_views", *line])
    rotate_views.main()
    views, both = (
        read_npz(tmp_path / "views" / "labels.npz"),
        read_npz(tmp_path / "all" / "labels.npz"),
    )
    np.testing.assert_array_equal(both["source"][:4], -1)
    for key in (*labels, "source"):
        np.testing.assert_array_equal(both[key][4:], views[key])
        assert key == "source" or (both[key][:4] == labels[key]).all()
    images = np.load(tmp_path / "all" / "images.npy")
    np.testing.assert_array_equal(images[:4], pictures)
    np.testing.assert_array_equal(images[4:], np.load(tmp_path / "views" / "images.npy"))
    # joining alone reads no photos
    line = ["--packed", str(tmp_path / "packed"), "--out", str(tmp_path / "views"), "--join-only"]
    line += ["--combined", str(tmp_path / "again")]
    monkeypatch.setattr(sys, "argv", ["rotate_views", *line])
    rotate_views.main()
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "images.npy"), images)
    np.testing.assert_allclose(model.landmarks(views["parameters"]), views["landmarks"], atol=0.05)
    # as starter_kit/HISTORY.md goes on: more views are joined with the combined set
    rotate_views.join(tmp_path / "all", tmp_path / "views", tmp_path / "more")
    sources = read_npz(tmp_path / "more" / "labels.npz")["source"]
    np.testing.assert_array_equal(sources, [*both["source"], *views["source"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--join-only", "--photos", "photos"], "--join-only needs --combined"),
        (["--combined", "all"], "making views needs --photos"),
    ],
)
def test_calls_that_would_do_nothing_are_refused(monkeypatch, capsys, options, message):
    argv = ["rotate_views", "--packed", "packed", "--out", "views", *options]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        rotate_views.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
