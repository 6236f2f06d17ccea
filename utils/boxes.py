"""Areas that boxes have and share; rows begin with the corners x1 y1 x2 y2, sides are x2 - x1."""

import numpy as np


def areas(boxes: np.ndarray) -> np.ndarray:
    """(..., 4+) boxes -> (...) areas."""
    return (boxes[..., 2:4] - boxes[..., :2]).prod(axis=-1)


def intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 4+) and (m, 4+) boxes -> (n, m) areas that they have in common."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:4], others[None, :, 2:4])
    return np.clip(high - low, 0, None).prod(axis=2)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 4+) and (m, 4+) boxes -> (n, m) intersection over union; 0 of two without area."""
    common = intersections(boxes, others)
    return common / np.maximum(areas(boxes)[:, None] + areas(others) - common, 1e-9)
