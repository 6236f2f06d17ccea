"""Scores a network by the AFLW2000-3D protocol: predict on a set, then compare with its labels.

BenchmarkSet (utils/aflw2000.py)
  -> crops (n, 120, 120, 3), border set to zero     ``predict``
  -> landmarks (n, 3, 68) label frame, rotations (n, 3, 3)
  -> a dict of numbers, and columns with a value per sample    ``score``
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from loss_definition import runs_refiner
from model_building import SynergyNet, evaluation_mode, load_synergynet
from utils import metrics
from utils.aflw2000 import (
    BOX_TO_LABEL_FRAME,
    Aflw21,
    BenchmarkSet,
    crop_to_label_frame,
)
from utils.boxes import overlaps
from utils.geometry import (
    angle_differences,
    angles_to_rotation,
    decompose_camera,
    exact_angles,
    nearest_rotation,
    rotation_to_angles,
)
from utils.inference import Detector, detect
from utils.morphable_model import MorphableModel, split_camera
from utils.preprocessing import (
    PROTOCOL_BORDER,
    boxes_to_roi_boxes,
    normalize_crops,
)
from utils.runtime import OnnxRegressor, on_device, picture_layout

BATCH, CPU_BATCH = 128, 16  # on a CPU more at once take longer a crop, and more memory
BINS = tuple(f"{low}_{high}" for low, high in metrics.YAW_BINS)
# ``labels_fingerprints(data)["original"]`` of AFLW2000-3D as published
PUBLISHED_LABELS = "fed6f9f3e2c3"
ANGLES = ("yaw", "pitch", "roll")
JITTER = 0.1  # largest shift of a roi box and largest change of its size, as shares of its side
LEAST_OVERLAP = 0.1  # IoU with the landmarks' box from which a detection is this face's


class CropOutput(NamedTuple):
    """What a network says of a batch of crops; numpy, float32."""

    parameters: np.ndarray  # (B, 62) not whitened
    landmarks: np.ndarray  # (B, 3, 68) crop frame
    refined: np.ndarray | None  # (B, 3, 68) crop frame; None: no refiner was trained


# (B, 3, 120, 120) float32 normalised crops -> CropOutput
Network = Callable[[np.ndarray], CropOutput]


def torch_network(model: SynergyNet, device: str | torch.device) -> Network:
    """SynergyNet, with its refiner where that was trained, in full precision and repeatable.

    The model is moved to the device; it must be in evaluation mode.

    Raises:
        UnavailableError: the device has no memory for it.
    """
    model = on_device(model, device)
    loop = "refiner" if runs_refiner(model.trained_loop) else "backbone"

    def network(crops: np.ndarray) -> CropOutput:
        with torch.inference_mode(), _without_tf32():
            images = torch.from_numpy(crops).to(device, memory_format=picture_layout(device))
            output = model(images, loop)
            parameters = model.face_model.dewhiten(output.whitened)
            arrays = (parameters, output.landmarks, output.refined)
            return CropOutput(*(None if a is None else a.float().cpu().numpy() for a in arrays))

    return network


@contextmanager
def _without_tf32() -> Iterator[None]:
    """GPUs round to TF32 (10 bits) in convolutions by default, and in products when asked to."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class OnnxEncoder(torch.nn.Module):
    """Stands for ``SynergyNet.I2P`` and runs it in ONNX Runtime."""

    def __init__(self, regressor: OnnxRegressor) -> None:
        super().__init__()
        self.regressor = regressor

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parameters, features = self.regressor.encode(images.contiguous().numpy())
        return torch.from_numpy(parameters), torch.from_numpy(features)


def onnx_network(weights: Path, face_model: MorphableModel) -> Network:
    """The image encoder in ONNX Runtime, on the CPU; the small refiner stays in PyTorch."""
    model = load_synergynet(weights, face_model)
    model.I2P = OnnxEncoder(OnnxRegressor(weights, face_model))
    return torch_network(model, torch.device("cpu"))


# What benchmark.py --engine offers: weights, face model, device -> Network.
NETWORKS: dict[str, Callable[[Path, MorphableModel, str | torch.device], Network]] = {
    "torch": lambda weights, face_model, device: torch_network(
        load_synergynet(weights, face_model), device
    ),
    "onnx": lambda weights, face_model, device: onnx_network(weights, face_model),
}

