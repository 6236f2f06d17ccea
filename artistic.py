"""Writes a coloured 3D mesh of every face: textured with the photo itself, or from a UV map.

python artistic.py -f photo.jpg --format obj,glb
python artistic.py -f photo.jpg --expression-from smile.jpg --turntable gif
python artistic.py -f art-all/122.png           # the published job: needs the published files
python artistic.py -f texture_data/real --precropped --uv-dir texture_data/uv_real
"""

import argparse
from pathlib import Path

from utils import texture
from utils.artistic_script import write_meshes
from utils.cli import comma_list, run_script, script_parser, within
from utils.mesh_io import FRAMES, MESH_SUFFIXES
from utils.photo_script import add_photo_options, load_model, parse_photo_options
from utils.turntable import WRITERS

FORMATS = tuple(suffix[1:] for suffix in MESH_SUFFIXES)
CLIPS = tuple(suffix[1:] for suffix in WRITERS)
EPILOG = """\
--texture photo needs no other file; it is the default on the bundled face model, unless --uv-dir
is given. --texture uv is the default on any other: NAME.png is coloured from
UV_DIR/NAME_fake_B.png, X_real_A.png from UV_DIR/X_fake_B.png. The published maps need the published
face model (3dmm_data).

written for each photo NAME that has a face; further faces are NAME_1, NAME_2, ...:
  OUT/obj/NAME.obj                 --texture uv: as published, v x y z r g b
                                   --texture photo: also NAME.mtl, NAME_texture.png, for Blender
  OUT/glb/NAME.glb, ply/NAME.ply   with --format
  OUT/html/NAME.html               with --format: a page that shows it turning, offline too
  OUT/confidence/NAME.png          --texture photo: white where the photo saw the face well, grey
                                   where it was mirrored, black where it was made up
  OUT/rendering_overlay/NAME.jpg   --precropped: the fitted mesh over the photo
  OUT/finished.jsonl               of several photos or a folder: those done, for --resume
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
    add("--texture", choices=("photo", "uv"),
        help="colours from the photo itself, or from --uv-dir (default: see below)")  # fmt: skip
    add("--uv-dir", type=Path, help="UV maps (uv_art; --precropped: texture_data/uv_real)")
    add("--texture-size", type=within(*texture.SIZE_RANGE), default=texture.DEFAULT_SIZE,
        help=f"texels a side of a photo's texture ({texture.DEFAULT_SIZE})")  # fmt: skip
    add("--format", type=comma_list(FORMATS), default=("obj",), metavar="LIST",
        help=f"any of {','.join(FORMATS)} (default: obj)")  # fmt: skip
    add("--frame", choices=FRAMES, default="model", help="axes and unit (default: model)")
    expression = parser.add_mutually_exclusive_group()
    expression.add_argument("--neutral", dest="expression", action="store_const", const=0.0,
        default=1.0, help="without expression: --expression 0")  # fmt: skip
    expression.add_argument("--expression", type=within(0, 2, float), default=1.0, metavar="FACTOR",
        help="how strong the expression is, 0 to 2 (default: 1, as it is)")  # fmt: skip
    add("--expression-from", type=Path, metavar="PHOTO", help="take its best face's expression")
    add("--frontal", action="store_true", help="without pose: upright, to the viewer, same size")
    add("--turntable", type=comma_list(CLIPS), default=(), metavar="LIST",
        help=f"a clip of the face swaying to both sides: {','.join(CLIPS)}")  # fmt: skip
    options = parse_photo_options(parser, arguments)
    if options.expression_from:
        if not options.expression_from.is_file():
            parser.error(f"--expression-from: {options.expression_from}: no such file")
        if options.expression == 0:
            parser.error("--expression-from has no effect on a neutral face (--expression 0)")
    if options.texture == "photo" and options.uv_dir:
        parser.error("--uv-dir is for --texture uv")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    return write_meshes(options, load_model(options))


if __name__ == "__main__":
    run_script(main)
