"""Photo in, face boxes out."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from FaceBoxes.anchors import anchors, decode
from FaceBoxes.nms import nms
from utils import assets
from utils.onnx_engine import open_network

MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)

CANDIDATE_THRESHOLD = 0.05
DETECT_SIZE = 1080  # pixels, see detection_scale
SMALL, ENLARGED = 128, 256  # pixels of the longer side, see ``second_look``

# (B, 3, H, W) float32 -> offsets (B, A, 4) and probabilities (B, A, 2), both float32
Engine = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def detection_scale(shape: tuple[int, ...], size: float) -> float:
    """What a photo (H, W, ...) is shrunk by to be at most ``size`` pixels wide and two thirds of
    it high, as published 1080 and 720; 1 where it fits."""
    return min(1.0, size * 2 / 3 / shape[0], size / shape[1])


def network_input(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (1, 3, H, W) float32, the mean subtracted."""
    planes = np.empty((3, *image.shape[:2]), dtype=np.float32)
    # Plane by plane: seven times as fast as subtracting first and transposing then.
    for plane, channel, mean in zip(planes, cv2.split(image), MEAN_BGR, strict=True):
        np.subtract(channel, mean, out=plane, dtype=np.float32)
    return planes[None]


class FaceBoxes:
    """Face detector, built once and called as often as needed, from any number of threads.

    Args:
        weights: checkpoint of the network; None: the published file where it is at its place, else
            the starter weights.
        device: torch device the network runs on, with the torch engine: ``cpu``, ``cuda``,
            ``cuda:1``, ``mps`` (not ``auto``); torch's own error where it does not work.
        score_threshold: boxes must score above this to be returned.
        candidate_threshold: boxes must score above this to take part in the suppression; None:
            0.05, or ``score_threshold`` where that is lower.
        nms_threshold: intersection over union from which the weaker of two boxes is dropped.
        top_k: number of candidates that enter the suppression, best first.
        keep_top_k: number of boxes that leave it.
        detect_size: pixels, to which larger photos are shrunk (``detection_scale``).
        second_look: where nothing is found in a photo below 128 pixels, look at a copy whose longer
            side is 256: the network misses faces below some 30 pixels.
        engine: what runs the network: ``torch``, ``onnx`` (on the CPU; see
            ``utils/onnx_engine.py``), or a function, which needs neither weights nor device.
        threads: of the onnx engine; the cores at hand if None.

    Raises:
        FileNotFoundError, ValueError: missing or unfit weights, an option out of range.
        UnavailableError: the ONNX export fails, or the device has no memory for the network.
    """

    def __init__(
        self,
        weights: Path | str | None = None,
        device: str = "cpu",
        *,
        score_threshold: float = 0.5,
        candidate_threshold: float | None = None,
        nms_threshold: float = 0.3,
        top_k: int = 5000,
        keep_top_k: int = 750,
        detect_size: float = DETECT_SIZE,
        second_look: bool = False,
        engine: Engine | str = "torch",
        threads: int | None = None,
    ) -> None:
        if candidate_threshold is None:
            candidate_threshold = min(CANDIDATE_THRESHOLD, score_threshold)
        for name, value, lowest, highest in (
            ("score_threshold", score_threshold, 0, 1),
            ("candidate_threshold", candidate_threshold, 0, 1),
            ("nms_threshold", nms_threshold, np.nextafter(0, 1), 1),
            ("top_k", top_k, 1, np.inf),
            ("keep_top_k", keep_top_k, 1, np.inf),
            ("detect_size", detect_size, 2, np.inf),
        ):
            if not lowest <= value <= highest:
                raise ValueError(f"{name} must lie in [{lowest:g}, {highest:g}], got {value}")
        self.score_threshold = score_threshold
        self.candidate_threshold = candidate_threshold
        self.nms_threshold = nms_threshold
        self.top_k, self.keep_top_k = int(top_k), int(keep_top_k)
        self.detect_size = detect_size
        self.second_look = second_look
        if isinstance(engine, str):
            engine = _open_engine(engine, weights, device, threads)
        self.engine = engine

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Faces in one photo.

        Args:
            image: (H, W, 3) uint8, BGR, any size from 1x1.

        Returns:
            (n, 5) float32 rows of x1 y1 x2 y2 score in pixels of ``image``, best first, not
            clipped to it.

        Raises:
            TypeError, ValueError: ``image`` is not such an array.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"image must be a numpy array of dtype uint8, got {kind}")
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"image must have shape (H, W, 3), got {image.shape}")
        found = self._look(image, detection_scale(image.shape, self.detect_size))
        if self.second_look and not len(found) and max(image.shape[:2]) < SMALL:
            found = self._look(image, ENLARGED / max(image.shape[:2]))
        return found

    def _look(self, image: np.ndarray, scale: float) -> np.ndarray:
        """The boxes (n, 5) that the network finds in a copy resized by ``scale``, in pixels of
        ``image``."""
        height, width = image.shape[:2]
        if scale != 1:
            height, width = max(int(scale * height), 1), max(int(scale * width), 1)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        offsets, probabilities = self.engine(network_input(image))
        return self._boxes(offsets[0], probabilities[0, :, 1], height, width, scale)

    def _boxes(
        self, offsets: np.ndarray, scores: np.ndarray, height: int, width: int, scale: float
    ) -> np.ndarray:
        """Network output for one photo to boxes (n, 5) in its pixels."""
        candidates = np.flatnonzero(scores > self.candidate_threshold)
        order = np.argsort(-scores[candidates], kind="stable")[: self.top_k]
        candidates = candidates[order]
        boxes = decode(offsets[candidates], anchors(height, width)[candidates])
        boxes *= np.array([width, height, width, height], dtype=np.float32)
        boxes /= np.float32(scale)
        rows = np.column_stack([boxes, scores[candidates]]).astype(np.float32, copy=False)
        rows = rows[nms(rows, self.nms_threshold)[: self.keep_top_k]]
        return rows[rows[:, 4] > self.score_threshold]


def _open_engine(name: str, weights: Path | str | None, device: str, threads: int | None) -> Engine:
    """The engine of that name; torch is imported only where it is used."""
    if weights is None:
        weights = assets.find_detector_weights()
    if name == "torch":
        from FaceBoxes.network import TorchEngine

        return TorchEngine(weights, device)
    if name != "onnx":
        raise ValueError(f"unknown engine {name!r}; expected torch or onnx")

    def export() -> bytes:
        from FaceBoxes.network import export_detector

        return export_detector(weights)

    return open_network(weights, export, {"network": "FaceBoxes"}, threads)
