"""Rendered faces: random parameters of a 3DMM become lit pictures with exact labels.

    whitened = random_parameters(face_model, yaw, rng)          # (n,) degrees -> (n, 62)
    renderer = FaceRenderer(face_model)
    crop = renderer.crop(face_model.dewhiten(whitened)[0], rng)  # (120, 120, 3) uint8 BGR

Any 3DMM will do: what it lacks (hair, neck, the inside of the mouth) is put around its mean face,
and brows, eyes, lips and beard are painted where its 68 landmarks are. The pictures are for trying
out the whole path from data to scores without anyone's photo; a network trained on them alone is
no good on photos.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.spatial import cKDTree

import Sim3DR
from utils.draw import PARTS
from utils.geometry import angles_to_rotation, rotation_to_angles
from utils.metrics import yaw_bin
from utils.morphable_model import CAMERA, Y_FLIP, MorphableModel
from utils.preprocessing import CROP_SIZE

# Mean and standard deviation of the landmark box's longer side over the roi box's.
FACE_SIZE = (0.707, 0.03)
SHIFT = 0.025  # standard deviation of the landmark box's centre, as a share of the roi box's side
COEFFICIENTS = 0.8  # standard deviation of shape and expression over the model's own
PITCH, ROLL = 12.0, 12.0  # degrees, standard deviation; both are cut at 2.5 of them
SUPERSAMPLING = 1.5  # at 2 it is a third slower and looks hardly better

# BGR, 0 to 1; the skin's from the darkest to the lightest, between which tones are mixed
SKIN_TONES = np.array([[40, 60, 95], [75, 110, 160], [135, 170, 215], [185, 205, 238]]) / 255
HAIR_TONES = (
    np.array([[18, 20, 25], [25, 40, 62], [40, 75, 120], [105, 160, 195], [150, 150, 150]]) / 255
)
IRIS_TONES = np.array([[25, 45, 70], [60, 95, 90], [140, 110, 75], [20, 25, 35]]) / 255

SKULL_GRID, NECK_GRID = (17, 33), (6, 33)  # rows of vertices from the top down, columns around


# ---------------------------------------------------------------------- what is drawn at random


def random_parameters(
    face_model: MorphableModel, yaw: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Random faces, framed as the AFLW2000-3D crops are.

    Pitch, roll and the coefficients are normal; size and place of the landmark box in the crop
    vary a little. Combined turns are drawn again until ``rotation_to_angles`` puts the face into
    the yaw bin that ``yaw`` asks for (the published formulas see a little less of the yaw; of one
    beyond 90 degrees as much less as it is beyond: of 150, 30).

    Args:
        face_model: numpy arrays.
        yaw: (n,) degrees, of any size; beyond +-90 one sees the back of the head's side.
        rng: source of everything else.

    Returns:
        (n, 62) float32 whitened parameters.
    """
    yaw = np.asarray(yaw, dtype=np.float64)
    count = len(yaw)
    limit = 2.5
    rotation = np.empty((count, 3, 3))
    turned = np.abs((yaw + 180) % 360 - 180)
    wanted = yaw_bin(np.minimum(turned, 180 - turned))
    wrong = np.ones(count, dtype=bool)
    spread = 1.0
    while wrong.any():
        pitch, roll = rng.normal(size=(2, wrong.sum())).clip(-limit, limit) * spread
        angles = np.stack([yaw[wrong], PITCH * pitch, ROLL * roll], axis=1)
        rotation[wrong] = angles_to_rotation(angles)
        wrong = yaw_bin(rotation_to_angles(rotation)[:, 0]) != wanted
        spread *= 0.9  # this ends, because without pitch and roll the formulas are exact

    parameters = np.tile(face_model.param_mean.astype(np.float64), (count, 1))
    spreads = face_model.param_std[CAMERA:] * COEFFICIENTS
    parameters[:, CAMERA:] += rng.normal(size=(count, len(spreads))).clip(-limit, limit) * spreads
    # landmarks of a unit camera (no shift, y up) give the box that size and place are made for
    cameras = np.concatenate([rotation, np.zeros((count, 3, 1))], axis=2)
    parameters[:, :CAMERA] = cameras.reshape(count, CAMERA)
    xy = face_model.landmarks(parameters)[:, :2]  # (n, 2, 68), y down
    low, high = xy.min(2), xy.max(2)
    fraction = rng.normal(*FACE_SIZE, size=count).clip(0.6, 0.82)
    scale = fraction * CROP_SIZE / (high - low).max(1)  # (n,)
    centre = (CROP_SIZE - 1) / 2 + rng.normal(size=(count, 2)).clip(-2, 2) * SHIFT * CROP_SIZE
    offset = np.float64([0, Y_FLIP])  # y down is Y_FLIP - y up; a camera's scale leaves Y_FLIP
    shift = centre - offset - scale[:, None] * ((low + high) / 2 - offset)  # y down
    cameras = cameras * scale[:, None, None]
    cameras[:, :2, 3] = shift * (1, -1)
    cameras[:, 2, 3] = face_model.param_mean[CAMERA - 1]
    parameters[:, :CAMERA] = cameras.reshape(count, CAMERA)
    return face_model.whiten(parameters).astype(np.float32)


