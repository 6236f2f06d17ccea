"""Fitting a 3DMM's landmarks to labels: round trips, and the same by a slow twin."""

from dataclasses import replace

import numpy as np
import pytest

import Sim3DR
from utils import fitting, synthetic
from utils.assets import STARTER_FACE_MODEL
from utils.fitting import fit_landmarks, similarity_align, whitening
from utils.geometry import decompose_camera
from utils.metrics import box_size, geodesic, nme
from utils.morphable_model import (
    MorphableModel,
    build_morphable_model,
    load_morphable_model,
    split_camera,
)


@pytest.fixture
def model() -> MorphableModel:
    """68 vertices, all of them landmarks."""
    rng = np.random.default_rng(3)
    columns, _ = np.linalg.qr(rng.normal(size=(204, 50)))
    mean = rng.normal(size=(68, 3)) * (5e4, 5e4, 2e4)
    arrays = {
        "u_shp": (mean - mean.mean(0)).reshape(204, 1),
        "u_exp": np.zeros((204, 1)),
        "w_shp_sim": columns[:, :40] * 4e4,
        "w_exp_sim": columns[:, 40:] * 4e4,
        "keypoints_sim": np.arange(204),
        "tri": np.zeros((3, 0), int),
        "param_mean": np.zeros(62),
        "param_std": np.ones(62),
    }
    return build_morphable_model(arrays, "made up")


def random_rotations(rng: np.random.Generator, n: int) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    return q * np.linalg.det(q)[:, None, None]


def random_parameters(n: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    a = random_rotations(rng, n) * rng.uniform(4e-4, 6e-4, (n, 1, 1))
    t = np.concatenate([rng.normal(60, 5, (n, 2, 1)), np.zeros((n, 1, 1))], 1)
    camera = np.concatenate([a, t], 2).reshape(n, 12)
    return np.concatenate([camera, rng.normal(0, 0.5, (n, 50))], 1).astype(np.float32)


def test_similarity_is_recovered_and_never_a_reflection():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(20, 68, 3))
    a = random_rotations(rng, 20) * rng.uniform(0.1, 10, (20, 1, 1))
    t = rng.normal(size=(20, 3))
    found_a, found_t = similarity_align(source, source @ np.swapaxes(a, 1, 2) + t[:, None])
    np.testing.assert_allclose(found_a, a, atol=1e-9)
    np.testing.assert_allclose(found_t, t, atol=1e-9)
    mirrored_a, _ = similarity_align(source, source * (-1, 1, 1))
    assert (np.linalg.det(mirrored_a) > 0).all()


def test_made_up_faces_come_back(model, monkeypatch):
    monkeypatch.setattr(fitting, "RIDGE", 1e-9)
    parameters = random_parameters(40)
    labels = model.landmarks(parameters)
    fitted, error = fit_landmarks(model, labels)
    assert fitted.shape == (40, 62) and fitted.dtype == np.float32
    # depth is counted from the model's origin, as in the made-up parameters
    np.testing.assert_allclose(model.landmarks(fitted), labels, atol=1e-3)
    assert error.max() < 1e-5


def test_depth_offset_of_labels_does_not_count(model):
    labels = model.landmarks(random_parameters(3))
    one, _ = fit_landmarks(model, labels)
    other, _ = fit_landmarks(model, labels + np.array([0, 0, 37.0])[:, None])
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert (one[:, 11] == 0).all()


def test_batch_equals_single_and_an_alternation_written_out(model):
    rng = np.random.default_rng(5)
    labels = model.landmarks(random_parameters(4)) + rng.normal(0, 1, (4, 3, 68))
    batch, error = fit_landmarks(model, labels)
    mean = model.landmark_mean.T.astype(float)
    basis = model.landmark_basis.transpose(2, 1, 0).reshape(204, 50).astype(float)
    normal = basis.T @ basis
    normal += 1e-5 * np.trace(normal) / 50 * np.eye(50)
    for i, label in enumerate(labels):
        single, _ = fit_landmarks(model, label[None])
        np.testing.assert_allclose(single[0], batch[i], atol=1e-4)
        target = np.stack([label[0], 121 - label[1], label[2]], 1)
        face = mean
        for _ in range(100):
            a, t = (x[0] for x in similarity_align(face[None], target[None]))
            back = (target - t) @ np.linalg.inv(a).T
            c = np.linalg.solve(normal, basis.T @ (back - mean).ravel())
            face = mean + (basis @ c).reshape(68, 3)
        a, t = (x[0] for x in similarity_align(face[None], target[None]))
        distance = np.linalg.norm((face @ a.T + t - target)[:, :2], axis=1).mean()
        box = np.ptp(label[:2], axis=1)
        assert error[i] == pytest.approx(distance / np.sqrt(box.prod()), rel=1e-3)


