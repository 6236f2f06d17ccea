"""Writes a coloured 3D mesh of every face: from a UV map, or textured with the photo itself.

python artistic.py -f art-all/122.png
python artistic.py -f texture_data/real --precropped --uv-dir texture_data/uv_real
python artistic.py -f photo.jpg --texture photo --format obj,glb
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from utils import texture
from utils.files import write_image
from utils.inference import Face, FacePipeline
from utils.mesh_io import FRAMES, MESH_SUFFIXES, save_mesh
from utils.photo_script import (
    add_photo_options,
    comma_list,
    load_model,
    parse_photo_options,
    run_on_photos,
)
from utils.preprocessing import crop_faces
from utils.render import render_mesh_overlay

FORMATS = tuple(suffix[1:] for suffix in MESH_SUFFIXES)
UV_FOLDER, PRECROPPED_UV_FOLDER = Path("uv_art"), Path("texture_data/uv_real")
EPILOG = """\
--texture uv (default): NAME.png is coloured from UV_DIR/NAME_fake_B.png, X_real_A.png from
UV_DIR/X_fake_B.png. --texture photo needs no other file.

written for each photo NAME that has a face; further faces are NAME_1, NAME_2, ...:
  OUT/obj/NAME.obj                 --texture uv: as published, v x y z r g b
                                   --texture photo: also NAME.mtl and NAME.png, for Blender
  OUT/glb/NAME.glb, ply/NAME.ply   with --format
  OUT/confidence/NAME.png          --texture photo: white where the photo saw the face well, grey
                                   where it was mirrored, black where it was made up
  OUT/rendering_overlay/NAME.jpg   --precropped: the mesh over the photo

--frame model (default): x right, y up, z to the viewer, metres, turned as in the photo.
--frame image: pixels of the photo, y down, z to the viewer.

exit code: 0 all done, 1 some photos failed, 2 wrong usage
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_photo_options(parser)
    add = parser.add_argument
    add("--precropped", action="store_true", help="each photo is one face's square crop")
    add("--texture", choices=("uv", "photo"), default="uv", help="where colours come from")
    add("--uv-dir", type=Path, help=f"UV maps ({UV_FOLDER}; --precropped: {PRECROPPED_UV_FOLDER})")
    add("--texture-size", type=int, default=1024, help="texels a side of a photo's texture (1024)")
    add("--format", type=comma_list(FORMATS), default=("obj",), metavar="LIST",
        help=f"any of {','.join(FORMATS)} (default: obj)")  # fmt: skip
    add("--frame", choices=FRAMES, default="model", help="axes and unit (default: model)")
    options = parse_photo_options(parser, arguments)
    if options.texture == "photo" and options.uv_dir:
        parser.error("--uv-dir is for --texture uv")
    if not 16 <= options.texture_size <= 8192:
        parser.error(f"--texture-size is 16 to 8192, not {options.texture_size}")
    if not options.uv_dir:
        options.uv_dir = PRECROPPED_UV_FOLDER if options.precropped else UV_FOLDER
    return options


def face_names(name: str, count: int, others: set[str]) -> list[str]:
    """``name``, ``name_1``, ...; an underscore more where another photo is called so."""
    names = [name]
    for i in range(1, count):
        own = f"{name}_{i}"
        while own.casefold() in others:
            own += "_"
        names.append(own)
    return names


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


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    try:
        model = load_model(options)
        texture.require_texture_coordinates(model.face_model)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"artistic.py: {error}", file=sys.stderr)
        return 2
    photo_names = {name.casefold() for name, _ in options.photos}

    def find_faces(image: np.ndarray) -> list[Face]:
        return [face_of_crop(model.pipeline, image)] if options.precropped else model(image)

    def save(name: str, path: Path, image: np.ndarray, faces: list[Face]) -> None:
        if not faces:
            return
        if options.texture == "uv":
            uv_map = texture.read_uv_map(texture.uv_map_path(path, options.uv_dir))
        for face, own in zip(faces, face_names(name, len(faces), photo_names), strict=True):
            if options.texture == "uv":
                mesh = texture.uv_mapped_face(face, uv_map, model.face_model)
            else:
                mesh = texture.textured_face(face, image, model.face_model, options.texture_size)
                write_image(
                    options.out / "confidence" / f"{own}.png",
                    np.round(mesh.confidence * 255).astype(np.uint8),
                )
            for form in options.format:
                published = form == "obj" and options.texture == "uv"
                save_mesh(
                    options.out / form / f"{own}.{form}",
                    mesh.replace(texture=None) if published else mesh,
                    options.frame,
                )
        if options.precropped:
            vertices = [face.vertices for face in faces]
            overlay = render_mesh_overlay(image, vertices, faces[0].triangles)
            write_image(options.out / "rendering_overlay" / f"{name}.jpg", overlay)

    return run_on_photos(options, find_faces, save)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # not every file name is text
    sys.exit(main())
