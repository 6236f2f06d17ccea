"""Non-maximum suppression: checks the arguments and calls the compiled kernel.

Boxes are rows of ``x1 y1 x2 y2 score`` in pixels; a box's sides are ``x2 - x1 + 1`` and
``y2 - y1 + 1``, the convention of the published detector.
"""

import logging

import numpy as np

try:
    import FaceBoxes.nms_cython as kernel
except ModuleNotFoundError:  # not compiled: the same results, more slowly; a broken one is an error
    kernel = None
    logging.getLogger(__name__).warning(
        "FaceBoxes.nms_cython is not compiled: using the slower Python version. "
        "`pip install -e .` builds it (needs a C++ compiler)."
    )

LARGEST = 1e15  # pixels; areas of such boxes still fit float32
METHODS = ("hard", "linear", "gaussian")


def nms(detections: np.ndarray, threshold: float = 0.3) -> np.ndarray:
    """Greedy suppression.

    Args:
        detections: (n, 5) rows of x1 y1 x2 y2 score, any order, any real dtype.
        threshold: a row is dropped when its intersection over union with a better row that is
            kept reaches this value, in (0, 1].

    Returns:
        Indices (m,) int64 of the kept rows, best score first (equal scores: first row first).

    Raises:
        ValueError: wrong shape, values that are not finite or beyond 1e15, threshold out of range.
        TypeError: ``detections`` does not hold real numbers.
    """
    boxes = _checked(detections)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    threshold = _as_overlap(threshold)
    order = np.argsort(-boxes[:, 4], kind="stable").astype(np.intp)
    if kernel is None:
        return _greedy(boxes, order, threshold)
    kept = np.empty(len(boxes), np.uint8)
    kernel.greedy(boxes, order, threshold, kept)
    return order[kept[order].astype(bool)].astype(np.int64)


def soft_nms(
    detections: np.ndarray,
    sigma: float = 0.5,
    overlap_threshold: float = 0.3,
    score_threshold: float = 0.001,
    method: int | str = "linear",
) -> np.ndarray:
    """Soft suppression (Bodla et al., "Soft-NMS", ICCV 2017): scores decay instead of rows going.

    The published code has it too; the detector, like its, uses ``nms``.

    Repeatedly takes the best row and multiplies every other row's score by 0 (``"hard"`` or 0) or
    1 - IoU (``"linear"`` or 1) where their IoU exceeds ``overlap_threshold``, or by
    exp(-IoU² / sigma) (``"gaussian"`` or 2). Rows whose score falls below ``score_threshold`` go.

    Args:
        detections: (n, 5) rows of x1 y1 x2 y2 score, any order, any real dtype.
        sigma: width of the Gaussian, positive.
        overlap_threshold, score_threshold: finite.
        method: one of ``METHODS``, or its index.

    Returns:
        Rows (m, 5) float32 with the decayed scores, in order of selection. The input is not
        changed.

    Raises:
        ValueError, TypeError: as ``nms``; also an unknown method, a sigma that is not positive, or
            a threshold that is not finite.
    """
    rows = _checked(detections).copy()
    code = METHODS.index(method) if method in METHODS else method
    if code not in (0, 1, 2):
        raise ValueError(f"method must be one of {METHODS} or 0, 1, 2, got {method!r}")
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive, got {sigma}")
    for name, value in (
        ("overlap_threshold", overlap_threshold),
        ("score_threshold", score_threshold),
    ):
        if not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    overlap_threshold = _as_overlap(overlap_threshold)
    step = _soft if kernel is None else kernel.soft
    return rows[: step(rows, sigma, overlap_threshold, score_threshold, int(code))]


def _checked(detections: np.ndarray) -> np.ndarray:
    """The rows as contiguous float32 (n, 5), or an error that says what is wrong."""
    rows = np.asarray(detections)
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise ValueError(f"detections must have shape (n, 5): x1 y1 x2 y2 score, got {rows.shape}")
    if rows.dtype.kind not in "fiu":
        raise TypeError(f"detections must hold real numbers, got dtype {rows.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        packed = np.ascontiguousarray(rows, dtype=np.float32)
    # After the conversion: the least integer has no absolute value, float16 cannot hold LARGEST.
    bad = ~(np.abs(packed) <= np.float32(LARGEST)).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"{int(bad.sum())} of {len(rows)} detections are not finite or beyond {LARGEST:g}; "
            f"the first is row {first}: {rows[first].tolist()}"
        )
    return packed


def _as_overlap(threshold: float) -> float:
    """Rounded to float32 as overlaps are, so that 3 of 10 pixels are 0.3, not more; never to 0."""
    return float(np.float32(np.clip(float(threshold), -LARGEST, LARGEST))) or threshold


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one row (5,) with many (n, 5), rounded where the kernel rounds."""

    def area(rows: np.ndarray) -> np.ndarray:
        return ((rows[..., 2:4] - rows[..., :2]).astype(np.float64) + 1).prod(-1)

    one = np.float32(1)
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]) + one
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]) + one
    meets = (width > 0) & (height > 0)
    intersection = np.where(meets, width * height, np.float32(0))
    union = (area(box) + area(boxes) - intersection).astype(np.float32)
    return intersection / np.where(meets, union, one)


def _greedy(boxes: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    kept = []
    while len(order):
        kept.append(order[0])
        order = order[1:]
        order = order[_overlaps(boxes[kept[-1]], boxes[order]).astype(np.float64) < threshold]
    return np.array(kept, dtype=np.int64)


def _soft(
    rows: np.ndarray, sigma: float, overlap_threshold: float, threshold: float, method: int
) -> int:
    i, n = 0, len(rows)
    while i < n:
        best = i + int(np.argmax(rows[i:n, 4]))
        rows[[i, best]] = rows[[best, i]]
        rest = rows[i + 1 : n]
        iou = _overlaps(rows[i], rest)
        square, iou = (iou * iou).astype(np.float64), iou.astype(np.float64)
        if method == 2:
            weight = np.exp(-square / sigma)
        else:
            weight = np.where(iou > overlap_threshold, (1 - iou) * (method == 1), 1.0)
        rest[:, 4] = weight * rest[:, 4]
        goes, left = rest[:, 4] < threshold, len(rest)
        for j in np.flatnonzero(goes):  # the last row that stays takes its place, as in the kernel
            while left > j and goes[left - 1]:
                left -= 1
            if left <= j:
                break
            left -= 1
            rest[j] = rest[left]
        i, n = i + 1, i + 1 + left
    return n
