"""From photos to faces: the whole data flow.

    photo (H, W, 3)
      -> boxes (n, 5)                     FaceBoxes/
      -> roi boxes (n, 4)                 utils/preprocessing.py
      -> crops (n, 120, 120, 3)           utils/preprocessing.py
      -> parameters (n, 62)               the network, behind ``Regressor``
      -> landmarks (3, 68), vertices (3, N), pose    utils/morphable_model.py, utils/geometry.py

All faces of a photo, and of a list of photos, go through the network together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from utils.geometry import decompose_camera, facing_angles, rotation_to_angles
from utils.morphable_model import CAMERA, EXPRESSION, MorphableModel, split_camera
from utils.pictures import Picture, as_picture, to_bgr8
from utils.preprocessing import (
    CROP_SIZE,
    boxes_to_roi_boxes,
    crop_faces,
    crop_to_image,
    croppable,
    normalize_crops,
)

# (n, 3, 120, 120) float32 crops -> (n, 62) float32 whitened parameters
Regressor = Callable[[np.ndarray], np.ndarray]
# (H, W, 3) uint8 BGR -> (n, 5) or (n, 4) real x1 y1 x2 y2 [score], image frame
Detector = Callable[[np.ndarray], np.ndarray | Sequence[Sequence[float]]]

DEFAULT_DRAWINGS = ("mesh", "landmarks")  # of ``utils.overlays.DRAWINGS``
MAX_BATCH = 128  # crops that go through the network at once
MESH_BATCH = 16  # meshes made by one matrix product; all of a crowd's would need gigabytes at once
# What tells faces from other things. By the starter weights ``Face.stretch`` is 1.02 (median) to
# 1.09 (99.9 % of 835 photos) for faces, 1.3 for background (median; 1.2 % of 1,775 crops are below
# this limit); three of four faces upside down are above.
MAX_STRETCH = 1.15


@dataclass(frozen=True, eq=False, repr=False)
class Face:
    """One face of a photo. Image frame: pixels, x right, y down, z towards the viewer.

    Attributes:
        box: (4,) float32 x1 y1 x2 y2, as detected (or given), image frame.
        score: the detector's confidence (FaceBoxes': in [0, 1]), or that of a given box; NaN for a
            box that came without one.
        roi_box: (4,) float64 x1 y1 x2 y2, the square that was cropped, image frame; rounded to
            whole pixels with ``pixel_centres`` of the face model (``crop_to_image``), and by
            trackers.
        parameters: (62,) float32, not whitened: camera (12, y up, in the crop), shape (40),
            expression (10); see ``utils/morphable_model.py``.
        landmarks: (3, 68) float32, image frame; z has the scale of x and y.
        vertices: (3, N) float32, image frame, the dense mesh; None where it was not asked for.
        triangles: (T, 3) int32 of the mesh, 0-based, outward in the image frame; read-only, all
            faces share it (``triangles + 1`` for counting from 1).
        yaw, pitch, roll: degrees, by the published formulas; signs in ``utils/geometry.py``.
        facing: (3,) float64 degrees of the same signs, which stay readable in profiles: yaw and
            pitch of where the nose points to, and the tilt about it (``geometry.facing_angles``).
        rotation: (3, 3) float64, model frame (y up) to image axes with y up; rows of length 1, not
            exactly at right angles (``geometry.nearest_rotation``).
        scale: pixels of the image per unit of the model (micrometre).
        translation: (3,) float64, image frame: where the model's origin lies.
        stretch: the fitted camera's largest scale along any direction over its smallest: 1 for a
            rotation with one scale; above ``MAX_STRETCH`` (1.15) the fit is doubtful, whatever the
            detector's score.
        face_model: the 3DMM that ``parameters`` speak of.
        fitted: of a changed face (``with_expression``, ``frontal``, ``with_parameters``) the one
            that was fitted to the photo, from which its texture is taken; None of any other.
    """

    box: np.ndarray
    score: float
    roi_box: np.ndarray
    parameters: np.ndarray
    landmarks: np.ndarray
    vertices: np.ndarray | None
    yaw: float
    pitch: float
    roll: float
    rotation: np.ndarray
    scale: float
    translation: np.ndarray
    face_model: MorphableModel
    fitted: Face | None = None

    @property
    def facing(self) -> np.ndarray:
        """(3,) degrees: where the nose points to, and the tilt about it; see above."""
        return facing_angles(self.rotation[None])[0]

    @property
    def stretch(self) -> float:
        """Largest over smallest singular value of the camera's (3, 3) part; see above."""
        camera = split_camera(self.parameters[None])[0, :, :3].astype(np.float64)
        lengths = np.linalg.svd(camera, compute_uv=False)
        with np.errstate(divide="ignore"):  # infinite without a third row
            return float(lengths[0] / lengths[2])

    @property
    def triangles(self) -> np.ndarray:
        """(T, 3) int32, 0-based; see above."""
        return self.face_model.triangles  # no field: every pickled face would carry them

    def __repr__(self) -> str:
        box = ", ".join(f"{v:.0f}" for v in self.box)
        mesh = f"{self.vertices.shape[1]} vertices" if self.vertices is not None else "no mesh"
        return (
            f"Face(box=[{box}], score={self.score:.2f}, "
            f"facing=[{', '.join(f'{angle:.1f}' for angle in self.facing)}], {mesh})"
        )

    def draw(
        self,
        image: Picture,
        drawings: str | Sequence[str] = DEFAULT_DRAWINGS,
    ) -> np.ndarray:
        """The photo with this face drawn on it.

        Args:
            image: its photo, an array (``utils.pictures.to_bgr8``), path or file's bytes; it stays
                as it is.
            drawings: one or some of ``utils.overlays.DRAWINGS``: mesh, depth, pncc, landmarks,
                box, pose.

        Returns:
            (H, W, 3) uint8 BGR.

        Raises:
            OSError: the photo's file cannot be read.
            ValueError: another drawing, no picture, or a mesh asked of a face without one.
        """
        from utils.overlays import Overlays  # imported here: numbers alone need no drawing

        return Overlays(self.face_model, drawings)(to_bgr8(as_picture(image)), [self])

    def save(self, path: str | os.PathLike, image: Picture | None = None) -> list[Path]:
        """Writes the face as its path's suffix says; each file appears complete or not at all.

        ``.npz``: the numbers above, each with the faces, here one, along its first axis, and
        ``triangles`` (T, 3); ``.json``: ``{"faces": [...]}``, without the dense mesh; ``.csv``: a
        line of titles, one of the face, without parameters, rotation and roi box. ``.obj``,
        ``.glb``, ``.ply``, ``.html``: the kept part of the mesh on the model's axes (x right, y
        up), turned as in the photo, metres from the model's origin, with the texture of ``image``
        where it is given (``.ply``: its colours). Any picture suffix: ``image`` with ``draw`` on
        it.

        Args:
            path: its folder is made where it does not exist.
            image: the face's photo, as ``draw`` takes it.

        Returns:
            The files written.

        Raises:
            OSError: the photo cannot be read, or the file not be written there.
            ValueError: another suffix, no photo where one is needed or not the face's, a face
                without the dense mesh that is to be written, or a texture for a face model without
                texture coordinates.
        """
        from utils.results import save_face  # imported here: many callers write no file

        return save_face(Path(path), self, None if image is None else as_picture(image))

    def to_dict(self) -> dict[str, object]:
        """The numbers of a ``.json`` file: lists and numbers, None for those not finite, no dense
        mesh."""
        from utils.photo_numbers import face_to_json  # imported here, as in ``save``

        return face_to_json(self)


