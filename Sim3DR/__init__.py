"""Sim3DR: vertex normals, z-buffer rasterisation and lighting of triangle meshes.

This module checks every argument and calls a small C++ kernel (``kernel.h``; ``mesh.cpp`` and
``rasterizer.cpp``) through a typed binding (``sim3dr_cython.pyx``). Conventions:

- A vertex is (x, y, z): x to the right and y down in pixels, pixel centres at integers; z towards
  the viewer, so the larger z hides the smaller. No perspective: x and y are the pixel position.
- Triangles are rows of three 0-based vertex indices, of either winding: both sides are painted.
- Images are (H, W, 3) uint8, channels in whatever order the colours have (BGR elsewhere here).
- ``threads`` is how many share the rows of a picture; the result does not depend on it. None: one
  for small pictures, else ``OMP_NUM_THREADS``, or where that is not set as many as usable cores.

No function changes its arguments, except ``out``.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from utils.cores import openmp_threads, usable_cores

try:
    import Sim3DR.sim3dr_cython as _kernel  # `from` raises another error if missing
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
    "rasterize",
    "shade",
    "vertex_normals",
    "zbuffer",
]

# Up to this no float32 product overflows: the kernel's largest are fifth powers of pixels, which
# would from 1.7e8 on. And a pixel's place in a bounding box is an int32.
COORDINATE_LIMIT = 1e8
# Beyond this the float32 position of a pixel is not exact.
SIDE_LIMIT = 2**24
FLOAT_LIMIT = float(np.finfo(np.float32).max)
# A window of fewer pixels is done before a second thread has started.
THREADED_PIXELS = 512 * 512
THREAD_LIMIT = 1024


@dataclass(frozen=True)
class Lighting:
    """One white light on a mesh that ``shade`` centres and scales, all axes alike, until the
    longest reaches from -1 to 1.

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


@dataclass(frozen=True, eq=False)
class ZBuffer:
    """What is visible in a window of the pixel grid: see ``zbuffer``.

    Attributes:
        depth: (h, w) float32, the visible z, -inf where nothing is.
        triangle: (h, w) int32, index of the visible triangle, -1 where nothing is.
        vertices: (N, 3) float32, of the mesh that it was made from.
        triangles: (T, 3) int32, perhaps the caller's own: not to be changed meanwhile.
        origin: x, y of the window's first pixel.
    """

    depth: np.ndarray
    triangle: np.ndarray
    vertices: np.ndarray
    triangles: np.ndarray
    origin: tuple[int, int] = (0, 0)

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
        (N, 3) float32; zero at vertices without triangles, or whose triangles cancel to the last
        bit; where rounding leaves a rest, its direction.

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
    threads: int | None = None,
) -> ZBuffer:
    """Depth and triangle of what is visible at each pixel.

    Pixels are tested at their integer position by ``u >= 0, v >= 0, u + v < 1`` in float32, where u
    and v, the shares of the third and the second corner, are their numerators times the reciprocal
    of the common denominator, as published; dividing instead rounds differently. Only of slivers,
    whose edges at the first corner are less than 0.06 degrees from parallel, they are quotients in
    float64: in float32 they would paint stray pixels. The largest z wins, of equals the first
    triangle. Triangles whose area is zero in float64 paint nothing. ``interpolate`` turns the
    result into pictures.

    Args:
        vertices: (N, 3) real; x, y in pixels, z towards the viewer.
        triangles: (T, 3) integer, 0-based.
        height, width: size of the window, in pixels.
        origin: x, y of the window's first pixel: a part of a large picture costs only that part.
        threads: see the module; so everywhere below.

    Returns:
        ZBuffer of the window.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    given = np.asarray(vertices)
    vertices, triangles = _mesh(given, triangles, kernel_checks=True)
    if np.may_share_memory(vertices, given):
        vertices = vertices.copy()  # the weights are computed later, and must not have moved
    height, width = _size(height, width)
    x0, y0 = _origin(origin, height, width)
    threads = _threads(threads, height * width)
    depth = np.empty((height, width), np.float32)
    triangle = np.empty((height, width), np.int32)
    if len(triangles):
        if not _kernel.zbuffer(vertices, triangles, x0, y0, depth, triangle, threads):
            raise _outside(triangles, len(vertices))
    else:
        depth.fill(-np.inf)
        triangle.fill(-1)
    return ZBuffer(depth, triangle, vertices, triangles, (x0, y0))


def interpolate(
    buffer: ZBuffer,
    triangles: np.ndarray,
    attributes: np.ndarray,
    threads: int | None = None,
) -> np.ndarray:
    """Any per-vertex values, interpolated over the visible triangles.

    Args:
        buffer: what is visible (``zbuffer``).
        triangles: (T, 3) integer: those the buffer was made from, or others in the same order (a
            texture seam has its own vertices).
        attributes: (N, C) real, finite.

    Returns:
        (h, w, C) float32; 0 where no triangle is visible.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    attributes = _floats(attributes, "attributes")
    image = np.zeros((*buffer.triangle.shape, attributes.shape[1]), np.float32)
    threads = _threads(threads, buffer.triangle.size)
    vertices, own = buffer.vertices, buffer.triangles
    if vertices.shape[1:] != (3,):  # the rest of an odd buffer the binding refuses
        raise ValueError(f"the buffer's vertices must have shape (N, 3), not {vertices.shape}")
    origin = _origin(buffer.origin, *buffer.triangle.shape)
    given = _triangles(triangles, len(attributes))
    if given is not own or len(attributes) > len(vertices):
        # Checked again: the caller may have changed it since, and the kernel indexes memory by it.
        own = _triangles(own, len(vertices))
    count = min(len(given), len(own))
    if not image.size:
        return image
    if count:
        own, given = own[:count], given[:count]
        done = _kernel.interpolate(
            vertices, own, *origin, buffer.triangle, given, attributes, image, threads
        )
    else:
        done = not buffer.covered.any()
    if not done:
        raise ValueError(
            f"the buffer shows triangle {buffer.triangle.max()} but there are {len(triangles)}: "
            "give the triangles it was made from"
        )
    return image


