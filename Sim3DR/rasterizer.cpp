// Z-buffer and attribute interpolation.
//
// What counts is the float arithmetic of `Weights`: a pixel belongs to a triangle exactly if that
// says so. Everything around it (boxes, spans, blocks) only spares pixels that it would refuse.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#include "kernel.h"
#include "portable.h"

namespace sim3dr {
namespace {

constexpr int BLOCK = 64;         // triangles that are looked at together
constexpr int LANES = 8;          // pixels of a row that are computed together,
constexpr int MANY_LANES = 16;    // where there are registers enough for so many
constexpr int ROWS = 16;          // rows whose spans are computed together
constexpr int NARROW = 2;         // boxes up to this width go pixel by pixel
constexpr Index STRIP = 1 << 17;  // pixels whose buffers (8 bytes each) stay in the cache
constexpr int CHUNK = 256;        // pixels of a row that are held before they are stored

struct Corners {
    const float *a, *b, *c;
};

SIM3DR_INLINE Corners corners(const float* values, int columns, const std::int32_t* triangle) {
    return {values + columns * static_cast<Index>(triangle[0]),
            values + columns * static_cast<Index>(triangle[1]),
            values + columns * static_cast<Index>(triangle[2])};
}

// What the dot products of a triangle's edges leave to do for each pixel (method: barycentrics of
// p = A + u (C - A) + v (B - A) by Cramer's rule, times the reciprocal of the determinant).
struct Weights {
    SIM3DR_INLINE explicit Weights(Corners t)
        : ax(t.a[0]), ay(t.a[1]), bx(t.b[0] - ax), by(t.b[1] - ay), cx(t.c[0] - ax),
          cy(t.c[1] - ay), d00(cx * cx + cy * cy), d01(cx * bx + cy * by), d11(bx * bx + by * by),
          determinant(d00 * d11 - d01 * d01), reciprocal(1.0f / determinant) {}

    // For a sliver the determinant is a difference of nearly equal numbers. Below this bound it is
    // no more than their rounding error, which would paint stray pixels of the bounding box (or
    // underflows).
    SIM3DR_INLINE bool sliver() const { return !(determinant > 1e-6f * (d00 * d11) + 1e-30f); }

    SIM3DR_INLINE void at(float x, float y, float& u, float& v) const {
        const float px = x - ax, py = y - ay;
        const float d02 = cx * px + cy * py;
        const float d12 = bx * px + by * py;
        u = (d11 * d02 - d01 * d12) * reciprocal;
        v = (d00 * d12 - d01 * d02) * reciprocal;
    }

    float ax, ay, bx, by, cx, cy, d00, d01, d11, determinant, reciprocal;
};

// The same of a sliver, in double: the cross product keeps its leading digits, and it is zero for
// collinear corners wherever double holds their differences (numbers less than 2^29 times apart).
struct SliverWeights {
    explicit SliverWeights(Corners t)
        : ax(t.a[0]), ay(t.a[1]), bx(t.b[0] - ax), by(t.b[1] - ay), cx(t.c[0] - ax),
          cy(t.c[1] - ay), area(cx * by - cy * bx) {}

    bool collinear() const { return area == 0.0; }

    SIM3DR_INLINE void at(float x, float y, float& u, float& v) const {
        const double px = x - ax, py = y - ay;
        u = static_cast<float>((px * by - py * bx) / area);
        v = static_cast<float>((cx * py - cy * px) / area);
    }

