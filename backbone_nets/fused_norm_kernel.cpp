#include "fused_norm_kernel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "../Sim3DR/portable.h"

#define RESTRICT SIM3DR_RESTRICT

namespace fused_norm {
namespace {

using sim3dr::Index;

constexpr Index CHUNKS = 64;           // units of work for threads
constexpr Index SMALLEST = 1 << 16;    // numbers in a chunk: less is not worth a thread
constexpr Index BLOCK = 1 << 14;       // numbers that stay in the cache between two readings
constexpr Index WIDTH = 256;           // narrow rows are taken several at once, up to this width

// ------------------------------------------------------------------ numbers in memory

inline float load(float x) { return x; }

inline float load(BFloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float x, float& to) { to = x; }

// Rounded to nearest, ties to even; NaN stays NaN. No branch, so that loops become vectors.
inline void store(float x, BFloat16& to) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    to = static_cast<BFloat16>(x == x ? rounded : 0x7FC0);
}

// ------------------------------------------------------------------ inner loops over `width`
//
// Independent channels, which every compiler turns into vectors; arithmetic is float whatever lies
// in memory.

template <class Number>
SIM3DR_CLONES
void add_rows(const Number* RESTRICT x, Index rows, Index width, float* RESTRICT sum) {
    for (; rows >= 4; rows -= 4, x += 4 * width)
        for (Index c = 0; c < width; ++c)
            sum[c] += (load(x[c]) + load(x[width + c])) +
                      (load(x[2 * width + c]) + load(x[3 * width + c]));
    for (; rows > 0; --rows, x += width)
        for (Index c = 0; c < width; ++c) sum[c] += load(x[c]);
}

template <class Number>
SIM3DR_CLONES
void add_deviations(const Number* RESTRICT x, Index rows, Index width, const float* RESTRICT mean,
                    float* RESTRICT sum, float* RESTRICT squares) {
    for (; rows >= 4; rows -= 4, x += 4 * width)
        for (Index c = 0; c < width; ++c) {
            const float m = mean[c];
            const float p = load(x[c]) - m, q = load(x[width + c]) - m;
            const float r = load(x[2 * width + c]) - m, s = load(x[3 * width + c]) - m;
            sum[c] += (p + q) + (r + s);
            squares[c] += (p * p + q * q) + (r * r + s * s);
        }
    for (; rows > 0; --rows, x += width)
        for (Index c = 0; c < width; ++c) {
            const float p = load(x[c]) - mean[c];
            sum[c] += p;
            squares[c] += p * p;
        }
}

// Comparisons written so that NaN stays NaN, as torch's clamp has it.
template <class Number>
SIM3DR_CLONES
void normalise_rows(const Number* RESTRICT x, Index rows, Index width, const float* RESTRICT mean,
                    const float* RESTRICT scale, const float* RESTRICT shift, float low, float high,
                    Number* RESTRICT y) {
    for (; rows > 0; --rows, x += width, y += width)
        for (Index c = 0; c < width; ++c) {
            float z = (load(x[c]) - mean[c]) * scale[c] + shift[c];
            z = z < low ? low : z;
            store(z > high ? high : z, y[c]);
        }
}

// The gradient through the clamp; by value, so that it is read whatever the comparison says.
inline float passed(float dy, float y, float low, float high) {
    return ((y <= low) | (y >= high)) ? 0.0f : dy;
}

template <class Number>
SIM3DR_CLONES
void add_gradients(const Number* RESTRICT x, const Number* RESTRICT dy, Index rows, Index width,
                   const float* RESTRICT mean, const float* RESTRICT scale,
                   const float* RESTRICT shift, float low, float high, float* RESTRICT sum,
                   float* RESTRICT product) {
    for (; rows >= 2; rows -= 2, x += 2 * width, dy += 2 * width)
        for (Index c = 0; c < width; ++c) {
            const float p = load(x[c]) - mean[c], q = load(x[width + c]) - mean[c];
            const float y = p * scale[c] + shift[c], z = q * scale[c] + shift[c];
            const float g = passed(load(dy[c]), y, low, high);
            const float h = passed(load(dy[width + c]), z, low, high);
            sum[c] += g + h;
            product[c] += g * p + h * q;
        }
    if (rows > 0)
        for (Index c = 0; c < width; ++c) {
            const float p = load(x[c]) - mean[c], y = p * scale[c] + shift[c];
            const float g = passed(load(dy[c]), y, low, high);
            sum[c] += g;
            product[c] += g * p;
        }
}

template <class Number>
SIM3DR_CLONES
void input_gradient(const Number* RESTRICT x, const Number* RESTRICT dy, Index rows, Index width,
                    const float* RESTRICT mean, const float* RESTRICT scale,
                    const float* RESTRICT shift, const float* RESTRICT constant,
                    const float* RESTRICT slope, float low, float high, Number* RESTRICT dx) {
    for (; rows > 0; --rows, x += width, dy += width, dx += width)
        for (Index c = 0; c < width; ++c) {
            const float d = load(x[c]) - mean[c], y = d * scale[c] + shift[c];
            const float g = passed(load(dy[c]), y, low, high);
            store(g * scale[c] - (constant[c] + d * slope[c]), dx[c]);
        }
}

// ------------------------------------------------------------------ blocks, chunks, threads

// Rows are cut into chunks (for threads) and these into blocks (for the cache).
struct Plan {
    explicit Plan(Shape shape) : rows(shape.rows), channels(shape.channels) {
        fold = std::max<Index>(1, WIDTH / channels);
        width = fold * channels;
        // none of them empty
        chunks = std::clamp<Index>(rows * channels / SMALLEST, 1, std::min<Index>(rows, CHUNKS));
        block = std::max<Index>(1, BLOCK / width) * fold;
    }
    Index begin(Index chunk) const { return rows * chunk / chunks; }

