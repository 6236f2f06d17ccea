// Checks, vertex normals, lighting, z-buffer and attribute interpolation. Plain C++17, no globals,
// thread-safe.
//
// The Python door (Sim3DR/__init__.py) guarantees shapes, none of them empty, finite coordinates up
// to 1e8, windows within 2^24 of the origin, colours in [0, 1], at least one thread and, by
// `indices_within`, indices in range where no function says that it checks them itself. Arrays are
// row-major and packed unless a stride is given, and what is written overlaps nothing but
// Image::under. std::bad_alloc is the only exception. The same bits come out whatever the compiler,
// the processor and the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sim3dr {

struct Mesh {
    const float* vertices;  // (n_vertices, 3)
    std::ptrdiff_t n_vertices;
    const std::int32_t* triangles;  // (n_triangles, 3)
    std::ptrdiff_t n_triangles;
};

// Whether low <= value <= high for each of them; NaN is not.
bool values_within(const float* values, std::ptrdiff_t count, float low, float high);

// Whether 0 <= index < limit for each of them.
bool indices_within(const std::int32_t* indices, std::ptrdiff_t count, std::ptrdiff_t limit);

// Least and greatest x, y, z of at least one point (count, 3).
void bounds(const float* points, std::ptrdiff_t count, float low[3], float high[3]);

// normals (n_vertices, 3): unit sums of the face normals around each vertex, zero where they add
// to zero.
void vertex_normals(Mesh mesh, float* normals);

struct Lighting {
    float ambient, directional, specular;
    float light[3], eye[3];
};

// colors (count, 3): light on each vertex, times the texture (count, 3) unless that is null.
void shade(const float* vertices, const float* normals, std::ptrdiff_t count,
           const Lighting& lighting, const float* texture, float* colors);

// The part of the pixel grid that a buffer covers: x0 <= x < x0 + width, y0 <= y < y0 + height.
struct Window {
    int x0, y0, width, height;
};

// For each pixel of the window the nearest triangle (the largest z; of equals, the first):
// depth (h, w), -inf where nothing is, and its index in triangle (h, w), -1 where nothing is.
// False, and nothing of use, if the mesh's triangles hold an index that is not one of its vertices.
bool zbuffer(Mesh mesh, Window window, float* depth, std::int32_t* triangle, int threads);

// A picture in bytes with its rows `stride` apart, and what it is painted over: alpha times a colour
// plus 1 - alpha times what lies under, rounded. That may be the picture itself.
struct Image {
    std::uint8_t* pixels;
    std::ptrdiff_t stride;
    const std::uint8_t* under;
    std::ptrdiff_t under_stride;
    float alpha;
};

// Paints the colours at the corners of each visible triangle (n_vertices, 3), interpolated, times
// 255, truncated, on an image (h, w, 3); the other pixels keep what they hold. False, and the image
// as it was, if the mesh's triangles hold an index that is not one of its vertices.
bool rasterize(Mesh mesh, Window window, const float* colors, Image image, int threads);

// What is interpolated: values (n, channels) at the corners that `triangles`, (n_triangles, 3) as
// the mesh's, gives each of its triangles.
struct Attributes {
    const std::int32_t* triangles;
    const float* values;
    int channels;
};

// Writes the attributes, interpolated, to the covered pixels of image (h, w, channels); the others
// keep what they hold. False, and the image unfinished, if a number in triangle (h, w) is not below
// n_triangles.
bool interpolate(Mesh mesh, Window window, const std::int32_t* triangle, Attributes attributes,
                 float* image, int threads);

}  // namespace sim3dr
