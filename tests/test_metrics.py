"""Accuracy measures: values a person can work out, and slow twins."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from utils import geometry, metrics
from utils.morphable_model import MIRRORED_LANDMARKS

SQUARE = np.array([[[0, 40, 40, 0], [0, 0, 10, 10]]], dtype=float)  # sqrt(40 * 10) = 20


def test_nme_of_a_shifted_box():
    moved = SQUARE + np.array([3, 4])[:, None]  # by 5 pixels
    np.testing.assert_allclose(metrics.nme(moved, SQUARE), [25.0])
    np.testing.assert_allclose(metrics.point_errors(moved, SQUARE), [[25.0] * 4])
    depth = np.concatenate([moved, np.full((1, 1, 4), 99.0)], axis=1)
    np.testing.assert_allclose(metrics.nme(depth, SQUARE), [25.0])  # z does not count
    unlabelled = SQUARE.copy()
    unlabelled[0, :, 0] = np.nan
    moved[0, :, 1] = SQUARE[0, :, 1]
    np.testing.assert_allclose(metrics.nme(moved, unlabelled), [50 / 3])


def test_bins_have_their_upper_ends():
    yaw = np.array([0, -30, 30.1, 60, -60.1, 120])
    assert metrics.bin_masks(yaw).argmax(0).tolist() == [0, 0, 1, 1, 2, 2]
    assert not metrics.bin_masks(np.array([np.nan, 10]))[:, 0].any()
    errors = np.array([1.0, 3, 2, 2, 5, 7])
    assert metrics.bin_means(errors, yaw).tolist() == [2, 2, 6]
    assert metrics.bin_deviations(errors, yaw).tolist() == [1, 0, 1]
    assert np.isnan(metrics.bin_means(errors[:2], yaw[:2])[1:]).all()


def test_failure_rate_and_curve():
    errors = np.array([2.0, 4, 8, 16])
    assert metrics.failure_rate(errors) == 25
    assert metrics.cumulative_errors(errors, [1, 2, 5, 100]).tolist() == [0, 25, 50, 100]
    assert metrics.area_under_curve(errors) == 100 * (0.75 + 0.5 + 0 + 0) / 4
    many = np.random.default_rng(0).gamma(4, 1, 500)
    limits = np.linspace(0, 8, 20_001)
    sampled = metrics.cumulative_errors(many, limits).mean()
    assert metrics.area_under_curve(many) == pytest.approx(sampled, abs=0.01)


def test_parts_cover_all_landmarks_once():
    assert np.concatenate([np.arange(68)[p] for p in metrics.PARTS.values()]).tolist() == list(
        range(68)
    )


def test_aflw_points_of_the_68():
    landmarks = np.arange(2 * 3 * 68.0).reshape(2, 3, 68)
    found = metrics.to_aflw21(landmarks)
    assert found.shape == (2, 3, 21)
    assert metrics.AFLW_EARS == [12, 16] == np.flatnonzero(np.isnan(found[0, 0])).tolist()
    order = [17, 19, 21, 22, 24, 26, 36, 39, 39, 42, 45, 45, 31, 30, 35, 48, 64, 54, 8]
    np.testing.assert_array_equal(np.delete(found[0, 0], [12, 16]), order)  # centres: mean index
    mirrored = np.array([5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 16, 15, 14, 13, 12, 19, 18, 17, 20])
    points = np.random.default_rng(0).normal(size=(1, 2, 68))
    np.testing.assert_allclose(
        metrics.to_aflw21(points[:, :, MIRRORED_LANDMARKS]),
        metrics.to_aflw21(points)[:, :, mirrored],
    )


# ------------------------------------------------------------------------------------- head pose


def test_geodesic_is_the_angle_of_the_turn_between():
    a, b = (Rotation.random(200, random_state=seed) for seed in (1, 2))
    expected = np.degrees((a.inv() * b).magnitude())
    np.testing.assert_allclose(metrics.geodesic(a.as_matrix(), b.as_matrix()), expected, atol=1e-6)
    small = Rotation.from_euler("x", 1e-6, degrees=True).as_matrix()[None]
    np.testing.assert_allclose(metrics.geodesic(small, np.eye(3)[None]), 1e-6, rtol=1e-6)


def test_angle_differences_go_the_short_way():
    found = geometry.angle_differences([179, 10, 0, 370], [-179, -10, 180, 0])
    np.testing.assert_allclose(found, [2, 20, 180, 10])


# ------------------------------------------------------------------------------------- bootstrap


def test_bootstrap():
    yaw = np.repeat([0, 45, 80], 100)
    assert np.ptp(metrics.bootstrap_balanced(np.full(300, 2.0), yaw, rounds=50)) == 0
    errors = np.random.default_rng(0).normal(3, 1, 300)
    drawn = metrics.bootstrap_balanced(errors, yaw, rounds=4000)
    assert drawn.mean() == pytest.approx(errors.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(errors.std() / np.sqrt(300), rel=0.1)
    np.testing.assert_array_equal(drawn, metrics.bootstrap_balanced(errors, yaw, rounds=4000))
    errors[:100] = np.nan  # nothing in the first bin
    assert np.isfinite(metrics.bootstrap_balanced(errors, yaw, rounds=10)).all()
    with pytest.raises(ValueError, match="no errors"):
        metrics.bootstrap_balanced(np.full(300, np.nan), yaw)
