# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Typed binding of kernel.h. Call it through the Sim3DR package, which checks the arguments.

Every function fills the array given last (``fallback.py`` has the same functions in numpy).
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint8_t

cdef extern from "kernel.h" namespace "sim3dr" nogil:
    cdef struct Window:
        int x0, y0, width, height
    void _vertex_normals "sim3dr::vertex_normals"(
        const float*, ptrdiff_t, const int32_t*, ptrdiff_t, float*
    )
    void _zbuffer "sim3dr::zbuffer"(
        const float*, const int32_t*, ptrdiff_t, Window, float*, int32_t*, float*
    )
    void _interpolate "sim3dr::interpolate"[Pixel](
        const int32_t*, const float*, int, int, const int32_t*, const float*, int, Pixel*, ptrdiff_t
    )

ctypedef fused pixel_t:
    float
    uint8_t


def vertex_normals(
    const float[:, ::1] vertices, const int32_t[:, ::1] triangles, float[:, ::1] normals
):
    """Unit vertex normals (N, 3) of vertices (N, 3) and triangles (T, 3), N and T above zero."""
    with nogil:
        _vertex_normals(
            &vertices[0, 0], vertices.shape[0], &triangles[0, 0], triangles.shape[0], &normals[0, 0]
        )


def zbuffer(
    const float[:, ::1] vertices,
    const int32_t[:, ::1] triangles,
    int x0,
    int y0,
    float[:, ::1] depth,
    int32_t[:, ::1] triangle,
    float[:, :, ::1] barycentric,
):
    """Depth (h, w), triangle (h, w) and weights (h, w, 2) of the window whose corner is x0, y0."""
    cdef Window window
    window.x0, window.y0 = x0, y0
    window.height, window.width = <int>depth.shape[0], <int>depth.shape[1]
    with nogil:
        _zbuffer(
            &vertices[0, 0], &triangles[0, 0], triangles.shape[0], window,
            &depth[0, 0], &triangle[0, 0], &barycentric[0, 0, 0],
        )


def interpolate(
    const int32_t[:, ::1] triangle,
    const float[:, :, ::1] barycentric,
    const int32_t[:, ::1] triangles,
    const float[:, ::1] attributes,
    pixel_t[:, :, :] image,
):
    """Paint attributes (N, C) on image (h, w, C); its pixels are packed, its rows may be strided."""
    cdef ptrdiff_t row_stride = image.strides[0] // <ptrdiff_t>sizeof(pixel_t)
    with nogil:
        _interpolate(
            &triangle[0, 0], &barycentric[0, 0, 0], <int>triangle.shape[0], <int>triangle.shape[1],
            &triangles[0, 0], &attributes[0, 0], <int>attributes.shape[1],
            &image[0, 0, 0], row_stride,
        )