# ------------------------------------------------------------------------------- people's labels


@pytest.fixture(scope="module")
def starter() -> MorphableModel:
    return load_morphable_model(STARTER_FACE_MODEL)


def made_up_labels(model, yaw, seed=0):
    """Parameters, their landmarks (n, 3, 68), and the faces' sizes (n, 1, 1)."""
    whitened = synthetic.random_parameters(model, yaw, np.random.default_rng(seed))
    landmarks = model.landmarks(model.dewhiten(whitened)).astype(np.float64)
    return model.dewhiten(whitened), landmarks, box_size(landmarks)[:, None, None]


def turns(one, other):
    """Degrees between the poses of parameters."""
    return geodesic(*(decompose_camera(split_camera(p))[1] for p in (one, other)))


def see_contour(model, parameters, landmarks):
    """2D labels as people set them: hidden jaw points move straight out to where the face ends.

    An independent way: by what a drawn picture shows, four times as large as a crop.
    """
    labels = landmarks[:, :2].copy()
    for face, points, label in zip(model.vertices(parameters), landmarks, labels, strict=True):
        # room around the crop, for faces that are not quite inside
        mesh = np.ascontiguousarray(4 * (face.T + (40, 40, 0)), dtype=np.float32)
        drawn = Sim3DR.zbuffer(mesh, model.triangles, 800, 800)
        across = points[:2, 45] - points[:2, 36]
        across = across / np.linalg.norm(across)
        slack = 0.04 * np.sqrt(np.ptp(points[:2], axis=1).prod())
        for k in np.delete(np.arange(17), 8):
            x, y = np.rint(4 * (points[:2, k] + 40)).astype(int)
            if drawn.depth[y, x] > 4 * (points[2, k] + slack):  # something is before it
                away = np.arange(0, 60, 0.25)
                line = points[:2, k, None] + np.sign(k - 8) * across[:, None] * away
                x, y = np.rint(4 * (line + 40)).astype(int).clip(0, 799)
                label[:, k] = line[:, np.flatnonzero(drawn.covered[y, x]).max()]
    return labels


@pytest.mark.parametrize(("dims", "noise"), [(3, 0.01), (2, 0.02)])
def test_pose_landmarks_and_depth_come_out_of_labels(starter, dims, noise):
    parameters, landmarks, _ = made_up_labels(starter, np.linspace(-80, 80, 12))
    fitted, error = fit_landmarks(starter, landmarks[:, :dims], noise=noise)
    assert error.max() < 0.004  # the model's statistics pull a little
    assert nme(starter.landmarks(fitted), landmarks).max() < 0.5  # percent
    assert turns(fitted, parameters).max() < 2
    depth = (starter.landmarks(fitted) - landmarks)[:, 2]
    assert (depth - depth.mean(1, keepdims=True)).std() < (1.2 if dims == 2 else 0.5)
    np.testing.assert_allclose(fitted[:, 11], starter.param_mean[11])


@pytest.mark.parametrize(("dims", "noise"), [(3, 0.01), (2, 0.02)])
def test_slips_and_missing_points_hardly_matter(starter, dims, noise):
    parameters, landmarks, size = made_up_labels(starter, np.linspace(-60, 60, 12))
    rng = np.random.default_rng(1)
    labels = landmarks[:, :dims] + 0.01 * size * rng.normal(size=(12, dims, 68))
    plain = nme(starter.landmarks(fit_landmarks(starter, labels, noise=noise)[0]), landmarks)
    for label, scale in zip(labels, size[:, 0, 0], strict=True):
        wrong, missing = np.split(rng.permutation(68)[:14], 2)
        label[:, wrong] += rng.normal(0, 0.3, (dims, 7)) * scale
        label[:, missing] = np.nan
    fitted, error = fit_landmarks(starter, labels, noise=noise)
    assert nme(starter.landmarks(fitted), landmarks).mean() < plain.mean() + 0.15  # percent
    assert turns(fitted, parameters).max() < 2.5
    assert error.min() > 0.02  # and it shows


def test_labels_that_say_next_to_nothing_leave_the_coefficients_at_their_mean(starter):
    mean = starter.param_mean.copy()
    mean[12:] = np.random.default_rng(0).normal(size=50) * starter.param_std[12:]
    elsewhere = replace(starter, param_mean=mean)
    _, landmarks, _ = made_up_labels(starter, np.zeros(2))
    fitted, _ = fit_landmarks(elsewhere, landmarks, noise=100.0)
    away = (fitted - mean)[:, 12:] / starter.param_std[12:]  # standard deviations
    assert np.abs(away).max() < 0.01


