"""Sim3DR: vertex normals, z-buffer rasterisation and lighting of triangle meshes.

This module checks every argument and calls a small C++ kernel (``kernel.cpp``) through a typed
binding (``sim3dr_cython.pyx``). Conventions:

- A vertex is (x, y, z): x to the right and y down in pixels, pixel centres at integers; z towards
  the viewer, so the larger z hides the smaller. No perspective: x and y are the pixel position.
- Triangles are rows of three 0-based vertex indices, of either winding: both sides are painted.
- Images are (H, W, C) uint8, channels in whatever order the colours have (BGR elsewhere here).

No function changes its arguments.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

try:
    from . import sim3dr_cython as _kernel
except ModuleNotFoundError:  # not built; a kernel that is there but broken is an error
    from . import fallback as _kernel

    warnings.warn(
        "Sim3DR's native kernel is not built: rendering in numpy, some fifty times slower. "
        "Build it with `pip install -e .` (this needs a C++ compiler).",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = [
    "PUBLISHED",
    "RELIEF",
    "Lighting",
    "ZBuffer",
    "bounds",
    "interpolate",
    "paint",
    "rasterize",
    "shade",
    "vertex_normals",
    "zbuffer",
]

# Beyond this the float32 products of the barycentrics (fourth powers of pixels) would overflow.
COORDINATE_LIMIT = 1e8
# Beyond this the float32 position of a pixel is not exact.
SIDE_LIMIT = 2**24


@dataclass(frozen=True)
class Lighting:
    """One white light on a mesh that ``shade`` scales to about [-1, 1] on each axis.

    Intensities are fractions of full white; ``light`` and ``eye`` are positions in the scaled
    mesh's frame (x right, y down, z towards the viewer).
    """

    ambient: float
    directional: float
    specular: float
    light: tuple[float, float, float] = (0.0, 0.0, 5.0)
    eye: tuple[float, float, float] = (0.0, 0.0, 5.0)


# The published overlay's values: frontal faces burn out to white.
PUBLISHED = Lighting(ambient=0.75, directional=0.7, specular=0.2)
# Dimmer, and from above left, so that brows, nose and lips throw shading on a frontal face.
RELIEF = Lighting(ambient=0.2, directional=0.7, specular=0.1, light=(-1.0, -3.0, 4.0))


@dataclass(frozen=True)
class ZBuffer:
    """What is visible in a window of the pixel grid: see ``zbuffer``."""

    depth: np.ndarray  # (h, w) float32, -inf where nothing is
    triangle: np.ndarray  # (h, w) int32, index of the visible triangle, -1 where nothing is
    barycentric: np.ndarray  # (h, w, 2) float32, weights of its second and third vertex
    origin: tuple[int, int] = (0, 0)  # x, y of the window's first pixel

    @property
    def covered(self) -> np.ndarray:
        """(h, w) bool: where a triangle is visible."""
        return self.triangle >= 0


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normal of each vertex: the sum of its triangles' cross products, normalised.

    Args:
        vertices: (N, 3) real, any frame and unit.
        triangles: (T, 3) integer, 0-based. Normals point to where the triangles are seen
            counter-clockwise in a right-handed frame. Image space is left-handed (y down, z to
            the viewer): there they point to where the triangles are seen clockwise, which is
            outward for the Basel topology.

    Returns:
        (N, 3) float32; zero at vertices without triangles, or whose triangles cancel.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    vertices, triangles = _mesh(vertices, triangles)
    normals = np.zeros_like(vertices)
    if len(triangles):
        _kernel.vertex_normals(vertices, triangles, normals)
    return normals


def zbuffer(
    vertices: np.ndarray,
    triangles: np.ndarray,
    height: int,
    width: int,
    origin: tuple[int, int] = (0, 0),
) -> ZBuffer:
    """Depth, triangle and barycentric weights of what is visible at each pixel.

    Pixels are tested at their integer position by ``u >= 0, v >= 0, u + v < 1`` in float32 (the
    method's "Rendering" says how), the largest z wins, of equals the first triangle. Triangles
    without area paint nothing. ``interpolate`` and ``paint`` turn the result into pictures.

    Args:
        vertices: (N, 3) real; x, y in pixels, z towards the viewer.
        triangles: (T, 3) integer, 0-based.
        height, width: size of the window, in pixels.
        origin: x, y of the window's first pixel: a part of a large picture costs only that part.

    Returns:
        ZBuffer of the window.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    vertices, triangles = _mesh(vertices, triangles)
    height, width = _size(height, width)
    x0 = _pixels(origin[0], "origin x", -SIDE_LIMIT, SIDE_LIMIT - width)
    y0 = _pixels(origin[1], "origin y", -SIDE_LIMIT, SIDE_LIMIT - height)
    depth = np.full((height, width), -np.inf, np.float32)
    triangle = np.full((height, width), -1, np.int32)
    barycentric = np.zeros((height, width, 2), np.float32)
    if len(triangles):
        _kernel.zbuffer(vertices, triangles, x0, y0, depth, triangle, barycentric)
    return ZBuffer(depth, triangle, barycentric, (x0, y0))


def interpolate(
    buffer: ZBuffer, triangles: np.ndarray, attributes: np.ndarray, fill: float = 0.0
) -> np.ndarray:
    """Any per-vertex values, interpolated over the visible triangles.

    Args:
        buffer: what is visible (``zbuffer``).
        triangles: (T, 3) integer: those the buffer was made from, or others in the same order (a
            texture seam has its own vertices).
        attributes: (N, C) real, finite.
        fill: value where no triangle is visible.

    Returns:
        (h, w, C) float32.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    attributes = _floats(attributes, "attributes")
    image = np.full((*buffer.triangle.shape, attributes.shape[1]), fill, np.float32)
    _interpolate(buffer, triangles, attributes, image)
    return image


def paint(
    buffer: ZBuffer, triangles: np.ndarray, colors: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """A copy of a picture with the visible triangles painted over it.

    Args:
        buffer: what is visible (``zbuffer``), of the picture's size.
        triangles: (T, 3) integer, as for ``interpolate``.
        colors: (N, C) real in [0, 1]; times 255, truncated.
        background: (h, w, C) uint8.

    Returns:
        (h, w, C) uint8.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    colors, background = _colors(colors), _image(background, "background")
    expected = (*buffer.triangle.shape, colors.shape[1])
    if background.shape != expected:
        raise ValueError(
            f"background must have the buffer's size and the colours' channels, {expected}, "
            f"not {background.shape}"
        )
    image = background.copy()
    _interpolate(buffer, triangles, colors, image)
    return image


def rasterize(
    vertices: np.ndarray,
    triangles: np.ndarray,
    colors: np.ndarray,
    background: np.ndarray | None = None,
    height: int | None = None,
    width: int | None = None,
    reverse: bool = False,
) -> np.ndarray:
    """Render a mesh with one colour per vertex. Only the mesh's bounding box is worked on.

    Args:
        vertices: (N, 3) real; x, y in pixels, z towards the viewer.
        triangles: (T, 3) integer, 0-based.
        colors: (N, C) real in [0, 1].
        background: (H, W, C) uint8 to render over; black of ``height`` x ``width`` if None.
        height, width: size of the picture where there is no background.
        reverse: write pixel (x, y) to row H - 1 - y, for vertices whose y goes up. The background
            is not flipped.

    Returns:
        (H, W, C) uint8, a new array.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    vertices, triangles = _mesh(vertices, triangles)
    colors = _colors(colors)
    if background is not None:
        image = _image(background, "background").copy()
        if height not in (None, image.shape[0]) or width not in (None, image.shape[1]):
            raise ValueError(
                f"height x width is {height} x {width} but the background is "
                f"{image.shape[0]} x {image.shape[1]}: leave the sizes out"
            )
        if image.shape[2] != colors.shape[1]:
            raise ValueError(
                f"colors have {colors.shape[1]} channels but the background has {image.shape[2]}"
            )
    elif height is None or width is None:
        raise ValueError("give a background, or both height and width")
    else:
        image = np.zeros((*_size(height, width), colors.shape[1]), np.uint8)
    x0, y0, x1, y1 = bounds(vertices, *image.shape[:2])
    if x0 < x1 and y0 < y1:
        buffer = zbuffer(vertices, triangles, y1 - y0, x1 - x0, (x0, y0))
        target = image[::-1] if reverse else image
        _interpolate(buffer, triangles, colors, target[y0:y1, x0:x1])
    return image


def bounds(vertices: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The part of a picture that a mesh can touch, as x0, y0, x1, y1 with x1 and y1 excluded.

    Empty (x0 >= x1 or y0 >= y1) where the mesh lies outside or has no vertices.
    """
    vertices = _floats(vertices, "vertices", 3, COORDINATE_LIMIT)
    if not len(vertices):
        return 0, 0, 0, 0
    x, y = vertices[:, 0], vertices[:, 1]
    x0, y0 = max(math.floor(x.min()), 0), max(math.floor(y.min()), 0)
    return x0, y0, min(math.ceil(x.max()) + 1, width), min(math.ceil(y.max()) + 1, height)


def shade(
    vertices: np.ndarray,
    normals: np.ndarray,
    lighting: Lighting = RELIEF,
    texture: np.ndarray | None = None,
) -> np.ndarray:
    """Colour of each vertex under a light (Phong's model with a fifth power, as published).

    Args:
        vertices: (N, 3) real, y down, z towards the viewer; any scale.
        normals: (N, 3) real, unit or zero (``vertex_normals``).
        lighting: intensities and positions.
        texture: (N, 3) real in [0, 1], multiplied by the light; white if None.

    Returns:
        (N, 3) float32 in [0, 1], in the texture's channel order.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    vertices = _floats(vertices, "vertices", 3, COORDINATE_LIMIT)
    normals = _floats(normals, "normals", 3)
    if normals.shape != vertices.shape:
        raise ValueError(f"normals must be {vertices.shape} as the vertices, not {normals.shape}")
    if texture is not None:
        texture = _colors(texture, "texture")
        if texture.shape != vertices.shape:
            raise ValueError(f"texture must be {vertices.shape}, not {texture.shape}")
    if not len(vertices):
        return np.zeros((0, 3), np.float32)

    scaled = np.array(vertices.T, order="C")  # (3, N): numpy is much faster along the last axis
    scaled -= scaled.min(1, keepdims=True)
    scaled *= 2 / (scaled.max() or 1)
    scaled -= scaled.max(1, keepdims=True) / 2
    normals = np.ascontiguousarray(normals.T)
    to_light = _unit(np.float32(lighting.light)[:, None] - scaled)
    cosine = (normals * to_light).sum(0)  # (N,)
    light = lighting.ambient + lighting.directional * cosine.clip(0, 1)
    if lighting.specular:
        to_eye = _unit(np.float32(lighting.eye)[:, None] - scaled)
        glint = to_eye * (2 * cosine * normals - to_light)
        fifth = np.square(np.square(glint)) * glint
        light += lighting.specular * np.where(cosine > 0, fifth.sum(0).clip(0, 1), 0)
    light = light.clip(0, 1)[:, None]  # (N, 1); before the texture, which it may not burn through
    return np.repeat(light, 3, 1) if texture is None else light * texture


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.square(vectors).sum(0))
    return vectors / np.where(length > 0, length, 1)


def _interpolate(
    buffer: ZBuffer, triangles: np.ndarray, attributes: np.ndarray, image: np.ndarray
) -> None:
    """Check what the kernel relies on and paint ``image`` (h, w, C) in place."""
    triangles = _triangles(triangles, len(attributes))
    if buffer.triangle.max() >= len(triangles):
        raise ValueError(
            f"the buffer shows triangle {buffer.triangle.max()} but there are {len(triangles)}: "
            "give the triangles it was made from"
        )
    if len(triangles) and attributes.shape[1]:
        _kernel.interpolate(buffer.triangle, buffer.barycentric, triangles, attributes, image)


def _mesh(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vertices = _floats(vertices, "vertices", 3, COORDINATE_LIMIT)
    return vertices, _triangles(triangles, len(vertices))


def _floats(
    array: np.ndarray, name: str, columns: int | None = None, limit: float | None = None
) -> np.ndarray:
    """(N, columns) packed float32 of real, finite numbers within ±limit."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}")
    if array.ndim != 2 or columns not in (None, array.shape[1]):
        raise ValueError(f"{name} must have shape (N, {columns or 'C'}), not {array.shape}")
    largest = limit or float(np.finfo(np.float32).max)
    # One comparison rejects NaN, infinities and what float32 cannot hold.
    if array.size and not (float(array.min()) >= -largest and float(array.max()) <= largest):
        within = np.abs(array.astype(np.float64)) <= largest
        row = np.flatnonzero(~within.all(1))[0]
        raise ValueError(f"{name} must be finite and within ±{largest:.3g}: row {row} is not")
    return np.ascontiguousarray(array, np.float32)


