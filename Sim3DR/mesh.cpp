// Checks, vertex normals and lighting.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel.h"
#include "portable.h"

namespace sim3dr {

SIM3DR_CLONES
bool values_within(const float* values, std::ptrdiff_t count, float low, float high) {
    int outside = 0;  // no early exit: the loop runs in vectors
    for (Index i = 0; i < count; ++i) outside |= !((values[i] >= low) & (values[i] <= high));
    return outside == 0;
}

SIM3DR_CLONES
bool indices_within(const std::int32_t* indices, std::ptrdiff_t count, std::ptrdiff_t limit) {
    const std::int32_t end = static_cast<std::int32_t>(
        std::min<Index>(limit, std::numeric_limits<std::int32_t>::max()));
    int outside = 0;
    for (Index i = 0; i < count; ++i) outside |= (indices[i] < 0) | (indices[i] >= end);
    return outside == 0;
}

SIM3DR_CLONES
void bounds(const float* points, std::ptrdiff_t count, float low[3], float high[3]) {
    constexpr int LANES = 24;  // 8 points: lane i always holds axis i % 3
    float least[LANES], greatest[LANES];
    for (int i = 0; i < LANES; ++i) least[i] = greatest[i] = points[i % 3];
    const Index total = 3 * count, whole = total - total % LANES;
    for (Index start = 0; start < whole; start += LANES)
        for (int i = 0; i < LANES; ++i) {
            const float value = points[start + i];
            least[i] = value < least[i] ? value : least[i];
            greatest[i] = value > greatest[i] ? value : greatest[i];
        }
    for (Index i = whole; i < total; ++i) {
        least[i % 3] = std::min(least[i % 3], points[i]);
        greatest[i % 3] = std::max(greatest[i % 3], points[i]);
    }
    for (int axis = 0; axis < 3; ++axis) {
        low[axis] = least[axis];
        high[axis] = greatest[axis];
        for (int i = axis; i < LANES; i += 3) {
            low[axis] = std::min(low[axis], least[i]);
            high[axis] = std::max(high[axis], greatest[i]);
        }
    }
}

namespace {

// Points and normals are taken this many at once, each axis in an array of its own.
constexpr int BLOCK = 64;

struct Vectors {
    float x[BLOCK], y[BLOCK], z[BLOCK];
};

SIM3DR_INLINE void gather(const float* points, int count, Vectors& to) {
    for (int k = 0; k < BLOCK; ++k) {
        const float* point = points + 3 * std::min(k, count - 1);
        to.x[k] = point[0];
        to.y[k] = point[1];
        to.z[k] = point[2];
    }
}

SIM3DR_INLINE void add(float* sum, float x, float y, float z) {
    sum[0] += x;
    sum[1] += y;
    sum[2] += z;
}

// The cross products of a block of triangles, in vectors, then their sums at the vertices, in the
// order of the triangles.
SIM3DR_CLONES
void add_faces(Mesh mesh, float* normals) {
    Vectors e, f, face;
    for (Index start = 0; start < mesh.n_triangles; start += BLOCK) {
        const int count = static_cast<int>(std::min<Index>(BLOCK, mesh.n_triangles - start));
        const std::int32_t* corner = mesh.triangles + 3 * start;
        for (int k = 0; k < count; ++k) {
            const float* a = mesh.vertices + 3 * static_cast<Index>(corner[3 * k]);
            const float* b = mesh.vertices + 3 * static_cast<Index>(corner[3 * k + 1]);
            const float* c = mesh.vertices + 3 * static_cast<Index>(corner[3 * k + 2]);
            e.x[k] = b[0] - a[0], e.y[k] = b[1] - a[1], e.z[k] = b[2] - a[2];
            f.x[k] = c[0] - a[0], f.y[k] = c[1] - a[1], f.z[k] = c[2] - a[2];
        }
        for (int k = 0; k < count; ++k) {
            face.x[k] = e.y[k] * f.z[k] - e.z[k] * f.y[k];
            face.y[k] = e.z[k] * f.x[k] - e.x[k] * f.z[k];
            face.z[k] = e.x[k] * f.y[k] - e.y[k] * f.x[k];
        }
        for (int k = 0; k < count; ++k)
            for (int i = 0; i < 3; ++i)
                add(normals + 3 * static_cast<Index>(corner[3 * k + i]), face.x[k], face.y[k],
                    face.z[k]);
    }
}

SIM3DR_CLONES
void normalise(float* normals, Index count) {
    for (Index i = 0; i < count; ++i) {
        float* n = normals + 3 * i;
        // In double, so that the squares of tiny or huge sums neither vanish nor overflow.
        const double x = n[0], y = n[1], z = n[2];
        const double length = std::sqrt(x * x + y * y + z * z);
        const double divisor = length > 0.0 ? length : 1.0;
        n[0] = static_cast<float>(x / divisor);
        n[1] = static_cast<float>(y / divisor);
        n[2] = static_cast<float>(z / divisor);
    }
}

}  // namespace

void vertex_normals(Mesh mesh, float* normals) {
    std::fill_n(normals, 3 * mesh.n_vertices, 0.0f);
    add_faces(mesh, normals);
    normalise(normals, mesh.n_vertices);
}

namespace {

struct Vector {
    float x, y, z;
};

SIM3DR_INLINE float dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

SIM3DR_INLINE Vector towards(const float* to, Vector from) {
    const Vector d = {to[0] - from.x, to[1] - from.y, to[2] - from.z};
    const float length = std::sqrt(dot(d, d));
    const float inverse = 1.0f / (length > 0.0f ? length : 1.0f);
    return {d.x * inverse, d.y * inverse, d.z * inverse};
}

SIM3DR_INLINE float unit_clip(float x) {
    x = x > 0.0f ? x : 0.0f;
    return x < 1.0f ? x : 1.0f;
}

SIM3DR_INLINE float fifth_power(float x) {
    const float square = x * x;
    return square * square * x;
}

}  // namespace

SIM3DR_CLONES
void shade(const float* vertices, const float* normals, std::ptrdiff_t count,
           const Lighting& lighting, const float* texture, float* colors) {
    float low[3], high[3];
    bounds(vertices, count, low, high);
    const Vector size = {high[0] - low[0], high[1] - low[1], high[2] - low[2]};
    const float longest = std::max({size.x, size.y, size.z});
    const float scale = 2.0f / (longest > 0.0f ? longest : 1.0f);
    const Vector half = {size.x * scale / 2, size.y * scale / 2, size.z * scale / 2};
    Vectors p, n;
    float level[BLOCK];
    for (Index start = 0; start < count; start += BLOCK) {
        const int some = static_cast<int>(std::min<Index>(BLOCK, count - start));
        gather(vertices + 3 * start, some, p);
        gather(normals + 3 * start, some, n);
        for (int k = 0; k < BLOCK; ++k) {
            const Vector point = {(p.x[k] - low[0]) * scale - half.x,
                                  (p.y[k] - low[1]) * scale - half.y,
                                  (p.z[k] - low[2]) * scale - half.z};
            const Vector normal = {n.x[k], n.y[k], n.z[k]};
            const Vector to_light = towards(lighting.light, point);
            const Vector to_eye = towards(lighting.eye, point);
            const float cosine = dot(normal, to_light), twice = 2.0f * cosine;
            const float glint = fifth_power(to_eye.x * (twice * normal.x - to_light.x)) +
                                fifth_power(to_eye.y * (twice * normal.y - to_light.y)) +
                                fifth_power(to_eye.z * (twice * normal.z - to_light.z));
            // as published: where the light comes from behind there is a glint too
            const float specular = cosine != 0.0f ? unit_clip(glint) : 0.0f;
            // Clipped before the texture, which light may not burn through.
            level[k] = unit_clip(lighting.ambient + lighting.directional * unit_clip(cosine) +
                                 lighting.specular * specular);
        }
        for (int k = 0; k < some; ++k)
            for (int c = 0; c < 3; ++c) {
                const Index i = 3 * (start + k) + c;
                colors[i] = texture ? level[k] * texture[i] : level[k];
            }
    }
}

}  // namespace sim3dr
