"""Faces of a video, each with an id that stays its own.

A face that is followed is not detected anew: the crop of the next frame is taken where its last
landmarks say (moved on as they moved), which costs less than a detection (a sixth at 1280 x 720,
half at 640 x 360) and is as accurate. The detector runs every ``detect_every`` frames, to find new
faces and to confirm the followed ones; at once when a face is lost or the scene cuts; and every few
frames while a face is missing or none is followed.

    frame -> cut? -> crops of the followed faces -> still faces? -> detector, where it is due
          -> matched: overlap for the followed ones, distance for the missing ones -> smoothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from utils.boxes import overlaps
from utils.inference import MAX_STRETCH, Face, FacePipeline, detect, faces_from_parameters
from utils.morphable_model import split_camera
from utils.pictures import Picture, as_picture, to_bgr8
from utils.preprocessing import ROI_ENLARGEMENT, boxes_to_roi_boxes, crop_faces
from utils.smoothing import STRENGTHS, FaceSmoother

# Medians of 455 detected faces in photos: how the detector's roi box lies around the landmarks.
# Taking crops this way again and again changes the error by less than 0.1 % of the face, and does
# not drift (photos of 120 people, 20 times over).
ROI_OVER_DIAGONAL = 1.085  # side over the diagonal of the landmarks' box
ROI_RISE = 0.105  # centre over that of the landmarks' box, towards the head's top, in sides
BOX_ASPECT = 0.75  # width over height of detected boxes
ROI_TOLERANCE = 0.05  # sides; crops of a face that strayed by less, and slowly, stay
MAX_STRAY = 0.1  # sides; a followed face that strayed by more is cropped again

# To tell what the network makes of a crop without a face.
WEAK_SCORE, WEAK_STRETCH = 0.8, 1.12  # a new face whose detection scores less must look better
LANDMARKS_OVER_ROI = (0.65, 1.3)  # diagonal over side; faces 0.78 to 1.15 (98 %), background 0.75
MIN_SIDE = 12  # pixels of a roi box
# As ``contrast`` measures it; faces in photos have 18 and more. Without this limit a plain colour
# would be taken for a face.
MIN_CONTRAST = 1.5
# How much a face can change from one frame to the next:
MAX_STEP = 0.5  # face sizes (``size_of``) from where its velocity led it
MAX_GROWTH = 1.4  # larger size over smaller
MAX_TURN = 60  # degrees

MIN_OVERLAP = 0.3  # intersection over union of a detection and the face it confirms
MAX_DISTANCE = 0.5  # face sizes between a detection and a missing face, and ...
DISTANCE_GROWTH = 0.15  # ... what each missing frame adds
MAX_REACH = 2.0  # face sizes; whoever appears further from a missing face is somebody else
SAME_FACE = 0.25  # face sizes; landmarks nearer than that on average are those of one face
VELOCITY_SHARE = 0.3  # weight of a new step in the running mean that is the velocity
MAX_UNCONFIRMED = 3  # detections in a row that find nothing where a face is followed
MAX_MISSING = 30  # frames; a face that comes back later than that gets a new id

THUMBNAIL = (48, 27)  # pixels, in which cuts are looked for
CUT_DIFFERENCE, CUT_CORRELATION = 12, 0.5  # grey levels, mean; both must be passed
STILL_CORRELATION = 0.75  # from which no camera's turn is looked for
PLAIN = 8  # grey levels from darkest to brightest; a picture with less shows nothing
# Of the thumbnail, how far a camera's turn from one frame to the next is looked for, and the
# correlation from which it is one: of 5,910 cuts between photos one passes it in 5,000.
CAMERA_REACH, CAMERA_CORRELATION = (10, 6), 0.85


@dataclass(eq=False)
class Track:
    """One person's face over time.

    Attributes:
        id: 1, 2, ... in order of appearance.
        face: as last seen, not smoothed.
        score: of its last detection.
        smoother: of its parameters; None: they are not smoothed.
        velocity: (2,) pixels a frame.
        missing: frames since it was last seen; 0: it is in this one.
        gap: frames between the last two times it was seen; 1: it was not missing.
        unconfirmed: detections in a row that did not find it.
        steps: times that it was seen after the first.
        before: face, velocity and missing as they were before it was last seen, for ``take_back``;
            None for a new one.
    """

    id: int
    face: Face
    score: float
    smoother: FaceSmoother | None
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    missing: int = 0
    gap: int = 1
    unconfirmed: int = 0
    steps: int = 0
    before: tuple[Face, np.ndarray, int] | None = None

    @property
    def centre(self) -> np.ndarray:
        """(2,) where it is, or should be by now."""
        return centre_of(self.face) + self.velocity * self.missing

    def see(self, face: Face) -> None:
        """Takes the face as this one's in the present frame."""
        share = VELOCITY_SHARE if self.steps else 1  # the first step is all that is known
        self.steps += 1
        self.before = self.face, self.velocity, self.missing
        self.gap = self.missing
        step = (centre_of(face) - centre_of(self.face)) / self.gap
        self.velocity = self.velocity + share * (step - self.velocity)
        self.face, self.missing = face, 0

    def take_back(self) -> None:
        """Undoes ``see``: the face was another one's."""
        self.face, self.velocity, self.missing = self.before
        self.steps -= 1


