"""From a detected box to the network's input and back: every constant and frame change, once.

Frames
    image   pixels of the photo, x right, y down, pixel centres at integers.
    crop    the 120x120 network input, cut from the image along the roi box.
"""

import cv2
import numpy as np

CROP_SIZE = 120
PIXEL_MEAN, PIXEL_STD = 127.5, 128.0
PROTOCOL_BORDER = 5  # pixels at each edge of a crop that the published protocol sets to zero
ROI_ENLARGEMENT = 1.2  # roi side over the detected box's height
MIN_BOX_HEIGHT = 2  # pixels; of smaller faces nothing can be seen
MAX_COORDINATE = 1e6  # pixels; a box beyond it lies in no picture
MAX_ROI_SIDE = 32767  # OpenCV's resize addresses pixels with 16 bits


def croppable(boxes: np.ndarray) -> np.ndarray:
    """Which boxes, (n, 4+) x1 y1 x2 y2 ..., have a roi box that can be cropped: (n,) bool."""
    corners = np.asarray(boxes, dtype=np.float64)[:, :4]
    x1, y1, x2, y2 = corners.T
    is_near = (np.abs(corners) <= MAX_COORDINATE).all(1)  # false for NaN
    with np.errstate(invalid="ignore", over="ignore"):  # of corners that are not near
        height = y2 - y1
        fits = (height >= MIN_BOX_HEIGHT) & (2 * _half_side(height) <= MAX_ROI_SIDE)
    return is_near & (x2 > x1) & fits


def _half_side(height: np.ndarray) -> np.ndarray:
    """Half the side of the roi boxes of boxes of such a height, whole pixels."""
    return np.floor(ROI_ENLARGEMENT * height / 2)


def boxes_to_roi_boxes(boxes: np.ndarray) -> np.ndarray:
    """Detected boxes -> square roi boxes, as published from centre and height alone.

    Args:
        boxes: (n, 4+) x1 y1 x2 y2 ..., image frame.

    Returns:
        (n, 4) float64 x1 y1 x2 y2, image frame: centre of the box, half side
        ``floor(1.2 * (y2 - y1) / 2)``.

    Raises:
        ValueError: wrong shape, or a box that is not ``croppable``.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] < 4:
        raise ValueError(f"expected boxes of shape (n, 4) x1 y1 x2 y2, got {boxes.shape}")
    usable = croppable(boxes)
    if not usable.all():
        bad = boxes[~usable][0, :4].tolist()
        raise ValueError(
            f"box {bad} cannot be cropped: expected finite x1 < x2, y1 < y2 of at most "
            f"{MAX_COORDINATE:.0f}, and a height of {MIN_BOX_HEIGHT} to "
            f"{MAX_ROI_SIDE / ROI_ENLARGEMENT:.0f} pixels"
        )
    x1, y1, x2, y2 = boxes[:, :4].T
    half = _half_side(y2 - y1)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    return np.stack([centre_x - half, centre_y - half, centre_x + half, centre_y + half], axis=1)


def crop_faces(image: np.ndarray, roi_boxes: np.ndarray) -> np.ndarray:
    """Cuts one 120x120 crop per roi box.

    Corners are rounded half-to-even, what lies outside the image is zero, resizing is bilinear.

    Args:
        image: (H, W, 3) uint8 BGR.
        roi_boxes: (n, 4) x1 y1 x2 y2, image frame.

    Returns:
        (n, 120, 120, 3) uint8 BGR.

    Raises:
        ValueError: a picture of another shape or dtype; a roi box that is not finite, too far away,
            or has a side of more than 32767 pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"expected a picture (H, W, 3) uint8 BGR, got {image.dtype} of shape {image.shape}"
        )
    height, width = image.shape[:2]
    crops = np.zeros((len(roi_boxes), CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8)
    corners = np.round(np.asarray(roi_boxes, dtype=np.float64)[:, :4])
    usable = (np.abs(corners) <= 2 * MAX_COORDINATE).all(1)  # false for NaN
    with np.errstate(invalid="ignore"):  # infinite boxes are refused below
        usable &= (corners[:, 2:] - corners[:, :2] <= MAX_ROI_SIDE).all(1)
    if not usable.all():
        bad = corners[~usable][0].tolist()
        raise ValueError(
            f"roi box {bad} cannot be cropped: expected finite numbers and sides of at most "
            f"{MAX_ROI_SIDE} pixels"
        )
    corners = corners.astype(np.int64).tolist()
    for crop, (x1, y1, x2, y2) in zip(crops, corners, strict=True):
        inside = image[max(y1, 0) : max(min(y2, height), 0), max(x1, 0) : max(min(x2, width), 0)]
        if inside.size == 0:
            continue  # the roi lies outside the picture: a black crop, as zero filling says
        beyond = (max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0))
        if any(beyond):
            inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT)  # black
        cv2.resize(inside, (CROP_SIZE, CROP_SIZE), dst=crop, interpolation=cv2.INTER_LINEAR)
    return crops


def normalize_crops(crops: np.ndarray) -> np.ndarray:
    """(n, 120, 120, 3) uint8 crops -> (n, 3, 120, 120) float32 network input, within [-1, 1].

    Raises:
        ValueError: another dtype or shape.
    """
    if crops.dtype != np.uint8 or crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3):
        raise ValueError(
            f"expected uint8 crops of shape (n, {CROP_SIZE}, {CROP_SIZE}, 3), BGR, got "
            f"{crops.dtype} of shape {crops.shape}"
        )
    scaled = (crops.astype(np.float32) - PIXEL_MEAN) / PIXEL_STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def crop_to_image(
    points: np.ndarray, roi_boxes: np.ndarray, pixel_centres: bool = False
) -> np.ndarray:
    """Points of each crop -> points of the photo.

    Args:
        points: (n, 3, P) or (n, 2, P), crop frame.
        roi_boxes: (n, 4+) x1 y1 x2 y2 of the roi boxes, image frame: as published unrounded; with
            ``pixel_centres`` rounded to whole pixels, as ``crop_faces`` cuts.
        pixel_centres: pixel i of a crop is centred at i, and so is one of the photo: the exact
            inverse of ``crop_faces``, x = (x_crop + 1/2) * side / 120 - 1/2 + x1. As published
            False: x = x_crop * side / 120 + x1, up to half a crop pixel further up and left.

    Returns:
        Same shape as ``points``, image frame; z is scaled by the mean of both scales. float32, or
        float64 where float32 does not hold every number of the type of ``points``.
    """
    boxes = np.asarray(roi_boxes, dtype=np.float64)
    scale = (boxes[:, 2:4] - boxes[:, :2]) / CROP_SIZE  # (n, 2)
    origin = boxes[:, :2] + (scale - 1) / 2 if pixel_centres else boxes[:, :2]
    scale = np.column_stack([scale, scale.mean(1)])[:, : points.shape[1], None]  # (n, 3 or 2, 1)
    origin = np.pad(origin, ((0, 0), (0, 1)))[:, : points.shape[1], None]
    dtype = np.result_type(points, np.float32)  # whole and half numbers would cut scales off
    return points * scale.astype(dtype) + origin.astype(dtype)
