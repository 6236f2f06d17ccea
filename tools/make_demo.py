"""Makes the README's pictures of faces and of textured meshes, from the photo in img/.

python -m tools.make_demo
"""

import sys

import cv2
import numpy as np

from synergy3DMM import Face, SynergyNet, frontal, with_expression
from utils import assets, results
from utils.cli import run_script, script_parser
from utils.draw import contact_sheet
from utils.pictures import read_image, write_image
from utils.texture import textured_face, with_geometry
from utils.turntable import turntable_frames

PHOTO = assets.ROOT / "img" / "astronaut.jpg"
SHEET = assets.ROOT / "demo" / "astronaut_faces.jpg"
MESHES = assets.ROOT / "demo" / "astronaut_meshes.jpg"
MARGIN = 0.25  # of the roi box's side, on each side of it
WIDTH = 480  # of one picture, pixels


def main() -> int:
    script_parser(__doc__, module="tools.make_demo").parse_args()
    photo, model = read_image(PHOTO), SynergyNet(device="cpu")
    image = cv2.resize(photo, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    faces = model(image)  # large enough for dots at the landmarks
    if not faces:
        print(f"no face found in {PHOTO}", file=sys.stderr)
        return 1
    pictures = {"photo": image, **dict(results.draw_pictures(image, faces))}
    x1, y1, x2, y2 = faces[0].roi_box
    margin = MARGIN * (x2 - x1)
    top, left = (max(0, round(v - margin)) for v in (y1, x1))
    bottom, right = min(image.shape[0], round(y2 + margin)), min(image.shape[1], round(x2 + margin))
    cells = [picture[top:bottom, left:right] for picture in pictures.values()]
    cell = (round(WIDTH * (bottom - top) / (right - left)), WIDTH)
    captions = ["photo", "dense mesh", "68 landmarks", "head pose"]
    write_image(SHEET, contact_sheet(cells, len(cells), cell, captions))
    print(f"{SHEET}: {results.summary(faces)}")
    write_image(MESHES, textured_meshes(photo, model(photo)[0]))
    print(MESHES)
    return 0


def textured_meshes(image: np.ndarray, face: Face) -> np.ndarray:
    """A row (H, W, 3) of what artistic.py makes: as in the photo, turned, without expression."""
    own = textured_face(face, image)
    calm = frontal(with_expression(face, factor=0))
    # of the four frames of one period the second is turned to the left, the last to the right
    ahead, left, _, right = turntable_frames(own, side=WIDTH, count=4)
    neutral = turntable_frames(with_geometry(own, calm), side=WIDTH, count=2)[0]
    captions = ["textured with the photo", "turned", "turned", "--neutral --frontal"]
    return contact_sheet([ahead, left, right, neutral], 4, (WIDTH, WIDTH), captions)


if __name__ == "__main__":
    run_script(main)
