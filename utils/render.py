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
