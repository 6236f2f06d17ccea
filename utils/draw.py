"""Drawing on photos: landmarks, pose axes, boxes, contact sheets.

Everything is anti-aliased, placed to a sixteenth of a pixel and sized by the face, so that it is as
readable on a 200-pixel thumbnail as on a 4K frame. As OpenCV's, the functions called ``draw_...``
draw into the image that they are given, and return it: (H, W, 3) uint8 BGR, contiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.geometry import facing_angles

NOSE_TIP = 30
SMALLEST_DOTTED = 120  # pixels, sqrt(w * h) of the landmarks' box
SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
FAR = 2.0**20  # pixels; coordinates are clipped here so that fixed point cannot overflow
FONT = cv2.FONT_HERSHEY_SIMPLEX

Colour = tuple[int, int, int]  # blue, green, red

OUTLINE: Colour = (32, 32, 32)
LINE: Colour = (240, 240, 240)
BOX: Colour = (80, 220, 120)
AXES: tuple[Colour, ...] = ((50, 50, 235), (60, 200, 60), (245, 120, 30))  # x red, y green, z blue


@dataclass(frozen=True)
class Part:
    """Consecutive landmarks ``first`` to ``last`` (inclusive) that one line connects."""

    name: str
    first: int
    last: int
    closed: bool
    colour: Colour


# The 68-point scheme (iBUG, 300-W). "right" and "left" are the person's own.
PARTS = (
    Part("jaw", 0, 16, False, (255, 190, 110)),  # from the right ear over the chin to the left ear
    Part("right brow", 17, 21, False, (100, 200, 255)),
    Part("left brow", 22, 26, False, (100, 200, 255)),
    Part("nose bridge", 27, 30, False, (170, 225, 110)),  # downwards; 30 is the nose tip
    Part("nostrils", 31, 35, False, (170, 225, 110)),
    Part("right eye", 36, 41, True, (255, 140, 190)),
    Part("left eye", 42, 47, True, (255, 140, 190)),
    Part("outer lips", 48, 59, True, (120, 120, 255)),
    Part("inner lips", 60, 67, True, (120, 120, 255)),
)


def draw_landmarks(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Draws the 68 landmarks of one face: coloured points on white lines, one per facial part; of
    a face below ``SMALLEST_DOTTED`` pixels, whose points would run together, coloured lines.

    Args:
        landmarks: (3, 68) or (2, 68) real, pixels of the image; a third row is not used. Parts
            outside the image are cut off.

    Raises:
        ValueError: wrong shape or dtype, or a coordinate that is not finite.
    """
    _check_canvas(image)
    points = _check_landmarks(landmarks)
    size = _face_size(points)
    unit = _stroke_unit(image, size)
    fixed = _fixed_point(points)  # (68, 2)
    lines = [fixed[part.first : part.last + 1] for part in PARTS]
    if size < SMALLEST_DOTTED:
        for part, line in zip(PARTS, lines, strict=True):
            cv2.polylines(
                image, [line], part.closed, part.colour, max(round(unit), 1), cv2.LINE_AA, SHIFT
            )
        return image
    for colour, thickness in _strokes(unit, LINE):
        for part, line in zip(PARTS, lines, strict=True):
            cv2.polylines(image, [line], part.closed, colour, thickness, cv2.LINE_AA, SHIFT)
    for part, line in zip(PARTS, lines, strict=True):
        for centre in line:
            _dot(image, centre, 1.6 * unit, part.colour)
    return image


def draw_pose_axes(
    image: np.ndarray,
    rotation: np.ndarray,
    landmarks: np.ndarray,
) -> np.ndarray:
    """Draws a head's axes from its nose tip, orthographically.

    Drawn are the head's own x axis (red; to the right of the picture on a frontal face, i.e. the
    person's left), the **downward** y axis (green; towards the chin) and the z axis (blue; out of
    the face along the nose, a point on a frontal face). Each is half sqrt(w * h) of the landmarks'
    box long before foreshortening; the axis nearest to the viewer is drawn last.

    Args:
        rotation: (3, 3) rotation from the model frame (x right, y up, z to the viewer) to the y-up
            camera frame, as ``utils.geometry.decompose_camera`` returns it: column k is the head's
            axis k, which in the y-down image points along (R[0, k], -R[1, k]).
        landmarks: (3, 68) or (2, 68) real, pixels of the image.

    Raises:
        ValueError: wrong shape or dtype, or a value that is not finite.
    """
    _check_canvas(image)
    points, rotation = _check_landmarks(landmarks), _check_rotation(rotation)
    size = _face_size(points)
    unit = max(1.5 * _stroke_unit(image, size), 1)
    origin = points[:, NOSE_TIP]

    axes = rotation * (1, -1, 1)  # columns: x, downward y, z; still in the y-up camera frame
    ends = origin + 0.5 * size * (axes[:2].T * (1, -1))  # (3, 2), image frame
    for k in np.argsort(axes[2]):  # farthest first
        line = _fixed_point(np.stack([origin, ends[k]], axis=1))
        for colour, thickness in _strokes(unit, AXES[k]):
            cv2.arrowedLine(
                image, *line.tolist(), colour, thickness, cv2.LINE_AA, SHIFT, tipLength=0.15
            )
    _dot(image, _fixed_point(origin[:, None])[0], unit, LINE)
    return image