class FacePipeline:
    """Detector, network and face model, put together once and called as often as needed.

    Args:
        detector: gives the boxes of a photo.
        regressor: gives the whitened parameters of crops.
        face_model: the 3DMM the regressor speaks of.
    """

    def __init__(self, detector: Detector, regressor: Regressor, face_model: MorphableModel):
        self.detector, self.regressor, self.face_model = detector, regressor, face_model

    def __call__(
        self,
        images: Sequence[np.ndarray],
        boxes: Sequence[np.ndarray | None] | None = None,
        dense: bool = True,
    ) -> list[list[Face]]:
        """All faces of each photo, best score first; those of given boxes in the boxes' order.

        Args:
            images: pictures as ``utils.pictures.to_bgr8`` takes them, of any sizes.
            boxes: for each image (n, 4) or (n, 5) boxes x1 y1 x2 y2 [score], image frame, to be
                used instead of the detector; None (or None for one image) detects.
            dense: make the dense mesh too.

        Raises:
            ValueError: an array that is no picture, given boxes that cannot be cropped or lie
                outside their picture or are not one entry for each image, or a detector that gives
                something else than boxes in pixels.
        """
        images = [to_bgr8(image) for image in images]
        given = [None] * len(images) if boxes is None else list(boxes)
        if len(given) != len(images):
            raise ValueError(f"got {len(images)} images but boxes for {len(given)}")
        detections = [
            detect(self.detector, image) if own is None else given_boxes(own, image)
            for image, own in zip(images, given, strict=True)
        ]  # (n_i, 5) each
        counts = [len(found) for found in detections]
        if not sum(counts):
            return [[] for _ in images]
        roi_boxes = [boxes_to_roi_boxes(found) for found in detections]  # (n_i, 4) each
        crops = [crop_faces(image, rois) for image, rois in zip(images, roi_boxes, strict=True)]
        faces = iter(
            self.faces_from_crops(*map(np.concatenate, (crops, roi_boxes, detections)), dense)
        )  # of all photos together
        return [list(islice(faces, count)) for count in counts]

    def faces_from_crops(
        self, crops: np.ndarray, roi_boxes: np.ndarray, detections: np.ndarray, dense: bool
    ) -> list[Face]:
        """(n, 120, 120, 3) crops, (n, 4) roi boxes, (n, 5) detections -> n faces."""
        chunks = [
            self.regressor(normalize_crops(crops[start : start + MAX_BATCH]))
            for start in range(0, len(crops), MAX_BATCH)
        ]
        parameters = self.face_model.dewhiten(np.concatenate(chunks))  # (n, 62)
        return faces_from_parameters(self.face_model, parameters, roi_boxes, detections, dense)


