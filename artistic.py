"""Writes a coloured 3D mesh of every face: from a UV map, or textured with the photo itself.

python artistic.py -f art-all/122.png
python artistic.py -f texture_data/real --precropped --uv-dir texture_data/uv_real
python artistic.py -f photo.jpg --texture photo --format obj,glb
python artistic.py -f photo.jpg --texture photo --expression-from smile.jpg --turntable gif
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import assets, texture
from utils.cli import complain, run_script, say, script_parser
from utils.files import read_image, write_image
from utils.inference import Face, FacePipeline, expression_of, frontal, with_expression
from utils.mesh_io import FRAMES, MESH_SUFFIXES, save_mesh
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.photo_script import (
    add_photo_options,
    comma_list,
    load_model,
    parse_photo_options,
    run_on_photos,
)
from utils.preprocessing import crop_faces
from utils.render import render_mesh_overlay
from utils.results import face_names
from utils.turntable import ENCODERS, save_turntable, turntable_frames

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet

FORMATS = tuple(suffix[1:] for suffix in MESH_SUFFIXES)
CLIPS = tuple(suffix[1:] for suffix in ENCODERS)
UV_FOLDER, PRECROPPED_UV_FOLDER = (assets.ROOT / n for n in ("uv_art", "texture_data/uv_real"))
EPILOG = """\
--texture uv (default): NAME.png is coloured from UV_DIR/NAME_fake_B.png, X_real_A.png from
UV_DIR/X_fake_B.png. The published maps need the published face model (3dmm_data).
--texture photo needs no other file.

written for each photo NAME that has a face; further faces are NAME_1, NAME_2, ...:
  OUT/obj/NAME.obj                 --texture uv: as published, v x y z r g b
                                   --texture photo: also NAME.mtl, NAME_texture.png, for Blender
  OUT/glb/NAME.glb, ply/NAME.ply   with --format
  OUT/html/NAME.html               with --format: a page that shows it turning, offline too
  OUT/confidence/NAME.png          --texture photo: white where the photo saw the face well, grey
                                   where it was mirrored, black where it was made up
  OUT/rendering_overlay/NAME.jpg   --precropped: the fitted mesh over the photo
  OUT/finished.jsonl               of a folder: the photos that are done, for --resume
  OUT/turntable/NAME.gif, .mp4     --turntable: the head, upright, swaying to both sides

Beyond some 60 degrees of yaw the photo shows little of the face's far side and middle: what
--texture photo puts there is mostly mirrored or made up (see confidence).

--neutral, --expression, --expression-from and --frontal change the mesh that is written; its
colours stay those of the photo, so a smile's teeth and wrinkles stay with the skin. Neutral is
the face model's mean expression: the bundled one's lips stand a little apart.

--frame model (default): x right, y up, z to the viewer, metres, turned as in the photo.
--frame image: pixels of the photo, y down, z to the viewer.

exit code: 0 all done, 1 some photos failed, 2 wrong usage, 130 stopped by Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG, "-f PATH [options]")
    add_photo_options(parser)
    add = parser.add_argument
    add("--precropped", action="store_true", help="each photo is one face's square crop")
    add("--texture", choices=("uv", "photo"), default="uv", help="where colours come from")
    add("--uv-dir", type=Path, help="UV maps (uv_art; --precropped: texture_data/uv_real)")
    add("--texture-size", type=int, default=1024, help="texels a side of a photo's texture (1024)")
    add("--format", type=comma_list(FORMATS), default=("obj",), metavar="LIST",
        help=f"any of {','.join(FORMATS)} (default: obj)")  # fmt: skip
    add("--frame", choices=FRAMES, default="model", help="axes and unit (default: model)")
    expression = parser.add_mutually_exclusive_group()
    expression.add_argument("--neutral", dest="expression", action="store_const", const=0.0,
        default=1.0, help="without expression: --expression 0")  # fmt: skip
    expression.add_argument("--expression", type=float, default=1.0, metavar="FACTOR",
        help="how strong the expression is, 0 to 2 (default: 1, as it is)")  # fmt: skip
    add("--expression-from", type=Path, metavar="PHOTO", help="take its best face's expression")
    add("--frontal", action="store_true", help="without pose: upright, to the viewer, same size")
    add("--turntable", type=comma_list(CLIPS), default=(), metavar="LIST",
        help=f"a clip of the head turning: {','.join(CLIPS)}")  # fmt: skip
    options = parse_photo_options(parser, arguments)
    if not 0 <= options.expression <= 2:
        parser.error(f"--expression is 0 to 2, not {options.expression:g}")
    if options.expression_from:
        if not options.expression_from.is_file():
            parser.error(f"--expression-from: {options.expression_from}: no such file")
        if options.expression == 0:
            parser.error("--expression-from has no effect on a neutral face (--expression 0)")
    if options.texture == "photo" and options.uv_dir:
        parser.error("--uv-dir is for --texture uv")
    if not 16 <= options.texture_size <= 8192:
        parser.error(f"--texture-size is 16 to 8192, not {options.texture_size}")
    if not options.uv_dir:
        options.uv_dir = PRECROPPED_UV_FOLDER if options.precropped else UV_FOLDER
    return options


