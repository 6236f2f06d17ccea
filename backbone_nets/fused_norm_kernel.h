// Batch norm and a clamp in training, forward and backward, on rows of channels. Plain C++17.
//
// Nothing is checked here: the binding (fused_norm_cython.pyx) guarantees the shapes, none of them
// empty, and its caller that no array which is written overlaps another. Matrices are (rows,
// channels), row-major and packed, as a channels-last tensor lies in memory: rows = B * H * W.
// std::bad_alloc is the only exception.
// Work is cut into the same blocks and their sums are added in the same order whatever the number
// of threads, so results do not depend on it. Activations and their gradients are float or
// BFloat16; everything is computed in float or double.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_norm {

using BFloat16 = std::uint16_t;  // the upper half of a float's bits

struct Shape {
    std::ptrdiff_t rows, channels;
};

// y = clamp((x - mean) / sqrt(variance + eps) * weight + bias, low, high), the statistics over
// rows. They come back in double: mean, biased variance and 1 / sqrt(variance + eps), each
// (channels).
template <class Number>
void forward(const Number* x, Shape shape, const float* weight, const float* bias, double eps,
             float low, float high, int threads, double* mean, double* variance,
             double* inverse_std, Number* y);

// The gradients of forward's x, weight and bias, given the one of y; nothing passes where the
// clamp holds. dx may be null where nobody wants it.
template <class Number>
void backward(const Number* x, const Number* dy, Shape shape, const float* weight,
              const float* bias, const double* mean, const double* inverse_std, float low,
              float high, int threads, Number* dx, float* dweight, float* dbias);

}  // namespace fused_norm