def random_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: gradients, coloured noise, shapes before and after a blur."""
    cells = int(rng.choice([2, 3, 6, 12]))
    tone = rng.uniform(30, 220) + rng.normal(0, 25, 3)
    light = rng.normal(0, rng.uniform(10, 60), (cells, cells, 1))
    grid = np.clip(tone + light + rng.normal(0, rng.uniform(2, 25), (cells, cells, 3)), 0, 255)
    image = cv2.resize(grid.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for sharp in (False, True):
        for _ in range(rng.poisson(1 if sharp else 6)):
            _draw_shape(image, (0, 0, width, height), rng)
        if not sharp and rng.random() < 0.8:
            side = int(2 * rng.uniform(0.004, 0.05) * width) + 1
            for _ in range(2):  # close to a Gaussian, and as fast when it is wide
                cv2.blur(image, (side, side), dst=image)
    if rng.random() < 0.4:  # a rough surface
        grain = rng.normal(0, rng.uniform(3, 14), (height // 3, width // 3)).astype(np.float32)
        grain = cv2.resize(grain, (width, height))[..., None]
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    return image


def _draw_shape(image: np.ndarray, box: tuple[float, ...], rng: np.random.Generator) -> None:
    """A rectangle, ellipse or bar of plain colour somewhere in the box, drawn in place."""
    x1, y1, x2, y2 = box
    side = max(x2 - x1, y2 - y1)
    centre = rng.uniform((x1, y1), (x2, y2))
    size = rng.uniform(0.08, 0.45, 2) * side
    size[0] *= rng.choice([1, 1, 0.25])
    colour = tuple(int(c) for c in np.clip(rng.uniform(0, 255) + rng.normal(0, 28, 3), 0, 255))
    rectangle = (tuple(map(float, centre)), tuple(map(float, size)), float(rng.uniform(0, 180)))
    if rng.random() < 0.4:
        cv2.ellipse(image, rectangle, colour, cv2.FILLED, cv2.LINE_AA)
    else:
        corners = np.int32(cv2.boxPoints(rectangle) * 16)
        cv2.fillConvexPoly(image, corners, colour, cv2.LINE_AA, 4)


def damage(image: np.ndarray, rng: np.random.Generator, pixel: float = 1.0) -> np.ndarray:
    """Blur, low resolution and noise, as small photos have them; ``pixel``: a crop pixel's size."""
    height, width = image.shape[:2]
    kind = rng.random()
    if kind < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1) * pixel)
    elif kind < 0.5:
        factor = rng.uniform(0.45, 0.8) / pixel
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1, 7)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


# ---------------------------------------------------------------------- the head around the face


@dataclass(frozen=True)
class _Head:
    """The face model with skull, neck and mouth cavity, and which vertex is what."""

    model: MorphableModel
    face: slice
    skull: slice
    neck: slice
    mouth: slice


