"""Anchors of FaceBoxes and the coding of boxes relative to them.

Anchors are relative to the image: centre x, centre y, width, height, each divided by the image's
width or height. Coded boxes (offsets) are relative to their anchor: the centre's shift over the
anchor's size, and the log of the size over the anchor's, each over its variance. Corner boxes:
``x1 y1 x2 y2``.
"""

from functools import lru_cache

import numpy as np

# (stride, ((anchor side in pixels, anchors per cell side), ...)) of the three prediction maps.
# The small anchors are repeated so that they lie as densely as their size asks for
# (Zhang et al., section 3.3).
MAPS = (
    (32, ((32, 4), (64, 2), (128, 1))),
    (64, ((256, 1),)),
    (128, ((512, 1),)),
)
VARIANCES = (0.1, 0.2)  # of centre and size (Liu et al., SSD, ECCV 2016)


@lru_cache(maxsize=32)  # thread-safe; the arrays it hands out are read-only
def anchors(height: int, width: int) -> np.ndarray:
    """Anchors of an image of the given size in pixels: (A, 4) float32, read-only.

    Rows follow the network's output: map, row, column, anchor size, then dense y and dense x.
    """
    maps = []
    for stride, sizes in MAPS:
        rows, columns = -(-height // stride), -(-width // stride)
        cells = []
        for side, dense in sizes:
            offset = np.arange(dense) / dense if dense > 1 else np.array([0.5])
            block = np.empty((rows, columns, dense, dense, 4))
            block[..., 0] = (np.arange(columns)[:, None, None] + offset) * stride / width
            block[..., 1] = (np.arange(rows)[:, None, None, None] + offset[:, None]) * (
                stride / height
            )
            block[..., 2] = side / width
            block[..., 3] = side / height
            cells.append(block.reshape(rows, columns, dense * dense, 4))
        maps.append(np.concatenate(cells, axis=2).reshape(-1, 4))
    result = np.concatenate(maps).astype(np.float32)
    result.flags.writeable = False
    return result


def decode(offsets: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Network offsets (n, 4) and their anchors (n, 4) to relative corner boxes (n, 4)."""
    centre = anchors[:, :2] + offsets[:, :2] * np.float32(VARIANCES[0]) * anchors[:, 2:]
    size = anchors[:, 2:] * np.exp(offsets[:, 2:] * np.float32(VARIANCES[1]))
    top_left = centre - size / 2
    return np.concatenate([top_left, top_left + size], axis=1)


def encode(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Relative corner boxes (n, 4) of positive size to offsets (n, 4): inverts ``decode``."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    offsets = (centre - anchors[:, :2]) / (np.float32(VARIANCES[0]) * anchors[:, 2:])
    return np.concatenate(
        [offsets, np.log(size / anchors[:, 2:]) / np.float32(VARIANCES[1])], axis=1
    )