    Index rows, channels, fold, width, chunks, block;
};

// A value for each channel in single precision, repeated for every row taken at once.
template <class Value>
std::vector<float> repeated(const Plan& plan, Value value) {
    std::vector<float> result(plan.width);
    for (Index c = 0; c < plan.channels; ++c) result[c] = static_cast<float>(value(c));
    for (Index c = plan.channels; c < plan.width; ++c) result[c] = result[c - plan.channels];
    return result;
}

// Calls task(first row, rows at once) for the wide part of some rows and then for what is left.
template <class Task>
void for_widths(const Plan& plan, Index begin, Index end, Task task) {
    const Index wide = (end - begin) / plan.fold, rest = begin + wide * plan.fold;
    if (wide > 0) task(begin, wide, plan.width);
    if (rest < end) task(rest, end - rest, plan.channels);
}

// Adds up what each of the rows taken at once has gathered, in double.
void unfold(const Plan& plan, const std::vector<float>& sums, double* result) {
    std::copy(sums.begin(), sums.begin() + plan.channels, result);
    for (Index k = plan.channels; k < plan.width; k += plan.channels)
        for (Index c = 0; c < plan.channels; ++c) result[c] += sums[k + c];
}

// Runs task(chunk) for every chunk. The second reading goes backwards: what the first one read last
// may still be in the cache.
template <class Task>
void for_chunks(const Plan& plan, bool backwards, int threads, Task task) {
    std::atomic<Index> done{0};
    const int parts = static_cast<int>(std::clamp<Index>(threads, 1, plan.chunks));
    sim3dr::in_parallel(parts, [&](int) {
        for (Index i; (i = done++) < plan.chunks;) task(backwards ? plan.chunks - 1 - i : i);
    });
}

// What turns x into y, in single precision: z = (x - mean) * scale + shift. The part of the mean
// that single precision cannot hold is in the shift.
struct Affine {
    Affine(const Plan& plan, const float* weight, const float* bias, const double* m,
           const double* inverse_std)
        : mean(repeated(plan, [&](Index c) { return m[c]; })),
          scale(repeated(plan, [&](Index c) { return weight[c] * inverse_std[c]; })),
          shift(repeated(plan, [&](Index c) {
              return bias[c] - (m[c] - mean[c]) * weight[c] * inverse_std[c];
          })) {}

    std::vector<float> mean, scale, shift;
};

// Room for a chunk's sums; allocated before threads run, where bad_alloc can be caught.
struct Sums {
    explicit Sums(const Plan& plan)
        : about(plan.width), first(plan.width), second(plan.width), total(2 * plan.channels),
          part(plan.channels) {}

    std::vector<float> about, first, second;
    std::vector<double> total, part;
};

// Mean and sum of squared deviations of one chunk. Twice over a block: its mean, then what single
// precision lost of it and the squares about it, which cannot cancel; blocks are joined in double
// (Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983).
template <class Number>
void chunk_statistics(const Plan& plan, const Number* x, Index begin, Index end, Sums& sums) {
    double* mean = sums.total.data();
    double* squares = mean + plan.channels;
    for (Index first = begin; first < end; first += plan.block) {
        const Index last = std::min(first + plan.block, end);
        const double n = static_cast<double>(last - first);
        const double before = static_cast<double>(first - begin), after = before + n;

        std::fill(sums.first.begin(), sums.first.end(), 0.0f);
        for_widths(plan, first, last, [&](Index row, Index rows, Index width) {
            add_rows(x + row * plan.channels, rows, width, sums.first.data());
        });
        unfold(plan, sums.first, sums.part.data());
        for (Index c = 0; c < plan.width; ++c)
            sums.about[c] = static_cast<float>(sums.part[c % plan.channels] / n);

        std::fill(sums.first.begin(), sums.first.end(), 0.0f);
        std::fill(sums.second.begin(), sums.second.end(), 0.0f);
        for_widths(plan, first, last, [&](Index row, Index rows, Index width) {
            add_deviations(x + row * plan.channels, rows, width, sums.about.data(),
                           sums.first.data(), sums.second.data());
        });
        unfold(plan, sums.first, sums.part.data());
        for (Index c = 0; c < plan.channels; ++c) {
            const double lost = sums.part[c] / n, step = sums.about[c] + lost - mean[c];
            squares[c] += step * step * (before * n / after) - lost * lost * n;
            mean[c] += step * (n / after);
        }
        unfold(plan, sums.second, sums.part.data());
        for (Index c = 0; c < plan.channels; ++c) squares[c] += sums.part[c];
    }
}

}  // namespace

