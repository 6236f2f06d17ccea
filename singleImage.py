"""Finds the faces of photos and draws their 3D landmarks, mesh and pose.

python singleImage.py -f photo.jpg
python singleImage.py -f folder_of_photos -o out --save npz,json
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from utils import results
from utils.files import read_image

EPILOG = """\
written for each photo NAME that has a face:
  OUT/rendering_overlay/NAME.jpg   the mesh over the photo
  OUT/landmarks/NAME.jpg           the 68 landmarks
  OUT/poses/NAME.jpg               pose axes: x red, y green, z blue
  OUT/numbers/NAME.npz, .json      with --save

exit code: 0 all done, 1 some photos failed, 2 wrong usage
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-f", "--files", type=Path, required=True, metavar="PATH", help="a photo or a folder")
    add("--png", action="store_true", help="of a folder, take the PNG files only")
    add("-o", "--out", type=Path, default=Path("inference_output"), help="where to write")
    add("--save", type=results.number_formats, default=(), metavar="LIST", help="npz, json or both")
    add("-w", "--weights", type=Path, help="SynergyNet checkpoint (default: published, or starter)")
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("--detector-weights", type=Path, help="FaceBoxes weights (default: published, or starter)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--threshold", type=float, default=0.5, help="least score of a detection (default: 0.5)")
    options = parser.parse_args(arguments)
    try:
        options.photos = results.find_photos(options.files, options.png)
    except FileNotFoundError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    from synergy3DMM import SynergyNet  # after the arguments are known to be right

    try:
        model = SynergyNet(
            options.weights,
            options.face_model,
            options.detector_weights,
            options.device,
            options.threshold,
        )
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"singleImage.py: {error}", file=sys.stderr)
        return 2
    tqdm.write(model.description)

    failures = without_face = 0
    for name, path in tqdm(options.photos, unit="photo", disable=len(options.photos) == 1):
        try:
            image = read_image(path)
            faces = model(image)
            results.save_numbers(options.out, name, path, faces, options.save)
            if faces:
                results.save_pictures(options.out, name, image, faces)
                tqdm.write(f"{path}: {results.summary(faces)}")
            else:
                without_face += 1
                tqdm.write(f"{path}: no face found")
        except (OSError, ValueError) as error:  # this photo's fault; the others go on
            failures += 1
            tqdm.write(f"failed: {error}", file=sys.stderr)
    done = len(options.photos) - failures - without_face
    summary = [f"{results.count(done, 'photo')} with faces written to {options.out}"]
    if without_face:
        summary.append(f"{results.count(without_face, 'photo')} without a face")
    if failures:
        summary.append(f"{results.count(failures, 'photo')} failed")
    tqdm.write(", ".join(summary))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # not every file name is text
    sys.exit(main())
