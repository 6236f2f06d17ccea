"""Pictures: drawn where the numbers say, at any size."""

import os

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from utils import draw
from utils.draw import (
    AXES,
    NOSE_TIP,
    PARTS,
    contact_sheet,
    draw_angles,
    draw_boxes,
    draw_landmarks,
    draw_pose_axes,
    put_lines,
    text_height,
)
from utils.geometry import rotation_to_angles

GREY = 128


def grey(height: int = 200, width: int = 240) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def ring(x: float = 120.0, y: float = 100.0, size: float = 100.0) -> np.ndarray:
    """68 landmarks (3, 68) on a circle of a diameter, the nose tip in its centre."""
    turn = np.arange(68) * (2 * np.pi / 68)
    points = np.stack([np.cos(turn), np.sin(turn), np.zeros(68)]) * size / 2
    points[:, NOSE_TIP] = 0
    return (points + [[x], [y], [0]]).astype(np.float32)


@pytest.mark.parametrize(
    ("side", "face", "height"), [(1000, 400, 25), (1000, 5000, 50), (1000, 10, 9), (4000, 10, 25)]
)
def test_letters_are_a_sixteenth_of_the_face_where_that_is_readable(side, face, height):
    assert text_height(np.empty((side, side, 3), np.uint8), face) == height


def turned(axis: int, degrees: float) -> np.ndarray:
    """Rotation about one axis, counter-clockwise seen from the axis' tip."""
    return Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()


def arm(rotation: np.ndarray, axis: int) -> np.ndarray:
    """Where the pixels in an axis' colour lie on average, as seen from the nose tip: (x, y)."""
    picture = draw_pose_axes(grey(1000, 1000), rotation, ring(500, 500, 800))
    ys, xs = np.nonzero((picture == AXES[axis]).all(axis=2))
    return np.array([xs.mean() - 500, ys.mean() - 500]) if len(xs) else np.zeros(2)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


def test_the_angles_that_are_written(monkeypatch):
    written = []
    monkeypatch.setattr(draw, "put_lines", lambda canvas, lines, *rest: written.extend(lines))
    draw_angles(grey(), turned(1, -40), ring())
    assert written == ["yaw +40", "pitch +0", "roll +0"]


def test_parts_cover_the_68_landmarks_once():
    indices = [i for part in PARTS for i in range(part.first, part.last + 1)]
    assert indices == list(range(68))


def test_every_landmark_is_drawn_where_it_is():
    landmarks = ring()
    picture = draw_landmarks(grey(), landmarks)
    columns, rows = np.rint(landmarks[:2]).astype(int)
    assert changed(picture)[rows, columns].all()
    ys, xs = np.nonzero(changed(picture))
    assert abs(xs.min() - 70) <= 4 and abs(xs.max() - 170) <= 4
    assert abs(ys.min() - 50) <= 4 and abs(ys.max() - 150) <= 4
    assert np.array_equal(picture, draw_landmarks(grey(), landmarks[:2]))


def test_half_a_pixel_shows():
    assert not np.array_equal(draw_landmarks(grey(), ring()), draw_landmarks(grey(), ring(x=120.5)))


def test_frontal_axes_point_right_down_and_out():
    x, y, z = (arm(np.eye(3), axis) for axis in range(3))
    assert x[0] > 100 and abs(x[1]) < 2
    assert y[1] > 100 and abs(y[0]) < 2
    assert np.abs(z).max() < 2  # straight at the viewer
    picture = draw_pose_axes(grey(), np.eye(3), ring())
    ys, xs = np.nonzero(changed(picture))
    assert xs.max() == pytest.approx(120 + 50, abs=4)  # half the landmarks' box
    assert ys.max() == pytest.approx(100 + 50, abs=4)


@pytest.mark.parametrize(
    ("rotation", "angle", "axis", "direction"),
    [
        (turned(1, -40), 0, 2, (-1, 0)),  # yaw > 0: the nose points left
        (turned(0, -40), 1, 2, (0, -1)),  # pitch > 0: up
        (turned(2, -40), 2, 0, (0.77, 0.64)),  # roll > 0: red sinks
    ],
)
def test_the_sign_of_each_angle(rotation, angle, axis, direction):
    expected = np.zeros(3)
    expected[angle] = 40
    np.testing.assert_allclose(rotation_to_angles(rotation[None])[0], expected, atol=1e-9)
    drawn = arm(rotation, axis)
    np.testing.assert_allclose(drawn / np.linalg.norm(drawn), direction, atol=0.05)


@pytest.mark.parametrize(("degrees", "near", "far"), [(45, 2, 0), (-135, 0, 2)])
def test_the_nearest_axis_hides_the_one_behind_it(degrees, near, far):
    """Half turned, the nose and the x axis lie on one line of the picture."""
    rotation = turned(1, degrees)
    assert np.allclose(rotation[:2, near], rotation[:2, far])
    assert rotation[2, near] > 0 > rotation[2, far]
    assert abs(arm(rotation, near)[0]) > 100
    assert not arm(rotation, far).any()


def test_axes_go_where_the_vertices_go():
    """A mesh point one unit along the head's axis lands where the axis points."""
    rotation = turned(2, 15) @ turned(1, 30) @ turned(0, -20)
    for axis, model_axis in enumerate(np.diag([1.0, -1.0, 1.0])):
        vertex = rotation @ model_axis
        in_image = vertex[:2] * (1, -1)  # the one flip of y
        drawn = arm(rotation, axis)
        cosine = drawn @ in_image / np.linalg.norm(drawn) / np.linalg.norm(in_image)
        assert cosine > 0.99