    double ax, ay, bx, by, cx, cy, area;
};

SIM3DR_INLINE float mix(float a, float b, float c, float u, float v) {
    return (1.0f - u - v) * a + v * b + u * c;
}

// Comparisons that compilers turn into one instruction.
SIM3DR_INLINE float least(float a, float b) { return a < b ? a : b; }
SIM3DR_INLINE float greatest(float a, float b) { return a > b ? a : b; }

SIM3DR_INLINE bool inside(float u, float v) { return (least(u, v) >= 0.0f) & (u + v < 1.0f); }

// floor and ceil for numbers that fit, also where the processor has no instruction for them.
SIM3DR_INLINE std::int32_t round_up(float x) {
    const std::int32_t i = static_cast<std::int32_t>(x);
    return i + (x > static_cast<float>(i));
}

SIM3DR_INLINE std::int32_t round_down(float x) {
    const std::int32_t i = static_cast<std::int32_t>(x);
    return i - (x < static_cast<float>(i));
}

struct Box {  // of pixels, both ends included
    std::int32_t x_first, x_last, y_first, y_last;
};

enum Fate : std::int32_t { NOTHING, CAREFUL, SOUND };

// A block of triangles: their corners (x, y), the pixels they may cover, how to go on with them.
struct Batch {
    float a[2 * BLOCK], b[2 * BLOCK], c[2 * BLOCK];
    std::int32_t x_first[BLOCK], x_last[BLOCK], y_first[BLOCK], y_last[BLOCK], fate[BLOCK];

    Box box(int k) const { return {x_first[k], x_last[k], y_first[k], y_last[k]}; }
};

// Finds the few triangles of a batch that may cover a pixel of the window. No branches, so that it
// runs in vectors.
//
// A triangle is SOUND where rounding can do little. With L the longer edge at A, eps = 2^-24 and
// the determinant above s L^4, the numerators of u and v are wrong by at most 14 eps L^3 |p|, so u
// and v by e = 1e-6 |p| / (s L). A pixel that passes the test then lies at most 4 e L beyond the
// triangle, and |p| <= 1.42 (L + 1) for pixels of the outward-rounded box. With s = 0.001 + 1e-5 L
// this is less than the margin below (width + height is at least L), and less than the pixel that
// separates the outward-rounded box from what lies beyond, MANY_LANES pixels farther too. So boxes
// may be tight, and lanes beyond a box need no test of their own. (Subtracting a margin rounds
// monotonically: it never passes a whole pixel.)
SIM3DR_INLINE void classify(Batch& batch, Window window) {
    const float left = static_cast<float>(window.x0), top = static_cast<float>(window.y0);
    const float right = static_cast<float>(window.x0 + window.width - 1);
    const float bottom = static_cast<float>(window.y0 + window.height - 1);
    for (int k = 0; k < BLOCK; ++k) {
        const float ax = batch.a[2 * k], ay = batch.a[2 * k + 1];
        const float x2 = batch.b[2 * k], y2 = batch.b[2 * k + 1];
        const float x3 = batch.c[2 * k], y3 = batch.c[2 * k + 1];
        const float bx = x2 - ax, by = y2 - ay, cx = x3 - ax, cy = y3 - ay;
        const float d00 = cx * cx + cy * cy, d01 = cx * bx + cy * by, d11 = bx * bx + by * by;
        const float determinant = d00 * d11 - d01 * d01;
        const float longest = greatest(d00, d11);
        const float x_min = least(least(ax, x2), x3), x_max = greatest(greatest(ax, x2), x3);
        const float y_min = least(least(ay, y2), y3), y_max = greatest(greatest(ay, y2), y3);
        const float size = (x_max - x_min) + (y_max - y_min);
        const bool sound = determinant > (1e-3f + 1e-5f * size) * (longest * longest) + 1e-30f;
        const float margin = sound ? 0.015f + 0.01f * size : 1.0f;
        const std::int32_t x_first = round_up(greatest(x_min - margin, left));
        const std::int32_t x_last = round_down(least(x_max + margin, right));
        const std::int32_t y_first = round_up(greatest(y_min - margin, top));
        const std::int32_t y_last = round_down(least(y_max + margin, bottom));
        // Where the box is one pixel, that pixel is tested, up to the reciprocal's rounding.
        const float px = static_cast<float>(x_first) - ax, py = static_cast<float>(y_first) - ay;
        const float d02 = cx * px + cy * py, d12 = bx * px + by * py;
        const float u = d11 * d02 - d01 * d12, v = d00 * d12 - d01 * d02;
        const float tolerance = 1e-5f * determinant;
        const bool outside = (least(u, v) < -tolerance) | (u + v > determinant + tolerance);
        const bool single = (x_first == x_last) & (y_first == y_last);
        const bool empty = (x_first > x_last) | (y_first > y_last);
        const bool nothing = empty | (sound & single & outside);
        batch.x_first[k] = x_first;
        batch.x_last[k] = x_last;
        batch.y_first[k] = y_first;
        batch.y_last[k] = y_last;
        batch.fate[k] = nothing ? NOTHING : sound ? SOUND : CAREFUL;
    }
}

// What a pixel shows, four bytes of it: the triangle's index,
struct ShowIndex {
    struct Triangle {
        static constexpr int lanes = MANY_LANES;
        std::int32_t index;
        SIM3DR_INLINE std::int32_t at(float, float) const { return index; }
    };

