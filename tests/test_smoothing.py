"""The One-Euro filter and what it does to faces: how much jitter is left, how far it lags."""

from dataclasses import replace

import numpy as np
import pytest

from utils.geometry import decompose_camera
from utils.inference import Face, faces_from_parameters
from utils.morphable_model import split_camera
from utils.preprocessing import crop_to_image
from utils.smoothing import STRENGTHS, FaceSmoother, OneEuro, put_together, take_apart

SMOOTHING = ["light", "strong"]
LEFT = {"light": 1 / 2, "strong": 1 / 4}  # of the jitter
LAG = {"light": 1, "strong": 3}  # frames, at most
FRAMES, STARTED = 120, 15


def one_euro(strength: str) -> OneEuro:
    return OneEuro(STRENGTHS[strength].rest, STRENGTHS[strength].motion)


def make_face(model, parameters, roi_box) -> Face:
    nothing = np.zeros((1, 5), np.float32)
    return faces_from_parameters(model, parameters[None], roi_box[None], nothing, True)[0]


def moved(face: Face, x: float, y: float = 0.0) -> Face:
    """The face in another place, cropped there."""
    shift = np.array([x, y, 0], np.float32)
    roi_box = face.roi_box + np.array([x, y, x, y])
    return replace(face, landmarks=face.landmarks + shift[:, None], roi_box=roi_box)


@pytest.fixture
def face(face_model, parameters) -> Face:
    return make_face(face_model, parameters[0], np.array([40.0, 60.0, 340.0, 360.0]))


def noisy_faces(face: Face, model, seed: int = 0) -> list[Face]:
    """The face again and again, all its parameters shaking, landmarks by about two pixels."""
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(FRAMES, 62)) * model.param_std
    noise[:, :12] *= [0.3, 0.3, 0.3, 1] * 3
    shaken = (face.parameters + noise).astype(np.float32)
    return [make_face(model, row, face.roi_box) for row in shaken]


def landmarks_of(parameters: np.ndarray, face: Face, model) -> np.ndarray:
    return crop_to_image(model.landmarks(parameters[None]), face.roi_box[None])[0]


def jitter(points: np.ndarray) -> float:
    return float(np.sqrt(points[STARTED:].var(axis=0).mean()))


def lag_behind(found: np.ndarray, truth: np.ndarray) -> float:
    """Frames by which ``found`` (T,) runs behind ``truth`` (T,)."""
    time = np.arange(len(truth))
    part = slice(30, -10)
    shifts = np.arange(-1, 8, 0.05)
    errors = [((found - np.interp(time - s, time, truth))[part] ** 2).mean() for s in shifts]
    return float(shifts[np.argmin(errors)])


# ---------------------------------------------------------------------------------- one vector


@pytest.mark.parametrize("strength", SMOOTHING)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_still_values_stand_still(strength, scale):
    values = scale * np.random.default_rng(0).normal(size=(FRAMES, 3))
    filtered = one_euro(strength)
    smoothed = np.array([filtered(value) for value in values])
    assert jitter(smoothed) <= LEFT[strength] * jitter(values)


@pytest.mark.parametrize("strength", SMOOTHING)
@pytest.mark.parametrize("speed", [1.0, 4.0, 20.0], ids="{}/noise".format)
def test_steady_motion_lags_little(strength, speed):
    truth = speed * np.arange(FRAMES)
    noise = np.random.default_rng(1).normal(size=(FRAMES, 2))
    filtered = one_euro(strength)
    smoothed = np.array([filtered(value) for value in truth[:, None] + noise])[:, 0]
    assert (truth - smoothed)[40:].mean() / speed <= LAG[strength]


@pytest.mark.parametrize(("strength", "most"), [("light", 1.5), ("strong", 5)])
def test_what_turns_back_is_followed(strength, most):
    """At the turn the mean speed is small, the steps are not."""
    truth = 120 * np.sin(0.25 * np.arange(FRAMES))
    filtered = one_euro(strength)
    filtered.most_noise = 0.3
    values = truth[:, None] + np.random.default_rng(6).normal(scale=0.1, size=(FRAMES, 2))
    smoothed = np.array([filtered(value) for value in values])[:, 0]
    assert np.abs(smoothed - truth)[20:].max() < most


@pytest.mark.parametrize("strength", SMOOTHING)
def test_motion_from_the_first_value_on_does_not_lag(strength):
    filtered = one_euro(strength)
    filtered.most_noise = 0.3
    values = 20.0 * np.arange(8) + np.random.default_rng(7).normal(scale=0.1, size=8)
    smoothed = np.array([filtered(np.array([value])) for value in values])[:, 0]
    assert np.abs(smoothed - values).max() < 2


@pytest.mark.parametrize("strength", SMOOTHING)
def test_a_jump_is_followed(strength):
    values = (
        np.random.default_rng(2).normal(size=(FRAMES, 2))
        + 200.0 * (np.arange(FRAMES) > 60)[:, None]
    )
    filtered = one_euro(strength)
    smoothed = np.array([filtered(value) for value in values])
    assert abs(smoothed[66] - 200).max() < 10


