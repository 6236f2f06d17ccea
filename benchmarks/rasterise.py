"""Time of normals, lighting, rasterisation and overlay of one face-like mesh, single thread.

    python -m benchmarks.rasterise [--repeats 15] [--grid 231]

The mesh is a bumpy half ellipsoid of grid x grid vertices (231: 53,361 vertices and 105,800
triangles, as the Basel topology has). Prints the median of the repeats with their quartiles, in
milliseconds of CPU time; the last column: how many times longer the numpy fallback takes (once).
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

import Sim3DR
from Sim3DR import fallback
from utils.render import render_mesh_overlay

# (size of the mesh, height and width of the photo) in pixels
CASES = [(160, 240, 256), (160, 2096, 4096), (500, 1080, 1920), (2000, 2096, 4096)]


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


def milliseconds(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Median and quartiles of the CPU time (one thread: what other jobs take is left out)."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return np.percentile(times, [50, 25, 75])


def steps(grid: int, size: float, height: int, width: int) -> dict[str, Callable[[], object]]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--grid", type=int, default=231, help="vertices on each side of the mesh")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    native = Sim3DR._kernel
    if native is fallback:
        parser.error("the native kernel is not built: nothing to compare with")

    print("| mesh, photo (px) | step | median ms | quartiles | numpy fallback |")
    print("|---|---|---|---|---|")
    for case in CASES:
        for name, step in steps(args.grid, *case).items():
            step()  # warm
            median, low, high = milliseconds(step, args.repeats)
            slower = ""
            if case == CASES[0] and name in ("vertex_normals", "zbuffer"):
                Sim3DR._kernel = fallback
                slower = f"{milliseconds(step, 1)[0] / median:.0f} x"
                Sim3DR._kernel = native
            sizes = "{}, {} x {}".format(*case)
            print(f"| {sizes} | {name} | {median:.1f} | {low:.1f}–{high:.1f} | {slower} |")


if __name__ == "__main__":
    main()
