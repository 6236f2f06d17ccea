"""Makes large-pose training views from photos of faces that are turned less.

    python -m starter_kit.rotate_views --photos PHOTOS --packed runs/starter/packed_train \\
        --out runs/starter/packed_rotated --combined runs/starter/packed_all

After the idea of face profiling (Zhu et al., Face Alignment Across Large Poses, CVPR 2016,
section 4): the fitted face model is textured with the photo, and the head is turned further to the
side to which it is turned already. What the face model lacks is added in the model frame: a skirt
of rings around its edge that falls back as crown, ears, nape and neck do, and a lid on the open
mouth. Behind stands the photo's background, or another's, without the head. The labels turn with
the head, so the new ones are as good as the photo's own, provided that these are points of the head
in 3D: a landmark that was set on the visible contour of the photo lies elsewhere once the head has
turned. A fifth of the views keep about their yaw and nod instead, and another fifth nod and lean at
any yaw (`TURNS`).

Where the photos have better labels that are not 3D consistent (people's, `--human-weight`), the
views are made from the consistent ones and joined with the others by `--with`.

Beside the usual arrays the packed set holds `names` (NAME@YAW) and `source` (n,) int32: the index
of the photo in the set that was read; -1 for the photos themselves in the combined set.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation
from tqdm import tqdm

import Sim3DR
from starter_kit.landmark_statistics import RELIABLE_SPREAD
from utils import assets
from utils.cli import at_least, run_script, script_parser
from utils.datasets import write_packed
from utils.files import map_npy, read_npz
from utils.geometry import decompose_camera
from utils.morphable_model import CAMERA, MorphableModel, load_morphable_model, split_camera
from utils.texture import boundary_loops, fill_smoothly, smooth_step

FACE_SIDE = 0.565  # longer side of the landmarks' box over the picture's, as in the photos
SUPERSAMPLING = 2
ROLL_NOISE = 7.0  # standard deviation, degrees; cut off at two of them, as for pitch and lean
FRONTAL = 2.0  # degrees: photos turned less have no side yet
MARGINS = np.array([8, 15, 8, 8])  # pixels of photo a source has beyond its landmarks: l t r b

# The skirt: how far its main rings lie from the face's edge, millimetres.
BACK_OF_SIDE = (12.0, 30.0, 55.0, 95.0)
OUT_OF_SIDE = (6.0, 13.0, 22.0, 45.0)
BACK_OF_TOP = (12.0, 35.0, 70.0, 125.0)
UP_OF_TOP = (12.0, 25.0, 35.0, 55.0)
DOWN_TO_NECK = (2.0, 6.0, 35.0, 85.0)
SHARE_TO_NECK = (0.5, 1.0, 1.05, 1.0)
NECK_AXIS, NECK_RADIUS = -105.0, 58.0
STEPS = 4  # rings from one main ring to the next


@dataclass(frozen=True)
class Turn:
    """One kind of view; degrees.

    Attributes:
        share: of all views.
        yaw: least and most |yaw| of the views, which are uniform between.
        added: least and most that is added to a photo's |yaw|.
        pitch_noise: standard deviation of what is added to its pitch, cut off at two of them.
        lean: the same of the lean, ear to shoulder. Seen from the front that is roll; in a profile
            nod and roll are one, and leaning the only way left to move.
    """

    share: float
    yaw: tuple[float, float]
    added: tuple[float, float]
    pitch_noise: float
    lean: float


TURNS = (
    Turn(0.6, (35, 100), (15, 60), 11, 12),
    Turn(0.2, (0, 40), (0, 8), 22, 0),
    Turn(0.2, (0, 90), (0, 30), 25, 15),
)


@dataclass(frozen=True)
class Head:
    """A face model and the rest of a head, which is carried along by the face's edge.

    Attributes:
        face_model: of the N vertices that come first.
        triangles: (T, 3) int32, of face, skirt and lid; the face's vertices come first.
        anchors: (M,) vertex of the face that carries each added vertex.
        offsets: (3, M) float32, from anchor to added vertex, model frame.
        ends: (M,) index among all vertices of the outermost vertex of the same spoke.
        alpha: (N + M,) float32 opacity.
    """

    face_model: MorphableModel
    triangles: np.ndarray
    anchors: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray
    alpha: np.ndarray

    def shape(self, parameters: np.ndarray) -> np.ndarray:
        """(62,) parameters -> (3, N + M) head, model frame."""
        face = self.face_model.shapes(parameters[None])[0]  # (3, N)
        return np.concatenate([face, face[:, self.anchors] + self.offsets], axis=1)


def skirt_offsets(edge: np.ndarray) -> np.ndarray:
    """(K, 3) edge of the mean face, millimetres -> (R, K, 3) offsets of the rings outside it."""
    x, y, z = edge.T
    angle = np.arctan2(y - 15, np.abs(x))  # chin -90 degrees, ear 0, forehead 90
    upward = np.sin(np.maximum(angle, 0))
    below = smooth_step(-5 - y, 0, 40)  # 0 at the ears, 1 along the jaw
    neck = NECK_AXIS + np.sqrt(np.maximum(NECK_RADIUS**2 - x**2, 0))
    to_neck = np.maximum(z - neck, 10)
    rings = [np.zeros_like(edge)]
    for i in range(4):
        out = np.sign(x) * OUT_OF_SIDE[i] * np.cos(angle)
        up = UP_OF_TOP[i] * upward
        back = BACK_OF_SIDE[i] + (BACK_OF_TOP[i] - BACK_OF_SIDE[i]) * upward**2
        head = np.stack([out, up, -back], 1)
        widen = (0, 0, 0.05, 0.4)[i] * x
        throat = np.stack(
            [widen, np.full_like(x, -DOWN_TO_NECK[i]), -SHARE_TO_NECK[i] * to_neck], 1
        )
        rings.append(head + (throat - head) * below[:, None])
    return PchipInterpolator(range(5), rings)(np.arange(1, 4 * STEPS + 1) / STEPS)


def build_head(face_model: MorphableModel) -> Head:
    """Adds skirt and lid to the starter face model (micrometres, one edge and one mouth)."""
    n = face_model.num_vertices
    loops = sorted(boundary_loops(face_model.triangles), key=len)
    edge, mouth = loops[-1], loops[-2]
    k = len(edge)
    offsets = skirt_offsets(face_model.mean[:, edge].T / 1e3) * 1e3  # (R, K, 3)
    rings = len(offsets)
    index = np.concatenate([edge[None], n + np.arange(rings * k).reshape(rings, k)])  # (R + 1, K)
    a, b = index[:-1], index[1:]
    c, d = np.roll(a, -1, 1), np.roll(b, -1, 1)
    skirt = np.concatenate([np.stack([a, b, c], -1), np.stack([c, b, d], -1)]).reshape(-1, 3)
    centre = n + rings * k
    carrier = mouth[np.argmin(np.abs(face_model.mean[0, mouth]))]  # middle of a lip
    offset = face_model.mean[:, mouth].mean(1) - face_model.mean[:, carrier] - (0, 0, 3e3)
    lid = np.stack([mouth, np.roll(mouth, -1), np.full_like(mouth, centre)], 1)
    fade = np.clip((rings - np.arange(1, rings + 1)) / STEPS, 0, 1)
    return Head(
        face_model,
        np.concatenate([face_model.triangles, skirt, lid]).astype(np.int32),
        np.concatenate([np.tile(edge, rings), [carrier]]),
        np.concatenate([offsets.reshape(-1, 3).T, offset[:, None]], 1).astype(np.float32),
        np.concatenate([np.tile(index[-1], rings), [centre]]),
        np.concatenate([np.ones(n), np.repeat(fade, k), [1]]).astype(np.float32),
    )


def euler_to_rotation(yaw: float, pitch: float, roll: float, lean: float = 0.0) -> np.ndarray:
    """Degrees -> (3, 3) in the y-up frame: a lean, a nod, a turn to the side, then a tilt.

    Without a lean and up to 90 degrees the yaw is the one that
    `utils.geometry.rotation_to_angles` reads, exactly.
    """
    lean_of_head = Rotation.from_euler("z", -lean, degrees=True)
    turn = Rotation.from_euler("xyz", [-pitch, -yaw, -roll], degrees=True)  # nod, turn, tilt
    return (turn * lean_of_head).as_matrix()


def rotation_to_euler(rotation: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 3) yaw, pitch, roll in degrees: the inverse of `euler_to_rotation`
    without a lean."""
    yaw = np.arcsin(np.clip(rotation[..., 2, 0], -1, 1))
    pitch = np.arctan2(-rotation[..., 2, 1], rotation[..., 2, 2])
    roll = np.arctan2(-rotation[..., 1, 0], rotation[..., 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], -1))


