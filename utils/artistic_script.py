"""The work of artistic.py: a coloured mesh of every face of photos."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import assets, texture
from utils.cli import say
from utils.inference import Face, FacePipeline, expression_of, frontal, with_expression
from utils.mesh_io import TexturedMesh, save_mesh
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.photo_script import finished_photos, run_on_photos
from utils.photos import face_names
from utils.pictures import read_image, write_image
from utils.preprocessing import crop_faces
from utils.render import render_mesh_overlay
from utils.results import PhotoWriter, save_confidence
from utils.turntable import save_turntable, turntable_frames

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet

# where the published UV maps lie
UV_FOLDER, PRECROPPED_UV_FOLDER = (assets.ROOT / n for n in ("uv_art", "texture_data/uv_real"))


def write_meshes(options: argparse.Namespace, model: SynergyNet) -> int:
    """Goes through the photos of artistic.py's options; returns the exit code.

    Raises:
        OSError, ValueError: the face model has no texture coordinates or the UV maps are not for
            it, the photo of ``expression_from`` gives none, or nothing can be written.
    """
    texture.require_texture_coordinates(model.face_model)
    of_bundled = options.texture != "photo" and is_bundled(model.face_model)
    if options.texture is None:
        options.texture = "photo" if of_bundled and not options.uv_dir else "uv"
        if options.texture == "photo":
            say("texture: the photo's own (--texture photo): published UV maps need 3dmm_data")
    if not options.uv_dir:
        options.uv_dir = PRECROPPED_UV_FOLDER if options.precropped else UV_FOLDER
    is_mapped = options.texture == "uv"
    map_of = partial(texture.uv_map_path, folder=options.uv_dir) if is_mapped else None
    finished = finished_photos(options, model, map_of)
    if is_mapped and of_bundled:
        say(check_uv_folder(options.uv_dir))
    expression = None
    if options.expression_from:
        expression = expression_of_photo(options.expression_from, model)
    writer = MeshWriter(options, expression)

    def find_faces(image: np.ndarray) -> list[Face]:
        return [face_of_crop(model.pipeline, image)] if options.precropped else model(image)

    return run_on_photos(options, find_faces, writer, finished)


def is_bundled(face_model: MorphableModel) -> bool:
    """Whether it is the starter kit's, from whatever file."""
    if not assets.STARTER_FACE_MODEL.is_file():
        return False
    return face_model.fingerprint == load_morphable_model(assets.STARTER_FACE_MODEL).fingerprint


def check_uv_folder(folder: Path) -> str:
    """Published UV maps belong to the published face model: the bundled one has its eyes elsewhere.

    Returns:
        What is to be said of the folder where the bundled face model is in use.

    Raises:
        ValueError: the folder is the published maps'.
    """
    if folder.resolve() in (f.resolve() for f in (UV_FOLDER, PRECROPPED_UV_FOLDER)):
        raise ValueError(
            f"{assets.shown(folder)}: published UV maps belong to the published face model; on the "
            f"bundled one their eyes and lips would lie elsewhere. Get it and its weights "
            '(`make published NAMES="3dmm_data weights"`), or use --texture photo, which needs no '
            "maps; --uv-dir takes maps that were made for the bundled model"
        )
    return (
        f"{folder}: its UV maps are read as made for the bundled face model "
        f"({assets.shown(assets.STARTER_FACE_MODEL)}); published ones belong to 3dmm_data"
    )


def face_of_crop(pipeline: FacePipeline, image: np.ndarray) -> Face:
    """The face of a picture (S, S, 3) uint8 BGR that is its own roi box; ValueError: not square."""
    height, width = image.shape[:2]
    if height != width:
        raise ValueError(
            f"a pre-cropped photo is square (256x256 as published), this one has {width}x{height} "
            "pixels; leave --precropped out to have its faces detected"
        )
    roi_boxes = np.array([[0.0, 0.0, width, height]])
    detections = np.array([[0, 0, width, height, np.nan]], np.float32)
    return pipeline.faces_from_crops(crop_faces(image, roi_boxes), roi_boxes, detections, True)[0]


def expression_of_photo(path: Path, model: SynergyNet) -> np.ndarray:
    """(10,) expression coefficients of a photo's best face.

    Raises:
        OSError, ValueError: it is no readable photo, or has no face.
    """
    faces = model(read_image(path))
    if not faces:
        raise ValueError(f"{path}: no face found whose expression --expression-from could take")
    return expression_of(faces[0])


class MeshWriter(PhotoWriter):
    """What artistic.py writes for photos, as its options say.

    Args:
        options: artistic.py's.
        expression: (10,) coefficients that all faces get in place of their own; or None.
    """

    def __init__(self, options: argparse.Namespace, expression: np.ndarray | None) -> None:
        super().__init__(options)
        self.options, self.expression = options, expression
        self.is_mapped = options.texture == "uv"

    def save(self, name: str, path: Path, image: np.ndarray, faces: list[Face]) -> None:
        """Writes all files of one photo."""
        if not faces:
            return
        uv_map = None
        if self.is_mapped:
            uv_map = texture.read_uv_map(texture.uv_map_path(path, self.options.uv_dir))
        for face, own in zip(faces, face_names(name, len(faces), self.photo_names), strict=True):
            if uv_map is not None:
                mesh = texture.uv_mapped_face(face, uv_map)
            else:
                mesh = texture.textured_face(face, image, self.options.texture_size)
                save_confidence(self.out, own, mesh)
            self._save_face(own, self._changed(face), mesh)  # the texture is the fitted face's
        if self.options.precropped:
            vertices = [face.vertices for face in faces]
            overlay = render_mesh_overlay(image, vertices, faces[0].triangles)
            write_image(self.out / "rendering_overlay" / f"{name}.jpg", overlay)

    def result_of(self, name: str) -> Path:
        return self._mesh_path(name, self.options.format[0])

    def _mesh_path(self, name: str, form: str) -> Path:
        return self.out / form / f"{name}.{form}"

    def _changed(self, face: Face) -> Face:
        """The face with the expression and pose that it is to be written with."""
        if self.expression is not None or self.options.expression != 1:
            face = with_expression(face, self.options.expression, self.expression)
        return frontal(face) if self.options.frontal else face

    def _save_face(self, name: str, face: Face, textured: TexturedMesh) -> None:
        """Writes a face's meshes and clips, with the colours of ``textured``."""
        mesh = texture.with_geometry(textured, face)
        for form in self.options.format:
            published = form == "obj" and self.is_mapped  # colours at the vertices, no texture
            save_mesh(
                self._mesh_path(name, form),
                mesh.replace(texture=None) if published else mesh,
                self.options.frame,
            )
        if self.options.turntable:
            frames = turntable_frames(texture.with_geometry(mesh, frontal(face)))
            for form in self.options.turntable:
                save_turntable(self.out / "turntable" / f"{name}.{form}", frames)
