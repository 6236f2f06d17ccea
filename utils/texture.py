"""Face textures: unwrapped from the photo itself, or read from published UV maps.

Frames
    image     the photo: pixels, x right, y down, pixel centres at integers.
    uv        texture coordinates in [0, 1], v up; the picture's outer edges lie at 0 and 1.
    texture   a square picture of ``size`` texels: column ``u * size - 0.5``, row
              ``(1 - v) * size - 0.5``.

Unwrapping (``unwrap_photo``): every texel's place on the face is found by rasterising the mesh in
texture space, and its colour in the photo under the fitted camera. What the camera does not see,
or only at a grazing angle, comes from the mirrored texel in the tone of its surroundings; what is
seen on neither side is filled smoothly.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

import Sim3DR
from utils.inference import Face
from utils.mesh_io import TexturedMesh
from utils.morphable_model import MIRRORED_LANDMARKS, MorphableModel
from utils.pictures import read_image, to_bgr8

UV_MAP_SUFFIX = "_fake_B.png"  # of published UV maps
PHOTO_SUFFIX = "_real_A"  # of published pre-cropped photos, before the extension
SIZE_RANGE = 16, 8192  # texels a side of a photo's texture
DEFAULT_SIZE = 1024

GRAZING = (0.15, 0.45)  # cosine of the viewing angle: below unused, above fully used
# distance from the head's contour likewise, share of the face's longer side
CONTOUR = (0.003, 0.025)
FEATHER = 0.02  # width of the soft edge of what is seen, share of the texture's side
SURE_CONTOUR = (0.06, 0.12)  # nearer to the contour, background may be taken for the face
DOUBT = (0.25, 0.5)  # log of the ratio to the colour expected: below trusted, above not
VISIBILITY_SIDE = 512  # pixels of the face in the z-buffer
DEPTH_TOLERANCE = 0.008  # share of the face's longer side
DETAIL = 0.012  # tones are matched above this length, share of the texture's side
LIGHT = 0.06  # and lights above this one
MAX_TONE = np.log(4.0)  # a mirrored texel becomes at most four times as bright or dark
SYMMETRY_TOLERANCE = 0.02  # of texture coordinates, at the landmarks


# ------------------------------------------------------------------------------ published UV maps


def uv_map_path(photo: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Where a photo's published UV map lies: ``{x}.png`` and ``{x}_real_A.png`` have
    ``{x}_fake_B.png``."""
    return Path(folder) / f"{Path(photo).stem.removesuffix(PHOTO_SUFFIX)}{UV_MAP_SUFFIX}"


def read_uv_map(path: str | os.PathLike) -> np.ndarray:
    """A published UV map: a square picture, 256x256 as published, v up.

    Returns:
        (S, S, 3) uint8, BGR, S at least 2.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is no picture (``read_image``), or not square.
    """
    path = Path(path)
    remedy = "give its folder with --uv-dir, or use --texture photo: the photo's own texture"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this UV map is missing; {remedy}")
    try:
        picture = read_image(path)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
    height, width = picture.shape[:2]
    if height != width or width < 2:
        raise ValueError(
            f"{path}: a UV map is square (256x256 as published), this one has {width}x{height} "
            f"pixels; {remedy}"
        )
    return picture