def check_uv_folder(folder: Path, face_model: MorphableModel) -> None:
    """Published UV maps belong to the published face model: another one has its eyes elsewhere.

    Raises:
        ValueError: the folder is the published maps', and the face model the bundled one.
    """
    if not assets.STARTER_FACE_MODEL.is_file():  # so it is not in use
        return
    bundled = load_morphable_model(assets.STARTER_FACE_MODEL)
    if face_model.fingerprint != bundled.fingerprint:
        return
    if folder.resolve() in (f.resolve() for f in (UV_FOLDER, PRECROPPED_UV_FOLDER)):
        raise ValueError(
            f"{assets.shown(folder)}: published UV maps belong to the published face model; on the "
            f"bundled one their eyes and lips would lie elsewhere. Get it and its weights "
            '(`make published NAMES="3dmm_data weights"`), or use --texture photo, which needs no '
            "maps; --uv-dir takes maps that were made for the bundled model"
        )
    say(
        f"{folder}: its UV maps are read as made for the bundled face model "
        f"({assets.shown(bundled.source)}); published ones belong to 3dmm_data"
    )


def face_of_crop(pipeline: FacePipeline, image: np.ndarray) -> Face:
    """The face of a square picture (S, S, 3) uint8 BGR that is its own roi box."""
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


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    is_mapped = options.texture == "uv"
    try:
        map_of = partial(texture.uv_map_path, folder=options.uv_dir) if is_mapped else None
        model = load_model(options, map_of)
        texture.require_texture_coordinates(model.face_model)
        if is_mapped:
            check_uv_folder(options.uv_dir, model.face_model)
        expression = None
        if options.expression_from:
            expression = expression_of_photo(options.expression_from, model)
    except (OSError, ValueError, RuntimeError) as error:
        complain("artistic.py", error)
        return 2
    photo_names = {name.casefold() for name, _ in options.photos}

    def find_faces(image: np.ndarray) -> list[Face]:
        return [face_of_crop(model.pipeline, image)] if options.precropped else model(image)

    def changed(face: Face) -> Face:
        if expression is not None or options.expression != 1:
            face = with_expression(face, options.expression, expression)
        return frontal(face) if options.frontal else face

    def save(name: str, path: Path, image: np.ndarray, faces: list[Face]) -> None:
        if not faces:
            return
        if is_mapped:
            uv_map = texture.read_uv_map(texture.uv_map_path(path, options.uv_dir))
        for face, own in zip(faces, face_names(name, len(faces), photo_names), strict=True):
            if is_mapped:
                mesh = texture.uv_mapped_face(face, uv_map)
            else:
                mesh = texture.textured_face(face, image, options.texture_size)
                write_image(
                    options.out / "confidence" / f"{own}.png",
                    np.round(mesh.confidence * 255).astype(np.uint8),
                )
            new_face = changed(face)  # the texture is the fitted face's
            mesh = texture.with_geometry(mesh, new_face)
            for form in options.format:
                published = form == "obj" and is_mapped
                save_mesh(
                    options.out / form / f"{own}.{form}",
                    mesh.replace(texture=None) if published else mesh,
                    options.frame,
                )
            if options.turntable:
                upright = frontal(new_face)
                mesh = texture.with_geometry(mesh, upright)
                frames = turntable_frames(mesh)
                for form in options.turntable:
                    save_turntable(options.out / "turntable" / f"{own}.{form}", frames)
        if options.precropped:
            vertices = [face.vertices for face in faces]
            overlay = render_mesh_overlay(image, vertices, faces[0].triangles)
            write_image(options.out / "rendering_overlay" / f"{name}.jpg", overlay)

    def result_of(name: str) -> Path:
        return options.out / options.format[0] / f"{name}.{options.format[0]}"

    return run_on_photos(options, find_faces, save, result_of)


if __name__ == "__main__":
    run_script(main)
