"""Time of the rasteriser, of lighting and of the overlay, with a face-like mesh.

    python -m benchmarks.rasterise --grid 101

The mesh is a bumpy half ellipsoid of grid x grid vertices (231: 53,361 vertices and 105,800
triangles, as the Basel topology has). The baseline is the plain C++ loop of
``native/plain_rasterizer.cpp``, compiled here by the system's compiler ($CXX or c++) with the same
options. Each repeat runs every candidate once, so that other jobs on the machine slow all of them;
the pictures are compared first and must be the same to the last bit. Times in milliseconds: of the
CPU with one thread, of the clock with more. Prints four tables:

- against the plain loop: z-buffer and whole picture, at 160 and 2,000 pixels;
- the steps of an overlay, in photos of several sizes, and against the numpy fallback;
- how the cost of a picture grows with its size and with the number of vertices;
- how the cost of an overlay grows with the number of faces.
"""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

import Sim3DR
from benchmarks.tables import median_and_quartiles
from Sim3DR import fallback
from utils.cli import at_least, run_script, script_parser
from utils.render import render_mesh_overlay

Steps = dict[str, Callable[[], object]]

PLAIN = Path(__file__).parent / "native" / "plain_rasterizer.cpp"
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
# (size of the mesh, height and width of the photo) in pixels
PHOTOS = [(160, 240, 256), (160, 2096, 4096), (500, 1080, 1920), (2000, 2096, 4096)]


def face_like_mesh(
    grid: int, size: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (grid², 3) in the middle of a picture and triangles, clockwise on the screen."""
    y, x = np.mgrid[-1 : 1 : grid * 1j, -1 : 1 : grid * 1j]
    bumps = 0.05 * np.sin(9 * x) * np.cos(7 * y) + 0.3 * np.exp(-20 * (x**2 + y**2))  # and a nose
    z = np.sqrt(np.maximum(0, 2.2 - x**2 - y**2)) + bumps
    vertices = np.stack([x, y, z], -1).reshape(-1, 3) * (size / 2) + [width / 2, height / 2, 0]
    index = np.arange(grid * grid).reshape(grid, grid)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    triangles = np.stack([a, b, c, a, c, d], -1).reshape(-1, 3)
    return vertices.astype(np.float32), triangles.astype(np.int32)


def scattered_mesh(grid: int, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The mesh without its regularity, as fitted faces have none: vertices, triangles, random
    colours (grid², 3), and the side of a picture around it."""
    side = int(1.1 * size)
    vertices, triangles = face_like_mesh(grid, size, side, side)
    rng = np.random.default_rng(0)
    vertices[:, :2] += rng.normal(0, 0.05 * size / grid, (len(vertices), 2))
    return vertices, triangles, rng.random((len(vertices), 3), np.float32), side


def compile_plain(folder: str) -> Callable[..., tuple[np.ndarray, np.ndarray | None]]:
    """The plain loop as a function: (vertices, triangles, side, colors or None) -> depth (S, S),
    picture (S, S, 3) or None."""
    library = Path(folder) / "plain_rasterizer.so"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *FLAGS, "-shared", "-fPIC", PLAIN, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).plain_rasterize
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, number, pointer, number, number, pointer, pointer]
    function.restype = None

    def plain(vertices, triangles, side, colors=None):
        depth = np.full((side, side), -np.inf, np.float32)
        picture = None if colors is None else np.zeros((side, side, 3), np.uint8)
        function(
            vertices.ctypes.data,
            triangles.ctypes.data,
            len(triangles),
            None if colors is None else colors.ctypes.data,
            side,
            side,
            depth.ctypes.data,
            None if picture is None else picture.ctypes.data,
        )
        return depth, picture

    return plain


def milliseconds(
    steps: Steps, repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, np.ndarray]:
    """Times of each step, (repeats,), after one run of each to warm up; the steps take turns."""
    times = {name: np.empty(repeats) for name in steps}
    for repeat in range(-1, repeats):
        for name, step in steps.items():
            start = clock()
            step()
            times[name][max(repeat, 0)] = 1e3 * (clock() - start)
    return times