def sample_uv_map(uv_map: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours of vertices as the published job takes them: nearest texel of the flipped map.

    Args:
        uv_map: (S, S, 3) uint8, BGR.
        uv: (N, 2) in [0, 1].

    Returns:
        (N, 3) float32 in [0, 1], BGR: row ``int(v (S - 1))`` of the map turned upside down,
        column ``int(u (S - 1))``.
    """
    column, row = (uv * (len(uv_map) - 1)).astype(np.int64).T
    return uv_map[::-1][row, column].astype(np.float32) / 255


# ----------------------------------------------------------------------------------- face meshes


def kept_part(face_model: MorphableModel) -> tuple[np.ndarray, np.ndarray]:
    """What textured meshes have of a face model: the part it names (``keptInd``, ``deletedTri``),
    else all of it.

    Returns:
        The vertices (K,), as indices into the model's; the triangles (T, 3), as indices into those
        K.
    """
    if face_model.kept_vertices is None:
        return np.arange(face_model.num_vertices), face_model.triangles
    return face_model.kept_vertices, face_model.kept_triangles


def require_texture_coordinates(face_model: MorphableModel) -> None:
    """Refuses a face model without texture coordinates.

    Raises:
        ValueError: it has none.
    """
    if face_model.uv is None:
        raise ValueError(
            f"{face_model.source}: the face model has no texture coordinates (BFM_UV.npy, or uv "
            "in an .npz); complete it"
        )


def mouth_lid(triangles: np.ndarray, uv: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Triangles that close the gap between the lips, so that teeth in the photo have a place.

    Args:
        triangles: (T, 3), with the mouth open.
        uv: (N, 2) texture coordinates.
        landmarks: (8, 2) texture coordinates of the inner lips (landmarks 60 to 67).

    Returns:
        (L, 3) int32 of the same vertices, wound as ``triangles``; none where the mesh has no gap.
    """
    loops = [
        loop for loop in boundary_loops(triangles) if _inside(uv[loop], landmarks.mean(0))
    ]  # (k,) each
    rim = min(loops, key=lambda loop: np.ptp(uv[loop, 0]), default=None)
    # a loop much wider than the lips is the face's own edge: the mesh has no gap
    if rim is None or np.ptp(uv[rim, 0]) > 2 * np.ptp(landmarks[:, 0]):
        return np.zeros((0, 3), np.int32)
    rim = np.roll(rim, -int(uv[rim, 0].argmin()))
    right = int(uv[rim, 0].argmax())
    there, back = rim[: right + 1], np.concatenate([rim[right:], rim[:1]])[::-1]
    lid, i, j = [], 0, 0
    while i + 1 < len(there) or j + 1 < len(back):  # a strip between the lips, corner to corner
        ahead = j + 1 >= len(back) or (
            i + 1 < len(there) and uv[there[i + 1], 0] <= uv[back[j + 1], 0]
        )
        if ahead:
            lid.append((there[i + 1], there[i], back[j]))
            i += 1
        else:
            lid.append((there[i], back[j], back[j + 1]))
            j += 1
    return np.array([t for t in lid if len(set(t)) == 3], np.int32).reshape(-1, 3)


def boundary_loops(triangles: np.ndarray) -> list[np.ndarray]:
    """Closed lines of vertices along the edges that only one triangle has.

    (T, 3) triangles -> (k,) vertices of each line, from its lowest, in the triangles' direction.
    """
    edges = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).astype(np.int64)
    numbers, reverse = (edges @ (1 << 32, 1) for edges in (edges, edges[:, ::-1]))
    following = {n >> 32: n & 0xFFFFFFFF for n in np.setdiff1d(numbers, reverse).tolist()}
    loops = []
    while following:
        start = next(iter(following))
        step, loop = following.pop(start), [start]
        while step != start and step in following:
            loop.append(step)
            step = following.pop(step)
        if step == start:  # an open line comes from edges that three triangles share
            loops.append(np.array(loop))
    return loops


def _inside(polygon: np.ndarray, point: np.ndarray) -> bool:
    return cv2.pointPolygonTest(polygon.astype(np.float32), tuple(map(float, point)), False) >= 0


def face_mesh(face: Face, lid: bool = False) -> TexturedMesh:
    """The kept part of a fitted face, image frame, no colours yet; with texture coordinates where
    the face model has them.

    Args:
        lid: close the mouth (``mouth_lid``).

    Raises:
        ValueError: the face has no dense mesh, or a lid is asked for and the face model has no
            texture coordinates.
    """
    if face.vertices is None:
        raise ValueError("the face has no dense mesh: reconstruct it with dense=True")
    face_model = face.face_model
    kept, triangles = kept_part(face_model)
    uv = None if face_model.uv is None else face_model.uv[kept]
    if lid:
        require_texture_coordinates(face_model)
        triangles = triangles_with_lid(face_model)
    return TexturedMesh(
        vertices=np.ascontiguousarray(face.vertices.T[kept]),
        triangles=triangles,
        uv=uv,
        origin=face.translation,
        pixels_per_metre=face.scale * 1e6,  # the model's unit is the micrometre
    )


