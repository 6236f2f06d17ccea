// libFuzzer on the rasteriser's kernel (`make fuzz`).
//
// Only what the Python door (Sim3DR/__init__.py) lets through comes to the kernel, checked by the
// same functions: coordinates finite and within 1e8, colours within [0, 1], windows within 2^24.
// Indices of triangles may be anything where the kernel checks them itself. Every array has exactly
// the size that the kernel may touch. What comes out is held against the plain twin below.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "fuzz_bytes.h"
#include "kernel.h"

namespace {

using Floats = std::vector<float>;

// The method, pixel by pixel: weights u of c and v of b, false for corners on a line.
bool weigh(const float* a, const float* b, const float* c, float x, float y, float& u, float& v) {
    const float bx = b[0] - a[0], by = b[1] - a[1], cx = c[0] - a[0], cy = c[1] - a[1];
    const float d00 = cx * cx + cy * cy, d01 = cx * bx + cy * by, d11 = bx * bx + by * by;
    const float determinant = d00 * d11 - d01 * d01;
    if (determinant > 1e-6f * (d00 * d11) + 1e-30f) {
        const float px = x - a[0], py = y - a[1], reciprocal = 1.0f / determinant;
        const float d02 = cx * px + cy * py, d12 = bx * px + by * py;
        u = (d11 * d02 - d01 * d12) * reciprocal;
        v = (d00 * d12 - d01 * d02) * reciprocal;
        return true;
    }
    const double ax = a[0], ay = a[1], ex = b[0] - ax, ey = b[1] - ay, fx = c[0] - ax,
                 fy = c[1] - ay, area = fx * ey - fy * ex;
    if (area == 0) return false;
    u = static_cast<float>(((x - ax) * ey - (y - ay) * ex) / area);
    v = static_cast<float>((fx * (y - ay) - fy * (x - ax)) / area);
    return true;
}

float mix(float a, float b, float c, float u, float v) { return (1.0f - u - v) * a + v * b + u * c; }

struct Twin {
    Floats depth, u, v;
    std::vector<std::int32_t> triangle;
};

Twin slowly(const sim3dr::Mesh& mesh, const sim3dr::Window& window) {
    const std::size_t pixels = std::size_t(window.width) * window.height;
    Twin twin = {Floats(pixels, -std::numeric_limits<float>::infinity()), Floats(pixels),
                 Floats(pixels), std::vector<std::int32_t>(pixels, -1)};
    for (int t = 0; t < mesh.n_triangles; ++t) {
        const float* corner[3];
        for (int i = 0; i < 3; ++i) corner[i] = mesh.vertices + 3 * mesh.triangles[3 * t + i];
        int first[2], last[2];
        for (int axis = 0; axis < 2; ++axis) {
            const int start = axis ? window.y0 : window.x0;
            const int size = axis ? window.height : window.width;
            const auto [low, high] =
                std::minmax({corner[0][axis], corner[1][axis], corner[2][axis]});
            first[axis] = std::max(start, static_cast<int>(std::floor(low)));
            last[axis] = std::min(start + size - 1, static_cast<int>(std::ceil(high)));
        }
        for (int y = first[1]; y <= last[1]; ++y)
            for (int x = first[0]; x <= last[0]; ++x) {
                float u, v;
                if (!weigh(corner[0], corner[1], corner[2], static_cast<float>(x),
                           static_cast<float>(y), u, v) ||
                    !(u >= 0 && v >= 0 && u + v < 1))
                    continue;
                const float z = mix(corner[0][2], corner[1][2], corner[2][2], u, v);
                const std::size_t at = std::size_t(y - window.y0) * window.width + x - window.x0;
                if (z > twin.depth[at]) {
                    twin.depth[at] = z, twin.triangle[at] = t;
                    twin.u[at] = u, twin.v[at] = v;
                }
            }
    }
    return twin;
}

bool same(const Floats& a, const Floats& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
        return x == y || (std::isnan(x) && std::isnan(y));
    });
}

