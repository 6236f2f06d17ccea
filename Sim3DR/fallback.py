"""The kernel's functions in numpy: slow, used where the kernel is not built.

Same arguments (``threads`` changes nothing), same float32 arithmetic and therefore the same results
as the C++ files, whose comments say why; ``shade`` alone is the same only up to rounding. The tests
hold the two against each other.
"""

import numpy as np


def values_within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(((values >= np.float32(low)) & (values <= np.float32(high))).all())


def indices_within(triangles: np.ndarray, limit: int) -> bool:
    return bool(triangles.min() >= 0 and triangles.max() < limit)


def bounds(vertices: np.ndarray, ends: np.ndarray) -> None:
    ends[:] = vertices.min(0), vertices.max(0)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray, normals: np.ndarray) -> None:
    a, b, c = vertices[triangles.T]  # (T, 3) each
    faces = np.cross(b - a, c - a)
    normals[:] = 0
    np.add.at(normals, triangles, faces[:, None])
    length = np.sqrt(np.square(normals, dtype=np.float64).sum(1, keepdims=True))
    normals[:] = normals / np.where(length > 0, length, 1)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")
def shade(vertices, normals, lighting, texture: np.ndarray | None, colors: np.ndarray) -> None:
    scaled = np.array(vertices.T, order="C")  # (3, N): numpy is much faster along the last axis
    scaled -= scaled.min(1, keepdims=True)
    scaled *= 2 / (scaled.max() or 1)
    scaled -= scaled.max(1, keepdims=True) / 2
    normals = np.ascontiguousarray(normals.T)
    to_light = _unit(np.float32(lighting.light)[:, None] - scaled)
    cosine = (normals * to_light).sum(0)  # (N,)
    light = lighting.ambient + lighting.directional * _unit_clip(cosine)
    if lighting.specular:
        to_eye = _unit(np.float32(lighting.eye)[:, None] - scaled)
        glint = to_eye * (2 * cosine * normals - to_light)
        fifth = np.square(np.square(glint)) * glint
        light += lighting.specular * np.where(cosine != 0, _unit_clip(fifth.sum(0)), 0)
    light = _unit_clip(light)[:, None]  # (N, 1); before the texture, which it may not burn through
    colors[:] = light if texture is None else light * texture


def _unit_clip(x: np.ndarray) -> np.ndarray:
    return np.fmin(np.fmax(x, 0), 1)  # of normals and lights beyond all bounds NaN: 0 then


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.square(vectors).sum(0))
    return vectors / np.where(length > 0, length, 1)


def zbuffer(
    vertices: np.ndarray,
    triangles: np.ndarray,
    x0: int,
    y0: int,
    depth: np.ndarray,
    triangle: np.ndarray,
    threads: int,
) -> bool:
    if not indices_within(triangles, len(vertices)):
        return False
    height, width = depth.shape
    depth.fill(-np.inf)
    triangle.fill(-1)
    corners = vertices[triangles]  # (T, 3, 3)
    low = np.floor(corners[..., :2].min(1)).clip([x0, y0], None)
    high = np.ceil(corners[..., :2].max(1)).clip(None, [x0 + width - 1, y0 + height - 1])
    size = (high - low + 1).clip(0, None).astype(np.int64)  # (T, 2)
    low = low.astype(np.int64)
    # One entry for each row of each bounding box, then blocks of about a million pixels.
    row_triangle, row_y = _expand(np.where(size[:, 0] > 0, size[:, 1], 0))
    blocks = np.cumsum(size[row_triangle, 0]) >> 20
    for rows in np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(blocks)) + 1):
        row, x = _expand(size[row_triangle[rows], 0])
        t = row_triangle[rows][row]  # (P,) the triangle of each candidate pixel
        x, y = low[t, 0] + x, low[t, 1] + row_y[rows][row]
        u, v = _barycentric(*corners[t].transpose(1, 2, 0), x.astype("f4"), y.astype("f4"))
        with np.errstate(invalid="ignore"):  # opposite infinities, of slivers of denormal width
            inside = (u >= 0) & (v >= 0) & (u + v < 1)
        t, u, v = t[inside], u[inside], v[inside]
        z = _mix(*corners[t, :, 2].T, u, v)
        pixel = (y[inside] - y0) * width + x[inside] - x0
        order = np.lexsort((t, -z, pixel))  # by pixel, the nearest first, then the first triangle
        order = order[np.unique(pixel[order], return_index=True)[1]]
        order = order[z[order] > depth.ravel()[pixel[order]]]
        at = np.unravel_index(pixel[order], depth.shape)
        depth[at], triangle[at] = z[order], t[order]
    return True


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [2, 0, 3]: owners [0, 0, 2, 2, 2] and running numbers [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]