def test_without_noise_nothing_is_smoothed_away():
    filtered = one_euro("strong")
    for t in range(50):
        smoothed = filtered(np.array([3.0 * t]))
    assert smoothed[0] == pytest.approx(3 * 49, abs=1e-6)
    filtered = one_euro("strong")
    assert all(filtered(np.array([7.0])) == 7 for _ in range(5))


@pytest.mark.parametrize("strength", SMOOTHING)
@pytest.mark.parametrize("begin", [0, 60])
def test_a_picture_that_stood_still_is_smoothed_when_it_moves_again(strength, begin):
    values = np.random.default_rng(4).normal(size=(FRAMES, 3))
    values[begin : begin + 20] = values[begin]  # a still title, a frozen camera
    filtered = one_euro(strength)
    smoothed = np.array([filtered(value) for value in values])
    assert jitter(smoothed[begin + 30 :]) <= LEFT[strength] * jitter(values[begin + 30 :])


def test_a_low_pass_lets_no_value_through_when_all_stands_still():
    filtered = OneEuro(rest=1 / 40)
    values = [filtered(np.array([value])) for value in [0.0] * 20 + [1.0] * 9]
    assert 0 < values[-1][0] < 0.5


def test_missing_frames_count_as_time():
    """After a gap the new value weighs more: that much of the time is its own."""
    gap, none = one_euro("strong"), one_euro("strong")
    for value in np.random.default_rng(3).normal(size=(60, 1)):
        before = gap(value)
        none(value)
    step = none(before + 1) - before
    assert 5 * step < gap(before + 1, frames=10) - before < 10 * step


@pytest.mark.parametrize("strength", SMOOTHING)
def test_what_comes_back_elsewhere_is_there_at_once(strength):
    """Half a second is not one frame in the speed, either."""
    noise = np.random.default_rng(5).normal(size=(61, 2))
    filtered = one_euro(strength)
    for value in noise[:60]:
        filtered(value)
    assert np.abs(filtered(noise[60] + 100, frames=15) - 100).max() < 5


# --------------------------------------------------------------------------------------- faces


@pytest.mark.parametrize("pixel_centres", [False, True])
def test_apart_and_together_again(face, face_model, pixel_centres):
    face_model = replace(face_model, pixel_centres=pixel_centres)
    face = make_face(face_model, face.parameters, face.roi_box)
    parts = take_apart(face)
    together = put_together(parts, face.roi_box, face_model)
    error = np.abs(together - face.parameters) / face_model.param_std
    assert error.max() < 1e-4
    elsewhere = np.array([10.0, 20.0, 250.0, 260.0])  # another crop of the same face
    other = make_face(face_model, put_together(parts, elsewhere, face_model), elsewhere)
    np.testing.assert_allclose(other.landmarks, face.landmarks, atol=1e-2)
    np.testing.assert_allclose(other.vertices, face.vertices, atol=1e-2)


def test_the_parts_are_what_they_are_called(face):
    parts = take_apart(face)
    turn, stretch = parts["turn"].reshape(3, 3), parts["stretch"].reshape(3, 3)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(stretch, stretch.T, atol=1e-12)
    assert np.trace(stretch) == pytest.approx(3)
    np.testing.assert_allclose(parts["place"], face.landmarks[:2].mean(1), rtol=1e-5)
    assert np.exp(parts["size"][0]) == pytest.approx(face.scale, rel=0.1)
    assert np.trace(turn.T @ face.rotation) > 2.9


@pytest.mark.parametrize("strength", SMOOTHING)
def test_still_faces_stand_still(strength, face, face_model):
    faces = noisy_faces(face, face_model)
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    smoothed = np.array([landmarks_of(smoother(f), f, face_model) for f in faces])
    raw = np.array([f.landmarks for f in faces])
    assert jitter(raw) > 0.5
    assert jitter(smoothed) <= LEFT[strength] * jitter(raw)
    assert np.abs(smoothed[-1] - raw.mean(0)).max() < 1.5 * jitter(raw)  # and where it is


@pytest.mark.parametrize("strength", SMOOTHING)
def test_small_faces_stand_still(strength, face, face_model):
    """A quarter of a pixel is a large share of their size, and noise all the same."""
    small = make_face(face_model, face.parameters, np.array([40.0, 60.0, 60.0, 80.0]))
    shifts = np.random.default_rng(0).normal(scale=0.25, size=FRAMES)
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    faces = [moved(small, x) for x in shifts]
    found = np.array([landmarks_of(smoother(f), f, face_model)[0].mean() for f in faces])
    left = np.abs(np.diff(found[STARTED:])).mean() / np.abs(np.diff(shifts[STARTED:])).mean()
    assert left < {"light": 0.2, "strong": 0.08}[strength]


@pytest.mark.parametrize("strength", SMOOTHING)
def test_moving_faces_lag_little(strength, face, face_model):
    path = 60 * np.sin(2 * np.pi * np.arange(FRAMES) / 50)
    faces = [moved(f, x) for f, x in zip(noisy_faces(face, face_model), path, strict=True)]
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    found = [landmarks_of(smoother(f), f, face_model)[0].mean() for f in faces]
    assert lag_behind(np.array(found) - np.mean(found), path) <= LAG[strength]