def turn_labels(
    face_model: MorphableModel,
    parameters: np.ndarray,
    landmarks: np.ndarray,
    angles: Sequence[float],
    side: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (62,) and (3, 68) of a crop, of the same head at other angles, framed anew.

    Args:
        angles: new yaw, pitch, roll, lean as `euler_to_rotation` takes them.
        side: pixels of the square crop; the box of the landmarks is centred in it.

    Returns:
        parameters (62,) float32 with t_z = 0 and landmarks (3, 68) float32, depth counted from
        the model's origin as the parameters do.
    """
    camera = split_camera(parameters[None])
    _, rotation, _ = decompose_camera(camera)
    flip, offset = np.diag(face_model.flip[:, 0]), face_model.flip_offset.astype(np.float64)
    # moves of the crop frame, y down: first about the landmarks' centroid, framed afterwards
    move = flip @ euler_to_rotation(*angles) @ rotation[0].T @ flip
    turned = move @ landmarks
    low, high = turned[:2].min(1), turned[:2].max(1)
    move = move * (FACE_SIDE * side / (high - low).max())
    turned = move @ landmarks
    low, high = turned[:2].min(1), turned[:2].max(1)
    shift = np.append((side - 1) / 2 - (low + high) / 2, 0.0)[:, None]
    # the same in the camera's frame, y up: v_crop = flip v + offset
    linear, t = camera[0, :, :3].astype(np.float64), camera[0, :, 3:].astype(np.float64)
    new_t = flip @ (move @ (flip @ t + offset) + shift - offset)
    shift[2] -= new_t[2]
    new_t[2] = 0
    new_camera = np.concatenate([flip @ move @ flip @ linear, new_t], 1)
    new = np.concatenate([new_camera.ravel(), parameters[CAMERA:]])
    return new.astype(np.float32), (turned + shift).astype(np.float32)


def texture_coordinates(head: Head, points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Where in its photo each vertex of a head has its colour.

    Args:
        points: (3, N + M) the head in the photo's pixels.
        valid: x1, y1, x2, y2 of the part of the picture that is photo.

    Returns:
        (N + M, 2) float32 x, y. Where the skirt would leave the photo it is drawn together.
    """
    xy = points[:2].T.copy()
    n = head.face_model.num_vertices
    low, high = np.asarray(valid[:2]) + 1.0, np.asarray(valid[2:]) - 2.0
    start = np.clip(xy[head.anchors], low, high)
    way, whole = xy[n:] - xy[head.anchors], xy[head.ends] - xy[head.anchors]
    room = np.maximum(np.where(whole > 0, high - start, start - low), 1e-3)
    # a spoke keeps its direction; it bends its measure so that its end stays inside
    share = (np.abs(way) / room).max(1, keepdims=True)
    xy[n:] = start + way / (1 + share**4) ** 0.25
    return np.clip(xy, low, high)


def without_head(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A photo (S, S, 3) uint8 that fills its frame, with its head smoothed away."""
    low, high = landmarks[:2].min(1), landmarks[:2].max(1)
    (x, y), (a, b) = (low + high) / 2, (high - low) / 2
    head = np.zeros(picture.shape[:2], np.uint8)
    middle, axes = (int(x), int(y - 0.3 * b)), (int(1.35 * a) + 4, int(1.5 * b))
    cv2.ellipse(head, middle, axes, 0, 0, 360, 1, -1)
    return np.round(fill_smoothly(picture, head == 0)).clip(0, 255).astype(np.uint8)


def beside_head(picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A piece from beside the face of a photo (S, S, 3) that fills its frame, enlarged to S x S."""
    side = len(picture)
    left = landmarks[0].min() - 6 > side - landmarks[0].max()
    width = int(max(landmarks[0].min() - 6 if left else side - 6 - landmarks[0].max(), 8))
    height = int(rng.uniform(1, 3) * width)
    top = rng.integers(max(side - height, 1))
    piece = picture[top : top + height, :width] if left else picture[top : top + height, -width:]
    return cv2.resize(piece, (side, side), interpolation=cv2.INTER_CUBIC)


def render_view(
    head: Head,
    photo: np.ndarray,
    parameters: np.ndarray,
    valid: np.ndarray,
    new_parameters: np.ndarray,
    behind: np.ndarray,
) -> np.ndarray:
    """The head of a photo as the new parameters place it before another picture.

    Args:
        photo, behind: (S, S, 3) uint8 BGR.
        parameters, new_parameters: (62,) not whitened, frame of the S x S picture.
        valid: (4,) x1, y1, x2, y2 of the part of the picture that is photo.

    Returns:
        (S, S, 3) uint8 BGR.
    """
    side = len(photo)
    shape = head.shape(parameters)
    flip, offset = head.face_model.flip, head.face_model.flip_offset

    def project(values: np.ndarray) -> np.ndarray:
        camera = split_camera(values[None])[0] * flip
        return camera[:, :3] @ shape + (camera[:, 3:] + offset)

    uv = texture_coordinates(head, project(parameters), valid)
    points = project(new_parameters).T  # (N + M, 3)
    fine = side * SUPERSAMPLING
    points[:, :2] = (points[:, :2] + 0.5) * SUPERSAMPLING - 0.5
    buffer = Sim3DR.zbuffer(points, head.triangles, fine, fine)
    values = np.concatenate([uv, head.alpha[:, None]], 1)
    x, y, alpha = np.moveaxis(Sim3DR.interpolate(buffer, head.triangles, values), 2, 0)
    colour = cv2.remap(photo, x, y, cv2.INTER_LINEAR).astype(np.float32)
    alpha = alpha[..., None]
    layers = np.concatenate([colour * alpha, alpha], 2)
    layers = cv2.resize(layers, (side, side), interpolation=cv2.INTER_AREA)
    result = layers[..., :3] + behind * (1 - layers[..., 3:])
    return (result + 0.5).clip(0, 255).astype(np.uint8)


def has_margins(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(n, 3, 68) landmarks, (n, 4) parts that are photo -> (n,) whether they leave `MARGINS`."""
    box = np.concatenate([landmarks[:, :2].min(2), landmarks[:, :2].max(2)], 1)
    return ((box - valid) * (1, 1, -1, -1) >= MARGINS).all(1)


def choose_views(
    angles: np.ndarray, usable: np.ndarray, turn: Turn, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which photo becomes which view.

    Args:
        angles: (n, 3) yaw, pitch, roll of the photos, degrees.
        usable: (n,) bool.

    Returns:
        photos (count,) int, indices, and new angles (count, 4) yaw, pitch, roll, lean. Heads are
        turned on to the side to which they are turned already, and photos used as evenly as that
        allows.

    Raises:
        ValueError: no usable photo has a yaw from which a view's can be reached.
    """
    yaw = np.where(usable, np.abs(angles[:, 0]), np.nan)
    uses = rng.uniform(0, 0.5, len(yaw))  # ties are broken at random
    wanted = np.linspace(*turn.yaw, count)
    photos = np.empty(count, int)
    for i in rng.permutation(count):
        least, most = wanted[i] - turn.added[1], max(wanted[i] - turn.added[0], FRONTAL)
        fits = np.flatnonzero((yaw >= least) & (yaw <= most))
        if not len(fits):
            raise ValueError(f"no usable photo with |yaw| from {least:.0f} to {most:.0f} degrees")
        some = rng.choice(fits, min(len(fits), 64))
        photos[i] = some[np.argmin(uses[some])]
        uses[photos[i]] += 1
    noise = rng.normal(0, 1, (count, 3)).clip(-2, 2) * (turn.pitch_noise, ROLL_NOISE, turn.lean)
    new = np.concatenate([angles[photos], np.zeros((count, 1))], 1)
    new[:, 1:] = (new[:, 1:] + noise).clip(-45, 45)
    new[:, 0] = np.copysign(wanted, angles[photos, 0])
    return photos, new


def join(photos: Path, views: Path, combined: Path) -> None:
    """Writes the photos of one packed set and the views of another as one packed set.

    ``photos`` may be such a set itself: the views in it keep their ``source``.

    Raises:
        ValueError: the pictures of the two have different sides.
    """
    pictures = [map_npy(folder / "images.npy") for folder in (photos, views)]
    labels = [read_npz(folder / "labels.npz") for folder in (photos, views)]
    labels[0].setdefault("source", np.full(len(pictures[0]), -1, np.int32))
    joined = {key: np.concatenate([part[key] for part in labels]) for key in labels[1]}
    count, side = sum(map(len, pictures)), pictures[0].shape[1]
    write_packed(combined, tqdm(chain(*pictures), "joining", count), count, side, **joined)


def main() -> None:
    options = read_options()
    if not options.join_only:
        make_views(options)
    if options.combined:
        join(options.join_with or options.packed, options.out, options.combined)


def read_options() -> argparse.Namespace:
    parser = script_parser(
        __doc__, usage="--packed DIR --out DIR [options]", module="starter_kit.rotate_views"
    )
    add = parser.add_argument
    add("--photos", type=Path, help="folder with faces_train_labels.npz, which says what to trust")
    add("--packed", type=Path, required=True, help="packed photos, from starter_kit.pack_photos")
    add("-o", "--out", type=Path, required=True, help="folder of the views, to write")
    add("--combined", type=Path, help="folder to write photos and views to, as one set")
    add("--with", dest="join_with", type=Path, help="photos of --combined, if not --packed")
    add("--join-only", action="store_true", help="make no views: those in --out are joined")
    add("--count", type=at_least(5), default=4000, help="views to make (default: 4000)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: 0)")
    options = parser.parse_args()
    if options.join_only and not options.combined:
        parser.error("--join-only needs --combined: the folder to write the joined set to")
    if not (options.join_only or options.photos):
        parser.error("making views needs --photos")
    return options


def make_views(options: argparse.Namespace) -> None:
    """Chooses, turns and writes the views."""
    face_model = load_morphable_model(assets.STARTER_FACE_MODEL)
    images, photos = map_npy(options.packed / "images.npy"), read_npz(options.packed / "labels.npz")
    if "source" in photos:
        raise SystemExit(f"{options.packed}: holds turned views already; give the set of photos")
    side, names = images.shape[1], photos["names"]
    agreement = read_npz(options.photos / "faces_train_labels.npz")
    spread = dict(zip(agreement["name"].tolist(), agreement["spread"].tolist(), strict=True))
    spread = np.array([spread[name] for name in names.tolist()])

    _, rotation, _ = decompose_camera(split_camera(photos["parameters"]))
    angles = rotation_to_euler(rotation)
    usable = has_margins(photos["landmarks"], photos["valid"])
    usable &= (spread < RELIABLE_SPREAD) & (np.abs(angles[:, 1:]) < 30).all(1)
    rng = np.random.default_rng(options.seed)
    counts = [round(options.count * turn.share) for turn in TURNS]
    parts = [choose_views(angles, usable, *kind, rng) for kind in zip(TURNS, counts, strict=True)]
    chosen, wanted = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = rng.permutation(len(chosen))
    chosen, wanted = chosen[order], wanted[order]
    turned = [
        turn_labels(face_model, photos["parameters"][i], photos["landmarks"][i], angle, side)
        for i, angle in zip(chosen, wanted, strict=True)
    ]
    parameters, landmarks = (np.stack(parts) for parts in zip(*turned, strict=True))
    views = rendered_views(build_head(face_model), images, photos, chosen, parameters, rng)
    view_labels = {
        "parameters": parameters,
        "landmarks": landmarks,
        "valid": np.tile(np.int16([0, 0, side, side]), (len(chosen), 1)),
        "names": np.array(
            [f"{names[i]}@{angle[0]:.0f}" for i, angle in zip(chosen, wanted, strict=True)]
        ),
        "source": chosen.astype(np.int32),
    }
    write_packed(options.out, views, len(chosen), side, **view_labels)


def rendered_views(
    head: Head,
    images: np.ndarray,
    photos: dict[str, np.ndarray],
    chosen: np.ndarray,
    new_parameters: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """The pictures (S, S, 3) uint8 BGR of the views, one after the other.

    Behind the head stands its own photo's background, another's, or a piece of another's, enlarged.

    Args:
        images: (n, S, S, 3) uint8 BGR photos.
        photos: their labels, as a packed set holds them.
        chosen: (k,) the photo of each view.
        new_parameters: (k, 62) of each view.
    """
    side, count = images.shape[1], len(chosen)
    full = (photos["valid"] == (0, 0, side, side)).all(1)
    own = full[chosen] & (rng.random(count) < 0.6)
    other = np.where(own, chosen, rng.choice(np.flatnonzero(full), count))
    piece = ~own & (rng.random(count) < 0.5)
    mirrored = ~own & (rng.random(count) < 0.5)
    for i, photo in enumerate(tqdm(chosen, desc="turning")):
        there = images[other[i]], photos["landmarks"][other[i]]
        behind = beside_head(*there, rng) if piece[i] else without_head(*there)
        behind = behind[:, ::-1] if mirrored[i] else behind
        parameters, valid = photos["parameters"][photo], photos["valid"][photo]
        yield render_view(head, images[photo], parameters, valid, new_parameters[i], behind)


if __name__ == "__main__":
    run_script(main)
