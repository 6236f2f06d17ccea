// Vertex normals, z-buffer and attribute interpolation. Plain C++17, no globals, thread-safe.
//
// Nothing is checked here: the Python door (Sim3DR/__init__.py) guarantees shapes, finite
// coordinates and indices in range. Arrays are row-major and packed unless a stride is given.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sim3dr {

// normals (n, 3): unit sums of the face normals around each vertex, zero where they add to zero.
void vertex_normals(const float* vertices, std::ptrdiff_t n_vertices,
                    const std::int32_t* triangles, std::ptrdiff_t n_triangles, float* normals);

// The part of the pixel grid that a buffer covers: x0 <= x < x0 + width, y0 <= y < y0 + height.
struct Window {
    int x0, y0, width, height;
};

// For each pixel of the window the nearest triangle (the largest z; of equals, the first).
// In and out: depth (h, w), filled with -inf by the caller; triangle (h, w), filled with -1;
// barycentric (h, w, 2), the weights (v, u) of the triangle's second and third vertex.
void zbuffer(const float* vertices, const std::int32_t* triangles, std::ptrdiff_t n_triangles,
             Window window, float* depth, std::int32_t* triangle, float* barycentric);

// Writes attributes (n_vertices, channels), interpolated, to the covered pixels of an image whose
// rows lie `row_stride` elements apart; the other pixels keep what they hold. An image of bytes
// gets 255 times the attribute, truncated.
template <class Pixel>
void interpolate(const std::int32_t* triangle, const float* barycentric, int height, int width,
                 const std::int32_t* triangles, const float* attributes, int channels,
                 Pixel* image, std::ptrdiff_t row_stride);

}  // namespace sim3dr
