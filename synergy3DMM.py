"""The Python API: ``from synergy3DMM import SynergyNet``.

model = SynergyNet()
faces = model("photo.jpg")                          # or an array; list of Face, utils/inference.py
faces_of_each = model(["a.jpg", image])             # list of lists
for faces in model(frames):                         # of any other iterable one after the other
    ...
picture = model.draw(image, model(image))           # or of one face: face.draw(image, ["pose"])
tracker = model.tracker()                           # of a video: ids, smoothing
for number, face in tracker(frame):
    ...
faces[0].save("face.glb", image)                    # by suffix: npz json csv obj glb ply html png
landmarks, vertices, poses = model.get_all_outputs(image)      # the published call
upright = frontal(with_expression(faces[0], factor=0))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat, starmap, zip_longest
from numbers import Integral
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np

from FaceBoxes import DETECT_SIZE, FaceBoxes
from utils import assets
from utils.inference import (
    DEFAULT_DRAWINGS,
    Detector,
    Face,
    FacePipeline,
    expression_of,
    frontal,
    with_expression,
    with_parameters,
)
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.onnx_engine import ExportError
from utils.pictures import CONTENT, WHAT_IS_A_PICTURE, Picture, as_picture, to_bgr8
from utils.runtime import choose_engine, open_regressor

if TYPE_CHECKING:
    import torch

    from utils.tracking import FaceTracker

__all__ = [
    "Face",
    "SynergyNet",
    "expression_of",
    "frontal",
    "with_expression",
    "with_parameters",
]

PathLike = str | os.PathLike[str]
OneKind = TypeVar("OneKind", bound=Picture)  # a list of paths is no list[Picture]: invariant
Boxes = np.ndarray | Sequence[Sequence[float]]


class SynergyNet:
    """Photos in, faces out. Build it once; it may be called from several threads. Processes each
    want their own: a pickled model is opened anew wherever it arrives.

    It is no ``nn.Module``: the network that is trained is ``model_building.SynergyNet``.

    Published files at their published paths win over the bundled starter kit (README, "Published
    files"); an argument wins over both.

    Args:
        weights: SynergyNet checkpoint.
        face_model: 3DMM folder or ``.npz``; it must be the one the weights were trained with.
        detector_weights: FaceBoxes checkpoint.
        device: ``auto`` (cuda, else cpu), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        score_threshold: detections must score above it.
        engine: ``torch``, ``onnx`` (ONNX Runtime, on the CPU) or ``auto``: onnx where it is
            installed, can be used with the weights, and the device is the CPU; else torch.
        threads: how many the onnx engine uses for one call; None: ``OMP_NUM_THREADS``, or the
            cores at hand. Those who call from many threads at once want 1.
        detect_size: for the detector, photos are shrunk to this width in pixels, or two thirds of
            it in height (as published: 1080 by 720). A larger size finds small faces in large
            photos; the time grows with its square.
        detector: a function that takes the place of FaceBoxes, from a picture (H, W, 3) uint8 BGR
            to boxes (n, 4) or (n, 5), x1 y1 x2 y2 score, image frame, best first. Boxes reach from
            the middle of the forehead to the chin; only their height and centre count. It must not
            write to the picture, which may be the caller's own array. ``detector_weights`` must be
            None then; ``score_threshold`` and ``detect_size`` do nothing.

    Attributes:
        face_model: the 3DMM in use, a ``utils.morphable_model.MorphableModel``.
        pipeline: the ``utils.inference.FacePipeline`` that does the work.
        engine, device: what runs the networks, ``torch`` or ``onnx``, and the device's name.
        files: paths of the weights, face model and detector weights in use.
        description: one line that names weights, face model, engine and device in use.

    Raises:
        FileNotFoundError, ValueError, utils.errors.UnavailableError: a file is missing or does not
            fit, the device or engine does not work, or another argument is out of range; the
            message names it.
    """

    face_model: MorphableModel

    def __init__(
        self,
        weights: PathLike | None = None,
        face_model: PathLike | None = None,
        detector_weights: PathLike | None = None,
        device: str | torch.device = "auto",
        score_threshold: float = 0.5,
        engine: str = "auto",
        threads: int | None = None,
        detect_size: int = DETECT_SIZE,
        detector: Detector | None = None,
    ) -> None:
        # an empty path, as of a variable that is not set, is a mistake and not the default
        weights = assets.find_weights() if weights is None else weights
        face_model = assets.find_face_model() if face_model is None else face_model
        if detector_weights is None and detector is None:
            detector_weights = assets.find_detector_weights()
        elif detector_weights is not None and detector is not None:
            raise ValueError("detector_weights belong to FaceBoxes; a detector has its own")
        if detector is not None and not callable(detector):
            raise ValueError(
                f"a detector is a function from a picture to boxes, not {type(detector).__name__}"
            )
        if threads is not None and not (isinstance(threads, Integral) and threads >= 1):
            raise ValueError(f"threads must be a whole number, 1 or more, got {threads}")

        def open_detector() -> Detector:
            if detector is not None:
                return detector
            return FaceBoxes(
                detector_weights,
                self.device,
                score_threshold=score_threshold,
                detect_size=detect_size,
                second_look=True,
                engine=self.engine,
                threads=threads,
            )

        def open_pipeline() -> FacePipeline:
            with ThreadPoolExecutor(1) as pool:  # reading and hashing leave a core for the detector
                opening = pool.submit(open_detector) if self.engine == "onnx" else None
                model = load_morphable_model(face_model)
                regressor = open_regressor(self.engine, weights, model, self.device, threads)
                finder = opening.result() if opening else open_detector()
            return FacePipeline(finder, regressor, model)

        self.engine, self.device = choose_engine(engine, device)
        reason = ""
        try:
            self.pipeline = open_pipeline()
        except ExportError as error:
            if engine == "onnx":
                raise
            self.engine, reason = "torch", f" ({error})"
            self.pipeline = open_pipeline()
        self.face_model = self.pipeline.face_model
        self.files = weights, face_model, *([] if detector_weights is None else [detector_weights])
        # absolute: the working folder may change before the model is pickled
        files = [p and os.path.abspath(p) for p in (weights, face_model, detector_weights)]
        options = score_threshold, engine, threads, detect_size, detector
        self._settings = (*files, self.device, *options)
        shown = [assets.shown(path) for path in self.files]
        if detector is not None:
            shown.append(getattr(detector, "__qualname__", type(detector).__name__))
        self.description = "weights {}, face model {}, detector {}, engine {}{}, device {}".format(
            *shown, self.engine, reason, self.device
        )

    def __repr__(self) -> str:
        return f"SynergyNet({self.description})"

    def __getstate__(self) -> dict[str, object]:
        """What it was made from, from which it is opened again where a pickle or copy arrives, and
        the attributes that a class of one's own adds."""
        return {name: value for name, value in vars(self).items() if name not in _OPENED}

    def __setstate__(self, state: dict[str, object]) -> None:
        SynergyNet.__init__(self, *state["_settings"])  # a class of one's own may take others
        vars(self).update(state)

    @overload
    def __call__(
        self, images: Picture, boxes: Boxes | None = None, dense: bool = True
    ) -> list[Face]: ...

    @overload
    def __call__(
        self,
        images: list[OneKind] | tuple[OneKind, ...],
        boxes: Sequence[Boxes | None] | None = None,
        dense: bool = True,
    ) -> list[list[Face]]: ...

    @overload
    def __call__(
        self,
        images: Iterator[Picture],
        boxes: Iterable[Boxes | None] | None = None,
        dense: bool = True,
    ) -> Iterator[list[Face]]: ...

    def __call__(self, images, boxes=None, dense=True):
        """The faces of one picture, or of each of several; see ``FacePipeline``.

        Args:
            images: one picture: (H, W, 3) uint8 BGR (grey, BGRA, 16-bit of full range and floating
                point in [0, 1] are taken too), or the path or bytes of an image file. Or several: a
                list or tuple of such, which go through the network together, or any other iterable
                (a generator, a camera), of which one at a time is taken and nothing kept. Do not
                zip such an iterator with its faces: both would take from it. Call the model on
                each.
            boxes: boxes to use instead of the detector, x1 y1 x2 y2 in pixels: (n, 4), or (n, 5)
                with scores that the faces keep, for one picture, one such or None (detect) for
                each of several.
            dense: make the dense mesh too.

        Returns:
            A list of ``Face``, best score first, or in the order of given boxes; for a list or
            tuple, a list of such lists; for another iterable, an iterator over them, whose next
            item comes after an error too.

        Raises:
            OSError, ValueError: a file that is missing, a folder or no image, an array that is no
                picture, boxes that cannot be cropped, lie outside their picture or are not one
                for each picture.
        """
        if isinstance(images, (np.ndarray, str, os.PathLike, *CONTENT)):
            return self.pipeline([as_picture(images)], None if boxes is None else [boxes], dense)[0]
        if isinstance(images, (list, tuple)):
            return self.pipeline([as_picture(image) for image in images], boxes, dense)
        # iterable, but not over pictures: a tensor's rows, a file's lines
        is_one_thing = isinstance(images, Mapping) or hasattr(images, "readline")
        if is_one_thing or getattr(images, "ndim", 1) in (2, 3) or not isinstance(images, Iterable):
            raise ValueError(
                f"expected a picture, a path or several of them, got {type(images).__name__}; "
                f"{WHAT_IS_A_PICTURE}"
            )
        return self._one_by_one(images, boxes, dense)

    def _one_by_one(
        self, images: Iterable[Picture], boxes: Iterable[Boxes | None] | None, dense: bool
    ) -> Iterator[list[Face]]:
        missing = object()
        if boxes is None:
            pairs = zip(images, repeat(None))
        else:
            pairs = zip_longest(images, boxes, fillvalue=missing)

        def faces_of(image: Picture, own: Boxes | None) -> list[Face]:
            if image is missing or own is missing:
                kinds = ("boxes", "pictures") if image is missing else ("pictures", "boxes")
                raise ValueError("got more {} than {}: expected one for each".format(*kinds))
            return self.pipeline([as_picture(image)], [own], dense)[0]

        return starmap(faces_of, pairs)  # goes on after an error, which a generator does not

    def draw(
        self,
        image: Picture,
        faces: Face | Iterable[Face],
        drawings: str | Sequence[str] = DEFAULT_DRAWINGS,
    ) -> np.ndarray:
        """All faces on one picture, (H, W, 3) uint8 BGR; arguments as of ``Face.draw``."""
        from utils.overlays import Overlays  # imported here: numbers alone need no drawing

        faces = [faces] if isinstance(faces, Face) else list(faces)
        if not all(isinstance(face, Face) for face in faces):
            raise ValueError(
                "expected the faces of one picture; a tracker gives pairs (id, face), a list of "
                "pictures a list of such lists"
            )
        return Overlays(self.face_model, drawings)(to_bgr8(as_picture(image)), faces)

    def tracker(self, smoothing: str = "light", detect_every: int = 10) -> FaceTracker:
        """Follows the faces of one video: ``tracker(frame)`` gives [(id, face), ...] of the next.

        Arguments and the call are those of ``utils.tracking.FaceTracker``.
        """
        from utils.tracking import FaceTracker  # imported here: photos need no tracker

        return FaceTracker(self.pipeline, smoothing, detect_every)

    def get_all_outputs(
        self, image: Picture
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[list[list[float]]]]:
        """The published call: three lists with one entry per face of a BGR picture.

        Returns:
            landmarks (3, 68) float32 and vertices (3, N) float32, image frame;
            poses ``[[yaw, pitch, roll], [tx, ty, tz]]``, degrees and image frame. (The published
            code leaves ty counted from the bottom, and tz in pixels of the crop.)
        """
        (faces,) = self.pipeline([as_picture(image)])
        return (
            [face.landmarks for face in faces],
            [face.vertices for face in faces],
            [[[face.yaw, face.pitch, face.roll], face.translation.tolist()] for face in faces],
        )


# the attributes that opening a model gives it
_OPENED = ("engine", "device", "pipeline", "face_model", "files", "description")