def _barycentric(a, b, c, x, y) -> tuple[np.ndarray, np.ndarray]:
    """Weights u of c and v of b, (P,), at pixels x, y; NaN for collinear corners (3, P)."""
    a, b, c = a[:2], b[:2], c[:2]
    edge_c, edge_b, pixel = c - a, b - a, np.stack([x, y]) - a
    d00, d01, d11 = _dot(edge_c, edge_c), _dot(edge_c, edge_b), _dot(edge_b, edge_b)
    d02, d12 = _dot(edge_c, pixel), _dot(edge_b, pixel)
    determinant = d00 * d11 - d01 * d01
    sliver = ~(determinant > np.float32(1e-6) * (d00 * d11) + np.float32(1e-30))
    reciprocal = np.float32(1) / np.where(sliver, np.float32(1), determinant)
    u, v = (d11 * d02 - d01 * d12) * reciprocal, (d00 * d12 - d01 * d02) * reciprocal
    a, b, c, pixel = (point[:, sliver].astype("f8") for point in (a, b, c, np.stack([x, y])))
    area = _cross(c - a, b - a)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        u[sliver] = np.where(area == 0, np.nan, _cross(pixel - a, b - a) / area)
        v[sliver] = np.where(area == 0, np.nan, _cross(c - a, pixel - a) / area)
    return u, v


def _dot(p, q):
    return p[0] * q[0] + p[1] * q[1]


def _cross(p, q):
    return p[0] * q[1] - p[1] * q[0]


def _mix(a, b, c, u, v):
    return (np.float32(1) - u - v) * a + v * b + u * c


def rasterize(
    vertices: np.ndarray,
    triangles: np.ndarray,
    x0: int,
    y0: int,
    colors: np.ndarray,
    under: np.ndarray,
    alpha: float,
    image: np.ndarray,
    threads: int,
) -> bool:
    depth, triangle = (np.empty(image.shape[:2], dtype) for dtype in ("f4", "i4"))
    if not zbuffer(vertices, triangles, x0, y0, depth, triangle, threads):
        return False
    values = np.zeros(image.shape, np.float32)
    interpolate(vertices, triangles, x0, y0, triangle, triangles, colors, values, threads)
    alpha, painted = np.float32(alpha), (values * np.float32(255)).clip(0, 255).astype(np.uint8)
    blended = np.rint(alpha * painted + (np.float32(1) - alpha) * under).astype(np.uint8)
    np.copyto(image, blended, where=(triangle >= 0)[..., None])
    return True


def interpolate(
    vertices: np.ndarray,
    triangles: np.ndarray,
    x0: int,
    y0: int,
    triangle: np.ndarray,
    attribute_triangles: np.ndarray,
    attributes: np.ndarray,
    image: np.ndarray,
    threads: int,
) -> bool:
    rows, columns = np.nonzero(triangle >= 0)
    t = triangle[rows, columns]  # (P,)
    if len(t) and t.max() >= len(triangles):
        return False
    corners = vertices[triangles[t]].transpose(1, 2, 0)  # (3, 3, P)
    u, v = _barycentric(*corners, (columns + x0).astype("f4"), (rows + y0).astype("f4"))
    a, b, c = attributes[attribute_triangles[t].T]  # (P, C) each
    image[rows, columns] = _mix(a, b, c, u[:, None], v[:, None])
    return True
