"""The shape of the authored mean face: a surface sculpted around 68 mean landmarks.

Nothing here is scanned or fitted to a face scan: the skin passes through the mean landmarks and
through points set by hand from anthropometric proportions; nose, eyes and lips are modelled with
spheres and capsules that blend into it.

The surface is charted by a vertical cylinder through the ears' plane: `u` = 75 mm · angle (0 at
the midline, positive towards x > 0) and `y`. All lengths are millimetres in the model frame (x
right, y up, z towards the viewer, origin at the centroid of the mean landmarks).
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator, RBFInterpolator
from scipy.spatial import cKDTree

from utils.texture import smooth_step

AXIS_Z = -65.0  # the cylinder's axis
RADIUS = 75.0  # millimetres of u per radian

# Hand-set points of the skin without nose, lids and lips, x >= 0.
SKIN = {
    "forehead": [
        (0, 112, 4), (25, 112, 1), (48, 108, -14), (66, 98, -38),
        (0, 97, 16.5), (24, 97, 13), (45, 95, 0), (61, 89, -22), (71, 80, -48),
        (0, 80, 23.5), (22, 80, 21), (42, 79, 10), (58, 75, -9), (68, 70, -32),
        (0, 66, 25.5), (10, 66, 24.5),
    ],
    "brow ridge": [(0, 56, 24.5), (9, 57, 23.5)],
    "temple": [(66.5, 57, -26), (72, 52, -48), (75, 50, -68), (75, 31, -84), (65, 40, -24)],
    "eye socket": [
        (0, 43, 15), (8, 44, 12.5), (14, 48, 11), (22, 52, 9.5), (33, 53.5, 7.5), (44, 52, 1.5),
        (54, 46, -8), (53, 38, -7.5), (32, 40, 0.5), (26, 40, 0), (39, 40, -2),
        (13, 38, 8.5), (20, 31, 7), (32, 28.5, 6.5), (44, 31, 0.5),
    ],
    "cheek": [
        (0, 27, 14), (11, 27, 11), (20, 22, 9.5), (32, 19, 9.5), (43, 19, 6), (53, 20, -2.5),
        (60, 20, -12), (66, 18, -26), (71, 15, -45),
        (0, 13, 17), (13, 13, 14), (22, 10, 12.5), (34, 6, 10.5), (46, 5, 3.5), (56, 5, -8),
        (64, 3, -25), (69, 0, -45),
        (21, -3, 14.5), (30, -10, 11), (42, -10, 3.5), (53, -11, -9), (61, -12, -27),
        (67, -13, -46),
        (37, -22, 4.5), (47, -27, -6), (56, -28, -24), (62, -29, -42),
    ],
    "mouth": [
        (0, -13, 26.3), (4.5, -13.5, 27.2), (12, -12, 22.7), (20, -16, 17.5),
        (0, -20.3, 26.5), (7, -19.5, 25.8), (0, -29, 20), (12, -28.5, 17), (22, -29, 9.5),
        (0, -41.5, 21.7), (10, -41, 20.3), (20, -38, 14), (29, -37, 6),
    ],
    "chin": [
        (0, -47.5, 19.2), (12, -47, 17.3), (25, -46, 9.5), (38, -43, -2), (48, -44, -18),
        (56, -43, -36),
        (0, -55, 20.6), (10, -55, 19.2), (0, -63, 21), (11, -63, 18.8), (22, -60, 11.5),
        (35, -55, -1.5), (0, -72, 16.3), (12, -71, 13.8),
    ],
}  # fmt: skip
ON_SKIN = np.r_[0:27, 36, 39, 42, 45, 48, 54]  # landmarks the skin passes through

JAW_ROUND = (5.0, 26.0)  # mm in the chart: begins so far above the jaw line; how fast
EYE_CENTRE, EYE_RADIUS, LID_RADIUS = np.array([32.2, 40.0, -5.4]), 12.0, 13.2

# Tubes: (x, y, z, radius) of spheres along a smooth line
RIDGE = [
    (0, 52, 12.0, 7.0), (0, 39.4, 14.4, 6.0), (0, 27.1, 23.6, 6.3), (0, 15.2, 33.4, 7.3),
    (0, 9.5, 34.8, 9.0), (0, 5.2, 34.4, 9.6),
]  # fmt: skip
FLANKS = [(0, 42, 2, 10), (0, 30, 8, 12.5), (0, 18, 13.5, 14), (0, 9.5, 19, 14.2)]
COLUMELLA = [(0, 3, 36, 5.0), (0, 0.5, 31, 4.2), (0, -2.3, 25, 3.4)]
WING = (np.array([10.5, 3.2, 19.0]), np.array([7.3, 6.8, 14.5]))  # centre, radii
NOSTRIL = (
    np.array([6.3, -3.5, 28.5]),
    np.array([2.8, 5.0]),
    3.6,
)  # centre, radii in x and z, depth
UPPER_LIP = [
    (-24, -28.2, 9.6, 1.5), (-18.7, -25.7, 16.2, 2.8), (-13, -23.8, 20.2, 3.5),
    (-6, -22.2, 23.6, 3.8), (0, -22.6, 24.5, 3.8), (6, -22.2, 23.6, 3.8),
    (13, -23.8, 20.2, 3.5), (18.7, -25.7, 16.2, 2.8), (24, -28.2, 9.6, 1.5),
]  # fmt: skip
LOWER_LIP = [
    (-24, -31, 9.0, 1.5), (-16, -34.0, 15.6, 3.6), (-8, -36.2, 20.4, 4.5), (0, -36.8, 21.8, 4.8),
    (8, -36.2, 20.4, 4.5), (16, -34.0, 15.6, 3.6), (24, -31, 9.0, 1.5),
]  # fmt: skip


def smooth_union(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Minimum of two distances, rounded where they differ by less than k."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * k / 4


def tube(p: np.ndarray, joints: list, per_span: int = 8) -> np.ndarray:
    """Distance of points (n, 3) to spheres strung along a smooth line through `joints`."""
    joints = np.array(joints, float)
    knots = np.arange(len(joints))
    fine = PchipInterpolator(knots, joints)(np.linspace(0, knots[-1], knots[-1] * per_span + 1))
    start, step = fine[:-1], np.diff(fine, axis=0)
    distance = np.full(len(p), np.inf)
    for (*a, r0), (*axis, dr) in zip(start, step, strict=True):
        axis = np.array(axis)
        along = np.clip((p - a) @ axis / (axis @ axis), 0, 1)
        ball = np.linalg.norm(p - a - along[:, None] * axis, axis=1) - r0 - dr * along
        distance = np.minimum(distance, ball)
    return distance


def ellipsoid(p: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """First-order distance to an ellipsoid."""
    q = (p - centre) / radii
    norm = np.linalg.norm(q, axis=-1)
    return norm * (norm - 1) / np.maximum(np.linalg.norm(q / radii, axis=-1), 1e-9)


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Which points (n, 2) lie inside a closed polygon (m, 2), by the even-odd rule."""
    result = np.zeros(len(points), bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            result ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return result


class Sculpture:
    """The face around given mean landmarks (68, 3), in millimetres."""

    def __init__(self, landmarks: np.ndarray) -> None:
        self.landmarks = landmarks
        points = np.concatenate([np.array(part, float) for part in SKIN.values()])
        points = np.concatenate([points, points * (-1, 1, 1)])
        points = np.concatenate([points, landmarks[ON_SKIN]])
        points = points[np.unique(points.round(6), axis=0, return_index=True)[1]]
        line = CubicSpline(np.arange(17), landmarks[:17])(np.linspace(0, 16, 321))
        self._jaw = np.stack([self._cylinder(line)[0], line[:, 1]], 1)
        self._jaw_tree = cKDTree(self._jaw)
        u, r = self._cylinder(points)
        self._radius = RBFInterpolator(
            np.stack([u, points[:, 1]], 1),
            r / self._round_jaw(np.stack([u, points[:, 1]], 1)),
            kernel="thin_plate_spline",
            smoothing=15.0,
        )
        self.eye_ring = self.curve([42, 43, 44, 45], 12), self.curve([42, 47, 46, 45], 12)
        ring = np.concatenate([self.eye_ring[0], self.eye_ring[1][::-1]])
        self._eye_tree, self._eye_polygon = cKDTree(ring), ring

    @staticmethod
    def _cylinder(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, z = points[..., 0], points[..., 2] - AXIS_Z
        return RADIUS * np.arctan2(x, z), np.hypot(x, z)

    def curve(self, indices: list[int], per_span: int) -> np.ndarray:
        """(n, 2) x, y of a smooth line through landmarks with increasing x."""
        x, y = self.landmarks[indices, 0], self.landmarks[indices, 1]
        spans = [np.linspace(a, b, per_span, endpoint=False) for a, b in pairwise(x)]
        fine = np.concatenate([*spans, x[-1:]])
        return np.stack([fine, CubicSpline(x, y)(fine)], 1)

    def _round_jaw(self, chart: np.ndarray) -> np.ndarray:
        """Factor (n,) of the radius that rounds the skin off under the jaw line."""
        distance, _ = self._jaw_tree.query(chart)
        top = np.array([(self._jaw[-1, 0], 300), (self._jaw[0, 0], 300)])
        below = np.where(inside(chart, np.concatenate([self._jaw, top])), -distance, distance)
        amount = (np.clip(below + JAW_ROUND[0], 0, 25) / JAW_ROUND[1]) ** 2
        return 1 - amount * smooth_step(-chart[:, 1], 10, 45)

    def skin(self, chart: np.ndarray) -> np.ndarray:
        """Points (n, 3) of the skin, without nose, lids and lips, at chart (n, 2)."""
        r = self._radius(chart) * self._round_jaw(chart)
        angle = chart[:, 0] / RADIUS
        return np.stack([r * np.sin(angle), chart[:, 1], AXIS_Z + r * np.cos(angle)], 1)

    def chart_of(self, points: np.ndarray, central: bool) -> np.ndarray:
        """Chart (n, 2) of the surface at points (n, 3) of the skin, or, `central`, at their x, y.

        Nose, lids and lips are raised from the skin along z, so x and y find them.
        """
        u, _ = self._cylinder(points)
        if central:
            low, high = np.full(len(points), -100.0), np.full(len(points), 100.0)
            for _ in range(40):
                u = (low + high) / 2
                left = self.skin(np.stack([u, points[:, 1]], 1))[:, 0] < points[:, 0]
                low, high = np.where(left, u, low), np.where(left, high, u)
        return np.stack([u, points[:, 1]], 1)

    def inside_eye(self, xy: np.ndarray) -> np.ndarray:
        """Signed distance (n,) to the lid margins in the x, y plane of x >= 0, negative within."""
        distance, _ = self._eye_tree.query(xy)
        upper, lower = (np.interp(xy[:, 0], *edge.T) for edge in self.eye_ring)
        x0, x1 = self._eye_polygon[:, 0].min(), self._eye_polygon[:, 0].max()
        within = (xy[:, 0] > x0) & (xy[:, 0] < x1) & (xy[:, 1] < upper) & (xy[:, 1] > lower)
        return np.where(within, -distance, distance)

    @staticmethod
    def sink_nostrils(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Points (n, 3) of the finished surface with nostrils pushed into the nose's underside."""
        centre, radii, depth = NOSTRIL
        across = np.stack([np.abs(points[:, 0]), points[:, 2]], 1) - centre[[0, 2]]
        near = np.exp(-(((across / radii) ** 2).sum(1) ** 2)) * (
            np.abs(points[:, 1] - centre[1]) < 6
        )
        near *= smooth_step(-normals[:, 1], 0.2, 0.7)
        return points + depth * near[:, None] * (0, 0.9, -0.3)

    def surface(self, chart: np.ndarray) -> np.ndarray:
        """Points (n, 3) of the face at chart (n, 2): the skin raised along z to the features."""
        base = self.skin(chart)
        step = 0.5
        du = self.skin(chart + (step, 0)) - self.skin(chart - (step, 0))
        dy = self.skin(chart + (0, step)) - self.skin(chart - (0, step))
        normal = np.cross(du, dy)
        slope = normal[:, 2] / np.linalg.norm(normal, axis=1)
        near = np.flatnonzero((np.abs(base[:, 0]) < 55) & (slope > 0.2))
        p = base[near].copy()
        p[:, 0] = np.abs(p[:, 0])
        floor, tilt = p[:, 2].copy(), slope[near]
        lid = EYE_RADIUS + (LID_RADIUS - EYE_RADIUS) * smooth_step(
            self.inside_eye(p[:, :2]), -0.4, 0.5
        )
        low, high = floor - 15, floor + 45
        for _ in range(26):
            p[:, 2] = (low + high) / 2
            is_within = self._distance(p, (p[:, 2] - floor) * tilt, lid) < 0
            low, high = np.where(is_within, p[:, 2], low), np.where(is_within, high, p[:, 2])
        base[near, 2] = p[:, 2]
        return base

    def _distance(self, p: np.ndarray, skin: np.ndarray, lid: np.ndarray) -> np.ndarray:
        """Distance of points (n, 3), x >= 0, to the face, given those to the skin."""
        face = skin.copy()

        def blend(part: np.ndarray, distance: Callable, k: float) -> None:
            face[part] = smooth_union(face[part], distance(p[part]), k)

        x, y, _ = p.T
        eyes = (x > 8) & (y > 15) & (y < 65)
        blend(eyes, lambda q: np.linalg.norm(q - EYE_CENTRE, axis=1) - lid[eyes], 5)
        nose = (x < 38) & (y > -25) & (y < 70)
        blend(nose, lambda q: smooth_union(tube(q, RIDGE), tube(q, FLANKS), 9), 8)
        blend(nose, lambda q: tube(q, COLUMELLA), 3)
        blend(nose, lambda q: ellipsoid(q, *WING), 5)
        mouth = (x < 36) & (y > -50) & (y < -10)
        blend(mouth, lambda q: tube(q, UPPER_LIP), 2.2)
        blend(mouth, lambda q: tube(q, LOWER_LIP), 2.2)
        return face