    SIM3DR_INLINE Triangle operator()(Index t) const { return {static_cast<std::int32_t>(t)}; }
};

// or its three colours.
template <int lanes_>
struct ShowColors {
    const float* colors;
    const std::int32_t* triangles;

    struct Triangle {
        static constexpr int lanes = lanes_;
        float a0, a1, a2, b0, b1, b2, c0, c1, c2;
        SIM3DR_INLINE std::int32_t at(float u, float v) const {
            // Inside a triangle the weights add to one up to rounding: at most 255.0001.
            return static_cast<std::int32_t>(mix(a0, b0, c0, u, v) * 255.0f) |
                   static_cast<std::int32_t>(mix(a1, b1, c1, u, v) * 255.0f) << 8 |
                   static_cast<std::int32_t>(mix(a2, b2, c2, u, v) * 255.0f) << 16;
        }
    };

    SIM3DR_INLINE Triangle operator()(Index t) const {
        const Corners k = corners(colors, 3, triangles + 3 * t);
        return {k.a[0], k.a[1], k.a[2], k.b[0], k.b[1], k.b[2], k.c[0], k.c[1], k.c[2]};
    }
};

// A part of the picture, and how triangles are painted on it.
struct Canvas {
    Window window;
    float* depth;
    std::int32_t* shown;

    Index area() const { return static_cast<Index>(window.width) * window.height; }

    SIM3DR_INLINE Index row(int y) const {
        return static_cast<Index>(y - window.y0) * window.width - window.x0;
    }

    template <class AnyWeights, class Triangle>
    SIM3DR_INLINE void pixels(const AnyWeights& weights, Corners t, const Triangle& show,
                              Box box) const {
        for (int y = box.y_first; y <= box.y_last; ++y) {
            for (int x = box.x_first; x <= box.x_last; ++x) {
                float u, v;
                weights.at(static_cast<float>(x), static_cast<float>(y), u, v);
                if (!inside(u, v)) continue;
                const float z = mix(t.a[2], t.b[2], t.c[2], u, v);
                const Index at = row(y) + x;
                if (!(z > depth[at])) continue;
                depth[at] = z;
                shown[at] = show.at(u, v);
            }
        }
    }

    template <class Triangle>
    SIM3DR_INLINE void lanes(const Weights& weights, float az, float bz, float cz,
                             const Triangle& show, int x, int y) const {
        const Index at = row(y) + x;  // row(y) alone may lie before the arrays
        float* SIM3DR_RESTRICT depths = depth + at;
        std::int32_t* SIM3DR_RESTRICT values = shown + at;
        for (int k = 0; k < Triangle::lanes; ++k) {
            float u, v;
            weights.at(static_cast<float>(x) + static_cast<float>(k), static_cast<float>(y), u, v);
            const float z = mix(az, bz, cz, u, v);
            const bool visible = inside(u, v) & (z > depths[k]);
            depths[k] = visible ? z : depths[k];
            const std::int32_t value = show.at(visible ? u : 0.0f, visible ? v : 0.0f);
            values[k] = visible ? value : values[k];
        }
    }

