"""Pictures of fitted meshes: over the photo they were fitted to, their depth, their PNCC."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

import Sim3DR
from Sim3DR import RELIEF, Lighting


def render_mesh_overlay(
    image: np.ndarray,
    faces_vertices: Sequence[np.ndarray],
    triangles: np.ndarray,
    lighting: Lighting = RELIEF,
    alpha: float = 0.6,
    texture: np.ndarray | None = None,
) -> np.ndarray:
    """Shaded meshes blended over a photo: ``alpha`` render + ``1 - alpha`` photo on the mesh.

    With ``lighting=Sim3DR.PUBLISHED`` this is the published overlay. Faces are painted in the
    given order, a later one over an earlier one: their depths have no common origin. Only the
    region around each face is worked on, so a large photo costs no more than its copy.

    Args:
        image: (H, W, 3) uint8, BGR.
        faces_vertices: for each face (3, N) real, in image space: x and y in pixels, y down, z
            towards the viewer in the same unit. Parts outside the image are cut off.
        triangles: (T, 3) integer, 0-based, of every face.
        lighting: how the meshes are lit.
        alpha: opacity of the meshes, 0 to 1.
        texture: (N, 3) real in [0, 1], BGR colours of the vertices of every face; white if None.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be within 0 and 1, not {alpha}")
    overlay = image.copy()
    for vertices, _ in _visible(faces_vertices, *image.shape[:2]):
        normals = Sim3DR.vertex_normals(vertices, triangles)
        colors = Sim3DR.shade(vertices, normals, lighting, texture)
        Sim3DR.rasterize(vertices, triangles, colors, image, alpha=alpha, out=overlay)
    return overlay


def render_depth(
    faces_vertices: Sequence[np.ndarray], triangles: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Depth of meshes as a grey picture: the nearer, the brighter.

    Each face has its own scale, linear in z from its nearest vertex (255) to its farthest (1):
    depths of different faces have no common origin. 0 where there is no face; later faces are
    painted over earlier ones.

    Args:
        faces_vertices, triangles: as for ``render_mesh_overlay``.
        height, width: size of the picture, in pixels.

    Returns:
        (height, width) uint8.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    picture = np.zeros((height, width), np.uint8)
    for vertices, (x0, y0, x1, y1) in _visible(faces_vertices, height, width):
        visible = Sim3DR.zbuffer(vertices, triangles, y1 - y0, x1 - x0, (x0, y0))
        nearest, span = vertices[:, 2].max(), max(np.ptp(vertices[:, 2]), 1e-6)
        grey = np.round(255 - 254 * (nearest - visible.depth) / span).clip(0, 255)
        np.copyto(picture[y0:y1, x0:x1], grey.astype(np.uint8), where=visible.covered)
    return picture


def render_pncc(
    faces_vertices: Sequence[np.ndarray],
    triangles: np.ndarray,
    codes: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """Projected normalised coordinate code (3DDFA, CVPR 2016, section 3.2): where on the mean
    face each pixel lies, as a colour.

    Args:
        faces_vertices, triangles: as for ``render_mesh_overlay``.
        codes: (N, 3) of every face's vertices (``normalized_coordinate_code``).
        height, width: size of the picture, in pixels.

    Returns:
        (height, width, 3) uint8, BGR: red is the code's x, green y, blue z, times 255, truncated;
        black where there is no face. Later faces are painted over earlier ones.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    picture = np.zeros((height, width, 3), np.uint8)
    colors = np.asarray(codes)[:, ::-1]
    for vertices, _ in _visible(faces_vertices, height, width):
        Sim3DR.rasterize(vertices, triangles, colors, picture, out=picture)
    return picture


def normalized_coordinate_code(mean: np.ndarray) -> np.ndarray:
    """Coordinates of the mean face (3, N), each axis scaled to [0, 1]: (N, 3) float32."""
    low = mean.min(1, keepdims=True)
    return ((mean - low) / np.ptp(mean, axis=1, keepdims=True)).T.astype(np.float32)


def render_textured(
    vertices: np.ndarray,
    triangles: np.ndarray,
    uv: np.ndarray,
    texture: np.ndarray,
    background: np.ndarray,
    supersampling: int = 1,
) -> np.ndarray:
    """A textured mesh, unlit, painted over a picture.

    Args:
        vertices: (N, 3) real, image frame: y down, z towards the viewer.
        triangles: (T, 3) integer, 0-based.
        uv: (N, 2) texture coordinates in [0, 1], v up, its picture's outer edges at 0 and 1.
        texture: (h, w, 3) uint8, BGR; sampled bilinearly.
        background: (H, W, 3) uint8, BGR.
        supersampling: samples per pixel along each axis, for smooth contours.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        TypeError, ValueError: the mesh has another type, shape or range than stated; texture and
            background are not checked.
    """
    fine = np.array(vertices, np.float32)
    x0, y0, x1, y1 = Sim3DR.bounds(fine, *background.shape[:2])
    image = background.copy()
    if x0 >= x1 or y0 >= y1:
        return image
    fine[:, :2] = (fine[:, :2] - (x0, y0) + 0.5) * supersampling - 0.5
    height, width = (y1 - y0) * supersampling, (x1 - x0) * supersampling
    buffer = Sim3DR.zbuffer(fine, triangles, height, width)
    places = np.asarray(uv) * (1, -1) + (0, 1)  # share of the texture's width and height
    x, y = np.moveaxis(Sim3DR.interpolate(buffer, triangles, places), 2, 0)
    rows, columns = texture.shape[:2]
    x, y = x * columns - 0.5, y * rows - 0.5
    layers = np.zeros((height, width, 4), np.float32)
    layers[..., :3] = cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    layers[..., 3] = 1
    layers[~buffer.covered] = 0
    layers = cv2.resize(layers, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    window = image[y0:y1, x0:x1]
    window[:] = np.round(layers[..., :3] + window * (1 - layers[..., 3:])).clip(0, 255)
    return image


def _visible(
    faces_vertices: Sequence[np.ndarray], height: int, width: int
) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Vertices (N, 3) of each (3, N) face that may touch the picture, and the region around it."""
    for vertices in faces_vertices:
        if np.ndim(vertices) != 2 or len(vertices) != 3:
            raise ValueError(f"a face's vertices must be (3, N), not {np.shape(vertices)}")
        vertices = np.stack(vertices, axis=1)  # (N, 3); three times as fast as transposing
        x0, y0, x1, y1 = Sim3DR.bounds(vertices, height, width)
        if x0 < x1 and y0 < y1:
            yield vertices, (x0, y0, x1, y1)
