"""Fitting a 3DMM's landmarks to labels: round trips, and the same by a slow twin."""

import numpy as np
import pytest

from utils.fitting import fit_landmarks, similarity_align
from utils.morphable_model import MorphableModel, build_morphable_model


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


def test_made_up_faces_come_back(model):
    parameters = random_parameters(40)
    labels = model.landmarks(parameters)
    fitted, error = fit_landmarks(model, labels, ridge=1e-9)
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


@pytest.mark.parametrize("shape", [(68, 3), (2, 68, 3), (2, 3, 67)])
def test_wrong_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, 68\)"):
        fit_landmarks(model, np.zeros(shape))


def test_face_that_is_not_finite_is_named(model):
    labels = model.landmarks(random_parameters(3))
    labels[1, 0, 5] = np.nan
    with pytest.raises(ValueError, match=r"faces \[1\]"):
        fit_landmarks(model, labels)
