"""Head pose: the signs that the text promises, the poles, and cameras that are none."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from utils.geometry import (
    angle_differences,
    angles_to_rotation,
    decompose_camera,
    exact_angles,
    facing_angles,
    nearest_rotation,
    rotation_to_angles,
)
from utils.metrics import geodesic


def turned(axis: str, degrees: float) -> np.ndarray:
    """(3, 3) right-handed rotation about an axis of the y-up frame, z towards the viewer."""
    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


def angles(rotation: np.ndarray) -> np.ndarray:
    return rotation_to_angles(rotation[None])[0]


def camera(rotation: np.ndarray, scale: float = 1, translation=(0, 0, 0)) -> np.ndarray:
    return np.column_stack([scale * rotation, translation])[None]


@pytest.mark.parametrize("degrees", [-80, -30, 10, 45, 89])
def test_a_turn_about_one_axis_is_one_angle(degrees):
    np.testing.assert_allclose(angles(turned("y", degrees)), [-degrees, 0, 0], atol=1e-9)
    np.testing.assert_allclose(angles(turned("x", degrees)), [0, -degrees, 0], atol=1e-9)
    np.testing.assert_allclose(angles(turned("z", degrees)), [0, 0, -degrees], atol=1e-9)


@pytest.mark.parametrize("degrees", [-80, -30, 10, 45, 89])
def test_where_a_face_looks_is_one_angle_for_a_turn_about_one_axis(degrees):
    for i, axis in enumerate("yxz"):
        found = facing_angles(turned(axis, degrees)[None])[0]
        np.testing.assert_allclose(found, -degrees * np.eye(3)[i], atol=1e-9)


def test_in_profiles_nods_and_tilts_stay_what_they_are():
    """The turns come one after the other: tilt, nod, then yaw about the upright."""
    for yaw, pitch, roll in [(90, 0, 0), (-85, -20, 5), (88, 30, -40), (-120, 10, 0), (30, 85, 9)]:
        rotation = turned("y", -yaw) @ turned("x", -pitch) @ turned("z", -roll)
        np.testing.assert_allclose(facing_angles(rotation[None])[0], (yaw, pitch, roll), atol=1e-6)
        nose = rotation[:, 2]  # x right, y up, z to the viewer
        np.testing.assert_allclose(nose[1], np.sin(np.radians(pitch)), atol=1e-9)


def test_signs_as_the_viewer_sees_them():
    nose, crown = np.array([0, 0, 1]), np.array([0, 1, 0])
    for axis in "xyz":
        rotation = turned(axis, 20)
        yaw, pitch, roll = angles(rotation)
        assert np.sign(np.round(yaw, 6)) == -np.sign(np.round((rotation @ nose)[0], 6))  # left
        assert np.sign(np.round(pitch, 6)) == np.sign(np.round((rotation @ nose)[1], 6))  # up
        assert np.sign(np.round(roll, 6)) == np.sign(np.round((rotation @ crown)[0], 6))  # clock


@pytest.mark.parametrize("side", [-90, 90])
@pytest.mark.parametrize("nod", [-60, 0, 25])
def test_at_the_poles_pitch_takes_the_whole_turn(side, nod):
    found = angles(turned("y", -side) @ turned("x", -nod))
    np.testing.assert_allclose(found, [side, nod, 0], atol=1e-6)


def test_rounding_past_one_is_no_error():
    for sign in (1, -1):
        rotation = turned("y", -90 * sign)
        rotation[2, 0] = sign * np.nextafter(1, 2)
        np.testing.assert_allclose(angles(rotation), [90 * sign, 0, 0], atol=1e-6)


def test_angles_are_finite_everywhere_and_come_in_batches():
    rng = np.random.default_rng(0)
    rotations, _ = np.linalg.qr(rng.normal(size=(200, 3, 3)))
    found = rotation_to_angles(rotations)
    assert found.shape == (200, 3) and np.isfinite(found).all()
    np.testing.assert_array_equal(found[17], angles(rotations[17]))


def test_camera_round_trip():
    rotation = turned("y", 30) @ turned("x", 20) @ turned("z", -10)
    scale, found, translation = decompose_camera(camera(rotation, 4e-4, (50, 60, -7)))
    np.testing.assert_allclose(scale, [4e-4])
    np.testing.assert_allclose(found[0], rotation, atol=1e-12)
    np.testing.assert_array_equal(translation, [[50, 60, -7]])
    assert scale.dtype == found.dtype == translation.dtype == np.float64


def test_rows_of_a_skewed_camera():
    skewed = np.array([[[2.0, 0, 0, 1], [3, 4, 0, 2], [9, 9, 9, 3]]])
    scale, rotation, _ = decompose_camera(skewed)
    assert scale == pytest.approx([3.5])  # mean length of the first two rows
    np.testing.assert_allclose(rotation[0], [[1, 0, 0], [0.6, 0.8, 0], [0, 0, 0.8]], atol=1e-12)


def test_no_camera():
    scale, rotation, translation = decompose_camera(np.zeros((0, 3, 4)))
    assert scale.shape == (0,) and rotation.shape == (0, 3, 3) and translation.shape == (0, 3)
    assert rotation_to_angles(rotation).shape == (0, 3)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 3, 4)),
        camera(np.diag([1.0, 0, 1])),
        camera(np.eye(3) * np.nan),
        camera(np.eye(3), translation=(np.inf, 0, 0)),
        np.eye(3),
        np.zeros((1, 4, 3)),
    ],
)
def test_cameras_without_a_pose_are_refused(bad):
    with pytest.raises(ValueError, match="camera"):
        decompose_camera(bad)


# ------------------------------------------------------------------------------- exact angles


def test_labelled_angles_are_one_turn_after_the_other():
    for yaw, pitch, roll in np.random.default_rng(0).uniform(-180, 180, (50, 3)):
        expected = turned("x", -pitch) @ turned("y", -yaw) @ turned("z", -roll)
        found = angles_to_rotation([[yaw, pitch, roll]])
        np.testing.assert_allclose(found, expected[None], atol=1e-14)
    assert angles_to_rotation(np.zeros((0, 3))).shape == (0, 3, 3)


def sphere() -> np.ndarray:
    """(n, 3, 3): random rotations, all quarter turns, and the neighbourhood of the poles."""
    quarter = np.stack(np.meshgrid(*[np.arange(-180, 181, 45.0)] * 3), -1).reshape(-1, 3)
    near = np.array(
        [[s * (90 + d), p, 20.0] for s in (1, -1) for d in (0, 1e-4, -3) for p in (0, 50)]
    )
    made = angles_to_rotation(np.concatenate([quarter, near]))
    return np.concatenate([Rotation.random(2000, random_state=0).as_matrix(), made])  # fmt: skip


def test_exact_angles_round_trip_over_the_whole_sphere():
    rotation = sphere()
    again = angles_to_rotation(exact_angles(rotation))
    assert geodesic(again, rotation).max() < 1e-4


def test_exact_angles_return_what_people_hold_their_heads_at():
    yaw, pitch, roll = np.meshgrid(
        np.linspace(-99, 99, 46), np.linspace(-40, 40, 9), [-35, -9, 0, 35]
    )
    angles = np.stack([yaw, pitch, roll], -1).reshape(-1, 3)
    assert np.abs(np.abs(angles[:, 0]) - 90).min() > 0  # no pole among them
    np.testing.assert_allclose(exact_angles(angles_to_rotation(angles)), angles, atol=1e-9)
    poles = exact_angles(angles_to_rotation([[90, 20, 5], [-90, 20, 5]]))
    np.testing.assert_allclose(poles, [[90, 15, 0], [-90, 25, 0]], atol=1e-6)


def test_exact_angles_take_the_triple_near_a_label():
    rotation = Rotation.random(500, random_state=5).as_matrix()
    angles = exact_angles(rotation)
    other = [180, 180, 180] + angles * [-1, 1, 1]  # means the same
    assert geodesic(angles_to_rotation(other), rotation).max() < 1e-6
    for label in (angles, other):
        noisy = label + np.random.default_rng(6).uniform(-20, 20, label.shape)
        assert angle_differences(exact_angles(rotation, noisy), label).max() < 1e-9
    assert (np.abs(angles).sum(1) <= np.abs((other + 180) % 360 - 180).sum(1)).all()


def test_published_formulas_agree_for_single_turns():
    turns = np.array(
        [[a if i == k else 0 for i in range(3)] for k in range(3) for a in (-70, 8, 40)]
    )
    rotation = angles_to_rotation(turns)
    np.testing.assert_allclose(rotation_to_angles(rotation), turns, atol=1e-9)
    combined = angles_to_rotation([[40, 20, 30]])
    assert np.abs(rotation_to_angles(combined)[0] - [40, 20, 30]).round(6).tolist()[1:] == [0, 0]
    assert abs(rotation_to_angles(combined)[0, 0] - 40) > 1  # published yaw mixes the others in


def test_nearest_rotation_undoes_a_shear_and_makes_no_mirror():
    rotation = Rotation.random(50, random_state=3).as_matrix()
    spoilt = rotation + np.random.default_rng(4).normal(0, 0.02, (50, 3, 3))
    found = nearest_rotation(spoilt)
    np.testing.assert_allclose(
        found @ found.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(found), 1)
    assert (
        np.linalg.norm(found - spoilt, axis=(1, 2)) < np.linalg.norm(rotation - spoilt, axis=(1, 2))
    ).all()
    np.testing.assert_allclose(nearest_rotation(rotation), rotation, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(nearest_rotation(-rotation)), 1)
