"""Normals, z-buffer, interpolation and lighting: drawn grids, twins, and arguments refused."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, build_sanitized, run_python
from reference import shade_slowly

import Sim3DR
from Sim3DR import fallback, sim3dr_cython

TRIANGLE = np.float32([[0, 0, 1], [4, 0, 1], [0, 4, 1]])
ONE = np.int32([[0, 1, 2]])


def drawing(buffer: Sim3DR.ZBuffer) -> list[str]:
    """One character a pixel: the number of its triangle, or a dot."""
    return ["".join("." if t < 0 else str(t) for t in row) for row in buffer.triangle]


def random_mesh(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """40 triangles around a picture of 30 x 20 pixels."""
    vertices = rng.uniform([-5, -5, -9], [35, 25, 9], (60, 3)).astype(np.float32)
    if kind == "whole":  # many pixels exactly on edges, equal depths, equal and collinear corners
        vertices = np.round(vertices / 4) * 4
    elif kind == "small":
        vertices[1::2] = vertices[::2] + rng.uniform(-1, 1, (30, 3))
    elif kind == "huge":
        vertices *= 10.0 ** rng.integers(0, 7, (60, 1))
    elif kind == "sliver":
        vertices = vertices * 4 - np.float32([45, 30, 0])
        off = rng.normal(0, 10.0 ** rng.uniform(-2, 0, (20, 1)), (20, 3))
        vertices[2::3] = (vertices[::3] + 2 * vertices[1::3]) / 3 + off
        return vertices.astype(np.float32), np.arange(60).reshape(20, 3)
    return vertices.astype(np.float32), rng.integers(0, 60, (40, 3))


def sphere(rows: int = 12, columns: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere, its triangles counter-clockwise from outside; one vertex in no triangle."""
    polar, around = np.meshgrid(
        np.linspace(0.1, np.pi - 0.1, rows),
        np.arange(columns) * 2 * np.pi / columns,
        indexing="ij",
    )
    points = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around)], -1)
    vertices = np.concatenate([points, np.cos(polar)[..., None]], -1).reshape(-1, 3)
    grid = np.arange(rows * columns).reshape(rows, columns)
    a, b = grid[:-1], grid[1:]
    c, d = np.roll(b, -1, 1), np.roll(a, -1, 1)
    triangles = np.stack([a, b, c, a, c, d], -1).reshape(-1, 3)
    return np.vstack([vertices, [[9, 9, 9]]]).astype(np.float32), triangles


# ---------------------------------------------------------------- what covers which pixel


def test_drawn_triangle():
    # The edges on AB and AC belong to the triangle (u, v >= 0), the edge BC does not (u + v < 1).
    buffer = Sim3DR.zbuffer(TRIANGLE, ONE, 5, 5)
    assert drawing(buffer) == ["0000.", "000..", "00...", "0....", "....."]
    assert (buffer.depth[buffer.covered] == 1).all()
    assert np.isneginf(buffer.depth[~buffer.covered]).all()
    weights = Sim3DR.interpolate(buffer, ONE, np.array([[0, 0], [1, 0], [0, 1]]))
    np.testing.assert_array_equal(weights[1, 2], [0.5, 0.25])  # of B (4, 0) and C (0, 4)


def test_both_sides_are_painted():
    front = Sim3DR.zbuffer(TRIANGLE, ONE, 5, 5)
    back = Sim3DR.zbuffer(TRIANGLE, ONE[:, [0, 2, 1]], 5, 5)
    assert drawing(front) == drawing(back)


def test_pixels_between_their_centres_are_not_painted():
    assert not Sim3DR.zbuffer(TRIANGLE * 0.2 + 0.1, ONE, 5, 5).covered.any()


def test_larger_z_hides_smaller_in_any_order():
    near = TRIANGLE[:, [1, 0, 2]] + np.float32([1, 0, 1])
    vertices = np.vstack([TRIANGLE, near])
    for triangles in ([[0, 1, 2], [3, 4, 5]], [[3, 4, 5], [0, 1, 2]]):
        buffer = Sim3DR.zbuffer(vertices, np.array(triangles), 4, 6)
        assert buffer.depth[0].tolist() == [1, 2, 2, 2, 2, -np.inf]


def test_of_equal_depths_the_first_stays():
    assert drawing(Sim3DR.zbuffer(TRIANGLE, np.vstack([ONE, ONE]), 2, 2)) == ["00", "00"]


