#include "fused_norm_kernel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <thread>
#include <vector>

#ifdef _MSC_VER
#define RESTRICT __restrict
#else
#define RESTRICT __restrict__
#endif

namespace fused_norm {
namespace {

using Index = std::ptrdiff_t;

constexpr Index CHUNKS = 64;           // units of work for threads
constexpr Index SMALLEST = 1 << 16;    // numbers in a chunk: less is not worth a thread
constexpr Index BLOCK = 1 << 14;       // numbers that stay in the cache between two readings
constexpr Index WIDTH = 256;           // narrow rows are taken several at once, up to this width

// ------------------------------------------------------------------ inner loops over `width`
//
// Independent channels, which every compiler turns into vectors. Memory sets the pace: twice as wide
// vectors than x86-64's least (AVX2) make them a tenth faster, too little for code that chooses.

void add_rows(const float* RESTRICT x, Index rows, Index width, float* RESTRICT sum) {
    for (; rows >= 4; rows -= 4, x += 4 * width)
        for (Index c = 0; c < width; ++c)
            sum[c] += (x[c] + x[width + c]) + (x[2 * width + c] + x[3 * width + c]);
    for (; rows > 0; --rows, x += width)
        for (Index c = 0; c < width; ++c) sum[c] += x[c];
}

void add_deviations(const float* RESTRICT x, Index rows, Index width, const float* RESTRICT mean,
                    float* RESTRICT sum, float* RESTRICT squares) {
    for (; rows >= 4; rows -= 4, x += 4 * width)
        for (Index c = 0; c < width; ++c) {
            const float m = mean[c];
            const float p = x[c] - m, q = x[width + c] - m;
            const float r = x[2 * width + c] - m, s = x[3 * width + c] - m;
            sum[c] += (p + q) + (r + s);
            squares[c] += (p * p + q * q) + (r * r + s * s);
        }
    for (; rows > 0; --rows, x += width)
        for (Index c = 0; c < width; ++c) {
            const float p = x[c] - mean[c];
            sum[c] += p;
            squares[c] += p * p;
        }
}

// Comparisons written so that NaN stays NaN, as torch's clamp has it.
void normalise_rows(const float* RESTRICT x, Index rows, Index width,
                           const float* RESTRICT mean, const float* RESTRICT scale,
                           const float* RESTRICT shift, float low, float high,
                           float* RESTRICT y) {
    for (; rows > 0; --rows, x += width, y += width)
        for (Index c = 0; c < width; ++c) {
            float z = (x[c] - mean[c]) * scale[c] + shift[c];
            z = z < low ? low : z;
            y[c] = z > high ? high : z;
        }
}

// The gradient through the clamp; by value, so that it is read whatever the comparison says.
inline float passed(float dy, float y, float low, float high) {
    return (y <= low) | (y >= high) ? 0.0f : dy;
}

void add_gradients(const float* RESTRICT x, const float* RESTRICT dy, Index rows,
                          Index width, const float* RESTRICT mean, const float* RESTRICT scale,
                          const float* RESTRICT shift, float low, float high, float* RESTRICT sum,
                          float* RESTRICT product) {
    for (; rows >= 2; rows -= 2, x += 2 * width, dy += 2 * width)
        for (Index c = 0; c < width; ++c) {
            const float p = x[c] - mean[c], q = x[width + c] - mean[c];
            const float y = p * scale[c] + shift[c], z = q * scale[c] + shift[c];
            const float g = passed(dy[c], y, low, high), h = passed(dy[width + c], z, low, high);
            sum[c] += g + h;
            product[c] += g * p + h * q;
        }
    if (rows > 0)
        for (Index c = 0; c < width; ++c) {
            const float p = x[c] - mean[c], y = p * scale[c] + shift[c];
            const float g = passed(dy[c], y, low, high);
            sum[c] += g;
            product[c] += g * p;
        }
}

void input_gradient(const float* RESTRICT x, const float* RESTRICT dy, Index rows,
                           Index width, const float* RESTRICT mean, const float* RESTRICT scale,
                           const float* RESTRICT shift, const float* RESTRICT constant,
                           const float* RESTRICT slope, float low, float high,
                           float* RESTRICT dx) {
    for (; rows > 0; --rows, x += width, dy += width, dx += width)
        for (Index c = 0; c < width; ++c) {
            const float d = x[c] - mean[c], y = d * scale[c] + shift[c];
            const float g = passed(dy[c], y, low, high);
            dx[c] = g * scale[c] - (constant[c] + d * slope[c]);
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
    auto work = [&] {
        for (Index i; (i = done++) < plan.chunks;) task(backwards ? plan.chunks - 1 - i : i);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(std::max(0, threads - 1));
    try {
        while (static_cast<Index>(helpers.size()) + 1 < std::min<Index>(threads, plan.chunks))
            helpers.emplace_back(work);
    } catch (const std::exception&) {
        // no more threads, or no memory for one: those that run do it all
    }
    work();
    for (std::thread& helper : helpers) helper.join();
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
void chunk_statistics(const Plan& plan, const float* x, Index begin, Index end, Sums& sums) {
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

void forward(const float* x, Shape shape, const float* weight, const float* bias, double eps,
             float low, float high, int threads, double* mean, double* variance,
             double* inverse_std, float* y) {
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

void backward(const float* x, const float* dy, Shape shape, const float* weight, const float* bias,
              const double* mean, const double* inverse_std, float low, float high, int threads,
              float* dx, float* dweight, float* dbias) {
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

}  // namespace fused_norm