# ------------------------------------------------------------------------------------- prediction


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's answer for each of n samples.

    Attributes:
        crop_landmarks: (n, 3, 68) float32, crop frame.
        landmarks: the same in the frame of the roi boxes (of a benchmark: its labels');
            ``raw`` and, where there is a refiner, ``refined``.
        rotation: (n, 3, 3) float64, model frame to image axes with y up.
        seconds: that reading, cropping and the network took.
        parameters: (n, 62) float32, not whitened; only the dense mesh needs them.
    """

    crop_landmarks: np.ndarray
    landmarks: dict[str, np.ndarray]
    rotation: np.ndarray
    seconds: float
    parameters: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rotation)


def predict(
    network: Network,
    crops: Callable[[np.ndarray], np.ndarray],
    roi_boxes: np.ndarray,
    border: int = PROTOCOL_BORDER,
    pixel_centres: bool = False,
    batch_size: int = BATCH,
    title: str | None = "predicting",
) -> Prediction:
    """Runs the network over all crops of a set, in their order.

    Args:
        network: in evaluation mode.
        crops: indices (k,) -> (k, 120, 120, 3) uint8 BGR; as ``BenchmarkSet.crops``.
        roi_boxes: (n, 4) x1 y1 x2 y2 of the crops, in the frame that the landmarks shall have.
        border: so many pixels at each edge of a crop are set to zero.
        pixel_centres: of the face model; how landmarks go back from the crop
            (``aflw2000.crop_to_label_frame``).
        batch_size: crops that go through the network at once.
        title: of the progress bar; None for none.

    Raises:
        OSError, ValueError: a picture cannot be read, or the network's answer is not finite.
    """
    outputs, started = [], time.perf_counter()
    with tqdm(total=len(roi_boxes), desc=title, unit="img", disable=title is None) as bar:
        for start in range(0, len(roi_boxes), batch_size):
            indices = np.arange(start, min(start + batch_size, len(roi_boxes)))
            outputs.append(network(normalize_crops(blacken_border(crops(indices), border))))
            bar.update(len(indices))
    seconds = time.perf_counter() - started
    parameters, raw, refined = zip(*outputs, strict=True)
    crop_landmarks = {"raw": np.concatenate(raw)}
    if refined[0] is not None:
        crop_landmarks["refined"] = np.concatenate(refined)
    parameters = np.concatenate(parameters)
    _, rotation, _ = decompose_camera(split_camera(parameters))
    landmarks = {
        name: crop_to_label_frame(points, roi_boxes, pixel_centres)
        for name, points in crop_landmarks.items()
    }
    return Prediction(crop_landmarks["raw"], landmarks, rotation, seconds, parameters)


def blacken_border(crops: np.ndarray, border: int) -> np.ndarray:
    """(n, H, W, 3) crops with ``border`` pixels at each edge set to zero; a copy."""
    crops, inner = np.zeros_like(crops), crops
    inside = np.s_[:, border : crops.shape[1] - border, border : crops.shape[2] - border]
    crops[inside] = inner[inside]
    return crops


def jittered_boxes(roi_boxes: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n, 4) roi boxes moved by up to 10 % of their side either way and scaled by up to 10 %."""
    rng = np.random.default_rng(seed)
    centre, side = (roi_boxes[:, :2] + roi_boxes[:, 2:]) / 2, roi_boxes[:, 2:] - roi_boxes[:, :2]
    centre = centre + rng.uniform(-JITTER, JITTER, centre.shape) * side
    half = side / 2 * rng.uniform(1 - JITTER, 1 + JITTER, (len(side), 1))
    return np.concatenate([centre - half, centre + half], axis=1)


def detected_boxes(data: BenchmarkSet, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Roi boxes of the faces as a detector finds them in the whole pictures.

    Of several detections the one that overlaps the labelled landmarks' box most is taken.

    Returns:
        indices (k,) of the faces that were found, of those with a whole picture, and their roi
        boxes (k, 4), label frame.
    """
    found, boxes = [], []
    for i in tqdm(data.pictured, desc="detecting", unit="img"):
        points = data.landmarks["original"][i, :2]
        detections = detect(detector, data.photo(i))
        labelled = np.concatenate([points.min(1), points.max(1)])
        overlap = overlaps(detections, labelled[None])[:, 0]
        if overlap.max(initial=0) >= LEAST_OVERLAP:
            found.append(i)
            boxes.append(detections[overlap.argmax()])
    indices = np.array(found, dtype=np.int64)
    return indices, boxes_to_roi_boxes(np.array(boxes).reshape(-1, 5)) + BOX_TO_LABEL_FRAME


# ------------------------------------------------------------------------------------- scores


def score(
    data: BenchmarkSet, prediction: Prediction
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """All numbers of the protocol and beyond; neither input is changed.

    Returns:
        scores: nested dict of plain numbers; NaN where a yaw bin is empty.
            ``counts``: samples in each yaw bin;
            ``nme``: label set -> ``raw``, ``refined`` -> see ``nme_scores``;
            ``pose`` (where there are labelled angles): ``published`` and ``exact`` -> see
            ``pose_scores``; ``geodesic``.
        samples: (n,) columns: ``yaw``, ``nme_LABELS_LANDMARKS``, and pose errors in degrees, which
            are NaN where a sample has no labelled angles.
    """
    nme, columns = nme_scores(prediction.landmarks, data.landmarks, data.yaw)
    scores = {"counts": by_bin(metrics.bin_masks(data.yaw).sum(1)), "nme": nme}
    samples = {"yaw": data.yaw, **columns}
    if data.angles is not None:
        scores["pose"], columns = pose_scores(data, prediction.rotation)
        samples |= columns
    return scores, samples


def by_bin(values: np.ndarray) -> dict[str, float]:
    """(3,) values, one for each yaw bin -> the same by the names in ``BINS``."""
    return dict(zip(BINS, values.tolist(), strict=True))


def nme_scores(
    landmarks: dict[str, np.ndarray], labels: dict[str, np.ndarray], yaw: np.ndarray
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Numbers of each kind of landmarks (n, 3, 68) against each set of labels (n, 2+, 68).

    Returns:
        scores: label set -> kind -> those of ``face_scores``, and ``parts``: mean of each facial
            part's points, percent.
        samples: (n,) columns ``nme_LABELS_LANDMARKS``.
    """
    scores, samples = {}, {}
    for name, target in labels.items():
        scores[name] = {}
        for kind, points in landmarks.items():
            errors = metrics.point_errors(points, target)  # (n, 68)
            faces = samples[f"nme_{name}_{kind}"] = errors.mean(1)
            parts = {key: float(errors[:, part].mean()) for key, part in metrics.PARTS.items()}
            scores[name][kind] = {**face_scores(faces, yaw), "parts": parts}
    return scores, samples


def face_scores(errors: np.ndarray, yaw: np.ndarray) -> dict[str, float]:
    """Numbers of one error per face.

    Args:
        errors: (n,) percent.
        yaw: (n,) degrees.

    Returns:
        ``0_30`` ... mean of each bin, ``std_0_30`` ... deviation within it; ``balanced`` their
        mean (the protocol's headline) and ``std_balanced`` their deviation; ``mean`` and
        ``median`` over samples; ``failure_rate`` above 8 %, ``auc`` up to 8 %. All percent;
        deviations are the population's.
    """
    means, deviations = metrics.bin_means(errors, yaw), metrics.bin_deviations(errors, yaw)
    return {
        **by_bin(means),
        **{f"std_{key}": v for key, v in by_bin(deviations).items()},
        "balanced": float(means.mean()),
        "std_balanced": float(means.std()),
        "mean": float(errors.mean()),
        "median": float(np.median(errors)),
        "failure_rate": metrics.failure_rate(errors),
        "auc": metrics.area_under_curve(errors),
    }


def dense_errors(
    face_model: MorphableModel, data: BenchmarkSet, prediction: Prediction
) -> np.ndarray:
    """(n,) NME of the mesh vertices that ``data.dense`` labels, which belong to the face model,
    percent: their mean 2D distance over sqrt(w * h) of the original landmarks' box, as for the
    landmarks themselves."""
    dense = data.dense
    chosen = replace(
        face_model,
        mean=face_model.mean[:, dense.indices],
        basis=face_model.basis[:, :, dense.indices],
    )
    distances = []
    for start in range(0, len(data), BATCH):  # all faces' meshes at once may be gigabytes
        rows = slice(start, start + BATCH)
        points = chosen.vertices(prediction.parameters[rows])
        points = crop_to_label_frame(points, data.roi_boxes[rows], face_model.pixel_centres)
        away = (points - dense.points[rows])[:, :2]  # (B, 2, P)
        distances.append(np.linalg.norm(away, axis=1).mean(1))
    return 100 * np.concatenate(distances) / metrics.box_size(data.landmarks["original"])


def aflw21_scores(data: Aflw21, prediction: Prediction) -> dict[str, dict]:
    """AFLW's 21 points, those that are labelled as visible and not the ears.

    Returns:
        ``counts`` of faces in each yaw bin; ``nme``: ``raw``, ``refined`` -> see ``face_scores``.
    """
    nme = {
        name: face_scores(metrics.nme(metrics.to_aflw21(points), data.landmarks), data.yaw)
        for name, points in prediction.landmarks.items()
    }
    return {"counts": by_bin(metrics.bin_masks(data.yaw).sum(1)), "nme": nme}


def pose_scores(
    data: BenchmarkSet, rotation: np.ndarray
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Head pose errors in degrees, of the samples with labelled angles.

    ``published``: angles by the published formulas, plain differences; what the tables of papers
    hold. ``exact``: angles as the labels mean them, of the two triples that mean one rotation the
    one nearer to the label; differences the short way round.
    ``geodesic``: the single turn between the rotations.

    Returns:
        scores as ``score`` describes: per kind ``yaw``, ``pitch``, ``roll``, their ``mean`` and the
        mean in each yaw bin (geodesic: ``mean``, ``median``, bins); and columns for all samples.
    """
    has = np.isfinite(data.angles).all(1)
    labels, yaw = data.angles[has], data.yaw[has]
    published = np.abs(rotation_to_angles(rotation[has]) - labels)  # (m, 3)
    exact = angle_differences(exact_angles(rotation[has], labels), labels)
    turn = metrics.geodesic(nearest_rotation(rotation[has]), angles_to_rotation(labels))
    scores, columns = {}, {}
    column = partial(_column, len(data), has)
    for kind, errors in (("published", published), ("exact", exact)):
        means = errors.mean(0)
        scores[kind] = dict(zip(ANGLES, means.tolist(), strict=True))
        scores[kind] |= {"mean": float(means.mean())}
        scores[kind] |= by_bin(metrics.bin_means(errors.mean(1), yaw))
        columns |= {f"{a}_{kind}": column(e) for a, e in zip(ANGLES, errors.T, strict=True)}
    scores["geodesic"] = {"mean": float(turn.mean()), "median": float(np.median(turn))}
    scores["geodesic"] |= by_bin(metrics.bin_means(turn, yaw))
    columns["geodesic"] = column(turn)
    return scores, columns


def score_boxes(
    data: BenchmarkSet, supplied: Prediction, other: Prediction, indices: np.ndarray
) -> tuple[dict[str, dict | float], dict[str, np.ndarray]]:
    """How much worse it gets with other roi boxes than the supplied ones.

    Args:
        supplied: of the whole set.
        other: of the k faces at ``indices``, with the other boxes.

    Returns:
        scores: ``found``: percent of the faces with a whole picture that have such a box;
            ``moved``: mean shift of the raw landmarks in percent of sqrt(w * h) of their box;
            ``nme``: as in ``score``, of those faces; ``nme_supplied``: the same faces with the
            supplied boxes.
        samples: (n,) columns ``nme_LABELS_LANDMARKS`` with the other boxes, NaN at other faces.
    """
    kept, labels = (
        {name: points[indices] for name, points in every.items()}
        for every in (supplied.landmarks, data.landmarks)
    )
    nme, columns = nme_scores(other.landmarks, labels, data.yaw[indices])
    scores = {
        "found": 100 * len(indices) / len(data.pictured),
        "moved": float(metrics.nme(other.landmarks["raw"], kept["raw"]).mean()),
        "nme": nme,
        "nme_supplied": nme_scores(kept, labels, data.yaw[indices])[0],
    }
    return scores, {k: _column(len(data), indices, column) for k, column in columns.items()}


def _column(count: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(count,) with the values in those rows and NaN in the others."""
    full = np.full(count, np.nan)
    full[rows] = values
    return full


def labels_fingerprints(data: BenchmarkSet) -> dict[str, str]:
    """12 hex digits of each set of labels: errors can be compared where they agree.

    Returns:
        ``original`` (with the yaws), and where present ``reannotated``, ``angles``, ``dense``.
    """
    arrays = {name: [points] for name, points in data.landmarks.items()}
    arrays["original"].insert(0, data.yaw)
    if data.angles is not None:
        arrays["angles"] = [data.angles]
    if data.dense is not None:
        arrays["dense"] = [data.dense.points, data.dense.indices]
    found = {}
    for name, parts in arrays.items():
        digest = hashlib.sha256()
        for array in parts:
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        found[name] = digest.hexdigest()[:12]
    return found


def labels_of(column: str) -> str:
    """Which labels (``labels_fingerprints``) a per-sample column of errors is against."""
    if column.startswith("nme_"):
        return column.split("_")[1]
    return "angles"


def score_aflw2000(model: SynergyNet, data: BenchmarkSet, device: torch.device) -> dict[str, float]:
    """The benchmark's main numbers as one flat dict, for training to log after an epoch.

    Args:
        model: moved to ``device``, scored in evaluation mode and put back into the mode it was in.
        data: from ``open_benchmark``.
        device: where it runs.

    Returns:
        per label set ``aflw_original``, ``aflw_original_0_30`` ... (raw landmarks, mean of the bins
        and each bin, percent; NaN where a bin is empty) and ``aflw_original_refined``; where there
        are pose lists ``aflw_pose_mae`` (published, degrees) and ``aflw_pose_exact``.

    Raises:
        OSError, ValueError: see ``predict``.
    """
    with evaluation_mode(model):
        prediction = predict(
            torch_network(model, device),
            data.crops,
            data.roi_boxes,
            pixel_centres=model.face_model.pixel_centres,
            title=None,
        )
    scores, _ = score(data, prediction)
    result = {}
    for labels, found in scores["nme"].items():
        result[f"aflw_{labels}"] = found["raw"]["balanced"]
        result |= {f"aflw_{labels}_{key}": found["raw"][key] for key in BINS}
        refined = found.get("refined", {"balanced": math.nan})
        result[f"aflw_{labels}_refined"] = refined["balanced"]
    if "pose" in scores:
        result["aflw_pose_mae"] = scores["pose"]["published"]["mean"]
        result["aflw_pose_exact"] = scores["pose"]["exact"]["mean"]
    return result


# ------------------------------------------------------------------------------------- comparison


def compare(
    a: dict[str, np.ndarray], b: dict[str, np.ndarray], yaw: np.ndarray, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Two runs on one set: balanced means, and whether their difference is more than chance.

    Args:
        a, b: per-sample columns of errors (n,) by name; names in both are compared.
        yaw: (n,) degrees.

    Returns:
        per name ``a`` and ``b`` (means of the yaw bins), ``difference`` b - a, and the ends
        ``low``, ``high`` of its 95 % interval by a paired bootstrap within the bins.
    """
    result = {}
    for name in (name for name in a if name in b and name != "yaw"):
        fine = np.isfinite(a[name]) & np.isfinite(b[name])
        if not fine.any():
            continue
        means = [
            float(np.nanmean(metrics.bin_means(errors[name][fine], yaw[fine]))) for errors in (a, b)
        ]
        drawn = metrics.bootstrap_balanced(b[name] - a[name], yaw, seed=seed)
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
        result[name] = {"a": means[0], "b": means[1], "difference": means[1] - means[0]}
        result[name] |= {"low": low, "high": high}
    return result


def compare_runs(a: dict, b: dict, seed: int = 0) -> tuple[dict[str, dict[str, float]], set[str]]:
    """What can be compared of two runs (``benchmark_report.read_run``).

    Returns:
        see ``compare``; and which labels (``labels_fingerprints``) are not the same in both: the
        errors against them are left out.

    Raises:
        ValueError: the runs are on different faces, or their original labels differ.
    """
    columns, others = a["samples"], b["samples"]
    same = a["settings"]["labels"] == b["settings"]["labels"]
    if not same or len(columns["yaw"]) != len(others["yaw"]):
        raise ValueError("runs on different faces or labels cannot be compared")
    foreign = {key for key, own in a["labels"].items() if b["labels"].get(key, own) != own}
    columns = {name: errors for name, errors in columns.items() if labels_of(name) not in foreign}
    return compare(columns, others, a["samples"]["yaw"], seed), foreign
