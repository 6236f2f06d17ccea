# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Typed binding of fused_norm_kernel.h; ``backbone_nets.fused_norm`` calls it.

The shapes are what memory safety rests on, so they are checked here. Every function fills the
arrays given last. Activations and their gradients are float32, or bfloat16 as the bits of it, in
uint16, which numpy has no name for.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint16_t

ctypedef fused Number:
    float
    uint16_t

cdef extern from "fused_norm_kernel.h" namespace "fused_norm" nogil:
    cdef struct Shape:
        ptrdiff_t rows, channels
    void _forward "fused_norm::forward"(
        const float*, Shape, const float*, const float*, double, float, float, int,
        double*, double*, double*, float*
    ) except +
    void _forward "fused_norm::forward"(
        const uint16_t*, Shape, const float*, const float*, double, float, float, int,
        double*, double*, double*, uint16_t*
    ) except +
    void _backward "fused_norm::backward"(
        const float*, const float*, Shape, const float*, const float*, const double*,
        const double*, float, float, int, float*, float*, float*
    ) except +
    void _backward "fused_norm::backward"(
        const uint16_t*, const uint16_t*, Shape, const float*, const float*, const double*,
        const double*, float, float, int, uint16_t*, float*, float*
    ) except +


def forward(
    Number[:, ::1] x not None,
    const float[::1] weight not None,
    const float[::1] bias not None,
    double eps,
    float low,
    float high,
    int threads,
    double[:, ::1] statistics not None,
    Number[:, ::1] y not None,
):
    """Fills statistics (3, C) (mean, biased variance, 1 / std) and y (R, C) from x (R, C)."""
    cdef Shape shape
    shape.rows, shape.channels = x.shape[0], x.shape[1]
    _check(shape, y.shape[0], y.shape[1], weight, bias, statistics)
    with nogil:
        _forward(
            &x[0, 0], shape, &weight[0], &bias[0], eps, low, high, threads,
            &statistics[0, 0], &statistics[1, 0], &statistics[2, 0], &y[0, 0],
        )


def backward(
    Number[:, ::1] x not None,
    Number[:, ::1] dy not None,
    const float[::1] weight not None,
    const float[::1] bias not None,
    const double[:, ::1] statistics not None,
    float low,
    float high,
    int threads,
    Number[:, ::1] dx,
    float[::1] dweight not None,
    float[::1] dbias not None,
):
    """Fills dx (R, C) unless it is None, dweight (C,) and dbias (C,) from dy (R, C)."""
    cdef Shape shape
    cdef Number* target = NULL
    shape.rows, shape.channels = x.shape[0], x.shape[1]
    _check(shape, dy.shape[0], dy.shape[1], weight, bias, statistics)
    _check(shape, dy.shape[0], dy.shape[1], dweight, dbias, statistics)
    if dx is not None:
        _check(shape, dx.shape[0], dx.shape[1], weight, bias, statistics)
        target = &dx[0, 0]
    with nogil:
        _backward(
            &x[0, 0], &dy[0, 0], shape, &weight[0], &bias[0], &statistics[0, 0],
            &statistics[2, 0], low, high, threads, target, &dweight[0], &dbias[0],
        )


cdef _check(
    Shape shape,
    Py_ssize_t rows,
    Py_ssize_t columns,
    const float[::1] first,
    const float[::1] second,
    const double[:, ::1] statistics,
):
    if shape.rows < 1 or shape.channels < 1:
        raise ValueError(f"x must have shape (>0, >0), not ({shape.rows}, {shape.channels})")
    if rows != shape.rows or columns != shape.channels:
        raise ValueError(f"matrices differ: ({shape.rows}, {shape.channels}), ({rows}, {columns})")
    if first.shape[0] != shape.channels or second.shape[0] != shape.channels:
        raise ValueError(
            f"vectors must be ({shape.channels},), not ({first.shape[0]},) and ({second.shape[0]},)"
        )
    if statistics.shape[0] != 3 or statistics.shape[1] != shape.channels:
        raise ValueError(f"statistics must be (3, {shape.channels})")
