"""What is drawn over the faces of a picture, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.draw import (
    draw_angles,
    draw_boxes,
    draw_landmarks,
    draw_pose_axes,
    put_lines,
    text_height,
)
from utils.render import (
    normalized_coordinate_code,
    render_depth,
    render_mesh_overlay,
    render_pncc,
)

if TYPE_CHECKING:
    from utils.inference import Face
    from utils.morphable_model import MorphableModel

DENSE = ("mesh", "depth", "pncc")  # need the dense mesh; each hides those before it here
DRAWINGS = (*DENSE, "landmarks", "box", "pose")  # in the order of drawing
NUMBERED = frozenset(("box", "pose"))  # several faces of a photo get their numbers with these


def nearest_last(faces: Sequence[Face]) -> list[Face]:
    """The faces, the larger ones, which are likely in front of others, last."""
    return sorted(faces, key=lambda face: face.scale)


class Overlays:
    """Draws the chosen things; built once for many pictures.

    Args:
        face_model: of the faces.
        drawings: one or some of ``DRAWINGS``, in any order; ``mesh`` is shaded and half
            transparent, ``depth`` (near is bright) and ``pncc`` (``utils.render``) hide the face,
            and the mesh.

    Attributes:
        dense: the faces need their dense mesh.

    Raises:
        ValueError: a drawing of another name.
    """

    def __init__(self, face_model: MorphableModel, drawings: str | Sequence[str]) -> None:
        drawings = (drawings,) if isinstance(drawings, str) else drawings
        unknown = set(drawings) - set(DRAWINGS)
        if unknown:
            raise ValueError(f"cannot draw {sorted(unknown)}; expected some of {DRAWINGS}")
        self.face_model, self.drawings = face_model, frozenset(drawings)
        self.dense = bool(self.drawings & set(DENSE))
        self.codes = normalized_coordinate_code(face_model.mean) if "pncc" in drawings else None

    def __call__(
        self, image: np.ndarray, faces: Sequence[Face], ids: Sequence[int] | None = None
    ) -> np.ndarray:
        """A copy of the picture with its faces drawn.

        Args:
            image: (H, W, 3) uint8 BGR.
            faces: with dense mesh where ``dense``.
            ids: one number for each face, drawn at its box where there is more than one face.

        Returns:
            (H, W, 3) uint8 BGR.

        Raises:
            ValueError: a face without dense mesh, or of another face model, where ``dense``.
        """
        if self.dense and any(face.vertices is None for face in faces):
            wanted = ", ".join(d for d in DENSE if d in self.drawings)
            raise ValueError(f"{wanted} needs the dense mesh: call the model with dense=True")
        others = {face.face_model for face in faces} - {self.face_model}  # pickled, they are equal
        if self.dense and any(m.fingerprint != self.face_model.fingerprint for m in others):
            raise ValueError(
                "a face of another face model, whose triangles are others: draw it with the model "
                "that gave it, or face.draw"
            )
        in_front_last = nearest_last(faces)
        canvas = self._dense(image, in_front_last) if self.dense and faces else image.copy()
        for face in in_front_last:
            if "landmarks" in self.drawings:
                draw_landmarks(canvas, face.landmarks)
            if "box" in self.drawings:
                draw_boxes(canvas, face.box[None])
            if "pose" in self.drawings:
                draw_pose_axes(canvas, face.rotation, face.landmarks)
        if "pose" in self.drawings:  # text over everything else
            for face in in_front_last:
                draw_angles(canvas, face.rotation, face.landmarks)
        if ids is not None and len(faces) > 1:
            for face, number in zip(faces, ids, strict=True):
                x1, y1, x2, y2 = face.box
                height = 1.3 * text_height(canvas, float(np.sqrt((x2 - x1) * (y2 - y1))))
                put_lines(canvas, [str(number)], x1, y1 - 2 * height, height)
        return canvas

    def _dense(self, image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
        vertices, triangles = [face.vertices for face in faces], self.face_model.triangles
        drawing = next(name for name in reversed(DENSE) if name in self.drawings)
        if drawing == "mesh":
            return render_mesh_overlay(image, vertices, triangles)
        canvas = image.copy()
        if drawing == "pncc":
            layer = render_pncc(vertices, triangles, self.codes, *image.shape[:2])
            is_black = cv2.inRange(layer, (0, 0, 0), (0, 0, 0))  # numpy takes ten times as long
            cv2.copyTo(layer, ~is_black, canvas)
        else:
            assert drawing == "depth", drawing
            layer = render_depth(vertices, triangles, *image.shape[:2])
            cv2.copyTo(cv2.cvtColor(layer, cv2.COLOR_GRAY2BGR), layer, canvas)
        return canvas