def test_no_jaw_label_is_uncertain_on_a_face_from_the_front(starter):
    _, landmarks, size = made_up_labels(starter, np.full(4, 0.5))
    labels = landmarks[:, :2] + 0.02 * size * np.random.default_rng(3).normal(size=(4, 2, 68))
    plain, _ = fit_landmarks(starter, labels, noise=0.02)
    contour, _ = fit_landmarks(starter, labels, noise=0.02, visible_contour=True)
    assert nme(starter.landmarks(contour), starter.landmarks(plain)).max() < 0.01  # percent


@pytest.mark.parametrize("yaw", [0, 15, 30, 45, 60])
def test_jaw_labels_on_the_visible_contour(starter, yaw):
    """Pose and inner landmarks from labels whose far jaw is off by up to 30 % of the face."""
    side = np.resize([1, -1], 12)
    parameters, landmarks, size = made_up_labels(starter, yaw * side)
    labels = see_contour(starter, parameters, landmarks)
    labels += 0.01 * size * np.random.default_rng(2).normal(size=labels.shape)
    found = {}
    for contour in (False, True):
        fitted, error = fit_landmarks(starter, labels, noise=0.02, visible_contour=contour)
        inner = nme(starter.landmarks(fitted)[:, :, 17:], landmarks[:, :, 17:])
        found[contour] = turns(fitted, parameters).mean(), inner.mean()
    assert found[True][0] < 2 and found[True][1] < 1.0  # degrees, percent of the inner box
    assert error.max() < 0.025
    if yaw == 30:  # further on, what is off is far enough off to be taken for a slip
        assert found[True][0] < 0.7 * found[False][0]


def test_faces_are_fitted_one_by_one(starter):
    _, landmarks, _ = made_up_labels(starter, np.linspace(-60, 60, 40))
    together = fit_landmarks(starter, landmarks[:, :2], noise=0.02)
    for index in (0, 17, 39):
        alone = fit_landmarks(starter, landmarks[[index], :2], noise=0.02)
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[index], part[0], rtol=1e-3, atol=2e-4)
    parameters, error = fit_landmarks(starter, landmarks[:0])
    assert parameters.shape == (0, 62) and error.shape == (0,)


def test_points_that_are_no_face_fit_badly_and_break_nothing(starter):
    line = np.stack([np.linspace(0, 90, 68)] * 2)
    labels = np.stack([line, np.random.default_rng(0).uniform(0, 100, (2, 68))])
    parameters, error = fit_landmarks(starter, labels, noise=0.02)
    assert np.isfinite(parameters).all() and error.min() > 0.1


def test_whitening_of_a_constant_is_one():
    parameters = np.random.default_rng(0).normal(3, 2, (50, 62)).astype(np.float32)
    parameters[:, 11] = -76.6486
    mean, std = whitening(parameters)
    assert std[11] == 1 and mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean[11], -76.6486, rtol=1e-6)
    whitened = np.delete((parameters - mean) / std, 11, 1)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(whitened.std(0), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(68, 3), (2, 68, 3), (2, 3, 67), (2, 4, 68)])
def test_wrong_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, 68\)"):
        fit_landmarks(model, np.zeros(shape))


def test_face_that_is_not_finite_is_named(model):
    labels = model.landmarks(random_parameters(3))
    labels[1, 0, 5] = np.nan
    with pytest.raises(ValueError, match=r"faces \[1\]"):
        fit_landmarks(model, labels)
    labels[1, 0, 10:] = np.nan
    with pytest.raises(ValueError, match=r"20 landmarks .* faces \[1\]"):
        fit_landmarks(model, labels, noise=0.01)


def test_flat_labels_need_their_noise(model):
    with pytest.raises(ValueError, match="need their noise"):
        fit_landmarks(model, np.zeros((1, 2, 68)))


@pytest.mark.parametrize("noise", [0.0, -0.01, np.nan, np.inf])
def test_a_noise_that_is_none_is_refused(model, noise):
    """0 and NaN gave parameters that are NaN, in silence."""
    with pytest.raises(ValueError, match="above 0, got"):
        fit_landmarks(model, model.landmarks(random_parameters(1)), noise=noise)


@pytest.mark.parametrize("axis", [0, 1])
def test_landmarks_in_one_row_or_column_are_refused(model, axis):
    """They gave parameters that are NaN, in silence."""
    labels = model.landmarks(random_parameters(2))
    labels[1, axis] = 5
    labels[1, :, 7] = np.nan  # not labelled
    with pytest.raises(ValueError, match=r"faces \[1\] all have the same x or the same y"):
        fit_landmarks(model, labels, noise=0.01)