    // Row by row, in blocks of lanes; a block that would leave the window is moved back into it.
    template <class Triangle>
    SIM3DR_INLINE void rows(const Weights& weights, Corners t, const Triangle& show,
                            Box box) const {
        const float az = t.a[2], bz = t.b[2], cz = t.c[2];
        const int last_block = window.x0 + window.width - Triangle::lanes;
        if (box.x_last - box.x_first < Triangle::lanes) {
            const int x = std::min(box.x_first, last_block);
            for (int y = box.y_first; y <= box.y_last; ++y)
                lanes(weights, az, bz, cz, show, x, y);
            return;
        }
        // u, v and 1 - u - v are linear along a row: where they pass a margin the span ends. They
        // are wrong by less than 0.006 here (L is at least 2), the margin is 0.02.
        const float ux = (weights.d11 * weights.cx - weights.d01 * weights.bx) * weights.reciprocal;
        const float uy = (weights.d11 * weights.cy - weights.d01 * weights.by) * weights.reciprocal;
        const float vx = (weights.d00 * weights.bx - weights.d01 * weights.cx) * weights.reciprocal;
        const float vy = (weights.d00 * weights.by - weights.d01 * weights.cy) * weights.reciprocal;
        const float wx = -(ux + vx);
        const float inverse_u = 1.0f / ux, inverse_v = 1.0f / vx, inverse_w = 1.0f / wx;
        const float low = static_cast<float>(box.x_first), high = static_cast<float>(box.x_last);
        auto narrow = [ax = weights.ax](float slope, float inverse, float value, float& begin,
                                        float& end) {
            const float x = (-0.02f - value) * inverse + ax;
            begin = ((slope > 0.0f) & (x > begin)) ? x : begin;
            end = ((slope < 0.0f) & (x < end)) ? x : end;
        };
        for (int y0 = box.y_first; y0 <= box.y_last; y0 += ROWS) {
            std::int32_t first[ROWS], last[ROWS];
            for (int r = 0; r < ROWS; ++r) {
                const float py = static_cast<float>(y0 + r) - weights.ay;
                const float u = uy * py, v = vy * py;
                float begin = low, end = high;
                narrow(ux, inverse_u, u, begin, end);
                narrow(vx, inverse_v, v, begin, end);
                narrow(wx, inverse_w, 1.0f - u - v, begin, end);
                first[r] = round_up(begin < high + 1 ? begin : high + 1);
                last[r] = round_down(end > low - 1 ? end : low - 1);
            }
            const int count = std::min(ROWS, box.y_last - y0 + 1);
            for (int r = 0; r < count; ++r) {
                int x = first[r];
                do {  // most spans are one block, few are empty: not worth a branch of their own
                    lanes(weights, az, bz, cz, show, std::min(x, last_block), y0 + r);
                    x += Triangle::lanes;
                } while (x <= last[r]);
            }
        }
    }

    // Where rounding may count: every pixel of the bounding box, rounded outward.
    template <class Triangle>
    void carefully(Corners t, const Triangle& show, Box box) const {
        auto low = [&t](int k) { return round_down(std::min({t.a[k], t.b[k], t.c[k]})); };
        auto high = [&t](int k) { return round_up(std::max({t.a[k], t.b[k], t.c[k]})); };
        box = {std::max(box.x_first, low(0)), std::min(box.x_last, high(0)),
               std::max(box.y_first, low(1)), std::min(box.y_last, high(1))};
        const Weights weights(t);
        if (!weights.sliver()) return pixels(weights, t, show, box);
        const SliverWeights exact(t);
        if (!exact.collinear()) pixels(exact, t, show, box);
    }
};

// Finds the triangles begin <= t < end that may cover a pixel of the window, and calls
// use(t, fate, box) for each, in their order. False if an index is not one of a vertex; that
// triangle is not used.
template <class Use>
SIM3DR_INLINE bool find(const Mesh& mesh, Window window, Index begin, Index end, const Use& use) {
    Batch batch;
    const auto limit = static_cast<std::uint32_t>(
        std::min<Index>(mesh.n_vertices, std::numeric_limits<std::int32_t>::max()));
    for (Index start = begin; start < end; start += BLOCK) {
        const int count = static_cast<int>(std::min<Index>(BLOCK, end - start));
        const std::int32_t* indices = mesh.triangles + 3 * start;
        std::uint32_t outside = 0;
        for (int i = 0; i < 3 * count; ++i)
            outside |= static_cast<std::uint32_t>(indices[i]) >= limit;
        if (outside) return false;
        for (int k = 0; k < count; ++k) {
            const Corners t = corners(mesh.vertices, 3, indices + 3 * k);
            std::memcpy(batch.a + 2 * k, t.a, 2 * sizeof(float));
            std::memcpy(batch.b + 2 * k, t.b, 2 * sizeof(float));
            std::memcpy(batch.c + 2 * k, t.c, 2 * sizeof(float));
        }
        for (int k = 2 * count; k < 2 * BLOCK; ++k) batch.a[k] = batch.b[k] = batch.c[k] = 0.0f;
        classify(batch, window);
        for (int k = 0; k < count; ++k)
            if (batch.fate[k] != NOTHING) use(start + k, batch.fate[k], batch.box(k));
    }
    return true;
}

// Paints one triangle, as far as it lies in the box.
template <class Show>
struct Painter {
    const Mesh& mesh;
    const Canvas& canvas;
    const Show& show_triangle;