def _add_head(face_model: MorphableModel) -> _Head:
    """Puts coarse surfaces behind the mean face; they move with the face's own vertices."""
    mean, lips = face_model.mean, slice(60, 68)
    skull, neck = _skull(face_model), _neck(face_model)
    # the mouth cavity's vertices are these shares of the inner lips' landmarks: their contour, a
    # little wider (about its own middle), and that middle
    spread = np.eye(8) * 1.25 + (1 - 1.25) / 8
    shares = np.concatenate([spread, np.full((1, 8), 1 / 8)])  # (9, 8)
    mouth = face_model.landmark_mean[:, lips] @ shares.T
    mouth[2] -= np.r_[np.full(8, 0.035), 0.12] * _face_width(face_model)  # behind, and deep

    fan = np.stack([np.full(8, 8), np.arange(8), np.roll(np.arange(8), -1)], 1)
    parts, triangles, slices, start = [mean], [face_model.triangles], [], mean.shape[1]
    for part, faces, outward in (
        (skull, _grid_triangles(*SKULL_GRID), skull - skull.mean(1, keepdims=True)),
        (neck, _grid_triangles(*NECK_GRID), neck * [[1], [0], [1]]),
        (mouth, fan, np.array([[0.0], [0.0], [1.0]])),
    ):
        corners = part.T[faces]  # (T, 3, 3)
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        outside = np.broadcast_to(outward, part.shape).T[faces].mean(1)
        if (normal * outside).sum() > 0:  # clockwise from outside, as the model's own
            faces = faces[:, ::-1]
        parts.append(part)
        triangles.append(faces + start)
        slices.append(slice(start, start + part.shape[1]))
        start += part.shape[1]
    nearest = cKDTree(mean.T).query(np.concatenate([skull, neck], 1).T)[1]
    basis = [
        face_model.basis,
        face_model.basis[:, :, nearest],
        face_model.landmark_basis[:, :, lips] @ shares.T,
    ]
    model = replace(
        face_model,
        mean=np.concatenate(parts, 1).astype(np.float32),
        basis=np.concatenate(basis, 2).astype(np.float32),
        triangles=np.concatenate(triangles).astype(np.int32),
    )
    return _Head(model, slice(0, mean.shape[1]), *slices)


def _face_width(face_model: MorphableModel) -> float:
    return np.ptp(face_model.landmark_mean[0])


def _between_ears(face_model: MorphableModel) -> np.ndarray:
    return face_model.landmark_mean[:, [0, 16]].mean(1)


def _skull(face_model: MorphableModel) -> np.ndarray:
    """(3, 17 * 33) an ellipsoid, flatter in front so that it stays under the forehead."""
    width, ear = _face_width(face_model), _between_ears(face_model)
    rows, columns = SKULL_GRID
    longitude, latitude = np.meshgrid(
        np.linspace(0, 2 * np.pi, columns), np.linspace(0, np.pi, rows)
    )
    ball = np.stack(
        [
            np.sin(latitude) * np.sin(longitude),
            np.cos(latitude),
            np.sin(latitude) * np.cos(longitude),
        ]
    ).reshape(3, -1)
    centre_y = ear[1] + 0.22 * width
    side, top = 0.49 * np.ptp(face_model.mean[0]), face_model.mean[1].max()
    radii = np.array([side, top - centre_y + 0.05 * width, 0.68 * width])
    ball[2] = np.where(ball[2] > 0, 0.55 * ball[2], ball[2])
    return ball * radii[:, None] + np.array([[ear[0]], [centre_y], [ear[2] - 0.02 * width]])


def _neck(face_model: MorphableModel) -> np.ndarray:
    """(3, 6 * 33) neck and shoulders: rings from under the chin down."""
    width, ear = _face_width(face_model), _between_ears(face_model)
    chin = face_model.landmark_mean[1, 8]
    rings = np.array(  # height over the chin and radius, in widths of the face
        [[0.35, 0.33], [-0.1, 0.33], [-0.25, 0.36], [-0.3, 0.45], [-0.42, 0.8], [-1, 1]]
    )
    angle = np.linspace(0, 2 * np.pi, NECK_GRID[1])
    neck = np.stack(
        [
            rings[:, 1:] * np.sin(angle),
            rings[:, :1] + 0 * angle,
            np.minimum(rings[:, 1:], 0.4) * np.cos(angle),
        ]
    ).reshape(3, -1)
    return neck * width + np.array([[ear[0]], [chin], [ear[2] - 0.02 * width]])