@pytest.mark.parametrize("strength", SMOOTHING)
def test_a_face_in_a_shaken_picture_is_followed(strength, face, face_model):
    """As with a camera in the hand: what shakes is not the network's answer, but the picture."""
    size = np.sqrt(np.ptp(face.landmarks[:2], axis=1).prod())
    t = np.arange(60)
    path = size * (0.07 * np.sin(t / 3) + 0.04 * np.sin(t / 1.5 + 1) + 0.02 * np.sin(t / 0.8 + 2))
    noise = 0.001 * size * np.random.default_rng(0).normal(size=60)
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    off = []
    for shift in path + noise:
        there = moved(face, shift)
        off.append((landmarks_of(smoother(there), there, face_model) - there.landmarks)[0].mean())
    assert np.abs(off[10:]).mean() < {"light": 0.017, "strong": 0.032}[strength] * size


@pytest.mark.parametrize("strength", SMOOTHING)
@pytest.mark.parametrize("still", [4, 5, 20])
def test_a_jump_is_followed_while_little_is_known_of_the_noise(strength, still, face, face_model):
    """Soon after a face was found, or where a picture stood still: its first move is no noise."""
    size = np.sqrt(np.ptp(face.landmarks[:2], axis=1).prod())
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    for shift in [0.0] * still + [0.5 * size]:
        there = moved(face, shift)
        found = landmarks_of(smoother(there), there, face_model)
    assert np.abs(found - there.landmarks)[0].mean() < 0.06 * size


@pytest.mark.parametrize("strength", SMOOTHING)
def test_expressions_move_and_shapes_stay(strength, face, face_model):
    """A mouth that opens within a second lags little; a person's shape is that of many frames."""
    steps = np.arange(90)
    wave = 2 * np.sin(2 * np.pi * steps / 50)
    parameters = np.tile(face.parameters, (90, 1))
    parameters[:, -9] += wave * face_model.param_std[-9]
    parameters[:, 12] += wave * face_model.param_std[12]  # no head's: the network's wavering
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    found = np.array([smoother(make_face(face_model, row, face.roi_box)) for row in parameters])
    opened, shape = ((found[:, i] - face.parameters[i]) / face_model.param_std[i] for i in (-9, 12))
    assert lag_behind(opened, wave) <= LAG[strength]
    assert np.ptp(opened[30:]) > 0.8 * np.ptp(wave) > 1.3 * np.ptp(shape[30:])


@pytest.mark.parametrize("strength", SMOOTHING)
def test_a_talking_mouth_moves(strength, face, face_model):
    """At the rate of syllables, some four a second."""
    wave = 1.5 * np.sin(2 * np.pi * np.arange(90) / 7)
    noise = np.random.default_rng(6).normal(scale=0.01, size=(90, 10)) * face_model.param_std[-10:]
    parameters = np.tile(face.parameters, (90, 1))
    parameters[:, -10:] += noise
    parameters[:, -9] += wave * face_model.param_std[-9]
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    found = np.array([smoother(make_face(face_model, row, face.roi_box)) for row in parameters])
    opened = found[30:, -9] / face_model.param_std[-9]
    assert np.ptp(opened) > {"light": 0.7, "strong": 0.3}[strength] * np.ptp(wave)


@pytest.mark.parametrize("strength", SMOOTHING)
def test_turning_faces_lag_little_and_keep_their_shape(strength, face, face_model):
    angles = np.radians(30) * np.sin(2 * np.pi * np.arange(FRAMES) / 60)
    faces, truth = [], []
    for base, angle in zip(noisy_faces(face, face_model), angles, strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        row = base.parameters.copy()
        camera = row[:12].reshape(3, 4)
        camera[:, :3] = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ camera[:, :3]
        faces.append(make_face(face_model, row, base.roi_box))
        truth.append(angle)
    smoother = FaceSmoother(face_model, STRENGTHS[strength])
    smoothed = np.stack([smoother(f) for f in faces])
    scale, rotation, _ = decompose_camera(split_camera(smoothed))
    sideways = np.arcsin(rotation[:, 0, 2])
    assert lag_behind(sideways - sideways.mean(), np.array(truth)) <= LAG[strength]
    assert np.ptp(scale[STARTED:]) < 0.05 * scale.mean()  # averaged rotations would shrink it


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_what_moves_from_the_beginning_does_not_lag_a_frame_behind(strength):
    filter_ = OneEuro(STRENGTHS[strength].rest, STRENGTHS[strength].motion)
    noise = np.random.default_rng(0).normal(0, 0.05, (12, 2))
    values = 6.0 * np.arange(12)[:, None] * (1, 0) + noise  # 6 pixels a frame
    lag = [float((value - filter_(value))[0]) for value in values]
    assert max(lag[:2]) == 0  # of two values the line ends in the second
    assert max(lag) < 2.5 and max(lag[6:]) < 1.5
