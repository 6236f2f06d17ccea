# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Typed binding of kernel.h. Call it through the Sim3DR package, which checks the arguments.

What is computed fills the array given last (``zbuffer``: the last two); only ``threads`` may follow
it. ``fallback.py`` has the same functions in numpy. No array is empty.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint8_t
from libcpp cimport bool as cbool

cdef extern from "kernel.h" namespace "sim3dr" nogil:
    cdef struct Mesh:
        const float* vertices
        ptrdiff_t n_vertices
        const int32_t* triangles
        ptrdiff_t n_triangles
    cdef struct Lighting:
        float ambient, directional, specular
        float[3] light, eye
    cdef struct Window:
        int x0, y0, width, height
    cdef struct Image:
        uint8_t* pixels
        ptrdiff_t stride
        const uint8_t* under
        ptrdiff_t under_stride
        float alpha
    cdef struct Attributes:
        const int32_t* triangles
        const float* values
        int channels
    cbool _values_within "sim3dr::values_within"(const float*, ptrdiff_t, float, float)
    cbool _indices_within "sim3dr::indices_within"(const int32_t*, ptrdiff_t, ptrdiff_t)
    void _bounds "sim3dr::bounds"(const float*, ptrdiff_t, float*, float*)
    void _vertex_normals "sim3dr::vertex_normals"(Mesh, float*)
    void _shade "sim3dr::shade"(
        const float*, const float*, ptrdiff_t, const Lighting&, const float*, float*
    )
    cbool _zbuffer "sim3dr::zbuffer"(Mesh, Window, float*, int32_t*, int) except +
    cbool _rasterize "sim3dr::rasterize"(Mesh, Window, const float*, Image, int) except +
    cbool _interpolate "sim3dr::interpolate"(
        Mesh, Window, const int32_t*, Attributes, float*, int
    ) except +


def values_within(const float[:, ::1] values not None, float low, float high):
    """Whether low <= value <= high for all of values (N, C); false for NaN."""
    cdef ptrdiff_t count = values.shape[0] * values.shape[1]
    with nogil:
        result = _values_within(&values[0, 0], count, low, high)
    return result


def indices_within(const int32_t[:, ::1] triangles not None, ptrdiff_t limit):
    """Whether 0 <= index < limit for all of triangles (T, 3)."""
    with nogil:
        result = _indices_within(&triangles[0, 0], 3 * triangles.shape[0], limit)
    return result


def bounds(const float[:, ::1] vertices not None, float[:, ::1] ends not None):
    """Least and greatest x, y, z of vertices (N, 3), as the rows of ends (2, 3)."""
    with nogil:
        _bounds(&vertices[0, 0], vertices.shape[0], &ends[0, 0], &ends[1, 0])


def vertex_normals(
    const float[:, ::1] vertices not None,
    const int32_t[:, ::1] triangles not None,
    float[:, ::1] normals not None,
):
    """Unit vertex normals (N, 3) of vertices (N, 3) and triangles (T, 3)."""
    with nogil:
        _vertex_normals(_mesh(vertices, triangles), &normals[0, 0])


def shade(
    const float[:, ::1] vertices not None,
    const float[:, ::1] normals not None,
    lighting,
    const float[:, ::1] texture,
    float[:, ::1] colors not None,
):
    """Colours (N, 3) of lit vertices (N, 3); ``texture`` (N, 3) may be None."""
    cdef Lighting light
    light.ambient, light.directional = lighting.ambient, lighting.directional
    light.specular = lighting.specular
    light.light, light.eye = lighting.light, lighting.eye
    cdef const float* base = NULL
    if texture is not None:
        base = &texture[0, 0]
    with nogil:
        _shade(&vertices[0, 0], &normals[0, 0], vertices.shape[0], light, base, &colors[0, 0])


def zbuffer(
    const float[:, ::1] vertices not None,
    const int32_t[:, ::1] triangles not None,
    int x0,
    int y0,
    float[:, ::1] depth not None,
    int32_t[:, ::1] triangle not None,
    int threads,
):
    """Depth (h, w) and triangle (h, w) of the window whose corner is x0, y0.

    False, and nothing of use in them, where the triangles hold an index that is no vertex's.
    """
    with nogil:
        result = _zbuffer(
            _mesh(vertices, triangles), _window(x0, y0, depth.shape[0], depth.shape[1]),
            &depth[0, 0], &triangle[0, 0], threads,
        )
    return result


def rasterize(
    const float[:, ::1] vertices not None,
    const int32_t[:, ::1] triangles not None,
    int x0,
    int y0,
    const float[:, ::1] colors not None,
    const uint8_t[:, :, :] under not None,
    float alpha,
    uint8_t[:, :, :] image not None,
    int threads,
):
    """Colours (N, 3) painted on image (h, w, 3): alpha of them over 1 - alpha of ``under``.

    Pixels of both pictures are packed, rows may be strided. False, and the image as it was, where
    the triangles hold an index that is no vertex's.
    """
    with nogil:
        result = _rasterize(
            _mesh(vertices, triangles), _window(x0, y0, image.shape[0], image.shape[1]),
            &colors[0, 0], _image(under, alpha, image), threads,
        )
    return result


def interpolate(
    const float[:, ::1] vertices not None,
    const int32_t[:, ::1] triangles not None,
    int x0,
    int y0,
    const int32_t[:, ::1] triangle not None,
    const int32_t[:, ::1] attribute_triangles not None,
    const float[:, ::1] attributes not None,
    float[:, :, ::1] image not None,
    int threads,
):
    """Attributes (N, C) over the covered pixels of image (h, w, C), which are those of zbuffer.

    False, and the image unfinished, where ``triangle`` holds a number that is no triangle's.
    """
    cdef Attributes given
    given.triangles, given.values = &attribute_triangles[0, 0], &attributes[0, 0]
    given.channels = <int>attributes.shape[1]
    with nogil:
        result = _interpolate(
            _mesh(vertices, triangles), _window(x0, y0, triangle.shape[0], triangle.shape[1]),
            &triangle[0, 0], given, &image[0, 0, 0], threads,
        )
    return result


cdef inline Mesh _mesh(
    const float[:, ::1] vertices, const int32_t[:, ::1] triangles
) noexcept nogil:
    cdef Mesh mesh
    mesh.vertices, mesh.n_vertices = &vertices[0, 0], vertices.shape[0]
    mesh.triangles, mesh.n_triangles = &triangles[0, 0], triangles.shape[0]
    return mesh


cdef inline Window _window(int x0, int y0, Py_ssize_t height, Py_ssize_t width) noexcept nogil:
    cdef Window window
    window.x0, window.y0 = x0, y0
    window.height, window.width = <int>height, <int>width
    return window


cdef inline Image _image(
    const uint8_t[:, :, :] under, float alpha, uint8_t[:, :, :] pixels
) noexcept nogil:
    cdef Image image
    image.pixels, image.stride = &pixels[0, 0, 0], pixels.strides[0]
    image.under, image.under_stride, image.alpha = &under[0, 0, 0], under.strides[0], alpha
    return image
