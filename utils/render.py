"""Pictures of fitted meshes over the photo they were fitted to."""

from collections.abc import Sequence

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
    for vertices in faces_vertices:
        if np.ndim(vertices) != 2 or len(vertices) != 3:
            raise ValueError(f"a face's vertices must be (3, N), not {np.shape(vertices)}")
        vertices = np.ascontiguousarray(np.transpose(vertices))  # (N, 3)
        x0, y0, x1, y1 = Sim3DR.bounds(vertices, *image.shape[:2])
        if x0 >= x1 or y0 >= y1:
            continue
        normals = Sim3DR.vertex_normals(vertices, triangles)
        colors = Sim3DR.shade(vertices, normals, lighting, texture)
        visible = Sim3DR.zbuffer(vertices, triangles, y1 - y0, x1 - x0, (x0, y0))
        photo = image[y0:y1, x0:x1]
        render = Sim3DR.paint(visible, triangles, colors, photo)
        blend = cv2.addWeighted(render, alpha, photo, 1 - alpha, 0)
        np.copyto(overlay[y0:y1, x0:x1], blend, where=visible.covered[..., None])
    return overlay


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
        texture: (S, T, 3) uint8, BGR; sampled bilinearly.
        background: (H, W, 3) uint8, BGR.
        supersampling: samples per pixel along each axis, for smooth contours.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    height, width = background.shape[:2]
    fine = np.array(vertices, np.float32)
    fine[:, :2] = (fine[:, :2] + 0.5) * supersampling - 0.5
    buffer = Sim3DR.zbuffer(fine, triangles, height * supersampling, width * supersampling)
    places = np.asarray(uv) * (1, -1) + (0, 1)  # share of the texture's width and height
    x, y = np.moveaxis(Sim3DR.interpolate(buffer, triangles, places), 2, 0)
    rows, columns = texture.shape[:2]
    x, y = x * columns - 0.5, y * rows - 0.5
    colors = cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = buffer.covered[..., None].astype(np.float32)
    layers = np.concatenate([colors * alpha, alpha], 2)
    layers = cv2.resize(layers, (width, height), interpolation=cv2.INTER_AREA)
    result = layers[..., :3] + background * (1 - layers[..., 3:])
    return np.round(result).clip(0, 255).astype(np.uint8)
