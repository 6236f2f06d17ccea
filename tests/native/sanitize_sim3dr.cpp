// Random meshes through the rasteriser's kernel, to be compiled with -fsanitize=address,undefined:
//   g++ -std=c++17 -g1 -O0 -pthread -fsanitize=address,undefined,float-cast-overflow
//       -fno-sanitize-recover=all -I Sim3DR tests/native/sanitize_sim3dr.cpp Sim3DR/mesh.cpp
//       Sim3DR/rasterizer.cpp
//   ./a.out ROUNDS SEED
// or with -fsanitize=thread. Every array has exactly the size that the kernel may touch, so that
// one step too far is caught; several threads must give what one does.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernel.h"

namespace {

struct Picture {
    Picture(sim3dr::Window window, int channels)
        : depth(std::size_t(window.width) * window.height), triangle(depth.size()),
          values(depth.size() * channels), colors(depth.size() * 3, 9) {}

    std::vector<float> depth;
    std::vector<std::int32_t> triangle;
    std::vector<float> values;
    std::vector<std::uint8_t> colors;
};

bool operator==(const Picture& a, const Picture& b) {
    return a.depth == b.depth && a.triangle == b.triangle && a.colors == b.colors &&
           std::memcmp(a.values.data(), b.values.data(), 4 * a.values.size()) == 0;  // NaN too
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 1000;
    std::mt19937 random(argc > 2 ? std::atoi(argv[2]) : 0);
    auto integer = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    std::uniform_real_distribution<float> within(-1, 1), share(0, 1);
    const float scales[] = {1e-20f, 1e-3f, 1.0f, 10.0f, 30.0f, 100.0f, 1e4f, 1e8f};
    const int far = 1 << 24;
    long covered = 0;
    for (int round = 0; round < rounds; ++round) {
        const bool many = round == 1;  // enough for several threads to sort them
        const int n_vertices = integer(1, 40), n_triangles = many ? 25000 : integer(1, 150);
        const int channels = integer(1, 5);
        const int width = integer(1, round % 8 ? 30 : 300), height = integer(1, 30);
        const bool away = integer(0, 9) == 0;
        const int x0 = away ? (integer(0, 1) ? -far : far - width) : integer(-9, 9);
        const int y0 = away ? (integer(0, 1) ? -far : far - height) : integer(-9, 9);
        const sim3dr::Window window = {x0, y0, width, height};
        const float scale = many ? 1.0f : scales[integer(0, 7)];
        const bool whole = !many && integer(0, 2) == 0;  // whole pixels make collinear and equal corners
        std::vector<float> vertices(3 * n_vertices), normals(3 * n_vertices);
        for (int i = 0; i < 3 * n_vertices; ++i) {
            const float start = i % 3 == 0 ? x0 : i % 3 == 1 ? y0 : 0;
            vertices[i] = whole ? start + float(integer(-9, 30))
                                : (scale < 1e7f ? start + 10 : 0) + scale * within(random);
        }
        std::vector<std::int32_t> triangles(3 * n_triangles), others(3 * n_triangles);
        for (auto& corner : triangles) corner = integer(0, n_vertices - 1);
        for (auto& corner : others) corner = integer(0, n_vertices - 1);
        std::vector<float> attributes(std::size_t(n_vertices) * channels), colors(3 * n_vertices);
        for (float& value : attributes) value = scale * within(random);
        for (float& value : colors) value = share(random);

        const sim3dr::Mesh mesh = {vertices.data(), n_vertices, triangles.data(), n_triangles};
        const sim3dr::Lighting lighting = {0.2f, 0.7f, 0.1f, {-1, -3, 4}, {0, 0, 5}};
        float low[3], high[3];
        sim3dr::bounds(vertices.data(), n_vertices, low, high);
        if (!sim3dr::values_within(vertices.data(), 3 * n_vertices, -1e8f, 1e8f)) return 2;
        if (!sim3dr::indices_within(triangles.data(), 3 * n_triangles, n_vertices)) return 2;
        sim3dr::vertex_normals(mesh, normals.data());
        std::vector<float> lit(3 * n_vertices);
        sim3dr::shade(vertices.data(), normals.data(), n_vertices, lighting,
                      round % 2 ? colors.data() : nullptr, lit.data());
        if (!sim3dr::values_within(lit.data(), 3 * n_vertices, 0, 1)) return 2;

        const float alpha = integer(0, 1) ? 1.0f : share(random);
        auto render = [&](int threads) {
            Picture p(window, channels);
            // Upside down, as `reverse` does it.
            const std::ptrdiff_t row = 3 * std::ptrdiff_t(width);
            std::uint8_t* last = p.colors.data() + (height - 1) * row;
            const sim3dr::Image image = {last, -row, last, -row, alpha};
            if (!sim3dr::zbuffer(mesh, window, p.depth.data(), p.triangle.data(), threads) ||
                !sim3dr::interpolate(mesh, window, p.triangle.data(),
                                     {others.data(), attributes.data(), channels},
                                     p.values.data(), threads) ||
                !sim3dr::rasterize(mesh, window, colors.data(), image, threads))
                std::exit(3);
            return p;
        };
        const Picture one = render(1);
        if (!(one == render(integer(2, 5)))) return 4;
        for (std::int32_t t : one.triangle) {
            if (t < -1 || t >= n_triangles) return 5;
            covered += t >= 0;
        }

        // An index outside is refused, unread; so is a triangle that is not there.
        triangles[integer(0, 3 * n_triangles - 1)] = integer(0, 1) ? n_vertices : -1;
        Picture p(window, channels);
        const sim3dr::Image image = {p.colors.data(), 3 * width, p.colors.data(), 3 * width, 1};
        if (sim3dr::zbuffer(mesh, window, p.depth.data(), p.triangle.data(), integer(1, 3)) ||
            sim3dr::rasterize(mesh, window, colors.data(), image, integer(1, 3)) ||
            p.colors != Picture(window, channels).colors)
            return 6;
        p.triangle.assign(p.triangle.size(), -1);
        p.triangle[integer(0, width * height - 1)] = n_triangles;
        if (sim3dr::interpolate(mesh, window, p.triangle.data(),
                                {others.data(), attributes.data(), channels}, p.values.data(),
                                integer(1, 3)))
            return 7;
    }
    std::printf("%d meshes, %ld pixels covered\n", rounds, covered);
    return covered > 0 ? 0 : 8;
}