def against_plain(grid: int, repeats: int) -> None:
    print("\n| mesh (px) | what | threads | median ms | quartiles | plain / this |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        plain = compile_plain(folder)
        for size in (160, 2000):
            vertices, triangles, colors, side = scattered_mesh(grid, size)
            mesh = vertices, triangles
            depth, picture = plain(*mesh, side, colors)
            zbuffer = partial(Sim3DR.zbuffer, *mesh, side, side)
            rasterize = partial(Sim3DR.rasterize, *mesh, colors, height=side, width=side)
            for threads in (1, 2, 3):
                ours, painted = zbuffer(threads=threads).depth, rasterize(threads=threads)
                if not (np.array_equal(ours, depth) and np.array_equal(painted, picture)):
                    raise SystemExit(f"{size} px, {threads} threads: not the plain loop's pixels")

            for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
                steps = {
                    "z-buffer, plain": partial(plain, *mesh, side),
                    "z-buffer": partial(zbuffer, threads=threads),
                    "picture, plain": partial(plain, *mesh, side, colors),
                    "picture": partial(rasterize, threads=threads),
                }
                times = milliseconds(steps, repeats, clock)
                for name, taken in times.items():
                    what = name.split(",")[0]
                    ratio = np.median(times[f"{what}, plain"]) / np.median(taken)
                    used = 1 if "plain" in name else threads
                    cells = median_and_quartiles(taken)
                    print(f"| {size} | {name} | {used} | {cells} | {ratio:.1f} |")


def overlay_steps(grid: int, size: float, height: int, width: int) -> Steps:
    vertices, triangles = face_like_mesh(grid, size, height, width)
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    normals = Sim3DR.vertex_normals(vertices, triangles)
    colors = Sim3DR.shade(vertices, normals)
    x0, y0, x1, y1 = Sim3DR.bounds(vertices, height, width)
    return {
        "vertex_normals": lambda: Sim3DR.vertex_normals(vertices, triangles),
        "shade": lambda: Sim3DR.shade(vertices, normals),
        "zbuffer": lambda: Sim3DR.zbuffer(vertices, triangles, y1 - y0, x1 - x0, (x0, y0)),
        "rasterize": lambda: Sim3DR.rasterize(vertices, triangles, colors, photo),
        "render_mesh_overlay": lambda: render_mesh_overlay(photo, [vertices.T], triangles),
        "copy of the photo": lambda: photo.copy(),
    }


def steps_of_an_overlay(grid: int, repeats: int) -> None:
    print("\n| mesh, photo (px) | step | median ms | quartiles | numpy / this |")
    print("|---|---|---|---|---|")
    native = Sim3DR._kernel
    for case in PHOTOS:
        steps = overlay_steps(grid, *case)
        for name, times in milliseconds(steps, repeats).items():
            slower = ""
            if case == PHOTOS[0] and name in ("vertex_normals", "shade", "zbuffer", "rasterize"):
                Sim3DR._kernel = fallback
                numpy_times = milliseconds({name: steps[name]}, 1)[name]
                Sim3DR._kernel = native
                slower = f"{numpy_times[0] / np.median(times):.0f}"
            sizes = "{}, {} x {}".format(*case)
            print(f"| {sizes} | {name} | {median_and_quartiles(times)} | {slower} |")


def growth(grid: int, repeats: int) -> None:
    print("\n| mesh (px) | vertices | triangles | median ms | ns a triangle | ns a pixel |")
    print("|---|---|---|---|---|---|")
    sizes = [(grid, size) for size in (80, 160, 320, 640, 1280, 2560)]
    counts = [(side, 160) for side in (grid // 4, grid // 2, 2 * grid, 4 * grid)]
    for vertices_a_side, size in sizes + counts:
        vertices, triangles, colors, side = scattered_mesh(vertices_a_side, size)
        picture = partial(Sim3DR.rasterize, vertices, triangles, colors, height=side, width=side)
        median = np.median(milliseconds({"picture": picture}, repeats)["picture"])
        each = f"{1e6 * median / len(triangles):.1f} | {1e6 * median / size**2:.1f}"
        print(f"| {size} | {len(vertices)} | {len(triangles)} | {median:.2f} | {each} |")

    print("\n| faces of 160 px in 1080 x 1920 | overlay, median ms | ms a face beyond the copy |")
    print("|---|---|---|")
    photo = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    copy = np.median(milliseconds({"copy": photo.copy}, repeats)["copy"])
    vertices, triangles = face_like_mesh(grid, 160, 200, 200)
    for count in (1, 2, 4, 8, 16, 32):
        corners = [(190 * (i % 8), 200 * (i // 8)) for i in range(count)]
        faces = [(vertices + np.float32([x, y, 0])).T for x, y in corners]
        overlay = partial(render_mesh_overlay, photo, faces, triangles)
        median = np.median(milliseconds({"overlay": overlay}, repeats)["overlay"])
        print(f"| {count} | {median:.1f} | {(median - copy) / count:.2f} |")


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.rasterise")
    parser.add_argument("--repeats", type=at_least(1), default=15, help="default: 15")
    parser.add_argument(
        "--grid", type=at_least(5), default=231, help="vertices on each side of the mesh (231)"
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by Sim3DR where no number of threads is given
    if Sim3DR._kernel is fallback:
        parser.error("the native kernel is not built: nothing to compare with")
    against_plain(args.grid, args.repeats)
    steps_of_an_overlay(args.grid, args.repeats)
    growth(args.grid, args.repeats)


if __name__ == "__main__":
    run_script(main)