def draw_angles(
    image: np.ndarray,
    rotation: np.ndarray,
    landmarks: np.ndarray,
) -> np.ndarray:
    """Writes a face's ``utils.geometry.facing_angles``, in whole degrees, below its chin.

    With the axes of ``draw_pose_axes`` the picture reads: yaw > 0 blue points left, pitch > 0 blue
    points up, roll > 0 the head tilts clockwise.

    Arguments, result and errors are those of ``draw_pose_axes``.
    """
    _check_canvas(image)
    points, rotation = _check_landmarks(landmarks), _check_rotation(rotation)
    height = text_height(image, _face_size(points))
    angles = zip(("yaw", "pitch", "roll"), facing_angles(rotation[None])[0], strict=True)
    lines = [f"{name} {round(angle):+d}" for name, angle in angles]
    put_lines(image, lines, points[0].min(), points[1].max() + 0.8 * height, height)
    return image


def draw_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Draws face boxes.

    Args:
        boxes: (n, 4) real, x1 y1 x2 y2 in pixels of the image; n may be 0.

    Raises:
        ValueError: wrong shape or dtype, or a coordinate that is not finite.
    """
    _check_canvas(image)
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes of shape (n, 4), x1 y1 x2 y2, got {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes contain NaN or infinity")
    for x1, y1, x2, y2 in boxes:
        size = np.sqrt(abs((x2 - x1) * (y2 - y1)))
        corners = _fixed_point(np.array([[x1, x2, x2, x1], [y1, y1, y2, y2]]))
        for colour, thickness in _strokes(max(_stroke_unit(image, size), 1), BOX):
            cv2.polylines(image, [corners], True, colour, thickness, cv2.LINE_AA, SHIFT)
    return image


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    cell: tuple[int, int],
    captions: Sequence[str],
) -> np.ndarray:
    """All pictures on one: each scaled into a cell, centred, row by row from the upper left.

    Args:
        images: (h, w, 3) uint8 pictures of any sizes; at least one.
        columns: cells per row; fewer where there are fewer pictures.
        cell: height and width of a cell in pixels, without its caption.
        captions: one line for each picture, below it, shortened to fit.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ValueError: no pictures, a wrong shape or dtype, a size below 1, or a wrong caption count.
    """
    cell_h, cell_w = cell
    if len(images) == 0 or min(columns, cell_h, cell_w) < 1:
        raise ValueError(
            "a contact sheet needs at least one picture, one column and one pixel a cell, got "
            f"{len(images)} pictures, {columns} columns, cells of {cell_h}x{cell_w}"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap = max(min(cell) // 32, 2)
    text = max(cell_h // 18, 9)  # height of a caption's capitals
    pitch_y = cell_h + gap + 2 * text
    pitch_x = cell_w + gap
    shape = (rows * pitch_y + gap, columns * pitch_x + gap, 3)
    sheet = np.full(shape, OUTLINE, dtype=np.uint8)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        _check_image(image)
        y, x = gap + i // columns * pitch_y, gap + i % columns * pitch_x
        fitted = fit_into(image, cell_h, cell_w)
        h, w = fitted.shape[:2]
        top, left = y + (cell_h - h) // 2, x + (cell_w - w) // 2
        sheet[top : top + h, left : left + w] = fitted
        put_lines(sheet, [_shorten(caption, cell_w - text, text)], x, y + cell_h, text)
    return sheet


def fit_into(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A (H, W, C) picture as large as fits into ``height`` and ``width`` pixels, its shape kept."""
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (max(round(side * scale), 1) for side in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (w, h), interpolation=method)


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        shape = getattr(image, "shape", type(image).__name__)
        raise ValueError(f"expected a BGR image of shape (H, W, 3), got {shape}")
    if image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"expected a non-empty uint8 image, got {image.dtype} of shape {image.shape}"
        )