def test_depth_is_interpolated_where_triangles_cross():
    a = np.float32([[-1, -1, 0], [9, -1, 10], [-1, 9, 0]])  # z = x + 1
    b = np.float32([[-1, -1, 6.5], [9, -1, -3.5], [-1, 9, 6.5]])  # z = 5.5 - x
    buffer = Sim3DR.zbuffer(np.vstack([a, b]), np.array([[0, 1, 2], [3, 4, 5]]), 1, 5)
    assert drawing(buffer) == ["11100"]  # they cross at x = 2.25


@pytest.mark.parametrize(
    "corners",
    [
        [[1, 1], [5, 5], [9, 9]],
        [[1, 5], [9, 5], [4, 5]],
        [[5, 1], [5, 9], [5, 9]],
        [[3, 3], [3, 3], [3, 3]],
    ],
)
def test_collinear_triangle_paints_nothing(corners):
    vertices = np.column_stack([np.float32(corners), np.zeros(3, np.float32)])
    for order in ([0, 1, 2], [1, 2, 0], [2, 1, 0]):
        assert not Sim3DR.zbuffer(vertices, np.array([order]), 12, 12).covered.any()


@pytest.mark.parametrize("length", [3e3, 3e4, 1e6])
def test_sliver_is_painted_where_it_is(length):
    # 0.8 pixels high at its left end, around row 2; in float32 its determinant has no digit left.
    vertices = np.float32([[-1, 1.6, 0], [-1, 2.4, 0], [length, 2, 0]])
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        covered = Sim3DR.zbuffer(vertices, np.array([order]), 5, 1000).covered
        assert covered[2].all() and covered.sum() == 1000


@pytest.mark.parametrize("offset", [(-50, 0), (50, 0), (0, -50), (0, 50), (1e7, 1e7)])
def test_off_screen(offset):
    assert not Sim3DR.zbuffer(TRIANGLE + np.float32([*offset, 0]), ONE, 6, 6).covered.any()


def test_triangle_larger_than_the_picture():
    vertices = np.float32([[-9e7, -9e7, 0], [9e7, -9e7, 0], [0, 9e7, 0]])
    assert Sim3DR.zbuffer(vertices, ONE, 7, 9).covered.all()


def everything(
    kernel,
    threads: int,
    vertices: np.ndarray,
    triangles: np.ndarray,
    values: np.ndarray,
    photo: np.ndarray,
) -> dict[str, np.ndarray]:
    """What a kernel makes of a mesh, values (N, C) in [0, 1] and a picture (H, W, 3)."""
    normals, ends = np.empty_like(vertices), np.empty((2, 3), np.float32)
    kernel.vertex_normals(vertices, triangles, normals)
    kernel.bounds(vertices, ends)
    size = photo.shape[:2]
    depth, triangle = np.empty(size, np.float32), np.empty(size, np.int32)
    assert kernel.zbuffer(vertices, triangles, -3, 2, depth, triangle, threads)
    found = {"normals": normals, "ends": ends, "depth": depth, "triangle": triangle}
    mesh, window = (vertices, triangles), (-3, 2, triangle)
    colors = np.ascontiguousarray(values[:, :3])
    for attributes in (colors, values):
        channels = attributes.shape[1]
        image = np.full((*size, channels), 7, np.float32)
        assert kernel.interpolate(*mesh, *window, triangles, attributes, image, threads)
        found[f"values {channels}"] = image
    for alpha in (1.0, 0.6, 0.123):
        found[f"rasterized {alpha}"] = drawn = photo.copy()
        painting = photo, alpha, drawn[::-1], threads  # negative stride
        assert kernel.rasterize(*mesh, -3, 2, colors, *painting)
    return found


