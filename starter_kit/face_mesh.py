"""A symmetric triangle mesh on the sculpted face, with landmarks and feature lines on its edges.

The right half of the chart (u >= 0) is covered with points whose distance on the surface follows
a spacing: first the fixed ones (landmarks, lid margins, lip lines, midline, outline), then the
rest, spread by Lloyd's algorithm. Delaunay triangulation, edge flips to suit the surface instead
of the chart, and the mirror image make the whole. The mouth stays open: the lips' inner lines are
the rim of a hole, rolled inward a little.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial import Delaunay, cKDTree

from starter_kit.face_sculpt import Sculpture, inside
from utils.morphable_model import MIRRORED_LANDMARKS
from utils.texture import boundary_loops

# The mesh's edge in the chart, x >= 0: forehead, temple, ear, jaw, throat
OUTLINE = np.array([
    (0, 112), (24, 109.5), (45, 103), (66, 92.5), (88, 78), (107, 61), (121, 44), (129.5, 26),
    (131, 8), (128, -12), (123.5, -30), (111, -49), (86, -65), (56, -73.5), (28, -80.5), (0, -83.5),
], float)  # fmt: skip
# Spacing of vertices: at most COARSEST, and at lines and points of interest as given, mm
COARSEST, GROWTH = 2.9, 0.11
GRID = 0.4  # mm in the chart, of the points that the free vertices are spread among
LINES = {  # landmarks along a line, spacing there; x increases
    "upper lid": ([42, 43, 44, 45], 0.85),
    "lower lid": ([42, 47, 46, 45], 0.85),
    "upper lip": ([49, 50, 51, 52, 53, 54], 1.25),
    "lower lip": ([59, 58, 57, 56, 55, 54], 1.25),
    "upper mouth": ([60, 61, 62, 63, 64], 1.15),
    "lower mouth": ([60, 67, 66, 65, 64], 1.15),
}
NOSE = [(0, 5, 44), (8, 2, 36), (15, 2, 28), (16, 7, 23), (12, -5, 22), (6, -6, 27), (0, -7, 28)]
NOSE_SPACING = 1.2
LID_EDGE = (-0.55, 0.6)  # mm from the lid margins: where the step of the lids begins and ends
MIDLINE = [8, 57, 66, 62, 51, 33, 30, 29, 28, 27]  # landmarks, upwards; the mouth is after 66
RIM = [(-1.2, 0.15), (-2.8, 0.9), (-5.0, 2.2)]  # rolled lips: along z, and away from the gap


@dataclass(frozen=True)
class Mesh:
    """A symmetric mesh of N vertices, the last `rolled` of them on the lips' inner sides."""

    vertices: np.ndarray  # (N, 3) mm
    triangles: np.ndarray  # (T, 3) 0-based, counter-clockwise seen from outside
    landmarks: np.ndarray  # (68,) vertices
    mirror: np.ndarray  # (N,) the vertex on the other side
    uv: np.ndarray  # (N, 2) cylindrical, v up
    rolled: int