    SIM3DR_INLINE void operator()(Index t, std::int32_t fate, Box box) const {
        const Corners corner = corners(mesh.vertices, 3, mesh.triangles + 3 * t);
        const auto show = show_triangle(t);
        if (fate == CAREFUL)
            canvas.carefully(corner, show, box);
        else if (box.x_last - box.x_first < NARROW || canvas.window.width < show.lanes)
            canvas.pixels(Weights(corner), corner, show, box);
        else
            canvas.rows(Weights(corner), corner, show, box);
    }
};

// A triangle that `find` has found, kept until its strips are painted.
struct Found {
    std::int32_t triangle, fate;
    Box box;
};

// The triangles that touch a strip, in their order, as places in `found`. Without `found` nobody
// has looked for them yet.
struct Bin {
    const Found* found = nullptr;
    const std::int32_t *begin = nullptr, *end = nullptr;
};

struct Remember {
    Found*& next;

    SIM3DR_INLINE void operator()(Index t, std::int32_t fate, Box box) const {
        *next++ = {static_cast<std::int32_t>(t), fate, box};
    }
};

SIM3DR_CLONES
bool find_all(const Mesh& mesh, Window window, Index begin, Index end, Found*& next) {
    return find(mesh, window, begin, end, Remember{next});
}

// Paints the triangles of a bin on a strip, or finds them where nobody has looked yet. False if an
// index is not one of a vertex.
template <class Show>
SIM3DR_INLINE bool paint(const Mesh& mesh, const Canvas& strip, const Bin& bin, const Show& show) {
    const Painter<Show> paint_triangle{mesh, strip, show};
    if (!bin.found) return find(mesh, strip.window, 0, mesh.n_triangles, paint_triangle);
    const int top = strip.window.y0, bottom = top + strip.window.height - 1;
    for (const std::int32_t* i = bin.begin; i != bin.end; ++i) {
        const Found& found = bin.found[*i];
        Box box = found.box;
        box.y_first = std::max(box.y_first, top);
        box.y_last = std::min(box.y_last, bottom);
        paint_triangle(found.triangle, found.fate, box);
    }
    return true;
}

SIM3DR_CLONES
bool paint_indices(const Mesh& mesh, const Canvas& strip, const Bin& bin) {
    return paint(mesh, strip, bin, ShowIndex{});
}

#if defined(SIM3DR_AVX512)
SIM3DR_AVX512
bool paint_colors_avx512(const Mesh& mesh, const Canvas& strip, const Bin& bin,
                         const float* colors) {
    return paint(mesh, strip, bin, ShowColors<MANY_LANES>{colors, mesh.triangles});
}
#endif

// Three colours of MANY_LANES pixels take more registers than AVX2 has.
SIM3DR_CLONES
bool paint_colors(const Mesh& mesh, const Canvas& strip, const Bin& bin, const float* colors) {
#if defined(SIM3DR_AVX512)
    if (__builtin_cpu_supports("x86-64-v4")) return paint_colors_avx512(mesh, strip, bin, colors);
#endif
    return paint(mesh, strip, bin, ShowColors<LANES>{colors, mesh.triangles});
}

// `count` bytes of a picture over an image: alpha times them plus 1 - alpha times what lies under,
// rounded. `covered` is 255 where the picture shows something, else 0: the image stays there.
SIM3DR_INLINE void put_over(const std::uint8_t* SIM3DR_RESTRICT pixels,
                            const std::uint8_t* SIM3DR_RESTRICT covered, int count,
                            const std::uint8_t* under, float alpha, std::uint8_t* image) {
    if (alpha == 1.0f) {
        for (int i = 0; i < count; ++i)
            image[i] = (pixels[i] & covered[i]) | (image[i] & ~covered[i]);
        return;
    }
    const float rest = 1.0f - alpha;
    for (int i = 0; i < count; ++i) {
        const float blend =
            alpha * static_cast<float>(pixels[i]) + rest * static_cast<float>(under[i]);
        // Adding and subtracting 1.5 * 2^23 rounds to whole numbers, halves to even.
        const float whole = (blend + 12582912.0f) - 12582912.0f;
        const auto byte = static_cast<std::uint8_t>(static_cast<std::int32_t>(whole));
        image[i] = (byte & covered[i]) | (image[i] & ~covered[i]);
    }
}

// The colours that a strip shows, over the image from `row` on.
SIM3DR_CLONES
void put_colors(const Canvas& canvas, const Image& image, int row) {
    std::uint8_t pixels[3 * CHUNK], covered[3 * CHUNK];
    for (int y = 0; y < canvas.window.height; ++y)
        for (int start = 0; start < canvas.window.width; start += CHUNK) {
            const std::int32_t* shown =
                canvas.shown + static_cast<Index>(y) * canvas.window.width + start;
            const int count = std::min(CHUNK, canvas.window.width - start);
            for (int x = 0; x < count; ++x)
                for (int c = 0; c < 3; ++c) {
                    pixels[3 * x + c] = static_cast<std::uint8_t>(shown[x] >> 8 * c);
                    covered[3 * x + c] = shown[x] < 0 ? 0 : 255;
                }
            put_over(pixels, covered, 3 * count,
                     image.under + (row + y) * image.under_stride + 3 * start, image.alpha,
                     image.pixels + (row + y) * image.stride + 3 * start);
        }
}

// A window in strips of rows: few enough pixels for the cache, enough strips for the threads.
struct Strips {
    Strips(Window all, int threads) : window(all) {
        const Index most = std::min<Index>(std::max<Index>(STRIP / all.width, 1),
                                           (all.height - 1) / (threads > 1 ? 4 * threads : 1) + 1);
        while ((Index(2) << shift) <= most) ++shift;
        if (most >= all.height)
            while ((1 << shift) < all.height) ++shift;  // one strip
        count = ((all.height - 1) >> shift) + 1;
    }