@pytest.mark.parametrize("kind", ["general", "whole", "small", "huge", "sliver"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widened", [1, 10])  # rows are worked on in pieces of some hundred pixels
def test_kernel_equals_slow_twin(kind, seed, widened):
    """To the last bit, whatever the number of threads."""
    rng = np.random.default_rng(seed)
    vertices, triangles = random_mesh(rng, kind)
    vertices[:, 0] *= widened
    values = rng.random((len(vertices), 5), np.float32)
    photo = rng.integers(0, 256, (20, 30 * widened, 3), np.uint8)
    given = vertices, triangles.astype(np.int32), values, photo
    expected = everything(fallback, 1, *given)
    assert (expected["triangle"] >= 0).any()
    for threads in (1, 2, 5):
        for name, result in everything(sim3dr_cython, threads, *given).items():
            np.testing.assert_array_equal(result, expected[name], err_msg=name)


def test_kernel_equals_slow_twin_with_triangles_enough_for_many_threads():
    rng = np.random.default_rng(8)
    corners = rng.uniform([-5, -5, -9], [95, 65, 9], (25_000, 1, 3)) + rng.normal(
        0, 1.5, (25_000, 3, 3)
    )
    vertices = corners.reshape(-1, 3).astype(np.float32)
    triangles = np.arange(75_000, dtype=np.int32).reshape(-1, 3)
    photo = rng.integers(0, 256, (60, 90, 3), np.uint8)
    given = vertices, triangles, rng.random((75_000, 3), np.float32), photo
    expected = everything(fallback, 1, *given)
    assert (expected["triangle"] >= 0).mean() > 0.9
    for threads in (1, 2, 5):
        for name, result in everything(sim3dr_cython, threads, *given).items():
            np.testing.assert_array_equal(result, expected[name], err_msg=name)


@pytest.mark.parametrize("size", [0.7, 3, 12, 60, 3000])
@pytest.mark.parametrize("corner", [(0, 0), (-(2**24), 2**24 - 200)])
def test_kernel_equals_slow_twin_at_every_size(size, corner):
    """Each way to find pixels has sizes of its own; far corners leave coordinates few digits."""
    rng = np.random.default_rng(int(size))
    centres = rng.uniform(-5, [165, 125], (150, 1, 2)) + corner
    vertices = np.zeros((450, 3), np.float32)
    vertices[:, :2] = (centres + rng.normal(0, size, (150, 3, 2))).reshape(-1, 2)
    vertices[:, 2] = rng.normal(size=450)
    triangles = np.arange(450, dtype=np.int32).reshape(150, 3)
    results = []
    for kernel, threads in ((fallback, 1), (sim3dr_cython, 1), (sim3dr_cython, 3)):
        results.append((np.empty((120, 160), np.float32), np.empty((120, 160), np.int32)))
        assert kernel.zbuffer(vertices, triangles, *corner, *results[-1], threads)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert (results[0][1] >= 0).sum() > (20 if size < 1 else 300)


def test_window_is_a_part_of_the_picture():
    vertices, triangles = random_mesh(np.random.default_rng(5), "general")
    whole = Sim3DR.zbuffer(vertices, triangles, 20, 30)
    part = Sim3DR.zbuffer(vertices, triangles, 8, 11, origin=(6, 9))
    for name in ("depth", "triangle"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[9:17, 6:17])
    values = [Sim3DR.interpolate(buffer, triangles, vertices) for buffer in (part, whole)]
    np.testing.assert_array_equal(values[0], values[1][9:17, 6:17])


# ---------------------------------------------------------------- attributes and colours


def test_linear_attribute_is_reproduced():
    vertices, triangles = random_mesh(np.random.default_rng(1), "general")
    buffer = Sim3DR.zbuffer(vertices, triangles, 20, 30)
    position = Sim3DR.interpolate(buffer, triangles, vertices)
    y, x = np.nonzero(buffer.covered)
    expected = np.stack([x, y, buffer.depth[buffer.covered]], -1)
    np.testing.assert_allclose(position[buffer.covered], expected, atol=1e-3)
    assert not position[~buffer.covered].any()


def test_colours_are_truncated():
    colors = np.full((3, 3), 0.5, np.float64)  # 127.5
    image = Sim3DR.rasterize(TRIANGLE, ONE, colors, height=5, width=5)
    assert image.dtype == np.uint8 and image.shape == (5, 5, 3)
    assert (image[0, :4] == 127).all() and (image[0, 4] == 0).all()
    white = Sim3DR.rasterize(TRIANGLE, ONE, np.ones((3, 3)), height=5, width=5)
    assert (white[0, :4] == 255).all()


def painted(
    buffer: Sim3DR.ZBuffer, triangles: np.ndarray, colors: np.ndarray, under: np.ndarray
) -> np.ndarray:
    """What ``rasterize`` promises, by its parts."""
    values = Sim3DR.interpolate(buffer, triangles, colors) * np.float32(255)
    return np.where(buffer.covered[..., None], values.clip(0, 255).astype(np.uint8), under)


@pytest.mark.parametrize("reverse", [False, True])
def test_rasterize_equals_its_parts_on_the_whole_picture(reverse):
    rng = np.random.default_rng(2)
    vertices, triangles = random_mesh(rng, "small")
    colors = rng.random((60, 3))
    background = rng.integers(0, 256, (20, 30, 3), np.uint8)
    image = Sim3DR.rasterize(vertices, triangles, colors, background, reverse=reverse)
    buffer = Sim3DR.zbuffer(vertices, triangles, 20, 30)
    if reverse:  # rows h - 1 - y of the background as it is
        expected = painted(buffer, triangles, colors, background[::-1])[::-1]
    else:
        expected = painted(buffer, triangles, colors, background)
    np.testing.assert_array_equal(image, expected)


def test_arguments_of_any_layout_stay_as_they_are():
    rng = np.random.default_rng(3)
    vertices, triangles = random_mesh(rng, "general")
    colors = rng.random((60, 3), np.float32)
    background = rng.integers(0, 256, (20, 30, 3), np.uint8)
    expected = Sim3DR.rasterize(vertices, triangles, colors, background)
    shaded = Sim3DR.shade(vertices, Sim3DR.vertex_normals(vertices, triangles), texture=colors)
    strided = [np.asfortranarray(vertices.astype(np.float64)), triangles[::-1][::-1]]
    strided += [np.repeat(colors, 2, 0)[::2], np.repeat(background, 2, 1)[:, ::2]]
    copies = [array.copy() for array in strided]
    for array in strided:
        array.setflags(write=False)
    np.testing.assert_array_equal(Sim3DR.rasterize(*strided), expected)
    normals = Sim3DR.vertex_normals(*strided[:2])
    np.testing.assert_array_equal(Sim3DR.shade(strided[0], normals, texture=strided[2]), shaded)
    for array, copy in zip(strided, copies, strict=True):
        np.testing.assert_array_equal(array, copy)

    one = np.float32([[3, 4, 5]])  # a single row is packed in any order: copied all the same
    Sim3DR.shade(one, one / 5)
    assert one.tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("n_vertices", [0, 5])
def test_no_triangles(n_vertices):
    vertices, triangles = np.zeros((n_vertices, 3), np.float32), np.zeros((0, 3), np.int32)
    background = np.full((4, 5, 3), 9, np.uint8)
    normals = Sim3DR.vertex_normals(vertices, triangles)
    assert normals.shape == (n_vertices, 3) and not normals.any()
    colors = Sim3DR.shade(vertices, normals)
    assert colors.shape == (n_vertices, 3) and np.isfinite(colors).all()
    image = Sim3DR.rasterize(vertices, triangles, colors, background)
    np.testing.assert_array_equal(image, background)
    buffer = Sim3DR.zbuffer(vertices, triangles, 4, 5)
    assert not buffer.covered.any()
    assert not Sim3DR.interpolate(buffer, triangles, colors).any()


def test_alpha_and_out():
    rng = np.random.default_rng(6)
    vertices, triangles = random_mesh(rng, "small")
    colors = rng.random((60, 3))
    photo, out = rng.integers(0, 256, (2, 20, 30, 3), np.uint8)
    buffer = Sim3DR.zbuffer(vertices, triangles, 20, 30)
    opaque = painted(buffer, triangles, colors, photo)
    blend = 0.6 * opaque + 0.4 * photo.astype(float)  # never halfway between two levels
    expected = np.where(buffer.covered[..., None], np.rint(blend), photo)
    rasterized = Sim3DR.rasterize(vertices, triangles, colors, photo, alpha=0.6)
    np.testing.assert_array_equal(rasterized, expected)

    expected = np.where(buffer.covered[..., None], expected, out)
    target = np.zeros((20, 50, 3), np.uint8)[:, 9:39]  # a region of a larger picture
    target[:] = out
    drawn = Sim3DR.rasterize(vertices, triangles, colors, photo, alpha=0.6, out=target)
    assert drawn is target
    np.testing.assert_array_equal(target, expected)
    assert not target.base[:, :9].any() and not target.base[:, 39:].any()
    in_place = photo.copy()
    Sim3DR.rasterize(vertices, triangles, colors, in_place, alpha=0.6, out=in_place)
    np.testing.assert_array_equal(in_place, rasterized)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("views", ["upside down", "shifted rows", "shifted columns"])
def test_out_may_overlap_the_background(reverse, views):
    rng = np.random.default_rng(9)
    vertices, triangles = random_mesh(rng, "small")
    colors = rng.random((60, 3))
    memory = rng.integers(0, 256, (21, 31, 3), np.uint8)

    def overlapping(memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if views == "upside down":
            return memory[:20, :30][::-1], memory[:20, :30]
        if views == "shifted rows":
            return memory[:-1, :30], memory[1:, :30]
        return memory[:20, :-1], memory[:20, 1:]

    under, out = (view.copy() for view in overlapping(memory))  # of their own
    alone = {"alpha": 0.3, "reverse": reverse}
    expected = Sim3DR.rasterize(vertices, triangles, colors, under, out=out, **alone)
    for threads in (1, 3):
        under, out = overlapping(memory.copy())
        image = Sim3DR.rasterize(
            vertices, triangles, colors, under, out=out, threads=threads, **alone
        )
        np.testing.assert_array_equal(image, expected)


def test_of_one_column_the_stride_says_nothing():
    expected = Sim3DR.rasterize(TRIANGLE, ONE, np.ones((3, 3)), height=5, width=5)
    assert expected[:, 0].any()
    photo = np.zeros((5, 50, 3), np.uint8)
    column = photo[:, ::50]
    Sim3DR.rasterize(TRIANGLE, ONE, np.ones((3, 3)), column, out=column)
    np.testing.assert_array_equal(photo[:, 0], expected[:, 0])
    assert not photo[:, 1:].any()


def test_buffer_keeps_its_vertices():
    vertices = TRIANGLE.copy()
    buffer = Sim3DR.zbuffer(vertices, ONE, 5, 5)
    expected = Sim3DR.interpolate(buffer, ONE, TRIANGLE)
    vertices *= 3
    np.testing.assert_array_equal(Sim3DR.interpolate(buffer, ONE, TRIANGLE), expected)


def test_a_buffers_triangles_are_checked_again():
    """They may be the caller's own and have changed: 3 is an attribute's index, no vertex's."""
    triangles = ONE.copy()
    buffer = Sim3DR.zbuffer(TRIANGLE, triangles, 5, 5)
    triangles[0, 1] = 3
    with pytest.raises(ValueError, match="index the 3 vertices"):
        Sim3DR.interpolate(buffer, triangles, np.ones((4, 2)))


def test_other_triangles_in_the_same_order():
    """A texture seam: the corners' values are found under other numbers than their places."""
    rng = np.random.default_rng(7)
    vertices, triangles = random_mesh(rng, "general")
    values = rng.random((60, 2))
    buffer = Sim3DR.zbuffer(vertices, triangles, 20, 30)
    apart = np.arange(120).reshape(40, 3)
    np.testing.assert_array_equal(
        Sim3DR.interpolate(buffer, apart, values[triangles.ravel()]),
        Sim3DR.interpolate(buffer, triangles, values),
    )


def test_concurrent_calls_give_the_same():
    vertices, triangles = random_mesh(np.random.default_rng(4), "general")
    expected = Sim3DR.zbuffer(vertices, triangles, 20, 30).depth

    def render(call: int) -> np.ndarray:
        return Sim3DR.zbuffer(vertices, triangles, 20, 30, threads=call % 4 + 1).depth

    with ThreadPoolExecutor(8) as pool:
        for depth in pool.map(render, range(64)):
            np.testing.assert_array_equal(depth, expected)


def test_threads_are_chosen_by_size_and_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7,3")
    assert Sim3DR._threads(None, 160 * 160) == 1
    assert Sim3DR._threads(None, 2000 * 2000) == 7
    assert Sim3DR._threads(np.int64(3), 1) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "99999")  # each of them would take memory
    assert Sim3DR._threads(None, 2000 * 2000) == Sim3DR.THREAD_LIMIT
    for unset in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert 1 <= Sim3DR._threads(None, 2000 * 2000) <= os.cpu_count()
    for threads in (0, Sim3DR.THREAD_LIMIT + 1):
        with pytest.raises(ValueError, match="threads must be from 1"):
            Sim3DR.zbuffer(TRIANGLE, ONE, 5, 5, threads=threads)
    with pytest.raises(TypeError, match="threads must be a whole"):
        Sim3DR.zbuffer(TRIANGLE, ONE, 5, 5, threads=1.5)


# ---------------------------------------------------------------- normals and lighting


@pytest.mark.parametrize("scale", [1e-12, 1, 1e7])
def test_normals_of_a_sphere_point_outward(scale):
    vertices, triangles = sphere()
    normals = Sim3DR.vertex_normals(vertices * scale, triangles)
    inner = slice(24, -25)  # the rims of the two holes lean outward
    assert ((normals * vertices).sum(1)[inner] > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(normals[:-1], axis=1), 1, atol=1e-6)
    assert (normals[-1] == 0).all()  # the vertex in no triangle
    twin = np.empty_like(normals)
    fallback.vertex_normals(np.float32(vertices * scale), np.int32(triangles), twin)
    np.testing.assert_array_equal(twin, normals)


def test_normals_are_weighted_by_area():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3]])
    normals = Sim3DR.vertex_normals(vertices, np.array([[0, 1, 2], [0, 2, 3]]))
    np.testing.assert_allclose(normals[0], np.float32([3, 0, 1]) / np.sqrt(10), atol=1e-6)