def _check_canvas(image: np.ndarray) -> None:
    _check_image(image)
    if not (image.flags.c_contiguous and image.flags.writeable):
        raise ValueError("the image is drawn into: it must be contiguous and writeable")


def _check_landmarks(landmarks: np.ndarray) -> np.ndarray:
    landmarks = np.asarray(landmarks, dtype=np.float64)
    if landmarks.shape not in ((2, 68), (3, 68)):
        raise ValueError(f"expected landmarks of shape (3, 68) or (2, 68), got {landmarks.shape}")
    if not np.isfinite(landmarks[:2]).all():
        raise ValueError("landmarks contain NaN or infinity")
    return landmarks[:2]


def _check_rotation(rotation: np.ndarray) -> np.ndarray:
    rotation = np.asarray(rotation, dtype=np.float64)
    if rotation.shape != (3, 3) or not np.isfinite(rotation).all():
        raise ValueError(f"expected a finite rotation of shape (3, 3), got {rotation.shape}")
    return rotation


def _face_size(points: np.ndarray) -> float:
    """sqrt(w * h) of the box around (2, K) points, in pixels."""
    return float(np.sqrt(np.ptp(points, axis=1).prod()))


def _stroke_unit(image: np.ndarray, face_size: float) -> float:
    """Line thickness in pixels: 1/200 of the face, more for a small face on a large picture."""
    longest = max(image.shape[:2])
    face_size = min(face_size, 2 * longest)
    return max(face_size / 200, min(longest / 1500, face_size / 60))


def _strokes(unit: float, colour: Colour) -> list[tuple[Colour, int]]:
    """Colours and thicknesses of a line: a dark rim first, unless it would drown a small face."""
    strokes = [(colour, max(round(unit), 1))]
    if unit >= 0.75:
        strokes.insert(0, (OUTLINE, strokes[0][1] + 2 * max(round(unit / 3), 1)))
    return strokes


def text_height(image: np.ndarray, face_size: float) -> float:
    """Height of capitals in pixels: 1/16 of the face, between readable and 1/20 of the image."""
    smallest = max(9.0, max(image.shape[:2]) / 160)
    return max(min(face_size / 16, min(image.shape[:2]) / 20), smallest)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """(2, K) pixels -> (K, 2) int32 in OpenCV's fixed point."""
    return np.rint(np.clip(points.T, -FAR, FAR) * 2**SHIFT).astype(np.int32)


def _dot(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: Colour) -> None:
    """A disc with a dark rim around a fixed-point centre; radius in pixels."""
    radius = max(radius, 1.0)
    for paint, r in ((OUTLINE, radius + max(0.25 * radius, 0.5)), (colour, radius)):
        cv2.circle(
            canvas, centre.tolist(), round(r * 2**SHIFT), paint, cv2.FILLED, cv2.LINE_AA, SHIFT
        )


def _font(height: float) -> tuple[float, int]:
    """OpenCV's scale and thickness for capitals of a height in pixels."""
    return height / cv2.getTextSize("X", FONT, 1, 1)[0][1], max(round(height / 10), 1)


def printable(text: str) -> str:
    """A file name as text, whatever bytes it has: lone surrogates make OpenCV crash."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text_width(text: str, height: float) -> float:
    return cv2.getTextSize(text, FONT, *_font(height))[0][0]


def _shorten(text: str, width: float, height: float) -> str:
    text = printable(text)
    if _text_width(text, height) <= width:
        return text
    while text and _text_width(text + "...", height) > width:
        text = text[:-1]
    return text + "..."


def put_lines(canvas: np.ndarray, lines: list[str], x: float, y: float, height: float) -> None:
    """White text on a darkened panel, its upper left corner at x, y, moved to fit into the picture.

    A panel rather than outlined letters: it reads on any background and at any size.
    """
    lines = [printable(line) for line in lines]
    pitch, pad = 1.6 * height, 0.4 * height
    panel_w = max(_text_width(line, height) for line in lines) + 2 * pad
    panel_h = pitch * len(lines) - 0.6 * height + 2 * pad
    left = round(max(min(x, canvas.shape[1] - panel_w), 0))
    top = round(max(min(y, canvas.shape[0] - panel_h), 0))
    panel = canvas[top : round(top + panel_h), left : round(left + panel_w)]
    panel[:] = panel // 3
    scale, thickness = _font(height)
    for i, line in enumerate(lines):
        baseline = (round(left + pad), round(top + pad + height + i * pitch))
        cv2.putText(canvas, line, baseline, FONT, scale, LINE, thickness, cv2.LINE_AA)