def _grid_triangles(rows: int, columns: int) -> np.ndarray:
    """(2 * (rows - 1) * (columns - 1), 3) triangles of a row-major grid of vertices."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    lower = np.stack([corner, corner + 1, corner + columns], 1)
    upper = np.stack([corner + 1, corner + columns + 1, corner + columns], 1)
    return np.concatenate([lower, upper])


# ---------------------------------------------------------------------- the face's paint


class _Paint:
    """Where things are on the mean face, seen from the front, in units of the face's width."""

    def __init__(self, face_model: MorphableModel) -> None:
        marks = face_model.landmark_mean.T.astype(np.float64)
        unit = np.ptp(marks[:, 0])
        middle = marks[27]
        points = ((face_model.mean.T - middle) / unit).astype(np.float32)  # (N, 3)
        self.points = np.ascontiguousarray(points.T)
        marks = ((marks - middle) / unit)[:, :2].astype(np.float32)
        xy = points[:, :2]
        parts = {part.name: marks[part.first : part.last + 1] for part in PARTS}
        lips = _signed_distance(xy, parts["outer lips"])
        brows = np.min([_line_distance(xy, parts[f"{s} brow"]) for s in ("left", "right")], 0)
        eyes = [parts["right eye"], parts["left eye"]]
        self.eyes = np.mean(eyes, axis=1)  # (2, 2)
        eye_distance = np.max([_signed_distance(xy, eye) for eye in eyes], 0)
        upper_lids = (marks[36:40], marks[42:46])
        lids = np.min([_line_distance(xy, lid) for lid in upper_lids], 0)
        holes = (marks[[32, 33]] + marks[[33, 34]]) / 2
        nostrils = np.linalg.norm(xy[:, None] - holes, axis=2).min(1)
        beard = np.concatenate([parts["jaw"][2:15], parts["nostrils"][::-1]])
        self.beard = _signed_distance(xy, beard)
        self.brow_height = float(marks[17:27, 1].max())
        cheeks = (marks[[31, 35]] + marks[[2, 14]]) / 2
        self.cheeks = np.exp(-np.square(np.linalg.norm(xy[:, None] - cheeks, axis=2) / 0.1).min(1))
        self.side = np.abs(xy[:, 0])
        # brows, eyes, nostrils and lips are painted on these vertices only, for speed
        near = (eye_distance > -0.07) | (lips > -0.008)
        near |= (brows < 0.06) | (nostrils < 0.03) | (lids < 0.016)
        self.detail = np.flatnonzero(near)
        self.lips, self.brows, self.nostrils = lips[near], brows[near], nostrils[near]
        self.eye_distance, self.lids = eye_distance[near], lids[near]

    def __call__(self, skin: np.ndarray, hair: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(3, N) float32 BGR in [0, 1] for a skin and a hair colour."""
        waves = rng.normal(0, 1, (6, 3)) * rng.uniform(3, 20, (6, 1))
        phase = rng.uniform(0, 2 * np.pi, (6, 1))
        mottle = np.sin(np.float32(waves) @ self.points + np.float32(phase))  # (6, N)
        shade = 1 + np.float32(rng.normal(0, 0.025, 4)) @ mottle[:4]
        shade += rng.standard_normal(len(shade), dtype=np.float32) * rng.uniform(0, 0.035)
        colour = np.float32(skin)[:, None] * shade

        _blend(colour, rng.uniform(0, 0.3) * self.cheeks, skin * (0.6, 0.65, 1))
        if rng.random() < 0.25:  # beard or stubble
            edge = _ramp(self.beard + 0.02 * mottle[4], 0.0, rng.uniform(0.08, 0.16))
            _blend(colour, edge * rng.uniform(0.2, 0.9), hair * rng.uniform(0.8, 1.1))
        if rng.random() < 0.85:  # a hairline on the forehead and the temples
            line = self.brow_height + rng.uniform(0.17, 0.33)
            above = self.points[1] - line + 1.2 * np.maximum(self.side - 0.36, 0)
            _blend(colour, _ramp(above + 0.012 * mottle[5], 0, 0.04), hair)
        detail = colour[:, self.detail]  # a copy
        lips = skin * (0.55, 0.5, 0.85) * rng.uniform(0.75, 1.05)
        if rng.random() < 0.2:
            lips = np.array([0.25, 0.15, 0.65]) * rng.uniform(0.6, 1.2)  # lipstick
        _blend(detail, _ramp(self.lips, -0.008, 0.012) * rng.uniform(0.5, 1), lips)
        thickness = rng.uniform(0.014, 0.03)
        _blend(
            detail, np.exp(-((self.brows / thickness) ** 4)) * rng.uniform(0.55, 0.95), hair * 0.8
        )
        _blend(detail, _ramp(self.nostrils, 0.03, 0.012) * 0.7, skin * 0.25)
        # eyes: a shadow around, the white, the iris with its pupil, the lashes
        _blend(detail, _ramp(self.eye_distance, -0.07, 0) * rng.uniform(0.1, 0.4), skin * 0.5)
        opening = _ramp(self.eye_distance, -0.006, 0.006)
        _blend(detail, opening, np.array([0.82, 0.85, 0.88]) * rng.uniform(0.75, 1))
        iris, gaze = IRIS_TONES[rng.integers(len(IRIS_TONES))], rng.normal(0, 0.012, 2)
        centres = np.float32(self.eyes + gaze)[:, :, None]  # (2, 2, 1)
        distance = np.linalg.norm(self.points[:2, self.detail] - centres, axis=1).min(0)
        _blend(detail, opening * _ramp(distance, 0.048, 0.038), iris)
        _blend(detail, opening * _ramp(distance, 0.022, 0.014), iris * 0.2)
        _blend(detail, _ramp(self.lids, 0.016, 0.004) * rng.uniform(0.5, 0.95), hair * 0.4)
        colour[:, self.detail] = detail
        return colour.clip(0, 1)


def _blend(colour: np.ndarray, mask: np.ndarray, paint: np.ndarray) -> None:
    """Paints over colours (3, n), in place, as much as the mask (n,) from 0 to 1 says."""
    colour += mask.astype(np.float32) * (np.float32(paint)[:, None] - colour)


def _ramp(values: np.ndarray, zero: float, one: float) -> np.ndarray:
    return ((values - zero) / (one - zero)).clip(0, 1)


def _signed_distance(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """(N,) distance of (N, 2) points to a (K, 2) polygon, positive inside."""
    contour = np.ascontiguousarray(polygon[:, None], dtype=np.float32)
    return np.float32(
        [cv2.pointPolygonTest(contour, (float(x), float(y)), True) for x, y in points]
    )


def _line_distance(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """(N,) distance of (N, 2) points to the nearest segment of a (K, 2) line."""
    start, step = line[:-1], np.diff(line, axis=0)  # (K-1, 2)
    away = points[:, None] - start  # (N, K-1, 2)
    along = ((away * step).sum(2) / (step**2).sum(1)).clip(0, 1)
    return np.linalg.norm(away - along[..., None] * step, axis=2).min(1)


# ---------------------------------------------------------------------- pictures


class FaceRenderer:
    """Renders faces of a 3DMM as heads with skin, hair, eyes, mouth, light and background.

    Args:
        face_model: numpy arrays; any topology with the 68 landmarks.
    """

    def __init__(self, face_model: MorphableModel) -> None:
        self.head = _add_head(face_model)
        self.paint = _Paint(face_model)
        self.corners = np.ascontiguousarray(self.head.model.triangles.T)  # (3, T)

    def crop(self, parameters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(62,) parameters, not whitened -> (120, 120, 3) uint8 BGR, the face where they say."""
        side = round(SUPERSAMPLING * CROP_SIZE)
        canvas = random_background(side, side, rng)
        image = self.render(parameters, canvas, (0, 0, side, side), rng)
        image = cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)
        return damage(image, rng)

    def render(
        self,
        parameters: np.ndarray,
        canvas: np.ndarray,
        roi_box: tuple[int, int, int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A copy of a picture with a face painted over it, sometimes partly hidden.

        A crop cut and resized along the roi box (``preprocessing.crop_faces``) shows every
        landmark exactly where the parameters put it, pixel centres at integers.

        Args:
            parameters: (62,) not whitened, crop frame.
            canvas: (H, W, 3) uint8 BGR.
            roi_box: x1 y1 x2 y2, whole pixels of the canvas.
            rng: source of colours, light and what hides the face.
        """
        head, (x1, y1, x2, y2) = self.head, roi_box
        scale = np.array([x2 - x1, y2 - y1]) / CROP_SIZE
        vertices = head.model.vertices(parameters[None])[0].T  # (N, 3) crop frame
        skull = vertices[head.skull]
        middle = skull.mean(0)
        vertices[head.skull] = middle + (skull - middle) * rng.uniform(1.0, 1.16)  # hair's volume
        # cv2.resize puts the centre of crop pixel x at (x + 0.5) * scale - 0.5
        vertices[:, :2] = (vertices[:, :2] + 0.5) * scale - 0.5 + (x1, y1)
        vertices[:, 2] *= scale.mean()
        vertices = np.ascontiguousarray(vertices, dtype=np.float32)

        triangles = head.model.triangles
        normals = Sim3DR.vertex_normals(vertices, triangles)
        colours = Sim3DR.shade(vertices, normals, _random_light(rng), self._albedo(rng))
        colours *= np.clip(1 + rng.normal(0, 0.06, 3), 0, 1.0).astype(np.float32)  # tint of light
        visible = triangles[_may_show(vertices, self.corners)]
        image = Sim3DR.rasterize(vertices, visible, colours, canvas)
        if rng.random() < 0.2:
            _draw_shape(image, roi_box, rng)
        return image

    def _albedo(self, rng: np.random.Generator) -> np.ndarray:
        """(N, 3) BGR in [0, 1]: colours of one random person without light."""
        head = self.head
        tone = rng.uniform(0, len(SKIN_TONES) - 1)
        low = min(int(tone), len(SKIN_TONES) - 2)
        skin = SKIN_TONES[low] + (tone - low) * (SKIN_TONES[low + 1] - SKIN_TONES[low])
        skin = (skin * rng.normal(1, 0.05, 3)).clip(0.05, 1)
        hair = HAIR_TONES[rng.integers(len(HAIR_TONES))] * rng.uniform(0.6, 1.3)
        albedo = np.empty((head.model.num_vertices, 3))
        albedo[head.face] = self.paint(skin, hair, rng).T
        strands = rng.uniform(0.75, 1.2, (*SKULL_GRID, 1)) * np.ones((1, 1, 3))
        scalp = hair if rng.random() < 0.85 else skin * 0.9
        albedo[head.skull] = (scalp * strands).reshape(-1, 3)
        neck = albedo[head.neck].reshape(*NECK_GRID, 3)
        neck[:3], neck[3:] = skin * 0.75, rng.uniform(0.05, 0.9, 3)
        albedo[head.mouth] = (0.08, 0.06, 0.2)
        if rng.random() < 0.4:  # upper teeth
            albedo[head.mouth][1:4] = (0.75, 0.8, 0.85)
        return albedo.clip(0, 1).astype(np.float32)


def _random_light(rng: np.random.Generator) -> Sim3DR.Lighting:
    direction = rng.normal(size=3) * (1.0, 0.7, 0.5) + (0, -0.5, 1.2)
    position = tuple(5 * direction / np.linalg.norm(direction))
    ambient = rng.uniform(0.25, 0.6)
    return Sim3DR.Lighting(ambient, rng.uniform(0.35, 0.8), rng.uniform(0, 0.2), position)


def _may_show(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(T,) bool: triangles that face the viewer and may hold a pixel's centre; most don't.

    Args:
        vertices: (N, 3) pixels.
        triangles: (3, T), one row per corner.
    """
    (x0, x1, x2), (y0, y1, y2) = ([column[row] for row in triangles] for column in vertices.T[:2])
    front = (x1 - x0) * (y2 - y0) > (x2 - x0) * (y1 - y0)
    for a, b, c in ((x0, x1, x2), (y0, y1, y2)):
        low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
        front &= np.floor(high) >= low
    return front