@lru_cache(maxsize=2)
def triangles_with_lid(face_model: MorphableModel) -> np.ndarray:
    """(T, 3) of the kept part and of the lid on its mouth; not to be written to."""
    kept, triangles = kept_part(face_model)
    lips = face_model.uv[face_model.landmark_indices[60:68]]
    closed = np.concatenate([triangles, mouth_lid(triangles, face_model.uv[kept], lips)])
    closed.flags.writeable = False  # every face shares it
    return closed


def with_geometry(mesh: TexturedMesh, face: Face) -> TexturedMesh:
    """A face's mesh with the geometry of a changed face (``utils.inference.with_expression``,
    ``frontal``); colours and texture stay, they were sampled where the photo shows the face.

    Raises:
        ValueError: the changed face has no dense mesh, or is of another face model.
    """
    changed = face_mesh(face)
    if changed.vertices.shape != mesh.vertices.shape:
        raise ValueError(
            f"the mesh has {len(mesh.vertices)} vertices, the face's {len(changed.vertices)}: they "
            "are not of the same face model"
        )
    place = {"origin": changed.origin, "pixels_per_metre": changed.pixels_per_metre}
    frame = mesh.frame
    return mesh.to_frame("image").replace(vertices=changed.vertices, **place).to_frame(frame)


def uv_mapped_face(face: Face, uv_map: np.ndarray) -> TexturedMesh:
    """The kept part of a face coloured from a published UV map (``read_uv_map``).

    The mesh has the vertices' colours and the map as its texture, image frame.

    Raises:
        ValueError: a face model without texture coordinates, or a face without the dense mesh.
    """
    require_texture_coordinates(face.face_model)
    mesh = face_mesh(face)
    return mesh.replace(colors=sample_uv_map(uv_map, mesh.uv), texture=uv_map)


def textured_face(face: Face, image: np.ndarray, size: int = DEFAULT_SIZE) -> TexturedMesh:
    """The kept part of a face, its mouth closed by a lid, with a texture from its photo.

    Args:
        face: fitted, with a dense mesh; its face model has texture coordinates that are mirrored
            with the face (``u`` to ``1 - u``).
        image: its photo, as ``utils.pictures.to_bgr8`` takes it.
        size: side of the texture in texels.

    Returns:
        TexturedMesh, image frame, with texture, confidence and the vertices' colours.

    Raises:
        ValueError: no dense mesh, no or asymmetric texture coordinates, no picture, another picture
            than the face's, bad size.
    """
    mesh, face_model = face_mesh(face, lid=True), face.face_model
    landmarks = face_model.uv[face_model.landmark_indices]  # (68, 2)
    mirrored = landmarks[MIRRORED_LANDMARKS] * (-1, 1) + (1, 0)
    if np.abs(landmarks - mirrored).max() > SYMMETRY_TOLERANCE:
        raise ValueError(
            f"{face_model.source}: texture coordinates are not symmetric (u to 1 - u), so hidden "
            "parts cannot be mirrored"
        )
    occluders = (np.ascontiguousarray(face.vertices.T), face_model.triangles)
    image = to_bgr8(image)
    if not _in_picture(mesh.vertices, image.shape).any():
        raise ValueError(
            f"nothing of the face lies in this picture of {image.shape[1]}x{image.shape[0]} "
            "pixels: it is not the photo that the face was found in"
        )
    texture, confidence = unwrap_photo(
        image, mesh.vertices, mesh.triangles, mesh.uv, size, occluders
    )
    places = uv_to_texture(mesh.uv, size).astype(np.float32)
    # as a square: OpenCV's remap makes no picture with a side of 32,767 or more
    side = math.ceil(math.sqrt(len(places)))
    x, y = np.resize(places, (side, side, 2)).transpose(2, 0, 1)
    colors = cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    colors = colors.reshape(-1, 3)[: len(places)].astype(np.float32) / 255
    return mesh.replace(texture=texture, confidence=confidence, colors=colors)


# ------------------------------------------------------------------------------------- unwrapping


def uv_to_texture(uv: np.ndarray, size: int) -> np.ndarray:
    """(N, 2) texture coordinates -> (N, 2) column and row of a texture of ``size`` texels."""
    return uv * (size, -size) + (-0.5, size - 0.5)