def faces_from_parameters(
    face_model: MorphableModel,
    parameters: np.ndarray,
    roi_boxes: np.ndarray,
    detections: np.ndarray,
    dense: bool,
) -> list[Face]:
    """(n, 62) parameters (not whitened), (n, 4) roi boxes, (n, 5) detections -> n faces."""
    if face_model.pixel_centres:
        roi_boxes = np.round(roi_boxes)  # as they are cut
    to_image = partial(crop_to_image, pixel_centres=face_model.pixel_centres)
    landmarks = to_image(face_model.landmarks(parameters), roi_boxes)
    scale, rotation, translation = decompose_camera(split_camera(parameters))
    translation = face_model.to_crop(translation[:, :, None])  # (n, 3, 1)
    translation = to_image(translation, roi_boxes)[:, :, 0]  # (n, 3)
    scale = scale * (roi_boxes[:, 2] - roi_boxes[:, 0]) / CROP_SIZE
    angles = rotation_to_angles(rotation)
    meshes: list[np.ndarray | None] = [None] * len(parameters)  # (3, N) each
    if dense:
        for start in range(0, len(parameters), MESH_BATCH):
            part = slice(start, start + MESH_BATCH)
            together = to_image(face_model.vertices(parameters[part]), roi_boxes[part])
            meshes[part] = map(np.copy, together)  # who keeps one face keeps no other's mesh

    return [
        Face(
            box=detections[i, :4].astype(np.float32),
            score=float(detections[i, 4]),
            roi_box=roi_boxes[i],
            parameters=parameters[i],
            landmarks=landmarks[i],
            vertices=meshes[i],
            yaw=float(angles[i, 0]),
            pitch=float(angles[i, 1]),
            roll=float(angles[i, 2]),
            rotation=rotation[i],
            scale=float(scale[i]),
            translation=translation[i],
            face_model=face_model,
        )
        for i in range(len(parameters))
    ]


# ------------------------------------------------------------------------------- changed faces


def with_expression(
    face: Face,
    factor: float = 1.0,
    coefficients: np.ndarray | None = None,
) -> Face:
    """The same person in the same pose with another expression.

    Args:
        face: as fitted to a photo, or changed already.
        factor: scales the expression's deformation: 0 removes it (coefficients 0, not whitened:
            the model's mean expression), 1 leaves it, 2 doubles it.
        coefficients: (10,) expression coefficients, not whitened, in place of the face's own, as
            ``expression_of`` another face gives them.

    Returns:
        A new face, image frame; without dense mesh where ``face`` has none.

    Raises:
        ValueError: not ten finite coefficients, or a factor that is not finite.
    """
    own = expression_of(face) if coefficients is None else np.asarray(coefficients)
    if own.shape != (EXPRESSION,) or not np.isfinite(own).all() or not np.isfinite(factor):
        raise ValueError(
            f"expected {EXPRESSION} finite expression coefficients and a finite factor, got {own} "
            f"and factor {factor}"
        )
    return with_parameters(face, np.append(face.parameters[:-EXPRESSION], factor * own))


def expression_of(face: Face) -> np.ndarray:
    """(10,) float32 expression coefficients of a face, not whitened; a copy."""
    return face.parameters[-EXPRESSION:].copy()


