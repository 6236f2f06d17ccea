"""Makes the picture that the README opens with, from the public-domain photo in img/.

python -m tools.make_demo
"""

import sys

from synergy3DMM import SynergyNet
from utils import assets, results
from utils.draw import contact_sheet
from utils.files import read_image, write_image

PHOTO = assets.ROOT / "img" / "astronaut.jpg"
SHEET = assets.ROOT / "demo" / "astronaut_faces.jpg"
MARGIN = 0.6  # of the roi box's side, on each side of it
WIDTH = 480  # of one picture, pixels


def main() -> int:
    image = read_image(PHOTO)
    faces = SynergyNet(device="cpu")(image)
    if not faces:
        print(f"no face found in {PHOTO}", file=sys.stderr)
        return 1
    pictures = {"photo": image, **results.draw_pictures(image, faces)}
    x1, y1, x2, y2 = faces[0].roi_box
    margin = MARGIN * (x2 - x1)
    top, left = (max(0, round(v - margin)) for v in (y1, x1))
    bottom, right = min(image.shape[0], round(y2 + margin)), min(image.shape[1], round(x2 + margin))
    cells = [picture[top:bottom, left:right] for picture in pictures.values()]
    cell = (round(WIDTH * (bottom - top) / (right - left)), WIDTH)
    captions = ["photo", "dense mesh", "68 landmarks", "head pose"]
    write_image(SHEET, contact_sheet(cells, len(cells), cell, captions))
    print(f"{SHEET}: {results.summary(faces)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