def unwrap_photo(
    image: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    uv: np.ndarray,
    size: int = DEFAULT_SIZE,
    occluders: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A photo's colours in texture space, complete, and how far to trust them.

    Args:
        image: (H, W, 3) uint8, BGR.
        vertices: (N, 3) real, image frame, z towards the viewer.
        triangles: (T, 3) integer, outward in the image frame.
        uv: (N, 2) in [0, 1], symmetric: mirroring the face maps u to 1 - u.
        size: side of the texture in texels, within ``SIZE_RANGE``.
        occluders: vertices (M, 3) and triangles of what may hide the face (the whole head, of
            which the face is a part); the face itself if None.

    Returns:
        texture (size, size, 3) uint8 BGR; confidence (size, size) float32 in [0, 1]: the cosine
        of the viewing angle where the photo was used, half the mirrored texel's where that was, 0
        where colours are made up and off the face.

    Raises:
        ValueError: a size outside ``SIZE_RANGE``.
    """
    smallest, largest = SIZE_RANGE
    if not smallest <= size <= largest:
        raise ValueError(f"a texture has {smallest} to {largest} texels a side, not {size}")
    vertices = np.asarray(vertices, np.float32)
    texels = np.concatenate([uv_to_texture(uv, size), np.zeros((len(uv), 1))], 1)
    buffer = Sim3DR.zbuffer(texels, triangles, size, size)
    normals = Sim3DR.vertex_normals(vertices, triangles)
    values = Sim3DR.interpolate(buffer, triangles, np.concatenate([vertices, normals], 1))
    points, normals = values[..., :3], values[..., 3:]  # (S, S, 3), image frame
    length = np.linalg.norm(normals, axis=2)
    cosine = np.where(length > 0, normals[..., 2] / np.maximum(length, 1e-6), 0).clip(0, 1)

    inside = buffer.covered
    visible, contour = _visible(points, cosine, occluders or (vertices, triangles))
    visible &= _in_picture(points, image.shape)
    soft = _soften(visible | ~inside, FEATHER * size) * inside
    seen = soft * smooth_step(cosine, *GRAZING) * smooth_step(contour, *CONTOUR)
    photo = _sample(*_part(image, vertices, points), np.ptp(vertices[:, :2], axis=0).max() / size)
    seen = seen * _trust(photo, seen, np.where(inside, contour, 0))

    mirror_seen = seen[:, ::-1]
    mirrored = _mirror(photo, seen)
    mirror_share = (1 - seen) * mirror_seen
    known = seen + mirror_share  # (S, S), at most 1
    colors = (photo * seen[..., None] + mirrored * mirror_share[..., None]) / np.maximum(
        known, 1e-6
    )[..., None]
    around = extend(colors, known > 0.5)
    texture = around + known[..., None] * (colors - around)
    confidence = seen * cosine
    confidence = confidence + (1 - seen) * 0.5 * confidence[:, ::-1]
    return np.round(texture).clip(0, 255).astype(np.uint8), confidence.astype(np.float32)


def _visible(
    points: np.ndarray, cosine: np.ndarray, occluders: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether nothing hides a texel's point (S, S, 3) from the camera, and how far it is inside
    the occluders' contour, as a share of their longer side: (S, S) bool and float32."""
    vertices, triangles = np.asarray(occluders[0], np.float32), occluders[1]
    low, extent = vertices.min(0), np.ptp(vertices, axis=0)
    scale = VISIBILITY_SIDE / max(float(extent[:2].max()), 1e-3)
    scaled = (vertices - low) * scale
    width, height = np.ceil(extent[:2] * scale).astype(int) + 1
    depth = Sim3DR.zbuffer(scaled, triangles, height, width).depth
    covered = np.pad(np.isfinite(depth), 1).astype(np.uint8)
    outlines, _ = cv2.findContours(covered, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(covered, outlines, -1, 1, cv2.FILLED)  # an open mouth is no contour
    contour = cv2.distanceTransform(covered, cv2.DIST_L2, 5)[1:-1, 1:-1] / VISIBILITY_SIDE
    # the nearest within a pixel around: what stands beside a contour may already be hidden
    depth = cv2.dilate(depth, np.ones((3, 3), np.uint8))
    x, y, z = np.moveaxis((points - low) * scale, -1, 0)
    there = cv2.remap(depth, x, y, cv2.INTER_NEAREST, borderValue=-np.inf)
    slope = np.sqrt(1 - cosine**2) / np.maximum(cosine, GRAZING[0])
    visible = z >= there - (DEPTH_TOLERANCE * VISIBILITY_SIDE + 2 * slope)
    return visible, cv2.remap(contour, x, y, cv2.INTER_LINEAR)


def _in_picture(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    x, y = points[..., 0], points[..., 1]
    return (x >= 0) & (y >= 0) & (x <= shape[1] - 1) & (y <= shape[0] - 1)


def _soften(mask: np.ndarray, width: float) -> np.ndarray:
    """0 outside the mask, rising inwards to 1 over ``width`` texels."""
    if mask.all():
        return np.ones(mask.shape, np.float32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    return smooth_step(distance, 0.2 * width, width)


def smooth_step(x: np.ndarray | float, low: float, high: float) -> np.ndarray:
    """0 up to ``low``, 1 from ``high`` on, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _part(
    image: np.ndarray, vertices: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a mesh (N, 3) covers of a photo, with a margin, and the points (S, S, 3) in it.

    Quicker than all of the photo, and OpenCV's remap takes no side of 32,767 pixels or more.
    """
    low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
    margin, last = 4 + 0.05 * (high - low).max(), np.array(image.shape[1::-1]) - 1
    left, top = np.clip(low - margin, 0, last).astype(int)
    right, bottom = np.clip(high + margin, 0, last).astype(int) + 1
    return image[top:bottom, left:right], points - np.float32([left, top, 0])


def _sample(image: np.ndarray, points: np.ndarray, pixels_per_texel: float) -> np.ndarray:
    """(S, S, 3) float32: the photo at the points, bilinear; averaged where texels are coarser."""
    x, y = points[..., 0], points[..., 1]
    if pixels_per_texel > 1.5:
        size = np.array(image.shape[1::-1])
        coarser = np.ceil(size / pixels_per_texel).astype(int)
        image = cv2.resize(image, coarser.tolist(), interpolation=cv2.INTER_AREA)
        scale_x, scale_y = np.float32(coarser / size)
        x, y = (x + 0.5) * scale_x - 0.5, (y + 0.5) * scale_y - 0.5
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(
        np.float32
    )


def _mirror(photo: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(S, S, 3) the photo's mirrored texels in the tone that the side they are for has.

    Tones are compared where both sides are seen (S, S) and continued smoothly from there, so both
    agree at the seam: as in Perez, Gangnet, Blake, Poisson Image Editing, SIGGRAPH 2003, without
    its linear system.
    """
    weight, coarse = _coarse(seen * seen[:, ::-1]), _coarse(photo)  # tones vary slowly

    def tone(detail: float) -> np.ndarray:
        ratio = _log_mean(coarse, weight, detail) - _log_mean(coarse[:, ::-1], weight, detail)
        return ratio.clip(-MAX_TONE, MAX_TONE)

    # far from the seam as the light falls on the whole, at the seam exactly
    light = extend(tone(LIGHT), _blur(weight, LIGHT) > 0.3)
    change = light + fill_smoothly(tone(DETAIL) - light, _blur(weight, DETAIL))
    return photo[:, ::-1] * np.exp(cv2.resize(change, seen.shape[::-1]))


def _trust(photo: np.ndarray, seen: np.ndarray, contour: np.ndarray) -> np.ndarray:
    """(S, S) from 0 to 1, how far a texel's colour is the face's, not the background's.

    A fit that reaches beyond the real contour takes colours from behind it. To recognise them they
    are compared with the mirrored texels, where those lie well inside the contour. In a profile the
    middle of the face lies at the contour, mirrored or not: there they are compared with the
    nearest texels inside.
    """
    inner = smooth_step(contour, *SURE_CONTOUR)
    mirrored = _mirror(photo, seen * inner)
    face = contour > 0
    arrays = (photo, mirrored, inner, seen * inner, face)
    photo, mirrored, inner, sure, face = (_coarse(array) for array in arrays)
    across = np.abs(np.linspace(-1, 1, sure.shape[1], dtype=np.float32))
    middle = 1 - smooth_step(across, 0.2, 0.4)
    middle = middle * (1 - smooth_step(np.average(inner, weights=face * middle + 1e-9), 0.2, 0.5))
    testable = np.maximum(sure[:, ::-1], middle)
    other_side = sure[:, ::-1, None]
    expected = extend(photo, sure > 0.5)
    expected = expected + other_side * (mirrored - expected)
    everywhere = np.ones_like(sure)
    difference = _log_mean(photo, everywhere, DETAIL)
    difference -= _log_mean(expected, everywhere, DETAIL)
    doubt = smooth_step(np.abs(difference).max(2), *DOUBT) * testable * (1 - inner)
    doubt = _blur(cv2.dilate(doubt, np.ones((7, 7), np.uint8)), DETAIL) * (1 - inner)
    return 1 - cv2.resize(doubt, seen.shape[::-1])


def _coarse(values: np.ndarray) -> np.ndarray:
    """The same at a quarter of the size."""
    size = max(len(values) // 4, 4)
    return cv2.resize(values.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)


def _log_mean(values: np.ndarray, weight: np.ndarray, detail: float) -> np.ndarray:
    """(s, s, 3) log of the weighted mean around each texel."""
    mean = _blur(values * weight[..., None], detail) + 1e-3
    return np.log(mean) - np.log(_blur(weight, detail) + 1e-5)[..., None]


def _blur(values: np.ndarray, detail: float) -> np.ndarray:
    """Gaussian; ``detail`` is its standard deviation as a share of the side."""
    return cv2.GaussianBlur(values.astype(np.float32), (0, 0), detail * len(values))


@np.errstate(under="ignore")  # whose program has numpy raise errors
def fill_smoothly(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted values, continued ever more smoothly where the weight is small (push-pull).

    Args:
        values: (H, W, C) real.
        weight: (H, W) in [0, 1] or bool; 0 where nothing is known.

    Returns:
        (H, W, C) float32: the values, exactly, where the weight is 1. Zero where no weight is
        anywhere.
    """
    level = np.dstack([values * weight[..., None], weight]).astype(np.float32)
    levels = [level]
    while min(level.shape[:2]) > 1:
        level = cv2.pyrDown(level)
        levels.append(level)
    filled = None
    for level in reversed(levels):
        known = level[..., -1:]
        mean = level[..., :-1] / np.maximum(known, 1e-6)
        if filled is None:
            filled = mean
        else:
            filled = cv2.pyrUp(filled, dstsize=level.shape[1::-1]).reshape(mean.shape)
        share = np.minimum(known * (1 if level is levels[0] else 2), 1)
        filled = (1 - share) * filled + share * mean  # in this form exact where the share is 1
    return filled


def extend(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values (H, W, C) continued outwards from where they are known (H, W), ever more blurred; as
    float32, unchanged where they are known.

    Unlike ``fill_smoothly`` only what lies at the edge counts: a strip of hair goes on as hair.
    """
    if known.all() or not known.any():
        return values.astype(np.float32)
    distance, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.zeros(labels.max() + 1, np.int64)
    nearest[labels[known]] = np.flatnonzero(known)
    levels = [values.reshape(-1, values.shape[2])[nearest[labels]].astype(np.float32)]
    while min(levels[-1].shape[:2]) > 4:
        levels.append(_three_axes(cv2.pyrDown(levels[-1])))
    result = levels.pop()
    for i, level in reversed(list(enumerate(levels))):
        result = _three_axes(cv2.pyrUp(result, dstsize=level.shape[1::-1]))
        there = cv2.resize(distance, level.shape[1::-1], interpolation=cv2.INTER_AREA)
        share = smooth_step(there, 4 * 2**i, 8 * 2**i)[..., None]
        result = level + share * (result - level)
    return result


def _three_axes(array: np.ndarray) -> np.ndarray:
    """OpenCV drops the last axis of one-channel pictures."""
    return array.reshape(*array.shape[:2], -1)