class FaceTracker:
    """Follows the faces of one video; call it with one frame after the other, from one thread
    at a time (a model may be shared, a tracker not).

    Args:
        pipeline: ``SynergyNet(...).pipeline``.
        smoothing: ``off``, ``light`` or ``strong`` (``utils.smoothing``).
        detect_every: frames from one detection to the next while all faces are there; a fifth of
            that, at least 1, while one is missing or none is followed.

    Raises:
        ValueError: an unknown smoothing, or a number below 1.
    """

    def __init__(
        self, pipeline: FacePipeline, smoothing: str = "light", detect_every: int = 10
    ) -> None:
        if smoothing not in STRENGTHS:
            raise ValueError(f"unknown smoothing {smoothing!r}; expected {', '.join(STRENGTHS)}")
        if detect_every < 1:
            raise ValueError(f"detect_every must be at least 1, got {detect_every}")
        self.pipeline, self.strength = pipeline, STRENGTHS[smoothing]
        self.detect_every = detect_every
        self.tracks: list[Track] = []
        self.last_id = 0
        self.since_detection: int | None = None  # frames; None: detect now
        self.thumbnail: np.ndarray | None = None  # of the last picture that was not plain
        self.is_plain = False  # the last picture was, as between two fades

    def __call__(self, image: Picture, dense: bool = True) -> list[tuple[int, Face]]:
        """The faces of the next frame.

        Args:
            image: as ``SynergyNet`` takes one; of the size of the frames before it.
            dense: make the dense mesh too.

        Returns:
            (id, face) in order of id. Faces are smoothed, all their numbers alike; ``box`` is where
            the detector would put its box around the landmarks, ``score`` that of the face's last
            detection.
        """
        image = to_bgr8(as_picture(image))
        moved = self._camera_move(image)
        if moved is None:
            self.tracks, self.since_detection = [], None
        elif moved.any():
            self.since_detection = None
            for track in self.tracks:
                track.face = shifted(track.face, moved)
        for track in self.tracks:
            track.missing += 1
        self._follow(image)
        if self._detection_is_due():
            self._detect(image)
            self.since_detection = 0
        self._drop_duplicates()
        self.tracks = [
            track
            for track in self.tracks
            if track.missing <= MAX_MISSING and track.unconfirmed < MAX_UNCONFIRMED
        ]
        self.since_detection += 1
        return self._seen(dense)

    def _camera_move(self, image: np.ndarray) -> np.ndarray | None:
        """(2,) pixels that a camera's fast turn moved the picture by since the frame before; None
        where the two have little in common: a cut. Plain pictures in between are passed over: of
        a fade to black and a fade in the ends are compared.

        Neither a flash (the picture stays, only brighter) nor a face that moves is a cut or a turn,
        nor is a slow turn, in which faces are found again as if they moved.
        """
        before = self.thumbnail
        step = max(min(image.shape[:2]) // 256, 1)  # not every pixel of a large frame is needed
        small = cv2.resize(image[::step, ::step], THUMBNAIL, interpolation=cv2.INTER_AREA)
        small = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
        was_plain, self.is_plain = self.is_plain, float(np.ptp(small)) < PLAIN
        if self.is_plain:
            return np.zeros(2)
        self.thumbnail = small
        # what one fade ends with and the next begins with differ little: both are dark
        if before is None or (not was_plain and np.abs(small - before).mean() < CUT_DIFFERENCE):
            return np.zeros(2)
        a, b = small - small.mean(), before - before.mean()
        correlation = float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
        if correlation >= STILL_CORRELATION:
            return np.zeros(2)
        x, y = CAMERA_REACH
        middle = before[y:-y, x:-x]
        _, best, _, place = cv2.minMaxLoc(cv2.matchTemplate(small, middle, cv2.TM_CCOEFF_NORMED))
        if np.ptp(middle) < PLAIN or not best >= CAMERA_CORRELATION:  # what is plain fits anywhere
            return np.zeros(2) if correlation >= CUT_CORRELATION else None
        return (np.array(place) - CAMERA_REACH) * image.shape[1::-1] / THUMBNAIL

    def _detection_is_due(self) -> bool:
        if self.since_detection is None or any(track.missing == 1 for track in self.tracks):
            return True  # a cut, or lost in this frame
        all_there = self.tracks and not any(track.missing for track in self.tracks)
        return self.since_detection >= (
            self.detect_every if all_there else max(self.detect_every // 5, 1)
        )

    def _follow(self, image: np.ndarray) -> None:
        """Looks for the faces of the frame before near where they were."""
        tracks = [track for track in self.tracks if track.missing == 1]
        roi_boxes = [next_roi_box(track.face, track.velocity) for track in tracks]
        faces = self._fit(image, roi_boxes)
        # At the edge of its crop a face is fitted worse: the velocity led elsewhere.
        strayed = [i for i, f in enumerate(faces) if strays(f) and looks_like_a_face(f, image)]
        again = self._fit(image, [roi_box_of(faces[i]) for i in strayed])
        for i, face in zip(strayed, again, strict=True):
            faces[i] = face
        for track, face in zip(tracks, faces, strict=True):
            if looks_like_a_face(face, image) and continues(track, face):
                track.see(face)

    def _detect(self, image: np.ndarray) -> None:
        """Confirms followed faces, finds missing ones again and new ones."""
        rest = self._confirm(detect(self.pipeline.detector, image))
        found = self._fit_detections(image, rest)
        self._find_again(found)
        self._begin(image, found)

    def _confirm(self, detections: np.ndarray) -> np.ndarray:
        """Notes which followed faces have been detected.

        (n, 5) detections -> (m, 5) those that lie on no followed face.
        """
        seen = [track for track in self.tracks if not track.missing]
        boxes = np.array([box_of(track.face) for track in seen]).reshape(-1, 4)
        overlap = overlaps(boxes, detections)
        for track in seen:
            track.unconfirmed += 1
        for i, j in pairs(overlap, MIN_OVERLAP):
            seen[i].unconfirmed, seen[i].score = 0, float(detections[j, 4])
        # a second box on a face that is followed is no new face
        return detections[~(overlap > MIN_OVERLAP).any(axis=0)]

    def _fit_detections(
        self, image: np.ndarray, detections: np.ndarray
    ) -> list[tuple[Face, float]]:
        """(n, 5) detections -> those that look like faces: face and score of the detection."""
        faces = self._fit(image, boxes_to_roi_boxes(detections))
        # Cropped again from its landmarks, as it will be in every later frame: other crops give
        # slightly other landmarks, and the face would jump from its first frame to the second.
        faces = self._fit(image, [roi_box_of(face) for face in faces])
        return [
            (face, float(score))
            for face, score in zip(faces, detections[:, 4], strict=True)
            if looks_like_a_face(face, image)
        ]

    def _find_again(self, found: list[tuple[Face, float]]) -> None:
        """Gives each missing track the face that fits it best, if any; no face to two tracks."""
        missing = [track for track in self.tracks if track.missing]
        nearness = [[nearness_of(track, face) for face, _ in found] for track in missing]
        for i, j in pairs(np.reshape(nearness, (len(missing), len(found))), 0):
            face, score = found[j]
            missing[i].see(face)
            missing[i].score, missing[i].unconfirmed = score, 0

    def _begin(self, image: np.ndarray, found: list[tuple[Face, float]]) -> None:
        """Begins a track with each of the faces that belongs to no track in this frame."""
        for face, score in found:
            if score < WEAK_SCORE and (
                not looks_like_a_face(face, image, WEAK_STRETCH)
                or any(distance_to(track, face) < MAX_DISTANCE for track in self.tracks)
            ):
                continue  # no face, or what is left of one that another is hiding
            if any(same_face(face, track.face) for track in self.tracks if not track.missing):
                continue
            face_model, strength = self.pipeline.face_model, self.strength
            smoother = None if strength is None else FaceSmoother(face_model, strength)
            self.last_id += 1
            self.tracks.append(Track(self.last_id, face, score, smoother))

    def _fit(self, image: np.ndarray, roi_boxes: Sequence[np.ndarray] | np.ndarray) -> list[Face]:
        """One face for each of n roi boxes, without dense mesh."""
        if not len(roi_boxes):
            return []
        # Crops are cut at whole pixels. Mapped back with an unrounded box, landmarks would lie up
        # to half a pixel beside where they were seen, in each frame differently: jitter.
        # And square: smoothing has one scale for both directions.
        roi_boxes = np.asarray(roi_boxes, dtype=np.float64)
        corners, sides = np.round(roi_boxes[:, :2]), np.round(roi_boxes[:, 2:3] - roi_boxes[:, :1])
        roi_boxes = np.concatenate([corners, corners + sides], axis=1)
        detections = np.full((len(roi_boxes), 5), np.nan, np.float32)
        crops = crop_faces(image, roi_boxes)
        return self.pipeline.faces_from_crops(crops, roi_boxes, detections, dense=False)

    def _drop_duplicates(self) -> None:
        """Where two tracks follow one face, as when one hides the other, it belongs to the one
        whose motion it continues."""
        seen = [track for track in self.tracks if not track.missing]
        for i, first in enumerate(seen):
            for second in seen[i + 1 :]:
                if not first.missing and not second.missing and same_face(first.face, second.face):
                    max(first, second, key=surprise).take_back()

    def _seen(self, dense: bool) -> list[tuple[int, Face]]:
        tracks = [track for track in self.tracks if not track.missing]
        if not tracks:
            return []
        parameters = [
            track.smoother(track.face, track.gap) if track.smoother else track.face.parameters
            for track in tracks
        ]
        faces = faces_from_parameters(
            self.pipeline.face_model,
            np.stack(parameters),
            np.stack([track.face.roi_box for track in tracks]),
            np.array([[0, 0, 0, 0, track.score] for track in tracks], np.float32),
            dense,
        )
        return [
            (track.id, replace(face, box=box_of(face).astype(np.float32)))
            for track, face in zip(tracks, faces, strict=True)
        ]


# ------------------------------------------------------------------------------- faces and boxes


def size_of(face: Face) -> float:
    """sqrt(w * h) of the landmarks' box, pixels."""
    return float(np.sqrt(np.ptp(face.landmarks[:2], axis=1).prod()))


def centre_of(face: Face) -> np.ndarray:
    """(2,) float64: the landmarks' mean, image frame."""
    return face.landmarks[:2].mean(axis=1, dtype=np.float64)


def shifted(face: Face, by: np.ndarray) -> Face:
    """The face, without its dense mesh, (2,) pixels further right and down in the image."""
    by = by.astype(np.float32)
    return replace(
        face,
        box=face.box + np.tile(by, 2),
        roi_box=face.roi_box + np.tile(by, 2),
        landmarks=face.landmarks + np.append(by, 0).astype(np.float32)[:, None],
        translation=face.translation + np.append(by, 0),
        vertices=None,
    )


def roi_box_of(face: Face) -> np.ndarray:
    """(4,) float64 x1 y1 x2 y2: the roi box that the detector would give, from the landmarks."""
    low, high = face.landmarks[:2].min(axis=1), face.landmarks[:2].max(axis=1)
    side = ROI_OVER_DIAGONAL * float(np.hypot(*(high - low)))
    up = face.rotation[:2, 1] * (1, -1)  # the head's top, in the y-down image
    centre = (low + high) / 2 + ROI_RISE * side * up
    return np.concatenate([centre - side / 2, centre + side / 2])


def box_of(face: Face) -> np.ndarray:
    """(4,) float64 x1 y1 x2 y2: the box that the detector would give, from the landmarks."""
    x1, y1, x2, y2 = roi_box_of(face)
    height = (y2 - y1) / ROI_ENLARGEMENT
    half = np.array([BOX_ASPECT * height, height]) / 2
    centre = np.array([x1 + x2, y1 + y2]) / 2
    return np.concatenate([centre - half, centre + half])


def next_roi_box(face: Face, velocity: np.ndarray) -> np.ndarray:
    """(4,) where to crop the face from the next frame.

    A face that stands still is cropped from where it was: another crop, even of the same picture,
    gives slightly other landmarks.
    """
    box = roi_box_of(face) + np.tile(velocity, 2)
    tolerance = ROI_TOLERANCE * (box[2] - box[0])
    is_near = np.abs(box - face.roi_box).max() < tolerance
    is_slow = 10 * np.abs(velocity).max() < tolerance
    return face.roi_box if is_near and is_slow else box


def strays(face: Face) -> bool:
    """Whether a face lies far from where its crop expected it."""
    side = face.roi_box[2] - face.roi_box[0]
    return bool(np.abs(roi_box_of(face) - face.roi_box).max() > MAX_STRAY * side)


def looks_like_a_face(face: Face, image: np.ndarray, max_stretch: float = MAX_STRETCH) -> bool:
    """A cheap judgement: what the network makes of other things rarely has a face's geometry."""
    linear = split_camera(face.parameters[None])[0, :, :3].astype(np.float64)
    side = face.roi_box[2] - face.roi_box[0]
    diagonal = float(np.hypot(*np.ptp(face.landmarks[:2], axis=1)))
    centre = centre_of(face)
    return bool(
        face.stretch <= max_stretch
        and np.linalg.det(linear) > 0
        and LANDMARKS_OVER_ROI[0] * side <= diagonal <= LANDMARKS_OVER_ROI[1] * side
        and MIN_SIDE <= side <= 4 * max(image.shape[:2])
        and (centre >= 0).all()
        and (centre < image.shape[1::-1]).all()
        and contrast(image, face.roi_box) >= MIN_CONTRAST
    )


def contrast(image: np.ndarray, box: np.ndarray) -> float:
    """The largest of the three channels' standard deviations in a box (4,), in levels of 255; 0 for
    a box outside the picture."""
    x1, y1, x2, y2 = np.maximum(box, 0).astype(int)
    step = max((x2 - x1) // 32, 1)  # a thousand pixels are enough
    pixels = image[y1:y2:step, x1:x2:step].reshape(-1, 3)
    return float(pixels.std(axis=0).max()) if len(pixels) else 0.0


def continues(track: Track, face: Face) -> bool:
    """Whether the face can be the track's next."""
    size = size_of(track.face)
    step = float(np.linalg.norm(centre_of(face) - track.centre))
    cosine = (np.trace(track.face.rotation.T @ face.rotation) - 1) / 2
    growth = size_of(face) / size
    return bool(
        step <= MAX_STEP * size
        and 1 / MAX_GROWTH <= growth <= MAX_GROWTH
        and cosine >= np.cos(np.radians(MAX_TURN))
    )


def surprise(track: Track) -> float:
    """How far from where its motion led it a track was seen in this frame, in face sizes."""
    face, velocity, missing = track.before
    step = centre_of(track.face) - centre_of(face) - velocity * missing
    return float(np.linalg.norm(step)) / size_of(face)


def same_face(a: Face, b: Face) -> bool:
    """Whether two faces' landmarks lie on each other."""
    distance = np.linalg.norm(a.landmarks[:2] - b.landmarks[:2], axis=0).mean()
    return bool(distance < SAME_FACE * min(size_of(a), size_of(b)))


def nearness_of(track: Track, face: Face) -> float:
    """How well a face fits a missing track, at most 1; 0 or less: not at all."""
    size = size_of(track.face)
    growth = size_of(face) / size
    # it may have been seen last while another face hid part of it; the rest is fitted as smaller
    most = min(2.0, MAX_GROWTH**track.missing)
    if not 1 / most <= growth <= most:
        return 0.0
    reach = min(MAX_DISTANCE + DISTANCE_GROWTH * track.missing, MAX_REACH)
    return 1 - distance_to(track, face) / reach


def distance_to(track: Track, face: Face) -> float:
    """How far a face lies from where a track's was last, or should be by now, whichever is nearer;
    in sizes of the track's."""
    # while it was missing it may have moved on, or stopped
    places = (track.centre, centre_of(track.face))
    distance = min(float(np.linalg.norm(centre_of(face) - place)) for place in places)
    return distance / size_of(track.face)


def pairs(merit: np.ndarray, least: float) -> list[tuple[int, int]]:
    """(n, m) merits -> pairs (i, j) of a merit above ``least``, best first, nobody twice."""
    found: list[tuple[int, int]] = []
    for flat in np.argsort(-merit, axis=None, kind="stable"):
        i, j = divmod(int(flat), merit.shape[1])
        if merit[i, j] <= least:
            break
        if all(i != a and j != b for a, b in found):
            found.append((i, j))
    return found