@pytest.mark.parametrize("lighting", [Sim3DR.PUBLISHED, Sim3DR.RELIEF])
@pytest.mark.parametrize("textured", [False, True])
def test_shading_equals_slow_twin(lighting, textured):
    vertices, triangles = sphere()
    vertices = vertices[:-1] * np.float32([30, 40, 20]) + np.float32([200, -7, 50])
    normals = Sim3DR.vertex_normals(vertices, triangles)
    texture = np.random.default_rng(0).random(vertices.shape) if textured else None
    colors = Sim3DR.shade(vertices, normals, lighting, texture)
    assert colors.dtype == np.float32 and colors.min() >= 0 and colors.max() <= 1
    slow = shade_slowly(vertices, normals, lighting, texture)
    np.testing.assert_allclose(colors, slow, atol=1e-5)
    texture = None if texture is None else texture.astype(np.float32)
    fallback.shade(vertices, normals, lighting, texture, colors)
    np.testing.assert_allclose(colors, slow, atol=1e-5)


def test_shading_from_behind_equals_slow_twin():
    """As published, a normal turned away from the light has a glint too; one across it has none."""
    rng = np.random.default_rng(5)
    vertices = rng.normal(0, 40, (500, 3)).astype(np.float32)
    normals = rng.normal(0, 1, (500, 3))
    normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
    colors = Sim3DR.shade(vertices, normals, Sim3DR.PUBLISHED)
    slow = shade_slowly(vertices, normals, Sim3DR.PUBLISHED)
    matt = shade_slowly(vertices, normals, replace(Sim3DR.PUBLISHED, specular=0))
    behind = normals[:, 2] < -0.9
    assert (slow - matt)[behind].max() > 0.15
    np.testing.assert_allclose(colors, slow, atol=1e-5)
    fallback.shade(vertices, normals, Sim3DR.PUBLISHED, None, colors)
    np.testing.assert_allclose(colors, slow, atol=1e-5)
    flat = np.zeros((3, 3), np.float32)
    across = np.float32([[0, 0, 0], [0, 0, 0.1], [0, 0, -1]])
    levels = Sim3DR.shade(flat, across, Sim3DR.PUBLISHED)[:, 0]
    np.testing.assert_allclose(levels, [0.75, 0.75 + 0.1 * 0.7, 0.75 + 0.2], rtol=1e-6)


