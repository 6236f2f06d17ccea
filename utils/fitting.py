"""Fits a 3D morphable model to landmark labels: 68 labelled points in, 62 parameters out."""

import numpy as np
from scipy.spatial.transform import Rotation

from utils.morphable_model import (
    CAMERA,
    NUM_LANDMARKS,
    NUM_PARAMETERS,
    Y_FLIP,
    MorphableModel,
)

CHIN = 8  # the middle one of the jaw's points, 0 to 16
MIN_POINTS = 20  # labelled points that a face needs at least
BATCH = 32  # faces fitted together: they all go on until the slowest is done
HIDING = 2.0  # of the size of a face, times 1 - cos(yaw): how far off a far jaw label may be
OUTLIER = 2.5  # label deviations from which a point's pull fades
# Weight of the coefficients' squared sum where no noise is given, relative to the mean diagonal of
# the normal matrix.
RIDGE = 1e-5
MAX_STEPS = 100
TOLERANCE = 1e-6  # of the size of a face: ends when no face's landmarks move further in a step


def similarity_align(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarities that map each source onto its target with least squared error.

    Args:
        source, target: (B, K, 3) points.

    Returns:
        A (B, 3, 3), a scale times a proper rotation (never a reflection), and t (B, 3), such that
        ``source @ A^T + t`` comes closest to target. Umeyama, PAMI 1991, eq. 40-42.
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


def whitening(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (P,) float32 of parameters (n, P).

    Where all are the same (t_z is, by convention) the deviation is 1, so that a network's output
    there is not blown up.
    """
    mean, std = parameters.mean(0, dtype=np.float64), parameters.std(0, dtype=np.float64)
    std[std <= 1e-9 * np.abs(mean)] = 1
    return mean.astype(np.float32), std.astype(np.float32)


def fit_landmarks(
    face_model: MorphableModel,
    landmarks: np.ndarray,
    *,
    noise: float | None = None,
    visible_contour: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the model to landmark labels by Gauss-Newton steps on camera and coefficients at once.

    Without ``noise`` the labels are taken at their word: least squares, the coefficients held back
    by a ridge alone. That is for labels that are faces in 3D themselves. With ``noise`` it is the
    most probable face: coefficients are normal with the model's whitening, labels have that
    deviation, and a point far off (a slip, something in front of the face) loses its pull
    (Geman-McClure weights). Only then may points be missing, and labels be flat.

    On 2D labels people put the jaw's points where they see the face end. As the head turns, that
    place wanders from the far side's jaw to its cheek, while the model's point stays on the jaw and
    hides (Zhu, Lei, Yan, Yi, Li, *High-Fidelity Pose and Expression Normalization for Face
    Recognition in the Wild*, CVPR 2015: "landmark marching", which lets the model's point wander
    along). With ``visible_contour`` the far side's jaw labels simply become uncertain as they get
    off, by ``HIDING`` (1 - cos(yaw)) of the face's size. On people's labels of turned heads that
    came out more accurate than marching (docs/training.md, "Your own data").

    Args:
        face_model: numpy arrays; only its landmarks are used.
        landmarks: (B, 3, K) or (B, 2, K) labels in crop pixels, or in those of any other picture:
            x right, y down, z towards the viewer in the same unit. Only differences in z count.
            NaN: not labelled.
        noise: standard deviation of the labels, as a share of sqrt(w·h) of their box; above 0.
        visible_contour: x and y of points 0 to 16 lie on the visible contour.

    Returns:
        parameters (B, 62) float32, un-whitened; t_z is the whitening's mean, since nothing
        else says where depth starts. And the fit error (B,) float32: mean distance of fitted
        landmarks from labels in the picture plane over sqrt(w·h) of the label's box; points of the
        far side's jaw count as much as they are certain.

    Raises:
        ValueError: landmarks of another shape, faces with too few points or all in one row or
            column, what needs ``noise``, or a ``noise`` that is none.
    """
    labels = np.asarray(landmarks, dtype=np.float64)
    k = NUM_LANDMARKS
    if labels.ndim != 3 or labels.shape[1] not in (2, 3) or labels.shape[2] != k:
        raise ValueError(
            f"landmarks must have shape (B, 3, {k}) or (B, 2, {k}), got {labels.shape}"
        )
    if noise is None and (labels.shape[1] == 2 or visible_contour):
        raise ValueError(
            "2D labels need their noise given: depth comes from the model's statistics"
        )
    if noise is not None and not 0 < noise < np.inf:
        raise ValueError(f"the labels' noise must be a finite number above 0, got {noise}")
    known = np.isfinite(labels).all(1)  # (B, K)
    needed = k if noise is None else MIN_POINTS
    bad = np.flatnonzero(known.sum(1) < needed)
    if len(bad):
        raise ValueError(
            f"{needed} landmarks of a face must be finite; faces {bad[:5].tolist()} have fewer"
        )
    if not len(labels):  # older releases of scipy rotate no empty batch
        return np.zeros((0, NUM_PARAMETERS), np.float32), np.zeros(0, np.float32)
    marked = np.where(known[:, None], labels[:, :2], np.nan)
    flat = np.flatnonzero((np.nanmax(marked, 2) <= np.nanmin(marked, 2)).any(1))
    if len(flat):
        raise ValueError(
            f"the landmarks of faces {flat[:5].tolist()} all have the same x or the same y: their "
            "box has no size"
        )
    fits = [
        _Fit(face_model, part, noise, visible_contour).run()
        for part in np.array_split(labels, max(1, -(-len(labels) // BATCH)))
    ]
    parameters, errors = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    return parameters.astype(np.float32), errors.astype(np.float32)


class _Fit:
    """A batch being fitted: b faces, K points, D 2 or 3, P coefficients; y up, in pixels.

    The state is scale (b,), rotation (b, 3, 3), shift (b, D) and coefficients (b, P).
    """

    def __init__(
        self,
        face_model: MorphableModel,
        labels: np.ndarray,
        noise: float | None,
        visible_contour: bool,
    ) -> None:
        self.target = labels.transpose(0, 2, 1).copy()  # (b, K, D)
        self.target[:, :, 1] = Y_FLIP - self.target[:, :, 1]
        self.known = np.isfinite(self.target).all(2)  # (b, K)
        self.target[~self.known] = np.nan
        box = np.nanmax(self.target, 1) - np.nanmin(self.target, 1)
        self.size = np.sqrt(box[:, :2].prod(1))  # (b,)
        self.target[~self.known] = 0
        self.noise, self.visible_contour = noise, visible_contour
        self.mean = face_model.landmark_mean.T.astype(np.float64)  # (K, 3)
        basis = face_model.landmark_basis.astype(np.float64)  # (P, 3, K)
        self.flat_basis = basis.transpose(1, 2, 0).reshape(3, -1)  # (3, K * P)
        self.start_depth = face_model.param_mean[CAMERA - 1]
        if noise is None:
            centre = np.zeros(len(basis))
            self.prior = np.full(len(basis), RIDGE * (basis**2).sum() / len(basis))
        else:
            centre = face_model.param_mean[CAMERA:].astype(np.float64)
            self.prior = 1 / face_model.param_std[CAMERA:].astype(np.float64) ** 2
        self.centre = centre
        self.coefficients = np.tile(centre, (len(labels), 1))
        self._begin(self.mean + np.tensordot(centre, basis, 1).T)

    def _begin(self, face: np.ndarray) -> None:
        """The camera of an average face (K, 3): an affine one, brought to a scaled rotation."""
        weight = self.known.astype(np.float64)
        if self.visible_contour:
            weight[:, : 2 * CHIN + 1] *= 0.1
        homogeneous = np.concatenate([face, np.ones((len(face), 1))], 1)
        normal = np.einsum("bk,ki,kj->bij", weight, homogeneous, homogeneous)
        right = np.einsum("bk,ki,bkd->bid", weight, homogeneous, self.target)
        rows = np.linalg.solve(normal, right).transpose(0, 2, 1)[:, :, :3]  # (b, D, 3)
        if rows.shape[1] == 2:  # the third is as long as the others
            third = np.cross(rows[:, 0], rows[:, 1])
            third /= np.sqrt(np.linalg.norm(third, axis=1, keepdims=True)).clip(1e-300)
            rows = np.concatenate([rows, third[:, None]], 1)
        u, singular, vt = np.linalg.svd(rows)
        u[:, :, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))[:, None]
        self.rotation, self.scale = u @ vt, singular.mean(1)
        placed = self.scale[:, None, None] * face @ self.rotation.transpose(0, 2, 1)
        offset = (self.target - placed[:, :, : self.target.shape[2]]) * weight[:, :, None]
        self.shift = offset.sum(1) / weight.sum(1)[:, None]

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        before = np.full_like(self.target, np.inf)
        for _ in range(MAX_STEPS):
            now = self._step()
            moved = np.sqrt(((now - before) ** 2).sum(2).mean(1)) / self.size
            before = now
            if (moved < TOLERANCE).all():
                break
        distance = np.linalg.norm((self._place()[0] - self.target)[:, :, :2], axis=2)
        certainty = self.known * self._certainty() ** 2
        error = (distance * certainty).sum(1) / certainty.sum(1) / self.size
        camera = np.zeros((len(error), 3, 4))
        camera[:, :, :3] = self.scale[:, None, None] * self.rotation
        camera[:, :2, 3] = self.shift[:, :2]
        camera[:, 2, 3] = self.start_depth
        return np.concatenate([camera.reshape(-1, CAMERA), self.coefficients], 1), error

    def _place(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Landmarks (b, K, D); the same without shift (b, K, 3), and the basis (b, K, 3, P)."""
        a = self.scale[:, None, None] * self.rotation  # (b, 3, 3)
        b, k, p = len(a), len(self.mean), self.coefficients.shape[1]
        basis = (a @ self.flat_basis).reshape(b, 3, k, p).transpose(0, 2, 1, 3)
        turned = self.mean @ a.transpose(0, 2, 1)
        turned = turned + (basis @ self.coefficients[:, None, :, None])[..., 0]
        return turned[:, :, : self.target.shape[2]] + self.shift[:, None], turned, basis

    def _step(self) -> np.ndarray:
        """One Gauss-Newton step; the landmarks (b, K, D) before it."""
        placed, turned, basis = self._place()
        b, k, d = placed.shape
        jacobian = np.zeros((b, k, 3, 7 + basis.shape[3]))  # turn, log scale, shift, coefficients
        x, y, z = np.moveaxis(turned, 2, 0)
        jacobian[:, :, 0, 1], jacobian[:, :, 0, 2] = z, -y  # a small turn w moves q by w x q
        jacobian[:, :, 1, 0], jacobian[:, :, 1, 2] = -z, x
        jacobian[:, :, 2, 0], jacobian[:, :, 2, 1] = y, -x
        jacobian[:, :, :, 3] = turned
        jacobian[:, :, :, 4:7] = np.eye(3)
        jacobian[:, :, :, 7:] = basis
        residual = placed - self.target
        weight = self._weights(np.linalg.norm(residual, axis=2))
        residual = (residual * weight[:, :, None]).reshape(b, k * d, 1)
        jacobian = (jacobian[:, :, :d] * weight[:, :, None, None]).reshape(
            b, k * d, jacobian.shape[3]
        )
        transposed = jacobian.transpose(0, 2, 1)
        normal, gradient = transposed @ jacobian, (transposed @ residual)[:, :, 0]
        gradient[:, 7:] += self.prior * (self.coefficients - self.centre)
        diagonal = np.arange(normal.shape[1])
        normal[:, diagonal[7:], diagonal[7:]] += self.prior
        normal[:, diagonal, diagonal] += 1e-12  # shift in depth, and turns of faces of no size
        step = -np.linalg.solve(normal, gradient[:, :, None])[:, :, 0]
        self.rotation = Rotation.from_rotvec(step[:, :3]).as_matrix() @ self.rotation
        # a longer step than e times as large: points that no face fits would run away
        self.scale = self.scale * np.exp(step[:, 3].clip(-1, 1))
        self.shift = self.shift + step[:, 4 : 4 + d]
        self.coefficients = self.coefficients + step[:, 7:]
        return placed

    def _weights(self, distance: np.ndarray) -> np.ndarray:
        """(b, K) factors of residuals, of which the sum of squares is minimised."""
        if self.noise is None:  # into the model's unit, which the ridge is relative to
            return np.repeat(1 / self.scale[:, None], distance.shape[1], 1)
        factor = self._certainty() / (self.noise * self.size[:, None])
        deviation = distance * factor  # (b, K)
        # while the fit is still rough, a typical deviation is no outlier
        typical = np.nanmedian(np.where(self.known, deviation, np.nan), axis=1)[:, None]
        reach = OUTLIER * np.maximum(1, 1.5 * typical)
        return self.known * factor / (1 + (deviation / reach) ** 2)

    def _certainty(self) -> np.ndarray:
        """(b, K) inverse deviations of the labels, relative to that of the others."""
        certainty = np.ones(self.known.shape)
        if self.visible_contour:
            forward = self.rotation[:, :, 2]  # of the head; its part along the eyes' line
            up = self.rotation[:, :2, 1]
            sideways = up[:, 1] * forward[:, 0] - up[:, 0] * forward[:, 1]
            turn = np.arctan2(np.abs(sideways), forward[:, 2])
            wandered = HIDING * (1 - np.cos(turn)) / self.noise
            far = np.sign(np.arange(2 * CHIN + 1) - CHIN) == np.sign(sideways)[:, None]
            jaw = certainty[:, : 2 * CHIN + 1]
            jaw /= np.where(far, np.sqrt(1 + wandered[:, None] ** 2), 1)
        return certainty