def frontal(face: Face) -> Face:
    """The same face looking straight at the viewer, upright.

    Size (``scale``) and place (``translation``, where the model's origin lies) stay. What the
    fitted camera has beside a rotation, unequal scales and shear, goes with the pose.

    Returns:
        A new face, image frame, its rotation the identity; without dense mesh where ``face`` has
        none.
    """
    camera = split_camera(face.parameters[None]).copy()  # (1, 3, 4)
    camera[0, :, :3] = decompose_camera(camera)[0] * np.eye(3)
    return with_parameters(face, np.append(camera, face.parameters[CAMERA:]))


def with_parameters(face: Face, parameters: np.ndarray) -> Face:
    """The face that other parameters give in the same crop; its texture is still the photo's.

    Args:
        face: as fitted to a photo, or changed already.
        parameters: (62,) camera, shape, expression, not whitened (``utils/morphable_model.py``),
            such as a person's shape averaged over photos.

    Returns:
        A new face, image frame; without dense mesh where ``face`` has none.

    Raises:
        ValueError: not 62 finite numbers.
    """
    detection = np.append(face.box, face.score)
    parameters = np.asarray(parameters, dtype=face.parameters.dtype)
    if parameters.shape != face.parameters.shape or not np.isfinite(parameters).all():
        raise ValueError(
            f"expected {len(face.parameters)} finite parameters, got shape {parameters.shape}, of "
            f"which {np.isfinite(parameters).sum()} are finite"
        )
    (changed,) = faces_from_parameters(
        face.face_model,
        parameters[None],
        face.roi_box[None],
        detection[None],
        dense=face.vertices is not None,
    )
    return replace(changed, fitted=face.fitted or face)


# --------------------------------------------------------------------------------------- boxes


def detect(detector: Detector, image: np.ndarray) -> np.ndarray:
    """(n, 5) float32 detections of a photo, without boxes that cannot be cropped, such as those
    that are too small, or that have nothing of the photo in them.

    Raises:
        ValueError: the detector gives something else than boxes in pixels.
    """
    found = with_scores(detector(image), "boxes from the detector")
    is_inverted = (found[:, 2:4] < found[:, :2]).any(1)
    is_fraction = (found[:, :4] >= 0).all(1) & (found[:, :4] <= 1).all(1)
    is_fraction &= (found[:, 2:4] > found[:, :2]).all(1) & (max(image.shape[:2]) > 1)
    if len(wrong := found[is_inverted | is_fraction]):
        raise ValueError(
            f"box {wrong[0, :4].tolist()} from the detector: expected x1 y1 x2 y2 in pixels of the "
            "picture, not x y width height, and not fractions of the picture"
        )
    return found[croppable(found) & ~outside(found, image)]


def outside(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Which boxes (n, 4+) have nothing of a picture (H, W, ...) in them: (n,) bool."""
    height, width = image.shape[:2]
    return (boxes[:, :2] >= (width, height)).any(1) | (boxes[:, 2:4] <= 0).any(1)


def with_scores(boxes: np.ndarray | Sequence[Sequence[float]], name: str) -> np.ndarray:
    """(n, 4) or (n, 5) boxes -> (n, 5) float32; the score is NaN where there is none.

    Raises:
        ValueError: no numbers, another shape, or an infinite score; the message calls the boxes
            ``name``.
    """
    try:
        boxes = np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"expected {name} as rows of numbers, x1 y1 x2 y2 score, got {type(boxes).__name__} "
            f"({error})"
        ) from error
    if boxes.size == 0:
        return np.zeros((0, 5), dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
        raise ValueError(
            f"expected {name} of shape (n, 4) or (n, 5), x1 y1 x2 y2 score, got {boxes.shape}"
        )
    if boxes.shape[1] == 4:
        boxes = np.concatenate([boxes, np.full((len(boxes), 1), np.nan, np.float32)], axis=1)
    if np.isinf(boxes[:, 4]).any():
        raise ValueError(f"expected finite scores of {name}, or NaN where there is none")
    return boxes


def given_boxes(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(n, 4) or (n, 5) boxes of a picture -> (n, 5) float32; the score is NaN where none is given.

    Raises:
        ValueError: another shape, an infinite score, or a box that has nothing of the picture in
            it.
    """
    boxes = with_scores(boxes, "boxes")
    height, width = image.shape[:2]
    beyond = boxes[outside(boxes, image)]
    if len(beyond):
        raise ValueError(
            f"box {beyond[0, :4].tolist()} lies outside the picture of {width}x{height} "
            "pixels; boxes are x1 y1 x2 y2 in pixels of the picture that is given"
        )
    return boxes
