// The rasteriser written plainly, as a baseline for benchmarks/rasterise.py: for every triangle
// every pixel of its bounding box, rounded outward; for every pixel the five dot products, both
// barycentrics, the z test and the colours.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace {

template <int CHANNELS>
void rasterize(const float* vertices, const std::int32_t* triangles, std::int64_t n_triangles,
               const float* colors, std::int64_t height, std::int64_t width, float* depth,
               std::uint8_t* image) {
    for (std::int64_t t = 0; t < n_triangles; ++t) {
        const std::int32_t* corner = triangles + 3 * t;
        const float* a = vertices + 3 * std::int64_t(corner[0]);
        const float* b = vertices + 3 * std::int64_t(corner[1]);
        const float* c = vertices + 3 * std::int64_t(corner[2]);
        const int x_first = std::max(int(std::floor(std::min({a[0], b[0], c[0]}))), 0);
        const int x_last = std::min(int(std::ceil(std::max({a[0], b[0], c[0]}))), int(width) - 1);
        const int y_first = std::max(int(std::floor(std::min({a[1], b[1], c[1]}))), 0);
        const int y_last = std::min(int(std::ceil(std::max({a[1], b[1], c[1]}))), int(height) - 1);
        for (int y = y_first; y <= y_last; ++y)
            for (int x = x_first; x <= x_last; ++x) {
                const float cx = c[0] - a[0], cy = c[1] - a[1];
                const float bx = b[0] - a[0], by = b[1] - a[1];
                const float px = float(x) - a[0], py = float(y) - a[1];
                const float d00 = cx * cx + cy * cy, d01 = cx * bx + cy * by;
                const float d02 = cx * px + cy * py, d11 = bx * bx + by * by;
                const float d12 = bx * px + by * py;
                const float determinant = d00 * d11 - d01 * d01;
                const float reciprocal = determinant == 0 ? 0 : 1 / determinant;
                const float u = (d11 * d02 - d01 * d12) * reciprocal;
                const float v = (d00 * d12 - d01 * d02) * reciprocal;
                if (!(u >= 0 && v >= 0 && u + v < 1)) continue;
                const std::int64_t at = y * width + x;
                const float z = (1 - u - v) * a[2] + v * b[2] + u * c[2];
                if (!(z > depth[at])) continue;
                depth[at] = z;
                for (int k = 0; k < CHANNELS; ++k)
                    image[CHANNELS * at + k] = std::uint8_t(
                        255 * ((1 - u - v) * colors[CHANNELS * corner[0] + k] +
                               v * colors[CHANNELS * corner[1] + k] +
                               u * colors[CHANNELS * corner[2] + k]));
            }
    }
}

}  // namespace

// depth (h, w) filled with -inf by the caller; colors (n, 3) and image (h, w, 3), or both null.
extern "C" void plain_rasterize(const float* vertices, const std::int32_t* triangles,
                                std::int64_t n_triangles, const float* colors,
                                std::int64_t height, std::int64_t width, float* depth,
                                std::uint8_t* image) {
    const auto draw = image ? rasterize<3> : rasterize<0>;
    draw(vertices, triangles, n_triangles, colors, height, width, depth, image);
}