template <class Number>
void forward(const Number* x, Shape shape, const float* weight, const float* bias, double eps,
             float low, float high, int threads, double* mean, double* variance,
             double* inverse_std, Number* y) {
    const Plan plan(shape);
    std::vector<Sums> sums(plan.chunks, Sums(plan));
    for_chunks(plan, false, threads, [&](Index chunk) {
        chunk_statistics(plan, x, plan.begin(chunk), plan.begin(chunk + 1), sums[chunk]);
    });
    for (Index c = 0; c < plan.channels; ++c) {
        double total = 0, squares = 0;
        for (Index k = 0; k < plan.chunks; ++k) {
            const double n = static_cast<double>(plan.begin(k + 1) - plan.begin(k));
            const double before = static_cast<double>(plan.begin(k)), after = before + n;
            const double step = sums[k].total[c] - total;
            squares += sums[k].total[plan.channels + c] + step * step * (before * n / after);
            total += step * (n / after);
        }
        mean[c] = total;
        variance[c] = squares > 0 || std::isnan(squares) ? squares / plan.rows : 0.0;
        inverse_std[c] = 1 / std::sqrt(variance[c] + eps);
    }
    const Affine affine(plan, weight, bias, mean, inverse_std);
    for_chunks(plan, true, threads, [&](Index chunk) {
        for_widths(plan, plan.begin(chunk), plan.begin(chunk + 1),
                   [&](Index row, Index rows, Index width) {
                       normalise_rows(x + row * plan.channels, rows, width, affine.mean.data(),
                                      affine.scale.data(), affine.shift.data(), low, high,
                                      y + row * plan.channels);
                   });
    });
}

template <class Number>
void backward(const Number* x, const Number* dy, Shape shape, const float* weight,
              const float* bias, const double* mean, const double* inverse_std, float low,
              float high, int threads, Number* dx, float* dweight, float* dbias) {
    const Plan plan(shape);
    const Affine affine(plan, weight, bias, mean, inverse_std);
    std::vector<Sums> sums(plan.chunks, Sums(plan));
    for_chunks(plan, false, threads, [&](Index chunk) {
        Sums& own = sums[chunk];
        const Index end = plan.begin(chunk + 1);
        for (Index first = plan.begin(chunk); first < end; first += plan.block) {
            std::fill(own.first.begin(), own.first.end(), 0.0f);
            std::fill(own.second.begin(), own.second.end(), 0.0f);
            for_widths(plan, first, std::min(first + plan.block, end),
                       [&](Index row, Index rows, Index width) {
                           add_gradients(x + row * plan.channels, dy + row * plan.channels, rows,
                                         width, affine.mean.data(), affine.scale.data(),
                                         affine.shift.data(), low, high, own.first.data(),
                                         own.second.data());
                       });
            double* total = own.total.data();
            for (const std::vector<float>* gathered : {&own.first, &own.second}) {
                unfold(plan, *gathered, own.part.data());
                for (Index c = 0; c < plan.channels; ++c) *total++ += own.part[c];
            }
        }
    });
    // dx = scale * (g - mean(g) - xhat * mean(g * xhat)), the sums taken about the rounded mean
    std::vector<double> constant(plan.channels), slope(plan.channels);
    for (Index c = 0; c < plan.channels; ++c) {
        double gradient = 0, product = 0;
        for (Index k = 0; k < plan.chunks; ++k) {
            gradient += sums[k].total[c];
            product += sums[k].total[plan.channels + c];
        }
        const double rounding = mean[c] - affine.mean[c];
        product -= rounding * gradient;
        dbias[c] = static_cast<float>(gradient);
        dweight[c] = static_cast<float>(product * inverse_std[c]);
        const double scale = weight[c] * inverse_std[c] / plan.rows;
        slope[c] = scale * product * inverse_std[c] * inverse_std[c];
        constant[c] = scale * gradient - rounding * slope[c];
    }
    if (dx == nullptr) return;
    const auto constants = repeated(plan, [&](Index c) { return constant[c]; });
    const auto slopes = repeated(plan, [&](Index c) { return slope[c]; });
    for_chunks(plan, true, threads, [&](Index chunk) {
        for_widths(plan, plan.begin(chunk), plan.begin(chunk + 1),
                   [&](Index row, Index rows, Index width) {
                       const Index at = row * plan.channels;
                       input_gradient(x + at, dy + at, rows, width, affine.mean.data(),
                                      affine.scale.data(), affine.shift.data(), constants.data(),
                                      slopes.data(), low, high, dx + at);
                   });
    });
}

#define FOR_NUMBERS(Number)                                                                       \
    template void forward(const Number*, Shape, const float*, const float*, double, float, float, \
                          int, double*, double*, double*, Number*);                               \
    template void backward(const Number*, const Number*, Shape, const float*, const float*,       \
                           const double*, const double*, float, float, int, Number*, float*,      \
                           float*);
FOR_NUMBERS(float)
FOR_NUMBERS(BFloat16)

}  // namespace fused_norm
