"""Draws the pictures of the README's conventions, from the starter face model alone.

landmarks.png   the 68 landmarks with their numbers
pose_signs.png  what the signs of yaw, pitch and roll mean; the numbers are what the pipeline's
                formulas give for the faces that are shown

python -m tools.draw_conventions            # writes them into docs/
"""

from pathlib import Path

import cv2
import numpy as np

from Sim3DR import Lighting
from utils.assets import ROOT, STARTER_FACE_MODEL, shown
from utils.cli import run_script, script_parser
from utils.draw import AXES, FONT, OUTLINE, PARTS, Colour, Part, draw_pose_axes
from utils.geometry import angles_to_rotation
from utils.inference import Face, faces_from_parameters
from utils.morphable_model import CAMERA, Y_FLIP, MorphableModel, load_morphable_model
from utils.pictures import write_image
from utils.preprocessing import CROP_SIZE
from utils.render import render_mesh_overlay

FINE = 2  # pixels drawn for each that is written, along both axes: smooth contours and letters
PAPER: Colour = (255, 255, 255)
FAINT: Colour = (120, 120, 120)
SKIN = 0.92  # grey of the mesh, of full white
# Brighter than the overlays' light: dark numbers are to be read on the face.
LIGHT = Lighting(ambient=0.66, directional=0.38, specular=0.0, light=(-1.0, -3.0, 4.0))

