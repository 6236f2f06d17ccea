# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Greedy and soft non-maximum suppression; arguments are checked by ``FaceBoxes.nms``.

Every index stays inside its array by construction of the loops, whatever the boxes hold, and the
shapes are checked here as well because they are what memory safety rests on.
"""

from libc.math cimport exp, fmaxf, fminf


cdef inline float overlap(
    const float *a, const float *b
) noexcept nogil:
    """Intersection over union with sides of ``x2 - x1 + 1`` pixels."""
    cdef float width = fminf(a[2], b[2]) - fmaxf(a[0], b[0]) + 1
    cdef float height = fminf(a[3], b[3]) - fmaxf(a[1], b[1]) + 1
    cdef float intersection, union_
    if width <= 0 or height <= 0:
        return 0  # also keeps the division below away from empty boxes
    intersection = width * height
    # The ones are doubles in the C that Cython makes of this: the union is rounded to float once.
    union_ = (
        (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - intersection
    )
    return intersection / union_


def greedy(
    const float[:, ::1] boxes not None,
    const Py_ssize_t[::1] order not None,
    double threshold,
    unsigned char[::1] kept not None,
):
    """Set ``kept[i]`` for each row, in the given order, that overlaps no kept row too much."""
    cdef Py_ssize_t n = boxes.shape[0], i, j, a, b
    if boxes.shape[1] != 5 or order.shape[0] != n or kept.shape[0] != n:
        raise ValueError("boxes (n, 5), order (n,) and kept (n,) must agree")
    for i in range(n):
        if order[i] < 0 or order[i] >= n:
            raise ValueError("order holds an index out of range")
    with nogil:
        for i in range(n):
            kept[i] = 1
        for i in range(n):
            a = order[i]
            if not kept[a]:
                continue
            for j in range(i + 1, n):
                b = order[j]
                if kept[b] and overlap(&boxes[a, 0], &boxes[b, 0]) >= threshold:
                    kept[b] = 0


def soft(
    float[:, ::1] rows not None,
    double sigma,
    double overlap_threshold,
    double threshold,
    int method,
):
    """Reorder and rescore ``rows`` in place; returns how many of the first rows remain."""
    cdef Py_ssize_t n = rows.shape[0], i = 0, j, best, k
    cdef float iou, swap
    cdef double weight
    if rows.shape[1] != 5:
        raise ValueError("rows must be (n, 5)")
    with nogil:
        while i < n:
            best = i
            for j in range(i + 1, n):
                if rows[j, 4] > rows[best, 4]:
                    best = j
            for k in range(5):
                swap = rows[i, k]
                rows[i, k] = rows[best, k]
                rows[best, k] = swap
            j = i + 1
            while j < n:
                iou = overlap(&rows[i, 0], &rows[j, 0])
                weight = 1
                if method == 2:
                    weight = exp(-(iou * iou) / sigma)
                elif iou > overlap_threshold:
                    weight = 1 - iou if method == 1 else 0
                rows[j, 4] = <float>(weight * rows[j, 4])
                if rows[j, 4] < threshold:  # the last row takes its place and is looked at next
                    n -= 1
                    for k in range(5):
                        rows[j, k] = rows[n, k]
                else:
                    j += 1
            i += 1
    return n
