"""Fits a 3D morphable model to landmark labels: 68 labelled points in, 62 parameters out."""

import numpy as np

from utils.morphable_model import NUM_LANDMARKS, Y_FLIP, MorphableModel


def similarity_align(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarities that map each source onto its target with least squared error.

    Args:
        source, target: (B, K, 3) points.

    Returns:
        A (B, 3, 3), a scale times a proper rotation (never a reflection), and t (B, 3), such that
        `source @ A^T + t` comes closest to target. Umeyama, PAMI 1991, eq. 40-42.
    """
    source_mean, target_mean = source.mean(1), target.mean(1)  # (B, 3)
    centred = source - source_mean[:, None]
    covariance = np.swapaxes(target - target_mean[:, None], 1, 2) @ centred  # (B, 3, 3)
    u, singular, vt = np.linalg.svd(covariance)
    sign = np.ones_like(singular)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    scale = (singular * sign).sum(1) / (centred**2).sum((1, 2))
    a = scale[:, None, None] * ((u * sign[:, None, :]) @ vt)
    return a, target_mean - (a @ source_mean[:, :, None])[:, :, 0]


def fit_landmarks(
    face_model: MorphableModel,
    landmarks: np.ndarray,
    *,
    ridge: float = 1e-5,
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the model to 3D landmark labels: coefficients and similarity in turns.

    Args:
        face_model: numpy arrays; only its landmarks are used.
        landmarks: (B, 3, K) labels in crop pixels: x right, y down, z towards the viewer in the
            same unit. Only differences in z count.
        ridge: weight of the coefficients' squared sum, relative to the mean diagonal of the
            normal matrix.
        iterations: at most so many turns.
        tolerance: stop when no landmark moves further than this many pixels, root mean square
            over each face, in one turn.

    Returns:
        parameters (B, 12 + S + E) float32, un-whitened, with t_z = 0: depth is counted from the
        model's origin; and the fit error (B,) float32: mean distance in the picture plane over
        sqrt(w·h) of the label's bounding box.

    Raises:
        ValueError: landmarks that are not finite or not (B, 3, K).
    """
    k = NUM_LANDMARKS
    labels = np.asarray(landmarks, dtype=np.float64)
    if labels.ndim != 3 or labels.shape[1:] != (3, k):
        raise ValueError(f"landmarks must have shape (B, 3, {k}), got {labels.shape}")
    if not np.isfinite(labels).all():
        bad = np.flatnonzero(~np.isfinite(labels).all((1, 2)))
        raise ValueError(f"landmarks must be finite; faces {bad[:5].tolist()} are not")
    target = labels.transpose(0, 2, 1) * (1, -1, 1) + (0, Y_FLIP, 0)  # (B, K, 3), y up
    mean = face_model.landmark_mean.T.astype(np.float64)  # (K, 3)
    basis = face_model.landmark_basis.astype(np.float64)  # (P, 3, K)
    basis = basis.transpose(2, 1, 0).reshape(3 * k, -1)  # (3K, P)
    normal = basis.T @ basis
    size = len(normal)
    normal += ridge * np.trace(normal) / size * np.eye(size)
    project = np.linalg.solve(normal, basis.T)  # (P, 3K)

    coefficients = np.zeros((len(target), size))
    a, t = similarity_align(np.broadcast_to(mean, target.shape), target)
    camera = np.concatenate([a, t[:, :, None]], axis=2)  # (B, 3, 4)
    fitted = np.full_like(target, np.inf)
    active = np.arange(len(target))
    for _ in range(iterations):
        a, t = camera[active, :, :3], camera[active, :, 3]
        scale_squared = (a**2).sum((1, 2))[:, None, None] / 3
        in_model = (target[active] - t[:, None]) @ a / scale_squared  # A^-1 = A^T / s²
        c = (in_model - mean).reshape(-1, 3 * k) @ project.T  # (b, P)
        faces = mean + (c @ basis.T).reshape(-1, k, 3)
        a, t = similarity_align(faces, target[active])
        now = faces @ np.swapaxes(a, 1, 2) + t[:, None]  # (b, K, 3)
        coefficients[active] = c
        camera[active] = np.concatenate([a, t[:, :, None]], axis=2)
        moved = np.sqrt(((now - fitted[active]) ** 2).sum(2).mean(1))
        fitted[active] = now
        active = active[moved >= tolerance]
        if not len(active):
            break
    error = np.linalg.norm((fitted - target)[:, :, :2], axis=2).mean(1)
    extent = np.ptp(target[:, :, :2], axis=1)  # (B, 2)
    camera[:, 2, 3] = 0
    parameters = np.concatenate([camera.reshape(len(camera), 12), coefficients], axis=1)
    return parameters.astype(np.float32), (error / np.sqrt(extent.prod(1))).astype(np.float32)