@pytest.mark.parametrize("background", [0, 128, 255])
def test_angles_stand_out_on_any_background(background):
    image = np.full((200, 240, 3), background, np.uint8)
    with_text = draw_angles(image.copy(), np.eye(3), ring())
    text = with_text[(with_text != image).any(axis=2)]
    assert text.max() > 200 and text.max() - text.min() > 120


def test_boxes():
    boxes = np.array([[20, 30, 120, 150], [-50, -50, 40, 60]], np.float32)
    picture = draw_boxes(grey(), boxes)
    for edge in (
        (30, slice(20, 121)),
        (150, slice(20, 121)),
        (slice(30, 151), 20),
        (slice(30, 151), 120),
    ):
        assert changed(picture)[edge].all()
    assert not changed(picture)[80:100, 50:100].any()
    assert changed(picture)[60, :40].all()
    assert np.array_equal(draw_boxes(grey(), np.zeros((0, 4))), grey())


@pytest.mark.parametrize("size", [0, 1e-3, 3, 30, 5000, 1e9])
@pytest.mark.parametrize("centre", [(120, 100), (0, 0), (-40, 230), (1e7, -1e7)])
def test_any_size_and_place_draws_without_fault(size, centre):
    landmarks = ring(*centre, size)
    box = [[*landmarks[:2].min(1), *landmarks[:2].max(1)]]
    picture = draw_pose_axes(draw_landmarks(grey(), landmarks), turned(1, 20), landmarks)
    picture = draw_boxes(picture, box)
    assert picture.shape == grey().shape
    draw_pose_axes(draw_landmarks(grey(1, 1), landmarks), turned(1, 20), landmarks)


def test_strokes_grow_with_the_face():
    def share(side):
        landmarks = ring(side / 2, side / 2, side / 2)
        return changed(draw_landmarks(grey(side, side), landmarks)).mean()

    assert share(2000) == pytest.approx(share(1000), rel=0.25)
    assert share(200) < 4 * share(1000)


@pytest.mark.parametrize(
    "draw",
    [
        lambda image: draw_landmarks(image, ring()),
        lambda image: draw_pose_axes(image, np.eye(3), ring()),
        lambda image: draw_angles(image, np.eye(3), ring()),
        lambda image: draw_boxes(image, [[20, 20, 90, 90]]),
    ],
)
def test_what_can_be_drawn_on(draw):
    image = grey()
    assert draw(image) is image and changed(image).any()
    with pytest.raises(ValueError, match="contiguous"):
        draw(grey()[:, :, ::-1])  # e.g. from RGB
    for wrong in (grey()[..., 0], grey()[..., :1], grey().astype(np.float32), grey()[:0], None):
        with pytest.raises(ValueError, match=r"\(H, W, 3\)|uint8"):
            draw(wrong)


def test_wrong_numbers_are_named():
    broken = ring()
    broken[0, 5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        draw_landmarks(grey(), broken)
    with pytest.raises(ValueError, match="NaN"):
        draw_pose_axes(grey(), np.eye(3), broken)
    with pytest.raises(ValueError, match=r"\(3, 68\) or \(2, 68\).*\(68, 2\)"):
        draw_landmarks(grey(), ring()[:2].T)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        draw_pose_axes(grey(), np.full((3, 3), np.nan), ring())
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        draw_boxes(grey(), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="NaN"):
        draw_boxes(grey(), [[0, 0, np.inf, 3]])


def test_contact_sheet_puts_each_picture_in_its_cell():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [np.full((40, 80, 3), colour, np.uint8) for colour in colours]
    sheet = contact_sheet(pictures, 2, (64, 64), 3 * [""])
    assert sheet.shape == (2 * (64 + 18) + 3 * 2, 2 * 64 + 3 * 2, 3)
    centres = [(34, 34), (34, 100), (118, 34)]
    for colour, (y, x) in zip(colours, centres, strict=True):
        assert tuple(sheet[y, x]) == colour
        rows = np.flatnonzero((sheet[:, x] == colour).all(axis=1))
        assert (rows.min(), rows.max()) == (y - 16, y + 15)  # 64 wide, 32 high, centred
    assert (sheet[86:, 70:] == draw.OUTLINE).all()  # the empty cell

    captioned = contact_sheet(pictures, 5, (64, 64), ["a", "b" * 99, ""])
    assert captioned.shape[0] > 64 + 2 * 2 and captioned.shape[1] == 3 * 64 + 4 * 2
    rows, columns = np.nonzero((captioned != contact_sheet(pictures, 5, (64, 64), 3 * [""])).any(2))
    assert rows.min() >= 2 + 64 and columns.max() < 2 * (2 + 64)  # below those that have one
    assert (columns < 2 + 64).any() and (columns >= 2 * 2 + 64).any()
    for images, columns, captions in (
        ([], 2, []),
        (pictures, 0, ["a", "b", "c"]),
        (pictures, 2, ["one"]),
        ([pictures[0][..., 0]], 1, ["a"]),
    ):
        with pytest.raises(ValueError):
            contact_sheet(images, columns, (64, 64), captions)


def test_names_that_are_no_text_do_not_crash_opencv():
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    picture = np.full((40, 60, 3), 128, np.uint8)
    sheet = contact_sheet([picture, picture], 2, (64, 64), [name * 9, name])
    assert sheet.std() > 0
    put_lines(picture, [name], 0, 0, 9)
    assert (picture != 128).any()