    Index area() const {
        return static_cast<Index>(std::min(1 << shift, window.height)) * window.width;
    }

    Window operator[](int i) const {
        const int first = i << shift;
        return {window.x0, window.y0 + first, window.width,
                std::min(1 << shift, window.height - first)};
    }

    Window window;
    int shift = 0, count;
};

// The triangles that touch each strip.
class Bins {
  public:
    // False if an index is not one of a vertex.
    bool fill(const Mesh& mesh, const Strips& strips, int threads) {
        const int parts = static_cast<int>(
            std::min<Index>(threads, std::max<Index>(mesh.n_triangles / LEAST_SHARE, 1)));
        auto first = [&](int part) { return mesh.n_triangles * part / parts; };
        found_.reset(new Found[mesh.n_triangles]);
        std::vector<Found*> ends(parts);
        std::atomic<bool> valid{true};
        in_parallel(parts, [&](int part) {
            ends[part] = found_.get() + first(part);
            if (!find_all(mesh, strips.window, first(part), first(part + 1), ends[part]))
                valid = false;
        });
        if (!valid) return false;

        // Counting sort, which keeps the order.
        auto for_all = [&](auto use) {
            for (int part = 0; part < parts; ++part)
                for (const Found* f = found_.get() + first(part); f != ends[part]; ++f)
                    for (int i = (f->box.y_first - strips.window.y0) >> strips.shift;
                         i <= (f->box.y_last - strips.window.y0) >> strips.shift; ++i)
                        use(i, static_cast<std::int32_t>(f - found_.get()));
        };
        ends_.assign(strips.count + 1, 0);
        for_all([&](int i, std::int32_t) { ++ends_[i + 1]; });
        for (int i = 0; i < strips.count; ++i) ends_[i + 1] += ends_[i];
        order_.reset(new std::int32_t[ends_.back()]);
        std::vector<Index> next(ends_.begin(), ends_.end() - 1);
        for_all([&](int i, std::int32_t place) { order_[next[i]++] = place; });
        return true;
    }