@pytest.mark.parametrize("kernel", [sim3dr_cython, fallback])
def test_light_is_within_white_whatever_the_normals_and_the_light(monkeypatch, kernel):
    monkeypatch.setattr(Sim3DR, "_kernel", kernel)
    vertices = sphere()[0]
    for normals, lighting in (
        (np.full_like(vertices, 3e38), Sim3DR.RELIEF),
        (vertices, replace(Sim3DR.RELIEF, ambient=np.nan)),
        (vertices, replace(Sim3DR.RELIEF, light=(np.inf, 0, 0))),
    ):
        colors = Sim3DR.shade(vertices, normals, lighting)
        assert ((colors >= 0) & (colors <= 1)).all()


def test_default_lighting_shows_relief_where_the_published_burns_out():
    vertices, triangles = sphere()
    normals = Sim3DR.vertex_normals(vertices[:-1], triangles)
    frontal = normals[:, 2] > 0.8
    published = Sim3DR.shade(vertices[:-1], normals, Sim3DR.PUBLISHED)[frontal]
    relief = Sim3DR.shade(vertices[:-1], normals)[frontal]
    assert (published == 1).all()
    assert relief.max() < 1 and np.ptp(relief) > 0.3


# ---------------------------------------------------------------- arguments refused


def test_bounds():
    vertices = np.float32([[-3.5, 2.2, 0], [7.1, 4.0, 0], [5, 3, 0]])
    assert Sim3DR.bounds(vertices, 10, 20) == (0, 2, 9, 5)
    assert Sim3DR.bounds(vertices[:0], 10, 20) == (0, 0, 0, 0)