def rasterize(
    vertices: np.ndarray,
    triangles: np.ndarray,
    colors: np.ndarray,
    background: np.ndarray | None = None,
    height: int | None = None,
    width: int | None = None,
    reverse: bool = False,
    alpha: float = 1.0,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Render a mesh with one colour per vertex. Only the mesh's bounding box is worked on.

    Args:
        vertices: (N, 3) real; x, y in pixels, z towards the viewer.
        triangles: (T, 3) integer, 0-based.
        colors: (N, 3) real in [0, 1]; times 255, truncated.
        background: (H, W, 3) uint8 to render over; black of ``height`` x ``width`` if None.
        height, width: size of the picture where there is no background.
        reverse: write pixel (x, y) to row H - 1 - y, for vertices whose y goes up. The background
            is not flipped.
        alpha: opacity, 0 to 1: ``alpha`` colour + ``1 - alpha`` background, rounded.
        out: (H, W, 3) uint8 to paint on instead of a copy of the background; where nothing is
            visible it keeps what it holds. The pixels of its rows must lie side by side.

    Returns:
        (H, W, 3) uint8, a new array unless ``out`` is given.

    Raises:
        TypeError, ValueError: an argument has another type, shape or range than stated.
    """
    vertices, triangles = _mesh(vertices, triangles, kernel_checks=True)
    colors = _colors(colors)
    if len(colors) < len(vertices):
        triangles = _triangles(triangles, len(colors))
    if background is not None:
        background = _background(background)
        if height not in (None, background.shape[0]) or width not in (None, background.shape[1]):
            raise ValueError(
                f"height x width is {height} x {width} but the background is "
                f"{background.shape[0]} x {background.shape[1]}: leave the sizes out"
            )
    elif height is None or width is None:
        raise ValueError("give a background, or both height and width")
    else:
        background = np.zeros((*_size(height, width), 3), np.uint8)
        out = background if out is None else out
    image = _target(out, background, alpha)
    x0, y0, x1, y1 = _bounds(vertices, *image.shape[:2])
    if x0 >= x1 or y0 >= y1 or not image.size or not len(triangles):
        _triangles(triangles, len(vertices))
        return image
    part = slice(y0, y1), slice(x0, x1)
    target = image[::-1][part] if reverse else image[part]
    under = _source(background[::-1][part] if reverse else background[part], target)
    painting = colors, under, alpha, target, _threads(threads, (y1 - y0) * (x1 - x0))
    if not _kernel.rasterize(vertices, triangles, x0, y0, *painting):
        raise _outside(triangles, len(vertices))
    return image


def bounds(vertices: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The part of a picture that a mesh can touch, as x0, y0, x1, y1 with x1 and y1 excluded.

    Empty (x0 >= x1 or y0 >= y1) where the mesh, vertices (N, 3) as of ``rasterize``, lies outside
    or has no vertices.

    Raises:
        TypeError, ValueError: no such array of finite numbers.
    """
    return _bounds(_floats(vertices, "vertices", 3, COORDINATE_LIMIT), height, width)


def shade(
    vertices: np.ndarray,
    normals: np.ndarray,
    lighting: Lighting = RELIEF,
    texture: np.ndarray | None = None,
) -> np.ndarray:
    """Colour of each vertex under a light (Phong's model with a fifth power, as published).

    As published, there is a glint on normals turned away from the light too.

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
    colors = np.empty_like(vertices)
    if len(vertices):
        _kernel.shade(vertices, normals, lighting, texture, colors)
    return colors


# Below, the arguments have been checked: float32 and int32, packed, indices in range.


def _bounds(vertices: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    if not len(vertices):
        return 0, 0, 0, 0
    ends = np.empty((2, 3), np.float32)
    _kernel.bounds(vertices, ends)
    (x_min, y_min, _), (x_max, y_max, _) = ends.tolist()
    x0, y0 = max(math.floor(x_min), 0), max(math.floor(y_min), 0)
    return x0, y0, min(math.ceil(x_max) + 1, width), min(math.ceil(y_max) + 1, height)


# The checks.


def _threads(threads: int | None, pixels: int) -> int:
    if threads is None:
        wanted = 1 if pixels < THREADED_PIXELS else openmp_threads() or usable_cores()
        return min(wanted, THREAD_LIMIT)
    if not isinstance(threads, (int, np.integer)) or isinstance(threads, bool):
        raise TypeError(f"threads must be a whole number or None, not {threads!r}")
    if not 1 <= threads <= THREAD_LIMIT:
        raise ValueError(f"threads must be from 1 to {THREAD_LIMIT}, not {threads}")
    return int(threads)


def _mesh(
    vertices: np.ndarray, triangles: np.ndarray, kernel_checks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    vertices = _floats(vertices, "vertices", 3, COORDINATE_LIMIT)
    return vertices, _triangles(triangles, len(vertices), kernel_checks)


def _floats(
    array: np.ndarray, name: str, columns: int | None = None, limit: float = FLOAT_LIMIT
) -> np.ndarray:
    """(N, columns) packed float32 of real, finite numbers within ±limit."""
    packed = _pack(array, name, columns)
    # One comparison rejects NaN, infinities and what float32 cannot hold.
    if packed.size and not _kernel.values_within(packed, -limit, limit):
        row = np.flatnonzero(~(np.abs(packed) <= limit).all(1))[0]
        raise ValueError(f"{name} must be finite and within ±{limit:.3g}: row {row} is not")
    return packed


def _colors(colors: np.ndarray, name: str = "colors") -> np.ndarray:
    """(N, 3) packed float32 within [0, 1]."""
    packed = _pack(colors, name, 3)
    if packed.size and not _kernel.values_within(packed, 0, 1):
        _floats(packed, name)
        raise ValueError(
            f"{name} must be within [0, 1], but hold {packed.min():.4g} to {packed.max():.4g}"
        )
    return packed


def _pack(array: np.ndarray, name: str, columns: int | None = None) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}")
    if array.ndim != 2 or columns not in (None, array.shape[1]):
        raise ValueError(f"{name} must have shape (N, {columns or 'C'}), not {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return np.ascontiguousarray(array, np.float32)


def _triangles(triangles: np.ndarray, n_vertices: int, kernel_checks: bool = False) -> np.ndarray:
    """(T, 3) packed int32 below ``n_vertices``, unless the kernel sees to that as it reads them."""
    triangles = np.asarray(triangles)
    if triangles.dtype.kind not in "iu":
        raise TypeError(f"triangles must hold integers, not {triangles.dtype}")
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must have shape (T, 3), not {triangles.shape}")
    if triangles.dtype != np.int32:  # before the conversion, which would wrap
        if triangles.size and not (triangles.min() >= 0 and triangles.max() < n_vertices):
            raise _outside(triangles, n_vertices)
        return np.ascontiguousarray(triangles, np.int32)
    packed = np.ascontiguousarray(triangles)
    if not kernel_checks and packed.size and not _kernel.indices_within(packed, n_vertices):
        raise _outside(triangles, n_vertices)
    return packed


def _outside(triangles: np.ndarray, n_vertices: int) -> ValueError:
    return ValueError(
        f"triangles must index the {n_vertices} vertices from 0, "
        f"but hold {triangles.min()} to {triangles.max()}"
    )


def _background(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise TypeError(f"background must be uint8, not {image.dtype}")
    if image.shape[2:] != (3,) or not image.size or max(image.shape[:2]) > SIDE_LIMIT:
        raise ValueError(
            f"background must have shape (H, W, 3), sides from 1 to {SIDE_LIMIT}, not {image.shape}"
        )
    return image


def _target(out: np.ndarray | None, background: np.ndarray, alpha: float) -> np.ndarray:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be within 0 and 1, not {alpha}")
    if out is None:
        return background.copy()
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != background.shape:
        raise ValueError(f"out must be an array of {background.shape} uint8, as the background")
    if not out.flags.writeable or not _is_packed(out):
        raise ValueError("out must be writeable and its pixels must lie side by side")
    return out


def _is_packed(image: np.ndarray) -> bool:
    """Whether the pixels of each row lie side by side; the rows may lie anywhere."""
    # of one column alone the stride says nothing
    return image.strides[2] == 1 and (image.shape[1] == 1 or image.strides[1] == 3)


def _source(background: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The background as the kernel reads it while it writes ``image``: packed, and either the same
    pixels or others."""
    same = background.ctypes.data == image.ctypes.data and background.strides == image.strides
    if _is_packed(background) and (same or not np.may_share_memory(background, image)):
        return background
    return background.copy()


def _size(height: int, width: int) -> tuple[int, int]:
    return _pixels(height, "height", 1, SIDE_LIMIT), _pixels(width, "width", 1, SIDE_LIMIT)


def _origin(origin: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    return (
        _pixels(origin[0], "origin x", -SIDE_LIMIT, SIDE_LIMIT - width),
        _pixels(origin[1], "origin y", -SIDE_LIMIT, SIDE_LIMIT - height),
    )


def _pixels(value: int, name: str, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of pixels, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high} pixels, not {value}")
    return int(value)
