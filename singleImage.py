"""Finds the faces of photos and draws their 3D landmarks, mesh and pose.

python singleImage.py -f photo.jpg
python singleImage.py -f photo.jpg another.jpg folder_of_photos -o out --save npz,json
python singleImage.py -f photo.jpg --draw mesh,landmarks,pose
python singleImage.py -f photo.jpg --save glb,html,uv,depth,pncc
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import results
from utils.cli import complain, run_script, say, script_parser
from utils.files import read_image
from utils.inference import Face
from utils.overlays import DRAWINGS
from utils.photo_script import (
    add_photo_options,
    comma_list,
    load_model,
    parse_photo_options,
    run_on_photos,
)

FORMATS = (*results.NUMBER_FORMATS, *results.TEXTURED_FORMATS, *results.MAP_FORMATS)
EPILOG = """\
written for each photo NAME that has a face:
  OUT/rendering_overlay/NAME.jpg   the mesh over the photo
  OUT/landmarks/NAME.jpg           the 68 landmarks
  OUT/poses/NAME.jpg               pose axes: x red, y green, z blue
with --draw, instead of these three:
  OUT/drawn/NAME.jpg               all that --draw names, on one picture
of a folder, also:
  OUT/contact_sheet.jpg, _2, ...   all photos with faces, small
  OUT/finished.jsonl               the photos that are done, for --resume

with --save, also:
  OUT/numbers/NAME.npz, .json      boxes, parameters, landmarks, vertices (npz), pose; also of
                                   photos without a face
  OUT/obj/NAME.obj                 the face with the photo's texture (and
                                   NAME.mtl, NAME_texture.png)
  OUT/glb/NAME.glb                 the same in one file
  OUT/ply/NAME.ply                 with colours at the vertices instead
  OUT/html/NAME.html               a page that shows it turning, in any browser, offline
  OUT/uv/NAME.png                  the texture, unwrapped
  OUT/confidence/NAME.png          with uv: white where the photo saw the face well, grey where it
                                   was mirrored, black where it was made up
  OUT/depth/NAME.png               8-bit grey: of each face the nearest point 255, the farthest 1,
                                   linear between; 0 where there is no face
  OUT/pncc/NAME.png                projected normalised coordinate code: where on the mean face a
                                   pixel lies, red x, green y, blue z, each from 0 to 255

obj, glb, ply, html and uv have one file a face: NAME, NAME_1, NAME_2, ... in order of score.
Meshes: x right, y up, z to the viewer, metres, turned as in the photo.

exit code: 0 all done, 1 some photos failed, 2 wrong usage, 130 stopped by Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG, "-f PATH [options]")
    add_photo_options(parser)
    parser.add_argument("--draw", type=comma_list(DRAWINGS), default=(), metavar="LIST",
        help=f"one picture of any of {','.join(DRAWINGS)}")  # fmt: skip
    parser.add_argument("--save", type=comma_list(FORMATS), default=(), metavar="LIST",
        help=f"any of {','.join(FORMATS)}")  # fmt: skip
    return parse_photo_options(parser, arguments, with_sheet=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    try:
        model = load_model(options)
        if set(options.save) & set(results.TEXTURED_FORMATS):
            from utils.texture import require_texture_coordinates  # here: most runs need none

            require_texture_coordinates(model.face_model)
    except (OSError, ValueError, RuntimeError) as error:
        complain("singleImage.py", error)
        return 2
    photo_names = {name.casefold() for name, _ in options.photos}

    sheets = results.ContactSheets(options.out) if len(options.photos) > 1 else None

    def save(name: str, path: Path, image: np.ndarray, faces: list[Face]) -> np.ndarray | None:
        results.save_numbers(options.out, name, path, faces, options.save, model.face_model)
        if not faces:
            return None
        own = results.face_names(name, len(faces), photo_names)
        fitted = (image, faces, options.save)
        picture = results.save_pictures(options.out, name, image, faces, options.draw)
        results.save_maps(options.out, name, *fitted)
        results.save_textured(options.out, own, *fitted)
        return sheets.cell(picture) if sheets else None

    def result_of(name: str) -> Path:
        return results.picture_path(options.out, name, options.draw)

    if not sheets:
        return run_on_photos(options, model, save, result_of)
    failed = []

    def kept(name: str) -> np.ndarray:
        return sheets.cell(read_image(result_of(name)))

    def tried(step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except OSError as error:  # a page that cannot be written costs no photo
            failed.append(error)
            say(f"failed: {error}", file=sys.stderr)

    def saved(name: str, cell: np.ndarray | None) -> None:
        tried(sheets.add, name, cell)

    code = run_on_photos(options, model, save, result_of, saved, kept)
    tried(sheets.write)
    return code or (1 if failed else 0)


if __name__ == "__main__":
    run_script(main)