def with_value(value: float) -> np.ndarray:
    vertices = TRIANGLE.astype(np.float64)
    vertices[1, 2] = value
    return vertices


@pytest.mark.parametrize(
    ("vertices", "triangles", "error", "message"),
    [
        (TRIANGLE[:, :2], ONE, ValueError, "vertices must have shape"),
        (TRIANGLE[0], ONE, ValueError, "vertices must have shape"),
        (TRIANGLE.astype(complex), ONE, TypeError, "vertices must hold real"),
        (TRIANGLE.astype(str), ONE, TypeError, "vertices must hold real"),
        (with_value(np.nan), ONE, ValueError, "row 1"),
        (with_value(np.inf), ONE, ValueError, "row 1"),
        (with_value(-1e300), ONE, ValueError, "row 1"),
        (with_value(1.01e8), ONE, ValueError, "row 1"),  # float32 holds it, its products not
        (TRIANGLE, ONE.T, ValueError, "triangles must have shape"),
        (TRIANGLE, ONE.astype(np.float32), TypeError, "triangles must hold integers"),
        (TRIANGLE, ONE + 1, ValueError, "index the 3 vertices"),
        (TRIANGLE, ONE - 1, ValueError, "index the 3 vertices"),
        (TRIANGLE, np.uint64([[0, 1, 2**64 - 1]]), ValueError, "index the 3 vertices"),
        (TRIANGLE[:0], ONE, ValueError, "index the 0 vertices"),
    ],
)
def test_bad_meshes(vertices, triangles, error, message):
    with pytest.raises(error, match=message):
        Sim3DR.vertex_normals(vertices, triangles)
    with pytest.raises(error, match=message):
        Sim3DR.zbuffer(vertices, triangles, 5, 5)
    with pytest.raises(error, match=message):
        Sim3DR.rasterize(vertices, triangles, np.ones((3, 3)), height=5, width=5)