def resample(line: np.ndarray, positions: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Points of a polyline (n, d) so that steps in `positions` (n, 3) follow `spacing` (n,)."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1) / (spacing[1:] + spacing[:-1]) * 2
    along = np.concatenate([[0], np.cumsum(steps)])
    wanted = np.linspace(0, along[-1], max(round(along[-1]), 1) + 1)
    return np.stack([np.interp(wanted, along, column) for column in line.T], 1)


class HalfMesh:
    """Points and triangles of the half x >= 0, in the chart."""

    def __init__(self, sculpture: Sculpture, scale: float, seed: int) -> None:
        self.sculpture, self.scale = sculpture, scale
        chart = sculpture.chart_of(sculpture.landmarks, central=False)
        chart[27:] = sculpture.chart_of(sculpture.landmarks[27:], central=True)
        chart[MIDLINE, 0] = 0
        self.landmark_chart = chart  # (68, 2)
        outline = spline(OUTLINE, 60)
        self.outline = np.concatenate([outline, outline[::-1] * (-1, 1)])
        curves = {name: self.feature_curve(indices) for name, (indices, _) in LINES.items()}
        self.gap = np.concatenate([curves["upper mouth"], curves["lower mouth"][::-1]])
        interest = [np.array(NOSE, float)]
        interest += [sculpture.surface(curve)[::8] for curve in curves.values()]
        finest = [NOSE_SPACING] + [spacing for _, spacing in LINES.values()]
        self._interest = cKDTree(np.concatenate(interest))
        self._finest = np.repeat(finest, [len(points) for points in interest])

        lines = self.between(outline, outline[[0, -1]])
        for name, (indices, _) in LINES.items():
            lines += self.between(curves[name], chart[[i for i in indices if chart[i, 0] >= 0]])
        for name in ("upper lid", "lower lid"):
            for offset in LID_EDGE:
                curve = self.feature_curve(
                    LINES[name][0], offset if name == "upper lid" else -offset
                )
                lines += self.between(curve, curve[[0, -1]])
        for low, high, stops in (
            (OUTLINE[-1, 1], chart[66, 1], [OUTLINE[-1:], chart[MIDLINE[:3]]]),
            (chart[62, 1], OUTLINE[0, 1], [chart[MIDLINE[3:]], OUTLINE[:1]]),
        ):
            y = np.linspace(low, high, 1500)
            lines += self.between(np.stack([0 * y, y], 1), np.concatenate(stops))

        points = np.concatenate([*lines, chart[chart[:, 0] >= 0]]).round(6)
        points, number = np.unique(points, axis=0, return_inverse=True)
        ends = np.cumsum([len(line) for line in lines])
        inner = np.setdiff1d(np.arange(ends[-1]), ends - 1)  # all but the last point of each line
        self.edges = np.sort(np.stack([number[inner], number[inner + 1]], 1), axis=1)
        self.chart = self.spread(points, np.random.default_rng(seed))
        self.position = sculpture.surface(self.chart)
        self.triangles = self.triangulate()

    def feature_curve(self, indices: list[int], offset: float | None = None) -> np.ndarray:
        """Chart (n, 2), x >= 0, of the smooth line through landmarks, or of its middle part moved
        `offset` mm upwards across the line."""
        line = self.sculpture.curve(indices, 40)
        if offset is not None:
            line = line[20:-20]
            across = np.gradient(line, axis=0)[:, ::-1] * (-1, 1)
            line = line + offset * across / np.linalg.norm(across, axis=1, keepdims=True)
        line = np.concatenate([line, np.zeros((len(line), 1))], 1)  # z does not matter
        return self.sculpture.chart_of(line[line[:, 0] >= -1e-9], central=True)

    def between(self, line: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """A line (n, 2) through the chart, resampled between each two of its stops (m, 2)."""
        position = self.sculpture.surface(line)
        spacing = self.spacing(position)
        at = np.array([np.argmin(np.linalg.norm(line - stop, axis=1)) for stop in stops])
        order = np.argsort(at)
        parts = []
        for i, j in pairwise(order):
            span = slice(at[i], at[j] + 1)
            part = resample(line[span], position[span], spacing[span])
            part[0], part[-1] = stops[i], stops[j]
            parts.append(part)
        return parts

    def spacing(self, positions: np.ndarray) -> np.ndarray:
        """Wanted distance (n,) of vertices at positions (n, 3)."""
        distance, nearest = self._interest.query(positions, k=60)
        return self.scale * np.minimum(COARSEST, (self._finest[nearest] + GROWTH * distance).min(1))

    def covered(self, chart: np.ndarray) -> np.ndarray:
        """Which chart points (n, 2) the mesh covers: within the outline, not in the mouth."""
        return inside(chart, self.outline) & ~inside(chart, self.gap)

    def spread(self, fixed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Fixed points (n, 2) and free ones between them, spread by Lloyd's algorithm."""
        u = np.arange(GRID / 2, OUTLINE[:, 0].max() + 1, GRID)
        y = np.arange(OUTLINE[:, 1].min() - 1, OUTLINE[:, 1].max() + 1, GRID)
        chart = np.stack(np.meshgrid(u, y), -1)  # (rows, columns, 2)
        position = self.sculpture.surface(chart.reshape(-1, 2)).reshape(*chart.shape[:2], 3)
        area = np.linalg.norm(
            np.cross(np.gradient(position, axis=0), np.gradient(position, axis=1)), axis=2
        ).ravel()
        chart, position = chart.reshape(-1, 2), position.reshape(-1, 3)
        kept = self.covered(chart)
        chart, position, area = chart[kept], position[kept], area[kept]
        spacing = self.spacing(position)
        wanted = area / spacing**2 * 2 / np.sqrt(3)
        count = round(wanted.sum()) - len(fixed) * 3 // 4  # half of an edge point's area is beyond
        free = rng.choice(len(chart), count, replace=False, p=wanted / wanted.sum())
        points, weight = chart[free], area / spacing**4
        fixed_position = self.sculpture.surface(fixed)
        where = position[free]
        for _ in range(40):
            _, owner = cKDTree(np.concatenate([fixed_position, where])).query(position)
            owner -= len(fixed)
            mine = owner >= 0
            total = np.bincount(owner[mine], weight[mine], minlength=count)
            some = total > 0
            for values, target in ((chart, points), (position, where)):
                for axis in range(values.shape[1]):
                    sums = np.bincount(owner[mine], weight[mine] * values[mine, axis], count)
                    target[some, axis] = sums[some] / total[some]
        return np.concatenate([fixed, points])

    def triangulate(self) -> np.ndarray:
        """Triangles (T, 3): Delaunay in the chart, then flips until they are so on the surface."""
        triangles = Delaunay(self.chart).simplices
        a, b, c = (self.chart[triangles[:, i]] for i in range(3))
        area = np.cross(np.c_[b - a, 0 * a[:, 0]], np.c_[c - a, 0 * a[:, 0]])[:, 2]
        triangles[area < 0] = triangles[area < 0][:, ::-1]
        triangles = triangles[self.covered(self.chart[triangles].mean(1)) & (np.abs(area) > 1e-7)]
        return flip_edges(self.chart, self.position, triangles, self.edges)


def spline(knots: np.ndarray, per_span: int) -> np.ndarray:
    """Catmull-Rom line (n, 2) through knots (m, 2), level at both ends (mirror images beyond)."""
    padded = np.concatenate([knots[1:2] * (-1, 1), knots, knots[-2:-1] * (-1, 1)])
    t = np.linspace(0, 1, per_span, endpoint=False)[:, None]
    parts = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        parts.append(
            p1 + t * (p2 - p0) / 2 + t**2 * (p0 - 2.5 * p1 + 2 * p2 - p3 / 2)
            + t**3 * (1.5 * (p1 - p2) + (p3 - p0) / 2)
        )  # fmt: skip
    line = np.concatenate([*parts, knots[-1:]])
    line[:, 0] = np.maximum(line[:, 0], 0)
    return line


def flip_edges(
    chart: np.ndarray,
    position: np.ndarray,
    triangles: np.ndarray,
    keep: np.ndarray,
    rounds: int = 60,
) -> np.ndarray:
    """Flip edges whose opposite angles on the surface sum to more than 180 degrees (Lawson).

    Edges in `keep` (m, 2), the smaller vertex first, stay.
    """
    triangles = triangles.copy()

    def angle(apex: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        v, w = position[p] - position[apex], position[q] - position[apex]
        return np.arctan2(np.linalg.norm(np.cross(v, w), axis=1), (v * w).sum(1))

    def twice_area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        v, w = chart[b] - chart[a], chart[c] - chart[a]
        return v[:, 0] * w[:, 1] - v[:, 1] * w[:, 0]

    kept = keep[:, 0] * len(chart) + keep[:, 1]
    for _ in range(rounds):
        # half edges: (from, to, opposite vertex, triangle)
        a, b, c = triangles.T
        half = np.concatenate(
            [np.stack([a, b, c], 1), np.stack([b, c, a], 1), np.stack([c, a, b], 1)]
        )
        owner = np.tile(np.arange(len(triangles)), 3)
        low, high = half[:, :2].min(1), half[:, :2].max(1)
        key = low * len(chart) + high
        order = np.argsort(key, kind="stable")
        pair = np.flatnonzero(key[order][:-1] == key[order][1:])
        one, two = order[pair], order[pair + 1]
        i, j, k, m = half[one, 0], half[one, 1], half[one, 2], half[two, 2]
        excess = angle(k, i, j) + angle(m, i, j) - np.pi
        good = (excess > 1e-6) & ~np.isin(key[one], kept)
        good &= (twice_area(k, i, m) > 1e-6) & (twice_area(k, m, j) > 1e-6)
        candidates = np.flatnonzero(good)
        candidates = candidates[np.argsort(-excess[candidates], kind="stable")]
        used = np.zeros(len(triangles), bool)
        flipped = 0
        for e in candidates:
            s, t = owner[one[e]], owner[two[e]]
            if used[s] or used[t]:
                continue
            used[s] = used[t] = True
            triangles[s] = k[e], i[e], m[e]
            triangles[t] = k[e], m[e], j[e]
            flipped += 1
        if not flipped:
            break
    return triangles


def build_mesh(landmarks: np.ndarray, *, scale: float, seed: int) -> Mesh:
    """The mesh of the face sculpted around mean landmarks (68, 3) in millimetres."""
    half = HalfMesh(Sculpture(landmarks), scale, seed)
    used = np.unique(half.triangles)
    number = np.full(len(half.chart), -1)
    number[used] = np.arange(len(used))
    chart, position = half.chart[used], half.position[used]
    triangles = number[half.triangles]
    middle = chart[:, 0] == 0
    n = len(chart)
    other = np.where(middle, np.arange(n), n - 1 + np.cumsum(~middle))
    mirror = np.concatenate([other, np.flatnonzero(~middle)])
    chart = np.concatenate([chart, chart[~middle] * (-1, 1)])
    position[middle, 0] = 0
    position = np.concatenate([position, position[~middle] * (-1, 1, 1)])
    triangles = np.concatenate([triangles, other[triangles][:, ::-1]])
    right = half.landmark_chart[:, 0] >= 0
    distance, index = cKDTree(chart).query(half.landmark_chart)
    if distance[right].max() > 1e-5:
        raise ValueError(
            "a landmark is no vertex of the mesh: its line was not resampled through it"
        )
    index = np.where(right, index, mirror[index[MIRRORED_LANDMARKS]])
    return roll_lips(position, triangles, index, mirror, chart)


def roll_lips(
    position: np.ndarray,
    triangles: np.ndarray,
    landmarks: np.ndarray,
    mirror: np.ndarray,
    chart: np.ndarray,
) -> Mesh:
    """Adds the lips' inner sides: rings of vertices behind the rim of the mouth."""
    loop = next(loop for loop in boundary_loops(triangles) if landmarks[62] in loop)
    corner = np.minimum(
        *(np.linalg.norm(position[loop, :2] - position[landmarks[i], :2], axis=1) for i in (60, 64))
    )
    line = np.interp(position[loop, 0], *position[landmarks[[60, 64]]][:, :2].T)
    upward = np.sign(np.round(position[loop, 1] - line, 6)) * np.minimum(corner / 6, 1)
    parts, charts, mirrors, faces, previous = [position], [chart], [mirror], [triangles], loop
    where = {int(v): i for i, v in enumerate(loop)}
    opposite = np.array([where[int(mirror[v])] for v in loop])
    middle = np.abs(position[loop, 1] - line)
    for depth, (back, away) in enumerate(RIM, 1):
        ring = position[loop].copy()
        ring[:, 2] += back
        ring[:, 1] += away * upward
        in_gap = chart[loop].copy()
        in_gap[:, 1] -= np.sign(upward) * middle * 0.15 * depth
        ids = np.arange(len(loop)) + sum(map(len, parts))
        ahead, next_ahead = np.roll(previous, -1), np.roll(ids, -1)
        faces += [np.stack([ahead, previous, ids], 1), np.stack([ahead, ids, next_ahead], 1)]
        parts.append(ring)
        charts.append(in_gap)
        mirrors.append(ids[opposite])
        previous = ids
    chart = np.concatenate(charts)
    low, high = OUTLINE[:, 1].min(), OUTLINE[:, 1].max()
    widest = np.abs(chart[:, 0]).max()
    uv = np.stack([0.5 + chart[:, 0] / (2 * widest), (chart[:, 1] - low) / (high - low)], 1)
    return Mesh(
        np.concatenate(parts),
        np.concatenate(faces),
        landmarks,
        np.concatenate(mirrors),
        uv.clip(0, 1),
        rolled=len(RIM) * len(loop),
    )
