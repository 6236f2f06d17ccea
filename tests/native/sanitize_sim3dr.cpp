// Random meshes through the rasteriser's kernel, to be compiled with -fsanitize=address,undefined:
//   g++ -std=c++17 -g -O1 -fsanitize=address,undefined,float-cast-overflow
//       -fno-sanitize-recover=all -I Sim3DR tests/native/sanitize_sim3dr.cpp Sim3DR/kernel.cpp
//   ./a.out ROUNDS SEED
// Every array has exactly the size that the kernel may touch, so that one step too far is caught.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kernel.h"

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 1000;
    std::mt19937 random(argc > 2 ? std::atoi(argv[2]) : 0);
    auto integer = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    const float scales[] = {1e-20f, 1e-3f, 1.0f, 10.0f, 100.0f, 1e4f, 1e8f};
    long covered = 0;
    for (int round = 0; round < rounds; ++round) {
        const int n_vertices = integer(1, 40), n_triangles = integer(0, 60);
        const int channels = integer(0, 5);
        const sim3dr::Window window = {integer(-9, 9), integer(-9, 9), integer(1, 24), integer(1, 24)};
        const std::size_t pixels = std::size_t(window.width) * window.height;
        std::uniform_real_distribution<float> within(-1, 1);
        const float scale = scales[integer(0, 6)];
        const bool whole = integer(0, 2) == 0;  // whole pixels make collinear and equal corners
        std::vector<float> vertices(3 * n_vertices), normals(3 * n_vertices);
        for (float& x : vertices) x = whole ? float(integer(-9, 30)) : scale * within(random);
        std::vector<std::int32_t> triangles(3 * n_triangles);
        for (auto& corner : triangles) corner = integer(0, n_vertices - 1);
        std::vector<float> attributes(std::size_t(n_vertices) * channels);
        for (float& value : attributes) value = scale * within(random);

        std::vector<float> depth(pixels, -std::numeric_limits<float>::infinity());
        std::vector<std::int32_t> triangle(pixels, -1);
        std::vector<float> barycentric(2 * pixels);
        sim3dr::vertex_normals(vertices.data(), n_vertices, triangles.data(), n_triangles,
                               normals.data());
        sim3dr::zbuffer(vertices.data(), triangles.data(), n_triangles, window, depth.data(),
                        triangle.data(), barycentric.data());
        std::vector<float> floats(pixels * channels);
        std::vector<std::uint8_t> bytes(pixels * channels);
        const std::ptrdiff_t row = std::ptrdiff_t(window.width) * channels;
        sim3dr::interpolate(triangle.data(), barycentric.data(), window.height, window.width,
                            triangles.data(), attributes.data(), channels, floats.data(), row);
        // Upside down, as `reverse` does it.
        sim3dr::interpolate(triangle.data(), barycentric.data(), window.height, window.width,
                            triangles.data(), attributes.data(), channels,
                            bytes.data() + (window.height - 1) * row, -row);
        for (std::size_t i = 0; i < pixels; ++i) {
            if (triangle[i] < -1 || triangle[i] >= n_triangles) return 2;
            covered += triangle[i] >= 0;
        }
    }
    std::printf("%d meshes, %ld pixels covered\n", rounds, covered);
    return covered > 0 ? 0 : 3;
}
