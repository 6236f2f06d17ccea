"""Accuracy measures of the AFLW2000-3D protocol (Zhu et al., "Face Alignment Across Large Poses",
CVPR 2016), and those that say more than it does."""

import numpy as np

YAW_BINS = ((0, 30), (30, 60), (60, 90))  # |yaw| in degrees; values beyond 90 fall into the last
FAILURE = 8.0  # percent; a face with a larger NME counts as lost
PARTS = {  # of the 68 landmarks
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "mouth": slice(48, 68),
}
# AFLW's 21 points in its order, each the mean of some of the 68 landmarks; empty: an ear, which the
# 68 lack
AFLW_FROM_68 = (
    *((17,), (19,), (21,), (22,), (24,), (26,)),  # brows: outer end, middle, inner end; inner ...
    *((36,), (37, 38, 40, 41), (39,), (42,), (43, 44, 46, 47), (45,)),  # eyes: corner, centre, ...
    *((), (31,), (30,), (35,), ()),  # ear, nose: left, tip, right; ear
    *((48,), (62, 66), (54,), (8,)),  # mouth: left, centre, right; chin
)
AFLW_EARS = [i for i, points in enumerate(AFLW_FROM_68) if not points]

# ------------------------------------------------------------------------------------- landmarks


def point_errors(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Each landmark's 2D distance over sqrt(w * h) of its face's target box (max - min).

    Args:
        prediction, target: (n, 2+, K), same frame; only x and y count.

    Returns:
        (n, K) float64 percent; NaN where either is.
    """
    target = np.asarray(target, dtype=np.float64)[:, :2]
    distance = np.linalg.norm(np.asarray(prediction, dtype=np.float64)[:, :2] - target, axis=1)
    return 100 * distance / box_size(target)[:, None]


def box_size(points: np.ndarray) -> np.ndarray:
    """(n, 2+, K) -> (n,) sqrt(w * h) of each face's box (max - min), NaN points left out."""
    xy = np.asarray(points, dtype=np.float64)[:, :2]
    return np.sqrt((np.nanmax(xy, axis=2) - np.nanmin(xy, axis=2)).prod(1))


def nme(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Normalised mean error per face: mean 2D distance over sqrt(w * h) of the target's box.

    Args:
        prediction, target: (n, 2+, K), same frame; only x and y count. Points that are NaN in
            either are left out.

    Returns:
        (n,) percent.
    """
    return np.nanmean(point_errors(prediction, target), axis=1)


def to_aflw21(landmarks: np.ndarray) -> np.ndarray:
    """(n, C, 68) landmarks -> (n, C, 21) AFLW's points; NaN at the ears, which the 68 lack."""
    nothing = np.full(landmarks.shape[:2], np.nan)
    points = [landmarks[:, :, list(p)].mean(2) if p else nothing for p in AFLW_FROM_68]
    return np.stack(points, axis=2)


def yaw_bin(yaw: np.ndarray) -> np.ndarray:
    """(n,) which yaw bin, |yaw| <= 30, <= 60, > 60, each of (n,) yaws lies in; NaN in the last."""
    return np.digitize(np.abs(yaw), [high for _, high in YAW_BINS[:-1]], right=True)


def bin_masks(yaw: np.ndarray) -> np.ndarray:
    """(3, n) bool: which samples lie in each yaw bin |yaw| <= 30, <= 60, > 60; NaN in none."""
    return (yaw_bin(yaw) == np.arange(len(YAW_BINS))[:, None]) & ~np.isnan(yaw)


def bin_means(errors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """(3,) mean of the errors (n,) in each bin of the yaws (n,): |yaw| <= 30, <= 60, > 60 degrees.

    NaN for an empty bin. The headline of the protocol is the unweighted mean of the three, its
    "Std" the population standard deviation of the three.
    """
    return np.array([errors[c].mean() if c.any() else np.nan for c in bin_masks(yaw)])


def bin_deviations(errors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """(3,) population standard deviation of the errors (n,) within each bin of the yaws (n,); NaN
    for an empty bin."""
    return np.array([errors[c].std() if c.any() else np.nan for c in bin_masks(yaw)])


def failure_rate(errors: np.ndarray) -> float:
    """How many of the errors (n,) are above ``FAILURE``, in percent; NaN counts as below."""
    return float(100 * np.mean(np.asarray(errors) > FAILURE))


def cumulative_errors(errors: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The cumulative error distribution.

    Returns:
        (L,) float64, how many of the errors (n,) are up to each of the limits (L,), in percent; NaN
        counts as above all.
    """
    ordered = np.sort(errors)
    return 100 * np.searchsorted(ordered, limits, side="right") / len(ordered)


def area_under_curve(errors: np.ndarray) -> float:
    """Area under the cumulative curve of the errors (n,) from 0 to ``FAILURE``, in percent of the
    largest possible; NaN where an error is.

    Exact, no sampling: a face with error e is under the curve from e to ``FAILURE``.
    """
    return float(100 * np.mean(np.clip(1 - np.asarray(errors) / FAILURE, 0, 1)))


# ------------------------------------------------------------------------------------- head pose


def geodesic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) degrees of the single turn between rotations (n, 3, 3).

    Through the matrices' distance, 2 sqrt(2) sin(angle / 2): unlike the arc cosine of the trace it
    is exact for small turns.
    """
    distance = np.linalg.norm(np.asarray(a, dtype=np.float64) - b, axis=(1, 2))
    return np.degrees(2 * np.arcsin(np.clip(distance / np.sqrt(8), 0, 1)))


# ------------------------------------------------------------------------------------- certainty


def bootstrap_balanced(
    errors: np.ndarray, yaw: np.ndarray, rounds: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Means of the yaw bins' means, of samples drawn anew with replacement within each bin.

    For two runs on one set pass the differences of their errors (a paired bootstrap).

    Args:
        errors: (n,) per sample; NaN and infinite ones are left out.
        yaw: (n,) degrees.
        rounds: how many times samples are drawn.
        seed: the same one gives the same means.

    Returns:
        (rounds,) float64; its percentiles 2.5 and 97.5 bound the 95 % interval.

    Raises:
        ValueError: no error at all. An empty bin is left out.
    """
    errors = np.asarray(errors, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = []
    for chosen in bin_masks(yaw):
        values = errors[chosen & np.isfinite(errors)]
        if len(values):
            drawn = np.empty(rounds)
            for start in range(0, rounds, 1000):  # not all at once: 2,000 samples are 160 MB
                size = (min(1000, rounds - start), len(values))
                drawn[start : start + 1000] = values[rng.integers(len(values), size=size)].mean(1)
            means.append(drawn)
    if not means:
        raise ValueError("no errors to draw from")
    return np.mean(means, axis=0)