# Groups of the legend, and the parts of utils.draw.PARTS in each.
GROUPS = {
    "jaw": ("jaw",),
    "brows": ("right brow", "left brow"),
    "nose": ("nose bridge", "nostrils"),
    "eyes": ("right eye", "left eye"),
    "mouth": ("outer lips", "inner lips"),
}
# Darker than those of utils.draw, which are made for photos: these stand on light grey.
COLOURS: dict[str, Colour] = {
    "jaw": (190, 100, 20),
    "brows": (0, 120, 215),
    "nose": (50, 130, 40),
    "eyes": (170, 40, 140),
    "mouth": (50, 45, 205),
}
# Degrees shown, to both sides; what one sees of a negative and of a positive angle.
TURNS = {
    "yaw": (40.0, "turns towards the right edge", "turns towards the left edge"),
    "pitch": (25.0, "looks down", "looks up"),
    "roll": (25.0, "tilts counter-clockwise", "tilts clockwise"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, module="tools.draw_conventions")
    parser.add_argument(
        "-o", "--out", type=Path, default=ROOT / "docs", help="folder to write (default: docs)"
    )
    options = parser.parse_args(arguments)
    face_model = load_morphable_model(STARTER_FACE_MODEL)  # the same for everyone, published or not
    pictures = {
        "landmarks.png": landmark_picture(face_model),
        "pose_signs.png": pose_picture(face_model),
    }
    for name, picture in pictures.items():
        write_image(options.out / name, picture)
        print(f"{shown(options.out / name)}: {picture.shape[1]}x{picture.shape[0]}")
    return 0


# --------------------------------------------------------------------------------- the mean face


def mean_face(
    face_model: MorphableModel, yaw=0.0, pitch=0.0, roll=0.0, side: int = 120, fill: float = 0.9
) -> Face:
    """The mean face turned, as the pipeline would return it for a square picture.

    Args:
        face_model: numpy arrays.
        yaw, pitch, roll: degrees, in the signs of ``utils.geometry``.
        side: of the picture, pixels.
        fill: share of the picture's height that the frontal face takes.

    Returns:
        The face, image frame, its middle in the picture's; angles, scale and place come from
        ``decompose_camera`` and ``rotation_to_angles``, not from what was asked for.
    """
    (turn,) = angles_to_rotation([[yaw, pitch, roll]])
    low, high = face_model.mean.min(1), face_model.mean.max(1)
    matrix = turn * fill * CROP_SIZE / (high[1] - low[1])
    # what crop_to_image maps to the picture's middle, (side - 1) / 2
    is_exact = face_model.pixel_centres
    middle = (CROP_SIZE - 1) / 2 if is_exact else (side - 1) / 2 * CROP_SIZE / side
    # the camera has y up (utils/morphable_model.py)
    shift = np.array([middle, Y_FLIP - middle, 0]) - matrix @ ((low + high) / 2)
    parameters = np.zeros((1, len(face_model.param_mean)), np.float32)  # no shape, no expression
    parameters[0, :CAMERA] = np.column_stack([matrix, shift]).ravel()
    box = np.array([[0, 0, side, side]], np.float64)
    detection = np.append(box, [[np.nan]], axis=1)
    (face,) = faces_from_parameters(face_model, parameters, box, detection, dense=True)
    return face


def render(face: Face, canvas: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the face in light grey over a picture of the same frame, the mouth closed
    by a dark sheet behind the lips (the model has none: one would see the paper through it)."""
    lips = face.landmarks[:, 60:68]
    middle = lips.mean(1, keepdims=True)
    back = -face.rotation[:, 2:] * ((1,), (-1,), (1,)) * face.scale  # model units, image frame
    sheet = np.concatenate([middle + 1.2 * (lips - middle) + 5000 * back, middle + 15000 * back], 1)
    count = face.vertices.shape[1]
    fan = count + np.stack([np.full(8, 8), np.arange(8), np.roll(np.arange(8), -1)], 1)
    vertices = np.concatenate([face.vertices, sheet], 1).astype(np.float32)
    grey = np.full((count + 9, 3), SKIN)
    grey[count:] = 0.35
    triangles = np.concatenate([face.triangles, fan]).astype(np.int32)
    return render_mesh_overlay(canvas, [vertices], triangles, LIGHT, 1.0, grey)


# ------------------------------------------------------------------------- picture of the numbers


def landmark_picture(face_model: MorphableModel) -> np.ndarray:
    """(H, W, 3) uint8 BGR: the frontal mean face, its 68 landmarks numbered, and a legend."""
    width, side, legend = 960, 936, 112
    canvas = np.full((FINE * (side + legend), FINE * width, 3), PAPER, np.uint8)
    face = mean_face(face_model, side=FINE * side, fill=0.92)
    canvas = render(face, canvas)
    points = face.landmarks[:2].T / FINE  # (68, 2), pixels of the picture that is written

    labels = place_labels(points)
    for part in PARTS:
        line = points[part.first : part.last + 1]
        _polyline(canvas, line, COLOURS[_group(part)], 1.2, part.closed)
    for part in PARTS:
        for i in range(part.first, part.last + 1):
            _polyline(canvas, leader(points[i], labels[i], i), COLOURS[_group(part)], 0.8)
            _dot(canvas, points[i], DOT, COLOURS[_group(part)])
    for i, label in enumerate(labels):
        _text(canvas, str(i), label, LABEL)

    left = 40.0
    for group, names in GROUPS.items():
        parts = [part for part in PARTS if part.name in names]
        y = side + 16.0
        _dot(canvas, (left, y), 6, COLOURS[group])
        title = f"{group} {parts[0].first}-{parts[-1].last}"
        _text(canvas, title, (left + 14, y), 12, centred=False, bold=True)
        for line, part in enumerate(parts if len(parts) > 1 else ()):
            text = f"{part.name} {part.first}-{part.last}"
            _text(canvas, text, (left + 14, y + 24 + 20 * line), 9.5, centred=False)
        left += 184
    note = "left and right are the person's own; pictures show the right side on the left"
    _text(canvas, note, (54, side + 96.0), 9.5, FAINT, centred=False)
    return _written(canvas)


def _group(part: Part) -> str:
    return next(group for group, names in GROUPS.items() if part.name in names)


DOT = 4.0  # radius of a landmark, pixels of the written picture
LABEL = 12.0  # height of the numbers
CLEAR = 2.0  # least distance between a label and anything else


def place_labels(points: np.ndarray) -> np.ndarray:
    """Where each landmark's number goes: away from its part's middle, and off everything else.

    Each label tries places ever farther and more askew of where it would like to be and takes the
    first that touches no landmark, no line and no label placed before.

    Args:
        points: (68, 2) landmarks, pixels.

    Returns:
        (68, 2) the labels' middles.
    """
    sizes = np.array([label_size(i) for i in range(len(points))])  # (68, 2) width, height
    places = np.full_like(points, np.inf)
    lines = np.concatenate([_along(part, points) for part in PARTS])
    wishes = np.concatenate([_wishes(part, points) for part in PARTS])
    radii, bends = np.arange(15, 60, 1.5), np.radians(np.arange(-80, 81, 10))
    tried = sorted(((r, b) for r in radii for b in bends), key=lambda t: t[0] + 9 * abs(t[1]))
    # the crowded ones first: they have the least choice
    spacing = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(len(points))
    for i in np.argsort(spacing.min(1), kind="stable"):
        angle = np.arctan2(*wishes[i][::-1])
        for radius, bend in tried:
            place = points[i] + radius * np.array([np.cos(angle + bend), np.sin(angle + bend)])
            half = sizes[i] / 2 + CLEAR
            on_dot = (np.abs(points - place) < half + DOT).all(1).any()
            on_line = (np.abs(lines - place) < half).all(1).any()
            on_label = (np.abs(places - place) < half + sizes / 2).all(1).any()
            if not (on_dot or on_line or on_label):
                places[i] = place
                break
        else:
            raise ValueError(f"no room for the number of landmark {i}")
    return places


def leader(point: np.ndarray, label: np.ndarray, number: int) -> np.ndarray:
    """(2, 2) ends of the line from a landmark to its number: it stops short of the digits."""
    away = label - point
    edge = (np.array(label_size(number)) / 2 + CLEAR) / np.maximum(np.abs(away), 1e-9)
    return np.stack([point, point + max(1 - edge.min(), 0) * away])


def _along(part: Part, points: np.ndarray) -> np.ndarray:
    """(M, 2) places along the line of a part, a pixel or two from each to the next."""
    own = points[part.first : part.last + 1]
    ends = np.roll(own, -1, axis=0) if part.closed else own[1:]
    share = np.linspace(0, 1, 64)[:, None]
    return np.concatenate([a + share * (b - a) for a, b in zip(own, ends, strict=False)])


def label_size(number: int) -> tuple[float, float]:
    """Width and height of a landmark's number, pixels of the written picture."""
    width, height = cv2.getTextSize(str(number), FONT, *_font(FINE * LABEL))[0]
    return width / FINE, height / FINE


def _wishes(part: Part, points: np.ndarray) -> np.ndarray:
    """(K, 2) directions in which the numbers of a part's landmarks would like to stand."""
    own = points[part.first : part.last + 1]
    middle = own.mean(0)
    if part.name == "jaw":  # a half circle: from the middle of its ends
        middle = (own[0] + own[-1]) / 2
    elif "brow" in part.name:  # an arc: from far below
        middle = middle + (0, 2 * np.ptp(own[:, 0]))
    elif part.name == "nose bridge":
        return np.tile([1.0, 0.0], (len(own), 1))
    elif part.name == "nostrils":
        middle = middle - (0, 2 * np.ptp(own[:, 0]))
    away = own - middle
    if part.closed:
        away[:, 1] *= 2  # lids and lips are wider than high: up and down rather than aside
    if part.name == "inner lips":
        away[[0, 4]] *= -1  # outside are the corners of the outer lips
    return away


# --------------------------------------------------------------------------- picture of the signs


def pose_picture(face_model: MorphableModel) -> np.ndarray:
    """(H, W, 3) uint8 BGR: the mean face turned to both sides about each axis.

    Left negative, right positive angles; in the middle the straight face, the image frame and what
    the coloured arrows are.
    """
    side, caption, gap = 256, 66, 36
    width, height = 3 * side + 4 * gap, 3 * (side + caption) + gap // 2
    canvas = np.full((FINE * height, FINE * width, 3), PAPER, np.uint8)

    def cell(row: int, column: int) -> tuple[float, float]:
        return gap + column * (side + gap), gap // 2 + row * (side + caption)

    def put(row: int, column: int, face: Face, title: str, words: str) -> None:
        x, y = cell(row, column)
        region = canvas[round(FINE * y) :, round(FINE * x) :][: FINE * side, : FINE * side]
        picture = render(face, np.full_like(region, PAPER))
        draw_pose_axes(picture, face.rotation, face.landmarks)
        region[:] = picture
        _text(canvas, title, (x + side / 2, y + side + 12), 13, bold=True)
        _text(canvas, words, (x + side / 2, y + side + 36), 10.5)

    straight = mean_face(face_model, side=FINE * side)
    for row, (name, (angle, *words)) in enumerate(TURNS.items()):
        for column, turn, seen in ((0, -angle, words[0]), (2, angle, words[1])):
            face = mean_face(face_model, **{name: turn}, side=FINE * side)
            put(row, column, face, f"{name} {round(getattr(face, name)):+d}", seen)
    angles = [round(getattr(straight, name)) for name in TURNS]
    put(0, 1, straight, "yaw {}, pitch {}, roll {}".format(*angles), "straight ahead, upright")
    _draw_image_frame(canvas, cell(1, 1), side)
    _draw_head_axes_legend(canvas, cell(2, 1), side)
    return _written(canvas)


def _draw_image_frame(canvas: np.ndarray, corner: tuple[float, float], side: float) -> None:
    """The image frame's axes at the upper left corner of a picture, z as an arrow's point."""
    left, top = corner[0] + 40, corner[1] + 70
    right, bottom = corner[0] + side - 30, corner[1] + side - 30
    _polyline(
        canvas, np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), FAINT, 1,
        closed=True,
    )  # fmt: skip
    origin = np.array([left, top])
    _arrow(canvas, origin, origin + (120, 0), OUTLINE)
    _arrow(canvas, origin, origin + (0, 120), OUTLINE)
    _dot(canvas, origin, 9, OUTLINE)
    _dot(canvas, origin, 7, PAPER)
    _dot(canvas, origin, 3, OUTLINE)
    _text(canvas, "x right", origin + (60, -16), 11)
    _text(canvas, "y down", origin + (24, 112), 11, centred=False)
    _text(canvas, "z towards the viewer", origin + (-14, -44), 11, centred=False)
    middle = ((left + right) / 2 + 30, (top + bottom) / 2)
    _text(canvas, "the picture", middle, 11, FAINT)
    _text(canvas, "image frame", (corner[0] + side / 2, corner[1] + side + 12), 13, bold=True)
    words = "pixels; (0, 0) is the upper left one's centre"
    _text(canvas, words, (corner[0] + side / 2, corner[1] + side + 36), 9.5)


def _draw_head_axes_legend(canvas: np.ndarray, corner: tuple[float, float], side: float) -> None:
    """What the three arrows on the faces are."""
    lines = ("the person's left", "towards the chin", "out of the face")
    for k, text in enumerate(lines):
        start = np.array([corner[0] + 20, corner[1] + 76 + 52 * k])
        _arrow(canvas, start, start + (62, 0), AXES[k])
        _text(canvas, text, start + (80, 0), 11, centred=False)
    _text(
        canvas, "arrows on the faces", (corner[0] + side / 2, corner[1] + side + 12), 13, bold=True
    )
    _text(canvas, "angles in degrees", (corner[0] + side / 2, corner[1] + side + 36), 10.5)


# ------------------------------------------------------ strokes, in pixels of the written picture


def _fixed(points: np.ndarray) -> np.ndarray:
    """Pixels of the written picture -> int32 on the fine one, in OpenCV's fixed point."""
    return np.rint(((np.asarray(points) + 0.5) * FINE - 0.5) * 16).astype(np.int32)


def _polyline(
    canvas: np.ndarray, points: np.ndarray, colour: Colour, width: float, closed: bool = False
) -> None:
    thickness = max(round(FINE * width), 1)
    cv2.polylines(canvas, [_fixed(points)], closed, colour, thickness, cv2.LINE_AA, 4)


def _arrow(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, colour: Colour) -> None:
    start, end = _fixed(start).tolist(), _fixed(end).tolist()
    cv2.arrowedLine(canvas, start, end, colour, 3 * FINE, cv2.LINE_AA, 4, tipLength=0.15)


def _dot(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: Colour) -> None:
    reach = round(radius * FINE * 16)
    cv2.circle(canvas, _fixed(centre).tolist(), reach, colour, cv2.FILLED, cv2.LINE_AA, 4)


def _font(height: float) -> tuple[float, int]:
    """OpenCV's scale and thickness for capitals of a height in fine pixels."""
    return height / cv2.getTextSize("X", FONT, 1, 1)[0][1], max(round(height / 9), 1)


def _text(
    canvas: np.ndarray,
    text: str,
    place: np.ndarray | tuple[float, float],
    height: float,
    colour: Colour = OUTLINE,
    centred: bool = True,
    bold: bool = False,
) -> None:
    """Writes a line whose middle, or the middle of whose left end, lies at ``place``."""
    scale, thickness = _font(FINE * height)
    thickness += bold * max(thickness // 2, 1)
    width = cv2.getTextSize(text, FONT, scale, thickness)[0][0]
    x, y = (np.asarray(place) + 0.5) * FINE - 0.5
    start = (round(x - centred * width / 2), round(y + FINE * height / 2))
    cv2.putText(canvas, text, start, FONT, scale, colour, thickness, cv2.LINE_AA)


def _written(canvas: np.ndarray) -> np.ndarray:
    """The fine picture at the size that is written; odd values only, which halves the file."""
    size = (canvas.shape[1] // FINE, canvas.shape[0] // FINE)
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA) | 1


if __name__ == "__main__":
    run_script(main)
