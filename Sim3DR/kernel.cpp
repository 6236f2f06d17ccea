#include "kernel.h"

#include <algorithm>
#include <cmath>

namespace sim3dr {

void vertex_normals(const float* vertices, std::ptrdiff_t n_vertices,
                    const std::int32_t* triangles, std::ptrdiff_t n_triangles, float* normals) {
    std::fill(normals, normals + 3 * n_vertices, 0.0f);
    for (std::ptrdiff_t t = 0; t < n_triangles; ++t) {
        const std::int32_t* corner = triangles + 3 * t;
        const float* a = vertices + 3 * static_cast<std::ptrdiff_t>(corner[0]);
        const float* b = vertices + 3 * static_cast<std::ptrdiff_t>(corner[1]);
        const float* c = vertices + 3 * static_cast<std::ptrdiff_t>(corner[2]);
        const float e[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
        const float f[3] = {c[0] - a[0], c[1] - a[1], c[2] - a[2]};
        const float face[3] = {e[1] * f[2] - e[2] * f[1], e[2] * f[0] - e[0] * f[2],
                               e[0] * f[1] - e[1] * f[0]};
        for (int k = 0; k < 3; ++k) {
            float* normal = normals + 3 * static_cast<std::ptrdiff_t>(corner[k]);
            for (int axis = 0; axis < 3; ++axis) normal[axis] += face[axis];
        }
    }
    for (float* n = normals; n != normals + 3 * n_vertices; n += 3) {
        // In double, so that the squares of tiny or huge sums neither vanish nor overflow.
        const double x = n[0], y = n[1], z = n[2];
        const double length = std::sqrt(x * x + y * y + z * z);
        if (length == 0.0) continue;
        n[0] = static_cast<float>(x / length);
        n[1] = static_cast<float>(y / length);
        n[2] = static_cast<float>(z / length);
    }
}

namespace {

// What the dot products of a triangle's edges leave to do for each pixel (method: barycentrics of
// p = A + u (C - A) + v (B - A) by Cramer's rule, times the reciprocal of the determinant).
class Barycentric {
  public:
    Barycentric(const float* a, const float* b, const float* c)
        : ax(a[0]), ay(a[1]), cx(c[0] - ax), cy(c[1] - ay), bx(b[0] - ax), by(b[1] - ay) {
        d00 = cx * cx + cy * cy;
        d01 = cx * bx + cy * by;
        d11 = bx * bx + by * by;
        const float determinant = d00 * d11 - d01 * d01;
        reciprocal = 1.0f / determinant;
        // For a sliver the determinant is a difference of nearly equal numbers. Below this bound it
        // is no more than their rounding error, which would paint stray pixels of the bounding box
        // (or underflows); the cross product in double is exact, and zero for collinear corners.
        sliver = !(determinant > 1e-6f * (d00 * d11) + 1e-30f);
        if (sliver) {
            dcx = double(c[0]) - ax, dcy = double(c[1]) - ay;
            dbx = double(b[0]) - ax, dby = double(b[1]) - ay;
            area = dcx * dby - dcy * dbx;
        }
    }

    bool collinear() const { return sliver && area == 0.0; }

    void at(float x, float y, float& u, float& v) const {
        if (sliver) {
            const double px = double(x) - ax, py = double(y) - ay;
            u = static_cast<float>((px * dby - py * dbx) / area);
            v = static_cast<float>((dcx * py - dcy * px) / area);
            return;
        }
        const float px = x - ax, py = y - ay;
        const float d02 = cx * px + cy * py;
        const float d12 = bx * px + by * py;
        u = (d11 * d02 - d01 * d12) * reciprocal;
        v = (d00 * d12 - d01 * d02) * reciprocal;
    }

  private:
    float ax, ay, cx, cy, bx, by, d00, d01, d11, reciprocal;
    double dcx = 0, dcy = 0, dbx = 0, dby = 0, area = 0;
    bool sliver;
};

inline float mix(float a, float b, float c, float u, float v) {
    return (1.0f - u - v) * a + v * b + u * c;
}

}  // namespace

void zbuffer(const float* vertices, const std::int32_t* triangles, std::ptrdiff_t n_triangles,
             Window window, float* depth, std::int32_t* triangle, float* barycentric) {
    const float left = static_cast<float>(window.x0), top = static_cast<float>(window.y0);
    const float right = static_cast<float>(window.x0 + window.width - 1);
    const float bottom = static_cast<float>(window.y0 + window.height - 1);
    for (std::ptrdiff_t t = 0; t < n_triangles; ++t) {
        const float* a = vertices + 3 * static_cast<std::ptrdiff_t>(triangles[3 * t]);
        const float* b = vertices + 3 * static_cast<std::ptrdiff_t>(triangles[3 * t + 1]);
        const float* c = vertices + 3 * static_cast<std::ptrdiff_t>(triangles[3 * t + 2]);
        // The bounding box, rounded outward; clipped as floats, so that the integers are in range.
        const float x_min = std::max(std::floor(std::min({a[0], b[0], c[0]})), left);
        const float x_max = std::min(std::ceil(std::max({a[0], b[0], c[0]})), right);
        const float y_min = std::max(std::floor(std::min({a[1], b[1], c[1]})), top);
        const float y_max = std::min(std::ceil(std::max({a[1], b[1], c[1]})), bottom);
        if (x_min > x_max || y_min > y_max) continue;
        const Barycentric weights(a, b, c);
        if (weights.collinear()) continue;
        const int x_end = static_cast<int>(x_max), y_end = static_cast<int>(y_max);
        for (int y = static_cast<int>(y_min); y <= y_end; ++y) {
            const std::ptrdiff_t row =
                static_cast<std::ptrdiff_t>(y - window.y0) * window.width - window.x0;
            for (int x = static_cast<int>(x_min); x <= x_end; ++x) {
                float u, v;
                weights.at(static_cast<float>(x), static_cast<float>(y), u, v);
                if (!(u >= 0.0f && v >= 0.0f && u + v < 1.0f)) continue;
                const float z = mix(a[2], b[2], c[2], u, v);
                if (!(z > depth[row + x])) continue;
                depth[row + x] = z;
                triangle[row + x] = static_cast<std::int32_t>(t);
                barycentric[2 * (row + x)] = v;
                barycentric[2 * (row + x) + 1] = u;
            }
        }
    }
}

namespace {

inline void store(float value, float& pixel) { pixel = value; }

inline void store(float value, std::uint8_t& pixel) {
    // The weights add to one only up to rounding: clamped, so that the cast is always defined.
    pixel = static_cast<std::uint8_t>(std::clamp(value * 255.0f, 0.0f, 255.0f));
}

}  // namespace

template <class Pixel>
void interpolate(const std::int32_t* triangle, const float* barycentric, int height, int width,
                 const std::int32_t* triangles, const float* attributes, int channels,
                 Pixel* image, std::ptrdiff_t row_stride) {
    for (int y = 0; y < height; ++y) {
        Pixel* pixel = image + y * row_stride;
        for (int x = 0; x < width; ++x, pixel += channels) {
            const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(y) * width + x;
            if (triangle[at] < 0) continue;
            const std::int32_t* corner = triangles + 3 * static_cast<std::ptrdiff_t>(triangle[at]);
            const float* a = attributes + static_cast<std::ptrdiff_t>(corner[0]) * channels;
            const float* b = attributes + static_cast<std::ptrdiff_t>(corner[1]) * channels;
            const float* c = attributes + static_cast<std::ptrdiff_t>(corner[2]) * channels;
            const float v = barycentric[2 * at], u = barycentric[2 * at + 1];
            for (int k = 0; k < channels; ++k) store(mix(a[k], b[k], c[k], u, v), pixel[k]);
        }
    }
}

template void interpolate<float>(const std::int32_t*, const float*, int, int, const std::int32_t*,
                                 const float*, int, float*, std::ptrdiff_t);
template void interpolate<std::uint8_t>(const std::int32_t*, const float*, int, int,
                                        const std::int32_t*, const float*, int, std::uint8_t*,
                                        std::ptrdiff_t);

}  // namespace sim3dr