def test_the_kernel_itself_refuses_none():
    """Its callers never pass it; whoever does by mistake gets an error, no crash."""
    image = np.zeros((5, 5, 3), np.uint8)
    values, indices, number = np.zeros((3, 3), np.float32), np.int32(ONE), 1
    arguments = {
        sim3dr_cython.values_within: (values, 0, 1),
        sim3dr_cython.indices_within: (indices, 3),
        sim3dr_cython.bounds: (values, values[:2]),
        sim3dr_cython.vertex_normals: (values, indices, values),
        sim3dr_cython.shade: (values, values, Sim3DR.RELIEF, values, values),
        sim3dr_cython.zbuffer: (values, indices, 0, 0, values, indices, number),
        sim3dr_cython.rasterize: (values, indices, 0, 0, values, image, 1.0, image, number),
        sim3dr_cython.interpolate: (
            values, indices, 0, 0, indices, indices, values, np.float32(image), number,
        ),
    }  # fmt: skip
    for function, given in arguments.items():
        for k in range(len(given)):
            if function is not sim3dr_cython.shade or k not in (2, 3):
                with pytest.raises(TypeError):
                    function(*given[:k], None, *given[k + 1 :])


@pytest.mark.parametrize("kernel", [sim3dr_cython, fallback])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_index_outside_leaves_the_picture_as_it_was(monkeypatch, kernel, threads):
    """Wherever it stands; the kernel itself sees it as it reads the triangles."""
    monkeypatch.setattr(Sim3DR, "_kernel", kernel)
    rng = np.random.default_rng(8)
    vertices, triangles = random_mesh(rng, "general")
    triangles = np.tile(triangles, (5, 1)).astype(np.int32)  # more than one block of them
    out = rng.integers(0, 256, (20, 30, 3), np.uint8)
    before = out.copy()
    for place in (0, 70, 199):
        for wrong in (-1, 60, 2**31 - 1, -(2**31)):
            bad = triangles.copy()
            bad[place, place % 3] = wrong
            with pytest.raises(ValueError, match="index the 60 vertices"):
                Sim3DR.rasterize(vertices, bad, vertices * 0, out, out=out, threads=threads)
            with pytest.raises(ValueError, match="index the 60 vertices"):
                Sim3DR.zbuffer(vertices, bad, 20, 30, threads=threads)
    np.testing.assert_array_equal(out, before)
    outside = vertices + np.float32([1e6, 0, 0])
    with pytest.raises(ValueError, match="index the 60 vertices"):
        Sim3DR.rasterize(outside, bad, vertices * 0, out)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"colors": np.ones((2, 3))}, ValueError, "index the 2 vertices"),
        ({"colors": np.ones((3, 4))}, ValueError, r"colors must have shape \(N, 3\)"),
        ({"colors": np.full((3, 3), 1.01)}, ValueError, r"within \[0, 1\]"),
        ({"colors": np.full((3, 3), np.nan)}, ValueError, "finite"),
        ({"background": np.zeros((5, 5, 3))}, TypeError, "uint8"),
        ({"background": np.zeros((5, 5), np.uint8)}, ValueError, "shape"),
        ({"background": np.zeros((0, 5, 3), np.uint8)}, ValueError, "shape"),
        ({"background": np.zeros((5, 5, 4), np.uint8)}, ValueError, r"\(H, W, 3\)"),
        ({"background": np.zeros((2**24 + 1, 1, 3), np.uint8)}, ValueError, "sides from 1 to"),
        ({"height": 6}, ValueError, "the background is 5 x 5"),
        ({"background": None}, ValueError, "height and width"),
        ({"background": None, "height": 5, "width": 0}, ValueError, "width must be from 1"),
        ({"background": None, "height": 5.0, "width": 5}, TypeError, "height must be a whole"),
        ({"background": None, "height": 2**25, "width": 5}, ValueError, "height must be from 1"),
        ({"alpha": 1.01}, ValueError, "alpha must be within 0 and 1"),
        ({"alpha": np.nan}, ValueError, "alpha must be within 0 and 1"),
        ({"out": np.zeros((5, 6, 3), np.uint8)}, ValueError, "out must be an array of .5, 5, 3."),
        ({"out": np.zeros((5, 5, 3))}, ValueError, "out must be an array"),
        ({"out": np.zeros((5, 10, 3), np.uint8)[:, ::2]}, ValueError, "side by side"),
        ({"out": np.broadcast_to(np.uint8(0), (5, 5, 3))}, ValueError, "writeable"),
    ],
)
def test_bad_pictures(changes, error, message):
    arguments = {"colors": np.ones((3, 3)), "background": np.zeros((5, 5, 3), np.uint8)}
    with pytest.raises(error, match=message):
        Sim3DR.rasterize(TRIANGLE, ONE, **(arguments | changes))


