"""The work of benchmark.py: weights are scored on a set, or two such runs compared."""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from FaceBoxes import FaceBoxes
from utils import assets, evaluation
from utils import benchmark_report as report
from utils.aflw2000 import AFLW_LIST, Aflw21, BenchmarkSet, open_aflw21, open_benchmark
from utils.cli import complain, say
from utils.files import check_writable
from utils.inference import Detector
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.runtime import choose_engine

BOXES = ("jitter", "detector")  # what --boxes offers


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is scored, on what; everything that can be wrong with it has been checked.

    Attributes:
        aflw: AFLW's 21 points; None where they are not there.
        detector: None where its boxes are not asked for.
        device: where the network runs.
        settings: of the run, as the report shows them.
    """

    data: BenchmarkSet
    aflw: Aflw21 | None
    face_model: MorphableModel
    network: evaluation.Network
    detector: Detector | None
    device: str
    settings: dict[str, str | int]


def run_benchmark(options: argparse.Namespace) -> int:
    """Scores weights, prints the numbers and writes the report; the exit code.

    Args:
        options: of ``benchmark.py``.

    Raises:
        OSError, ValueError, UnavailableError: wrong usage or unfit files. What goes wrong later, a
            damaged picture or a full disk, is said on stderr and gives the exit code 1.
    """
    inputs = open_inputs(options)
    say("weights {weights}, face model {face_model}, engine {engine}".format_map(inputs.settings))
    try:
        run, prediction = score_all(inputs, options)
        report.write_results(options.out, run, inputs.data, prediction)
    except (OSError, ValueError, RuntimeError) as error:
        complain("benchmark.py", error)
        return 1
    for table in report.own_tables(run["scores"]):
        say_lines(f"\n{report.table_text(table)}")
    left_out = run["missing"] + ([] if (options.out / "plots.png").exists() else [report.NO_PLOTS])
    if left_out:
        say_lines("\nLeft out:")
        for line in left_out:
            say(f"  {line}")
    speed = len(prediction) / prediction.seconds
    say_lines(f"\n{speed:.1f} images/s on {inputs.device}, from JPEG to landmarks")
    say(f"border {options.border}; report: {options.out / 'report.html'}")
    return 0


def say_lines(text: str) -> None:
    """Prints lines; one that cannot be printed any more (``| head``) does not end the run."""
    for line in text.split("\n"):
        say(line)


def open_inputs(options: argparse.Namespace) -> Inputs:
    """Opens all that a run needs, and the folder to write to; raises as ``run_benchmark``."""
    data = open_benchmark(options.data)
    if options.boxes and not len(data.pictured):
        raise FileNotFoundError(
            f"{data.photos / data.names[0]}: not there, nor any other whole picture, which "
            "--boxes needs; put the original pictures there, named as the crops"
        )
    aflw = None
    if options.aflw or (options.data / AFLW_LIST).exists():
        aflw = open_aflw21(options.aflw or options.data)
    weights = options.weights or assets.find_weights()
    face_model = load_morphable_model(options.face_model or assets.find_face_model())
    engine, device = choose_engine(options.engine, options.device)
    network = evaluation.NETWORKS[engine](weights, face_model, device)
    detector = None
    if "detector" in options.boxes:
        path = options.detector_weights or assets.find_detector_weights()
        detector = FaceBoxes(path, device, engine=engine)
    inputs = [data.crop_folder, data.photos, *([aflw.crop_folder] if aflw else [])]
    if options.out.resolve() in [folder.resolve() for folder in inputs]:
        raise ValueError(
            f"{options.out}: the pictures of the set lie there, and those drawn have the same "
            "names; choose another place with --out"
        )
    check_writable(options.out, "--out")
    settings = {
        "weights": assets.shown(weights),
        "face_model": f"{assets.shown(face_model.source)} ({face_model.fingerprint})",
        "data": f"{options.data}, {len(data)} faces",
        "labels": evaluation.labels_fingerprints(data)["original"],
        "border": f"{options.border} pixels of each crop's edge set to zero",
        "crop to picture": "exactly" if face_model.pixel_centres else "as published",
        "engine": f"{options.engine} on {device}",
        "seed": options.seed,
    }
    return Inputs(data, aflw, face_model, network, detector, device, settings)


def score_all(inputs: Inputs, options: argparse.Namespace) -> tuple[dict, evaluation.Prediction]:
    """The protocol with the supplied boxes, whose numbers are printed at once, and beyond it.

    Returns:
        The run, as ``utils.benchmark_report`` describes it; what the network says of the set.

    Raises:
        OSError, ValueError: a picture is damaged, or the network's answer is not finite.
    """
    data = inputs.data
    batch_size = evaluation.CPU_BATCH if inputs.device == "cpu" else evaluation.BATCH
    predict = partial(
        evaluation.predict,
        inputs.network,
        border=options.border,
        pixel_centres=inputs.face_model.pixel_centres,
        batch_size=options.batch_size or batch_size,
    )
    prediction = predict(data.crops, data.roi_boxes)
    scores, samples = evaluation.score(data, prediction)
    say_lines(report.published_text(scores))
    missing = list(data.missing)

    for kind in options.boxes:
        if kind == "jitter":
            indices = data.pictured
            boxes = evaluation.jittered_boxes(data.roi_boxes, options.seed)[indices]
        else:
            indices, boxes = evaluation.detected_boxes(data, inputs.detector)
            if not len(indices):
                missing.append("the detector found none of the faces: its boxes are not scored")
                continue
        other = predict(data.crops_at(indices, boxes), boxes, title=kind)
        found, columns = evaluation.score_boxes(data, prediction, other, indices)
        scores.setdefault("boxes", {})[kind] = found
        samples |= {f"{name}_{kind}": column for name, column in columns.items()}
    for degrees, count in zip(report.DEGREES, scores["counts"].values(), strict=True):
        if not count:
            missing.append(f"no face with a yaw of {degrees}: there is no mean of the yaw bins")

    vertices = inputs.face_model.num_vertices
    if data.dense is not None and data.dense.num_vertices != vertices:
        missing.append(
            f"the dense labels are of a face model with {data.dense.num_vertices} vertices, not "
            f"{vertices}: the dense mesh is not scored"
        )
    elif data.dense is not None:
        samples["nme_dense"] = evaluation.dense_errors(inputs.face_model, data, prediction)
        found = evaluation.face_scores(samples["nme_dense"], data.yaw)
        scores["dense"] = {"vertices": len(data.dense.indices), "nme": found}
    if inputs.aflw is None:
        missing.append(f"no {AFLW_LIST}: AFLW's 21 points are not scored (--aflw)")
    else:
        found = predict(inputs.aflw.crops, inputs.aflw.roi_boxes, title="AFLW")
        scores["aflw21"] = evaluation.aflw21_scores(inputs.aflw, found)
    run = {"missing": missing, "scores": scores, "names": data.names, "samples": samples}
    run |= {"settings": inputs.settings, "labels": evaluation.labels_fingerprints(data)}
    return run, prediction


def print_comparison(a: Path, b: Path, seed: int) -> None:
    """Prints two runs, the folders or files that they left, side by side.

    Raises:
        OSError, ValueError: one is no run, or they are of different faces.
    """
    runs = [report.read_run(path) for path in (a, b)]
    try:
        compared, foreign = evaluation.compare_runs(*runs, seed)
    except ValueError as error:
        raise ValueError(f"{a} and {b}: {error}") from error
    table = report.comparison_table(compared, str(a), str(b))
    say_lines(f"{report.table_text(table)}\n{table.note}")
    if foreign:
        say(f"Left out, because the labels are not the same: {', '.join(sorted(foreign))}")
    if alone := runs[0]["samples"].keys() ^ runs[1]["samples"].keys():
        say(f"Left out, because only one of the runs has them: {', '.join(sorted(alone))}")
    for name, path, run in zip("AB", (a, b), runs, strict=True):
        say(f"{name}: {path}: {run['settings']['weights']}, border {run['settings']['border']}")