    Bin operator[](int i) const {
        if (!found_) return {};
        return {found_.get(), order_.get() + ends_[i], order_.get() + ends_[i + 1]};
    }

  private:
    static constexpr Index LEAST_SHARE = 10000;  // triangles that are worth a thread
    std::unique_ptr<Found[]> found_;
    std::unique_ptr<std::int32_t[]> order_;
    std::vector<Index> ends_;
};

// paint(part, window, bin) for every strip of a window; part is the thread that does it. Every
// pixel sees its triangles in their order, so the result is that of one thread. False if one of
// them says so, or if an index is not one of a vertex.
template <class Paint>
bool in_strips(const Mesh& mesh, const Strips& strips, int threads, const Paint& paint) {
    Bins bins;
    if (strips.count > 1 && !bins.fill(mesh, strips, threads)) return false;
    std::atomic<int> next{0};
    std::atomic<bool> valid{true};
    in_parallel(std::min(threads, strips.count), [&](int part) {
        for (int i; (i = next++) < strips.count;)
            if (!paint(part, strips[i], bins[i])) valid = false;
    });
    return valid;
}

void clear(const Canvas& canvas) {
    std::fill_n(canvas.depth, canvas.area(), -std::numeric_limits<float>::infinity());
    std::fill_n(canvas.shown, canvas.area(), -1);
}

}  // namespace

bool zbuffer(Mesh mesh, Window window, float* depth, std::int32_t* triangle, int threads) {
    return in_strips(mesh, {window, threads}, threads, [=](int, Window strip, Bin bin) {
        const Index first = static_cast<Index>(strip.y0 - window.y0) * window.width;
        const Canvas canvas = {strip, depth + first, triangle + first};
        clear(canvas);
        return paint_indices(mesh, canvas, bin);
    });
}

bool rasterize(Mesh mesh, Window window, const float* colors, Image image, int threads) {
    const Strips strips(window, threads);
    const int parts = std::min(threads, strips.count);
    const std::unique_ptr<float[]> depth(new float[parts * strips.area()]);
    const std::unique_ptr<std::int32_t[]> shown(new std::int32_t[parts * strips.area()]);
    return in_strips(mesh, strips, threads, [&](int part, Window strip, Bin bin) {
        const Index first = part * strips.area();
        const Canvas canvas = {strip, depth.get() + first, shown.get() + first};
        clear(canvas);
        if (!paint_colors(mesh, canvas, bin, colors)) return false;
        put_colors(canvas, image, strip.y0 - window.y0);
        return true;
    });
}

namespace {

constexpr int STRIDE = CHUNK + LANES;  // a plane of values: a run's last lanes may lie beyond

template <class AnyWeights>
SIM3DR_INLINE void weigh(const AnyWeights& weights, int x, int y, float* SIM3DR_RESTRICT u,
                         float* SIM3DR_RESTRICT v) {
    SIM3DR_VECTORISE
    for (int k = 0; k < LANES; ++k) {
        float second, third;
        weights.at(static_cast<float>(x + k), static_cast<float>(y), third, second);
        u[k] = third;
        v[k] = second;
    }
}

// Values of the pixels from (x, y) on that show the triangle with these corners, `ids` being its
// index: LANES at once, channel by channel in planes. Returns how many pixels are done; what lies
// in the planes beyond is of no use.
template <class Channels>
SIM3DR_INLINE int interpolate_run(Corners t, Corners value, Channels channels,
                                  const std::int32_t* ids, int x, int y, float* planes) {
    const Weights weights(t);
    const std::int32_t id = *ids;
    int done = 0, same;
    do {
        float u[LANES], v[LANES];
        if (!weights.sliver())
            weigh(weights, x + done, y, u, v);
        else
            weigh(SliverWeights(t), x + done, y, u, v);
        for (int c = 0; c < channels; ++c) {
            float* SIM3DR_RESTRICT plane = planes + c * Index(STRIDE) + done;
            const float first = value.a[c], second = value.b[c], third = value.c[c];
            SIM3DR_VECTORISE
            for (int k = 0; k < LANES; ++k) plane[k] = mix(first, second, third, u[k], v[k]);
        }
        same = 0;  // without branches: where runs end is hard to predict
        for (int k = 0, still = 1; k < LANES; ++k) same += still &= ids[done + k] == id;
        done += same;
    } while (same == LANES && ids[done] == id);
    return done;
}

// Interpolates one row in chunks, run by run of pixels that show the same triangle, so that its
// set-up is done once for each. False if a triangle's index is not below n_triangles.
template <class Channels>
SIM3DR_INLINE bool interpolate_row(const Mesh& mesh, Window window, int y,
                                   const std::int32_t* triangle, const Attributes& attributes,
                                   Channels channels, float* planes, float* image) {
    std::int32_t ids[CHUNK + LANES];
    for (int start = 0; start < window.width; start += CHUNK) {
        const int count = std::min(CHUNK, window.width - start);
        std::copy_n(triangle + start, count, ids);
        std::fill_n(ids + count, LANES, -1);
        for (int x = 0; x < count;) {
            const Index id = ids[x];
            if (id >= mesh.n_triangles) return false;
            if (id < 0) {
                ++x;
                continue;
            }
            const Corners t = corners(mesh.vertices, 3, mesh.triangles + 3 * id);
            const Corners value =
                corners(attributes.values, channels, attributes.triangles + 3 * id);
            x += interpolate_run(t, value, channels, ids + x, window.x0 + start + x, y, planes + x);
        }
        float* SIM3DR_RESTRICT pixels = image + static_cast<Index>(start) * channels;
        for (int x = 0; x < count; ++x)
            for (int c = 0; c < channels; ++c) {
                float& value = pixels[x * channels + c];
                value = ids[x] < 0 ? value : planes[c * Index(STRIDE) + x];
            }
    }
    return true;
}

// Three channels known to the compiler are twice as fast as any number.
SIM3DR_CLONES
bool interpolate_row(const Mesh& mesh, Window window, int y, const std::int32_t* triangle,
                     const Attributes& attributes, float* planes, float* image) {
    if (attributes.channels == 3)
        return interpolate_row(mesh, window, y, triangle, attributes,
                               std::integral_constant<int, 3>(), planes, image);
    return interpolate_row(mesh, window, y, triangle, attributes, attributes.channels, planes,
                           image);
}

}  // namespace

bool interpolate(Mesh mesh, Window window, const std::int32_t* triangle, Attributes attributes,
                 float* image, int threads) {
    const Index room = attributes.channels * Index(STRIDE);
    const Index parts = std::min(threads, window.height);
    std::vector<float> planes(parts * room);
    std::atomic<bool> valid{true};
    in_parallel(static_cast<int>(parts), [&](int part) {
        const Index end = window.height * (part + 1) / parts;
        for (Index y = window.height * part / parts; y < end; ++y)
            if (!interpolate_row(mesh, window, window.y0 + static_cast<int>(y),
                                 triangle + y * window.width, attributes,
                                 planes.data() + part * room,
                                 image + y * window.width * attributes.channels))
                valid = false;
    });
    return valid;
}

}  // namespace sim3dr