def test_bad_buffers_and_lights():
    buffer = Sim3DR.zbuffer(TRIANGLE, np.vstack([ONE[:, [0, 0, 0]], ONE]), 5, 5)
    with pytest.raises(ValueError, match="shows triangle 1 but there are 1"):
        Sim3DR.interpolate(buffer, ONE, TRIANGLE)
    with pytest.raises(ValueError, match="shows triangle 1 but there are 0"):
        Sim3DR.interpolate(buffer, ONE[:0], TRIANGLE)
    changed = replace(buffer, triangles=np.int32([[0, 0, 0], [0, 1, 3]]))
    for triangles in (changed.triangles, np.zeros((2, 3), int)):
        with pytest.raises(ValueError, match="index the 3 vertices"):
            Sim3DR.interpolate(changed, triangles, TRIANGLE)
    for axis in (0, 1):  # the kernel adds sizes to origins, in int
        for outside in (2**24 - 4, -(2**24) - 1, 2**31 - 1):
            origin = [0, 0]
            origin[axis] = outside
            with pytest.raises(ValueError, match=f"origin {'xy'[axis]}"):
                Sim3DR.zbuffer(TRIANGLE, ONE, 5, 5, origin=origin)
    with pytest.raises(ValueError, match="normals must be"):
        Sim3DR.shade(TRIANGLE, TRIANGLE[:2])
    with pytest.raises(ValueError, match="texture must have shape"):
        Sim3DR.shade(TRIANGLE, TRIANGLE, texture=np.ones((3, 1)))


def test_bad_buffers_made_by_hand():
    buffer = Sim3DR.zbuffer(TRIANGLE, ONE, 5, 5)
    flat = np.ascontiguousarray(TRIANGLE[:, :2])  # the kernel would read three a row
    with pytest.raises(ValueError, match=r"buffer's vertices must have shape \(N, 3\)"):
        Sim3DR.interpolate(replace(buffer, vertices=flat), buffer.triangles, TRIANGLE)
    with pytest.raises(ValueError, match="origin x"):  # the kernel would add to it, in int
        Sim3DR.interpolate(replace(buffer, origin=(2**31 - 1, 0)), buffer.triangles, TRIANGLE)


# ---------------------------------------------------------------- the native code


@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_kernel_under_sanitizers(tmp_path, sanitizers):
    program = tmp_path / "sanitize_sim3dr"
    kernel = ["Sim3DR/mesh.cpp", "Sim3DR/rasterizer.cpp"]
    build_sanitized(program, sanitizers, "Sim3DR", ["tests/native/sanitize_sim3dr.cpp", *kernel])
    run = subprocess.run([program, "300"], capture_output=True, text=True)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("the thread sanitizer does not work with this kernel's address layout")
    assert run.returncode == 0, run.stdout + run.stderr


def test_packages_that_were_not_built_are_found_out(tmp_path):
    """A clone on a machine without a compiler: no extension lies beside the sources."""
    for name in ("Sim3DR", "backbone_nets", "FaceBoxes", "utils"):
        ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "weights")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    code = """
import sys, warnings
# an editable install would find this checkout's extensions
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in str(getattr(f, "__module__", f))]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np, Sim3DR, FaceBoxes.nms
    from backbone_nets import fused_norm
assert sum("Sim3DR's native kernel is not built" in str(w.message) for w in caught) == 1
assert fused_norm.kernel is None
vertices = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0]], np.float32)
depth = Sim3DR.zbuffer(vertices, np.array([[0, 1, 2]], np.int32), 10, 10).depth
assert (depth == 0).any() and Sim3DR._kernel.__name__ == "Sim3DR.fallback"
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
