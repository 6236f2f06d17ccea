"""Time of one photo on the CPU, from pixels to faces: a plain eager PyTorch pipeline and ours.

    python -m benchmarks.pipeline --threads 1

The photo is padded (and shrunk, if need be) to 1024 x 524. Both ways use the same weights
and take turns, so that other jobs on the machine slow both alike; before that, their results are
compared.

- eager: PyTorch modules called as they are, anchors made and all of them decoded for every photo,
  each face through the network and the face model by itself, shape and expression as two products.
- ours: ``SynergyNet(engine="onnx")``.

Prints the median of the repeats with their quartiles, in milliseconds, and how many times longer
the eager way takes: CPU time with one thread (what other jobs take is left out), else wall time.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.tables import SETTLE, median_and_quartiles
from FaceBoxes import FaceBoxes
from FaceBoxes.anchors import anchors, decode
from FaceBoxes.detector import MEAN_BGR
from FaceBoxes.network import load_network
from FaceBoxes.nms import nms
from model_building import load_synergynet
from synergy3DMM import SynergyNet
from utils import assets
from utils.cli import at_least, counted, run_script, script_parser
from utils.cores import cpu_threads
from utils.morphable_model import SHAPE, MorphableModel, load_morphable_model, split_camera
from utils.pictures import read_image
from utils.preprocessing import boxes_to_roi_boxes, crop_faces, crop_to_image, normalize_crops

HEIGHT, WIDTH = 524, 1024


class EagerPipeline:
    """What one writes first: no batches, no caches, one product after the other."""

    def __init__(self, face_model: MorphableModel) -> None:
        self.detector = load_network(assets.find_detector_weights()).eval()
        self.network = load_synergynet(assets.find_weights(), face_model).I2P
        self.face_model = face_model
        basis = face_model.basis.reshape(len(face_model.basis), -1)
        self.w_shp = np.ascontiguousarray(basis[:SHAPE].T)  # (3N, 40)
        self.w_exp = np.ascontiguousarray(basis[SHAPE:].T)  # (3N, 10)

    def detect(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        batch = (image.astype(np.float32) - MEAN_BGR).transpose(2, 0, 1)[None]
        with torch.no_grad():
            offsets, logits = self.detector(torch.tensor(batch))
        anchors.cache_clear()
        boxes = decode(offsets[0].numpy(), anchors(height, width))
        boxes *= np.array([width, height, width, height], np.float32)
        scores = logits[0].softmax(dim=-1)[:, 1].numpy()
        rows = np.column_stack([boxes, scores])[scores > 0.05]
        rows = rows[nms(rows, 0.3)]
        return rows[rows[:, 4] > 0.5]

    def regress(self, crops: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.network(torch.from_numpy(crops))[0].numpy()

    def vertices(self, parameters: np.ndarray) -> np.ndarray:
        """(62,) -> (1, 3, N), crop frame."""
        camera = split_camera(parameters[None]) * self.face_model.flip  # (1, 3, 4)
        offsets = self.w_shp @ parameters[12:52] + self.w_exp @ parameters[52:]
        shape = self.face_model.mean + offsets.reshape(3, -1)
        return camera[:, :, :3] @ shape + camera[:, :, 3:] + self.face_model.flip_offset

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """The dense meshes (3, N) of the photo's faces."""
        meshes = []
        for roi_box in boxes_to_roi_boxes(self.detect(image)):
            crop = normalize_crops(crop_faces(image, roi_box[None]))
            parameters = self.face_model.dewhiten(self.regress(crop))[0]
            is_exact = self.face_model.pixel_centres  # crops are cut at whole pixels
            square = (np.round(roi_box) if is_exact else roi_box)[None]
            meshes.append(crop_to_image(self.vertices(parameters), square, is_exact)[0])
        return meshes


def padded(photo: np.ndarray) -> np.ndarray:
    """The photo, shrunk where it is too large, in the middle of a grey (524, 1024, 3)."""
    scale = min(HEIGHT / photo.shape[0], WIDTH / photo.shape[1], 1)
    inner = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (HEIGHT - inner.shape[0]) // 2, (WIDTH - inner.shape[1]) // 2
    canvas = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def compare(
    ways: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> np.ndarray:
    """(repeats, ways) milliseconds; the ways take turns, of which each second call counts."""
    times = np.empty((repeats, len(ways)))
    for i in range(repeats):
        for k, way in enumerate(ways):
            time.sleep(SETTLE)
            way()  # what the other way left in the caches is not counted
            start = clock()
            way()
            times[i, k] = 1e3 * (clock() - start)
    return times


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.pipeline")
    add = parser.add_argument
    add("--threads", type=at_least(1), default=cpu_threads(), help="default: the cores at hand")
    add("--repeats", type=at_least(1), default=15, help="default: 15")
    add("--batches", type=at_least(1), nargs="+", default=[1, 8, 64], metavar="N",
        help="crops at once (default: 1 8 64)")  # fmt: skip
    default = assets.ROOT / "img" / "astronaut.jpg"
    add("--photo", type=Path, default=default, help="default: img/astronaut.jpg")
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(args.threads):  # numpy read it when imported
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.pipeline", *sys.argv[1:]])
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)

    face_model = load_morphable_model(assets.find_face_model())
    eager, ours = EagerPipeline(face_model), SynergyNet(device="cpu", engine="onnx")
    detector: FaceBoxes = ours.pipeline.detector
    regressor = ours.pipeline.regressor
    photo = padded(read_image(args.photo))
    meshes, faces = eager(photo), ours(photo)
    if not faces:
        parser.error(f"{args.photo}: no face found")
    for mesh, face in zip(meshes, faces, strict=True):
        np.testing.assert_allclose(mesh, face.vertices, atol=0.02)  # pixels

    what = counted(len(faces), "face")
    steps: dict[str, tuple[Callable, Callable, int]] = {  # eager, ours, crops
        "detector": (partial(eager.detect, photo), partial(detector, photo), 1),
        f"photo to {what} with mesh": (partial(eager, photo), partial(ours, photo), 1),
        "photo to landmarks": (partial(eager, photo), partial(ours, photo, dense=False), 1),
    }
    for batch in args.batches:
        crops = np.random.default_rng(0).uniform(-1, 1, (batch, 3, 120, 120)).astype(np.float32)
        ways = partial(eager.regress, crops), partial(regressor, crops)
        steps[f"network, a crop of {batch}"] = (*ways, batch)

    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(f"{args.threads} threads, {'CPU' if args.threads == 1 else 'wall'} time")
    print("| step | eager ms | quartiles | ours ms | quartiles | ratio |")
    print("|---|---|---|---|---|---|")
    for name, (*ways, crops) in steps.items():
        times = compare(ways, args.repeats, clock) / crops
        cells = [median_and_quartiles(column) for column in times.T]
        ratio = np.median(times[:, 0]) / np.median(times[:, 1])
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    run_script(main)
