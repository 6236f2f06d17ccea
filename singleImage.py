"""Finds the faces of photos and draws their 3D landmarks, mesh and pose.

python singleImage.py -f photo.jpg
python singleImage.py -f photo.jpg another.jpg folder_of_photos -o out --save npz,json
python singleImage.py -f photo.jpg --draw mesh,landmarks,pose
python singleImage.py -f album -r --largest 1       # its folders too; a face a photo
python singleImage.py -f photo.jpg --save glb,html,uv,depth,pncc
"""

import argparse
from functools import partial

from utils import photo_numbers, results
from utils.cli import comma_list, run_script, script_parser
from utils.overlays import DRAWINGS
from utils.photo_script import (
    add_photo_options,
    finished_photos,
    load_model,
    parse_photo_options,
    run_on_photos,
)

FORMATS = (*photo_numbers.FORMATS, *results.TEXTURED_FORMATS, *results.MAP_FORMATS)
EPILOG = """\
written for each photo NAME that has a face:
  OUT/rendering_overlay/NAME.jpg   the mesh over the photo
  OUT/landmarks/NAME.jpg           the 68 landmarks; on small faces only lines, no dots
  OUT/poses/NAME.jpg               pose axes: x red, y green, z blue; yaw, pitch and roll of where
                                   the face looks (`facing` of the numbers)
with --draw, instead of these three:
  OUT/drawn/NAME.jpg               all that --draw names, on one picture (depth hides mesh, and
                                   pncc hides both, in whatever order they are named)
for several photos, also:
  OUT/contact_sheet.jpg, _2, ...   all photos with faces, small
  OUT/finished.jsonl               the photos that are done, for --resume (of any folder)

with --save, also:
  OUT/numbers/NAME.npz, .json      boxes, parameters, landmarks, vertices (npz), pose; also of
                                   photos without a face
  OUT/numbers/NAME.csv             a line a face, without parameters, rotation and roi box; of
                                   several photos all lines in OUT/faces.csv too
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

obj, glb, ply, html and uv have one file a face: NAME, NAME_1, NAME_2, ... in order of score; where
several faces' poses or boxes are drawn, so are their numbers, 0 for NAME.
Meshes: x right, y up, z to the viewer, metres, turned as in the photo.

exit code: 0 all done, 1 some photos failed, 2 wrong usage, 130 stopped by Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG, "-f PATH [options]")
    add_photo_options(parser)
    drawings = (*DRAWINGS, results.NOTHING)
    parser.add_argument("--draw", type=comma_list(drawings), default=(), metavar="LIST",
        help=f"one picture of any of {','.join(DRAWINGS)}; none: no pictures")  # fmt: skip
    parser.add_argument("--save", type=comma_list(FORMATS), default=(), metavar="LIST",
        help=f"any of {','.join(FORMATS)}")  # fmt: skip
    options = parse_photo_options(parser, arguments, with_sheet=True)
    if results.NOTHING in options.draw and (len(options.draw) > 1 or not options.save):
        parser.error("--draw none is for --save alone: name nothing else to draw, and what to save")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    model = load_model(options)
    if set(options.save) & set(results.TEXTURED_FORMATS):
        from utils.texture import require_texture_coordinates  # imported here: rarely needed

        require_texture_coordinates(model.face_model)
    writer = results.PhotoResults(options, model.face_model)
    find_faces = partial(model, dense=writer.dense)
    code = run_on_photos(options, find_faces, writer, finished_photos(options, model))
    is_whole = writer.close()
    return code or int(not is_whole)


if __name__ == "__main__":
    run_script(main)