// Coordinates of several kinds: bare bits, whole pixels (equal and collinear corners), fractions,
// far away, tiny.
float coordinate(Bytes& bytes, int kind, int start) {
    switch (kind) {
        case 0: return bytes.take<float>();
        case 1: return static_cast<float>(start + bytes.take<std::int8_t>() / 4);
        case 2: return start + bytes.take<std::int16_t>() / 512.0f;
        case 3: return static_cast<float>(bytes.take<std::int8_t>()) * 787401.0f;
        case 4: return start + bytes.take<std::int8_t>() * 1e-3f;
        default: return start + bytes.take<std::int8_t>() * (1 << bytes.within(0, 12)) / 16.0f;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const int flags = bytes.take<std::uint8_t>(), kind = bytes.within(0, 7);
    const int n_vertices = bytes.within(1, 40), n_triangles = bytes.within(1, 80);  // a block: 64
    const int most = flags & 1 ? 64 : 20;
    const int width = bytes.within(1, most), height = bytes.within(1, most);
    const int channels = bytes.within(1, 5);
    const int threads = (flags & 0x23) == 0x23 ? bytes.within(2, 4) : 1;  // starting them takes long
    const int far = (1 << 24) - 64;
    const int x0 = (flags & 12) == 12 ? (flags & 16 ? far : -far) : bytes.take<std::int8_t>() / 8;
    const int y0 = (flags & 12) == 12 ? (flags & 32 ? far : -far) : bytes.take<std::int8_t>() / 8;
    const float alpha = flags & 64 ? 1.0f : bytes.within(0, 255) / 255.0f;
    const bool any_index = (flags & 0x88) == 0x88;
    const sim3dr::Window window = {x0, y0, width, height};

    Floats vertices(3 * n_vertices);
    for (int i = 0; i < 3 * n_vertices; ++i)
        vertices[i] = coordinate(bytes, kind, i % 3 == 0 ? x0 : i % 3 == 1 ? y0 : 0);
    if (!sim3dr::values_within(vertices.data(), 3 * n_vertices, -1e8f, 1e8f)) return 0;  // refused
    std::vector<std::int32_t> triangles(3 * n_triangles), others(3 * n_triangles);
    for (auto& index : triangles)
        index = any_index ? bytes.take<std::int32_t>() : bytes.within(0, n_vertices - 1);
    for (auto& index : others) index = bytes.within(0, n_vertices - 1);
    Floats colors(3 * n_vertices), attributes(std::size_t(n_vertices) * channels);
    for (float& value : colors) value = bytes.within(0, 255) / 255.0f;
    for (float& value : attributes) {
        value = flags & 128 ? bytes.take<float>() : bytes.take<std::int8_t>() / 8.0f;
        if (!(std::fabs(value) <= FLT_MAX)) value = 0;
    }
    const sim3dr::Mesh mesh = {vertices.data(), n_vertices, triangles.data(), n_triangles};
    const std::size_t pixels = std::size_t(width) * height;

    float low[3], high[3];
    sim3dr::bounds(vertices.data(), n_vertices, low, high);
    for (int i = 0; i < 3 * n_vertices; ++i)
        expect(low[i % 3] <= vertices[i] && vertices[i] <= high[i % 3], "bounds hold all points");

    Floats depth(pixels);
    std::vector<std::int32_t> triangle(pixels);
    std::vector<std::uint8_t> under(3 * pixels, 100), painted = under;
    const sim3dr::Image image = {painted.data(), 3 * width, under.data(), 3 * width, alpha};
    const bool valid = sim3dr::indices_within(triangles.data(), 3 * n_triangles, n_vertices);
    expect(sim3dr::zbuffer(mesh, window, depth.data(), triangle.data(), threads) == valid,
           "zbuffer refuses bad indices, and them alone");
    expect(sim3dr::rasterize(mesh, window, colors.data(), image, threads) == valid,
           "rasterize refuses bad indices, and them alone");
    if (!valid) {
        expect(painted == under, "a refused mesh leaves the picture as it was");
        return 0;
    }
    const Twin twin = slowly(mesh, window);
    expect(triangle == twin.triangle, "zbuffer shows the triangles of the twin");
    expect(same(depth, twin.depth), "zbuffer has the depths of the twin");

    Floats values(pixels * channels, 7), expected = values;
    expect(sim3dr::interpolate(mesh, window, triangle.data(),
                               {others.data(), attributes.data(), channels}, values.data(),
                               threads),
           "interpolate takes its own triangles");
    std::vector<std::uint8_t> plain = under;
    for (std::size_t at = 0; at < pixels; ++at) {
        if (triangle[at] < 0) continue;
        const std::int32_t *own = &triangles[3 * triangle[at]], *other = &others[3 * triangle[at]];
        const float u = twin.u[at], v = twin.v[at];
        for (int c = 0; c < channels; ++c)
            expected[at * channels + c] =
                mix(attributes[other[0] * channels + c], attributes[other[1] * channels + c],
                    attributes[other[2] * channels + c], u, v);
        for (int c = 0; c < 3; ++c) {
            const auto byte = static_cast<std::uint8_t>(static_cast<int>(
                mix(colors[3 * own[0] + c], colors[3 * own[1] + c], colors[3 * own[2] + c], u, v) *
                255.0f));
            const float rest = 1.0f - alpha;
            plain[3 * at + c] = static_cast<std::uint8_t>(
                std::nearbyint(alpha * static_cast<float>(byte) + rest * 100.0f));
        }
    }
    expect(same(values, expected), "interpolate has the values of the twin");
    expect(painted == plain, "rasterize has the bytes of the twin");

    std::vector<std::uint8_t> over = under;  // itself, upside down: `out` may be the background
    const std::ptrdiff_t row = 3 * std::ptrdiff_t(width);
    std::uint8_t* last = over.data() + (height - 1) * row;
    sim3dr::rasterize(mesh, window, colors.data(), {last, -row, last, -row, alpha}, threads);
    for (int y = 0; y < height; ++y)
        expect(std::equal(last - y * row, last - y * row + row, plain.data() + y * row),
               "rasterize over the background itself has the same bytes");
    triangle[pixels - 1] = n_triangles;
    expect(!sim3dr::interpolate(mesh, window, triangle.data(),
                                {others.data(), attributes.data(), channels},
                                Floats(pixels * channels).data(), threads),
           "interpolate refuses a triangle that is not there");

    Floats normals(3 * n_vertices), lit(3 * n_vertices);
    sim3dr::vertex_normals(mesh, normals.data());
    for (int i = 0; i < n_vertices; ++i) {
        const float* n = &normals[3 * i];
        const double length = std::sqrt(double(n[0]) * n[0] + double(n[1]) * n[1] +
                                        double(n[2]) * n[2]);
        expect(length == 0 || std::fabs(length - 1) < 1e-5, "normals are unit or zero");
    }
    if (flags & 128)  // the door lets any finite normals through
        for (float& value : normals) {
            value = bytes.take<float>();
            if (!(std::fabs(value) <= FLT_MAX)) value = 0;
        }
    const float l = bytes.take<std::int8_t>() / 16.0f;
    const sim3dr::Lighting lighting = {0.2f, 0.7f, flags & 4 ? 0.1f : 0.0f, {-l, l, 4}, {0, l, 5}};
    sim3dr::shade(vertices.data(), normals.data(), n_vertices, lighting,
                  flags & 8 ? colors.data() : nullptr, lit.data());
    expect(sim3dr::values_within(lit.data(), 3 * n_vertices, 0, 1), "shades are within [0, 1]");
    return 0;
}
