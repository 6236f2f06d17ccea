// libFuzzer on the fused batch norm (`make fuzz`).
//
// The binding guarantees the shapes and nothing else: numbers may be anything, NaN too. Every array
// has exactly the size that the kernel may touch. Where the numbers are moderate, the results are
// held against the formulas in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "fuzz_bytes.h"
#include "fused_norm_kernel.h"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using BFloat16s = std::vector<fused_norm::BFloat16>;

bool same_bits(const Floats& a, const Floats& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
        return x == y || (std::isnan(x) && std::isnan(y));
    });
}

// The nearest BFloat16, found from the two floats that it could be.
fused_norm::BFloat16 nearest(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t below = bits >> 16, rest = bits & 0xFFFF;
    if (std::isnan(value)) return 0x7FC0;
    const bool up = rest > 0x8000 || (rest == 0x8000 && below % 2 == 1);
    return static_cast<fused_norm::BFloat16>(below + up);
}

float widened(fused_norm::BFloat16 number) {
    const std::uint32_t bits = std::uint32_t(number) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

bool rounded(const Floats& full, const BFloat16s& shortened) {
    return std::equal(full.begin(), full.end(), shortened.begin(), shortened.end(),
                      [](float x, fused_norm::BFloat16 y) { return nearest(x) == y; });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const int flags = bytes.take<std::uint8_t>();
    // Chunks for threads are of 65536 numbers: few runs have more than one, since they take long.
    std::uint32_t mixed = 0;
    for (std::size_t i = 0; i < size; ++i) mixed = mixed * 31 + data[i];
    const bool large = mixed % 509 == 1;
    const int channels = bytes.within(1, flags & 1 ? 300 : 20);
    const int rows = large ? bytes.within(1, 140000 / channels) : bytes.within(1, 70);
    const int threads = bytes.within(1, 4);
    const bool wild = (flags & 6) == 6;
    const float infinity = std::numeric_limits<float>::infinity();
    const float low = flags & 2 ? 0.0f : -infinity;
    const float high = flags & 4 ? 6.0f : infinity;
    const double eps = flags & 8 ? 1e-5 : 1e-3;
    const fused_norm::Shape shape = {rows, channels};
    const std::size_t count = std::size_t(rows) * channels;

    Floats some(257), x(count), dy(count), weight(channels), bias(channels);
    for (float& value : some)
        value = wild ? bytes.take<float>() : bytes.take<std::int8_t>() / 16.0f;
    for (std::size_t i = 0; i < count; ++i) {
        x[i] = some[(i * 7 + i / 257) % 257];
        dy[i] = some[(i * 5 + i / 101) % 257];
    }
    for (int c = 0; c < channels; ++c) weight[c] = some[c % 16], bias[c] = some[c % 16 + 16];

    const bool in_bfloat16 = flags & 16;  // numbers that BFloat16 holds, for both kernels
    BFloat16s short_x(count), short_dy(count);
    for (std::size_t i = 0; in_bfloat16 && i < count; ++i) {
        x[i] = widened(short_x[i] = nearest(x[i]));
        dy[i] = widened(short_dy[i] = nearest(dy[i]));
    }

    auto run = [&](int on, const auto& x, const auto& dy, auto& y, auto& dx, Floats& dweight,
                   Floats& dbias, Doubles& mean, Doubles& variance, Doubles& inverse) {
        fused_norm::forward(x.data(), shape, weight.data(), bias.data(), eps, low, high, on,
                            mean.data(), variance.data(), inverse.data(), y.data());
        fused_norm::backward(x.data(), dy.data(), shape, weight.data(), bias.data(), mean.data(),
                             inverse.data(), low, high, on, flags & 128 ? nullptr : dx.data(),
                             dweight.data(), dbias.data());
    };
    Floats y(count), dx(count), dweight(channels), dbias(channels);
    Doubles mean(channels), variance(channels), inverse(channels);
    run(1, x, dy, y, dx, dweight, dbias, mean, variance, inverse);
    if (in_bfloat16) {
        BFloat16s short_y(count), short_dx(count);
        Floats dweight2(channels), dbias2(channels);
        Doubles mean2(channels), variance2(channels), inverse2(channels);
        run(threads, short_x, short_dy, short_y, short_dx, dweight2, dbias2, mean2, variance2,
            inverse2);
        expect(same_bits(dweight, dweight2) && same_bits(dbias, dbias2) && rounded(y, short_y) &&
                   (flags & 128 || rounded(dx, short_dx)),
               "BFloat16 is computed as float and rounded");
    }
    if (threads > 1) {
        Floats y2(count), dx2(count), dweight2(channels), dbias2(channels);
        Doubles mean2(channels), variance2(channels), inverse2(channels);
        run(threads, x, dy, y2, dx2, dweight2, dbias2, mean2, variance2, inverse2);
        expect(same_bits(y, y2) && same_bits(dx, dx2) && same_bits(dweight, dweight2) &&
                   same_bits(dbias, dbias2),
               "the number of threads changes nothing");
    }
    for (float value : y)
        expect(std::isnan(value) || (value >= low && value <= high), "the clamp holds");
    if (wild) return 0;
    for (int c = 0; c < channels; ++c) {
        double total = 0, squares = 0;
        for (int r = 0; r < rows; ++r) total += x[std::size_t(r) * channels + c];
        const double m = total / rows;
        for (int r = 0; r < rows; ++r) {
            const double d = x[std::size_t(r) * channels + c] - m;
            squares += d * d;
        }
        const double v = squares / rows, s = 1 / std::sqrt(v + eps);
        expect(std::fabs(mean[c] - m) < 1e-5, "the mean");
        expect(std::fabs(variance[c] - v) < 1e-4 * (1 + v), "the variance");
        double gradient = 0, product = 0, terms = 0;
        bool edge = false;
        for (int r = 0; r < rows; ++r) {
            const std::size_t i = std::size_t(r) * channels + c;
            const double normal = (x[i] - mean[c]) * inverse[c];
            const double z = normal * weight[c] + bias[c];
            const double right = std::min<double>(std::max<double>(z, low), high);
            const double tolerance = 1e-5 * (10 + std::fabs(weight[c]) * s * 10);
            expect(std::fabs(y[i] - right) < tolerance, "the normalised values");
            edge |= std::fabs(z - low) < tolerance || std::fabs(z - high) < tolerance;
            const double g = z <= low || z >= high ? 0 : dy[i];
            gradient += g, product += g * normal, terms += std::fabs(g) * (1 + std::fabs(normal));
        }
        if (edge) continue;  // rounding decides whether the gradient passes
        expect(std::fabs(dbias[c] - gradient) < 1e-5 * (1 + terms), "the bias's gradient");
        expect(std::fabs(dweight[c] - product) < 1e-4 * (1 + terms) * (1 + s * 0.01),
               "the weight's gradient");
    }
    return 0;
}
