"""Accuracy measures of the AFLW2000-3D protocol."""

import numpy as np

YAW_BINS = ((0, 30), (30, 60), (60, 90))  # |yaw| in degrees; values beyond 90 fall into the last


def nme(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Normalised mean error per face: mean 2D distance over sqrt(w * h) of the target's box.

    Args:
        prediction, target: (n, 2+, K), same frame; only x and y count. Points that are NaN in
            the target are left out.

    Returns:
        (n,) percent.
    """
    target = np.asarray(target, dtype=np.float64)[:, :2]
    distance = np.linalg.norm(np.asarray(prediction, dtype=np.float64)[:, :2] - target, axis=1)
    sides = np.nanmax(target, axis=2) - np.nanmin(target, axis=2)  # (n, 2)
    return 100 * np.nanmean(distance, axis=1) / np.sqrt(sides.prod(1))


def bin_means(errors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """(3,) mean error of each yaw bin |yaw| <= 30, <= 60, > 60; NaN for an empty bin.

    The headline of the protocol is the unweighted mean of the three, its "Std" the population
    standard deviation of the three.
    """
    magnitude = np.abs(yaw)
    bins = [magnitude <= 30, (magnitude > 30) & (magnitude <= 60), magnitude > 60]
    return np.array([errors[chosen].mean() if chosen.any() else np.nan for chosen in bins])