def _triangles(triangles: np.ndarray, n_vertices: int) -> np.ndarray:
    triangles = np.asarray(triangles)
    if triangles.dtype.kind not in "iu":
        raise TypeError(f"triangles must hold integers, not {triangles.dtype}")
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must have shape (T, 3), not {triangles.shape}")
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < n_vertices):
        raise ValueError(
            f"triangles must index the {n_vertices} vertices from 0, "
            f"but hold {triangles.min()} to {triangles.max()}"
        )
    return np.ascontiguousarray(triangles, np.int32)


def _colors(colors: np.ndarray, name: str = "colors") -> np.ndarray:
    colors = _floats(colors, name)
    if colors.size and not (colors.min() >= 0 and colors.max() <= 1):
        raise ValueError(
            f"{name} must be within [0, 1], but hold {colors.min():.4g} to {colors.max():.4g}"
        )
    return colors


def _image(image: np.ndarray, name: str) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8, not {image.dtype}")
    if image.ndim != 3 or not image.size or max(image.shape[:2]) > SIDE_LIMIT:
        raise ValueError(f"{name} must have shape (H, W, C), none of them 0, not {image.shape}")
    return image


def _size(height: int, width: int) -> tuple[int, int]:
    return _pixels(height, "height", 1, SIDE_LIMIT), _pixels(width, "width", 1, SIDE_LIMIT)


def _pixels(value: int, name: str, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of pixels, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high} pixels, not {value}")
    return int(value)
