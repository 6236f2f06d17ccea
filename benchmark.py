"""Scores weights by the AFLW2000-3D protocol, and beyond it.

python benchmark.py                                      weights that singleImage.py would use
python benchmark.py -w mine.pth.tar --out runs/bench     other weights, another folder
python benchmark.py --compare runs/a runs/b              is the difference more than chance?
"""

import argparse
from pathlib import Path

from FaceBoxes import FaceBoxes
from utils import assets, evaluation
from utils import benchmark_report as report
from utils.aflw2000 import AFLW_LIST, DEFAULT_FOLDER, open_aflw21, open_benchmark
from utils.cli import complain, run_script, script_parser
from utils.morphable_model import load_morphable_model
from utils.runtime import choose_engine

BOXES = ("jitter", "detector")
EPILOG = """\
written to OUT:
  NAME.jpg        the first 50 crops with their landmarks
  results.json    all numbers, and every face's errors; what --compare reads
  samples.csv     every face's errors
  plots.png       one page of plots (with matplotlib)
  report.html     the report, the worst 20 faces in it; one file that needs no other

exit code: 0 done, 1 a picture could not be read, 2 wrong usage or unfit files, 130 Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG)
    add = parser.add_argument
    add("-w", "--weights", type=Path, help="SynergyNet checkpoint (default: published, or starter)")
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("--data", type=Path, default=DEFAULT_FOLDER, help="default: aflw2000_data")
    add("--aflw", type=Path, help="AFLW's 21 points (default: in the folder of --data, if there)")
    add("-o", "--out", type=Path, default=Path("results"), help="where to write (default: results)")
    add("--border", type=int, choices=(0, 5), default=5, help="pixels at each edge of the crops "
        "that are set to zero; 5 is the protocol (default), 0 leaves them whole")  # fmt: skip
    add("--boxes", nargs="+", choices=BOXES, default=(), help="score other roi boxes too: moved "
        "and scaled by up to 10 %% at random, or from the detector")  # fmt: skip
    add("--detector-weights", type=Path, help="FaceBoxes weights (default: published, or starter)")
    add("--engine", choices=evaluation.ENGINES, default="torch", help="default: torch")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--batch-size", type=int, default=128, help="crops at once (default: 128)")
    add("--seed", type=int, default=0, help="of jitter and bootstrap (default: 0)")
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs (OUT) on one set")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, got {options.seed}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.compare:
        compare(*options.compare, options.seed)
        return 0
    data = open_benchmark(options.data)
    if options.boxes and not len(data.pictured):
        raise FileNotFoundError(
            f"{data.photos / data.names[0]}: not there, nor any other whole picture, which "
            "--boxes needs; `python -m tools.prepare_aflw2000 --photos` puts them there"
        )
    aflw = None
    if options.aflw or (options.data / AFLW_LIST).exists():
        aflw = open_aflw21(options.aflw or options.data)
    weights = options.weights or assets.find_weights()
    face_model = load_morphable_model(options.face_model or assets.find_face_model())
    engine, device = choose_engine(options.engine, options.device)
    network = evaluation.ENGINES[engine](weights, face_model, device)
    detector = None
    if "detector" in options.boxes:
        path = options.detector_weights or assets.find_detector_weights()
        detector = FaceBoxes(path, device, engine=engine)
    options.out.mkdir(parents=True, exist_ok=True)

    labels = evaluation.labels_fingerprints(data)
    settings = {
        "weights": assets.shown(weights),
        "face_model": f"{assets.shown(face_model.source)} ({face_model.fingerprint})",
        "data": f"{options.data}, {len(data)} faces",
        "labels": labels["original"],
        "border": f"{options.border} pixels of each crop's edge set to zero",
        "engine": f"{options.engine} on {device}",
        "seed": options.seed,
    }
    try:
        run, prediction = score_run(options, data, network, detector)
        score_extras(run, options, data, prediction, face_model, aflw, network)
        run |= {"settings": settings, "labels": labels}
        report.write_results(options.out, run, data, prediction)
    except (OSError, ValueError, RuntimeError) as error:  # a damaged picture, a full disk
        complain("benchmark.py", error)
        return 1
    for table in report.own_tables(run["scores"]):
        print(f"\n{report.table_text(table)}")
    left_out = run["missing"] + ([] if (options.out / "plots.png").exists() else [report.NO_PLOTS])
    if left_out:
        print("\nLeft out:", *left_out, sep="\n  ")
    speed = len(data) / prediction.seconds
    print(f"\n{speed:.1f} images/s on {device}, from JPEG to landmarks")
    print(f"border {options.border}; report: {options.out / 'report.html'}")
    return 0


def score_run(options, data, network, detector) -> tuple[dict, evaluation.Prediction]:
    """The protocol with the supplied boxes, its published form printed, then other boxes."""
    prediction = predict(options, network, data.crops, data.roi_boxes, "predicting")
    scores, samples = evaluation.score(data, prediction)
    print(report.published_text(scores))
    missing = list(data.missing)
    for kind in options.boxes:
        if kind == "jitter":
            indices = data.pictured
            boxes = evaluation.jittered_boxes(data.roi_boxes, options.seed)[indices]
        else:
            indices, boxes = evaluation.detected_boxes(data, detector)
            if not len(indices):
                missing.append("the detector found none of the faces: its boxes are not scored")
                continue
        other = predict(options, network, data.crops_at(indices, boxes), boxes, kind)
        found = evaluation.score_boxes(data, prediction, other, indices)
        scores.setdefault("boxes", {})[kind] = found
    for degrees, count in zip(report.DEGREES, scores["counts"].values(), strict=True):
        if not count:
            missing.append(f"no face with a yaw of {degrees}: there is no mean of the yaw bins")
    run = {"missing": missing, "scores": scores, "names": data.names, "samples": samples}
    return run, prediction


def score_extras(run, options, data, prediction, face_model, aflw, network) -> None:
    """Adds the dense mesh and AFLW's 21 points to a run, or says why not."""
    if data.dense is not None:
        if data.dense.num_vertices == face_model.num_vertices:
            errors = evaluation.dense_errors(face_model, data.dense, data, prediction)
            found = evaluation.face_scores(errors, data.yaw)
            run["scores"]["dense"] = {"vertices": len(data.dense.indices), "nme": found}
            run["samples"]["nme_dense"] = errors
        else:
            run["missing"].append(
                f"the dense labels are of a face model with {data.dense.num_vertices} vertices, "
                f"not {face_model.num_vertices}: the dense mesh is not scored"
            )
    if aflw is None:
        run["missing"].append(f"no {AFLW_LIST}: AFLW's 21 points are not scored (--aflw)")
    else:
        found = predict(options, network, aflw.crops, aflw.roi_boxes, "AFLW")
        run["scores"]["aflw21"] = evaluation.aflw21_scores(aflw, found)


def predict(options, network, crops, roi_boxes, title) -> evaluation.Prediction:
    how = options.border, options.batch_size, title
    return evaluation.predict(network, crops, roi_boxes, *how)


def compare(a: Path, b: Path, seed: int) -> None:
    """Prints two runs side by side."""
    runs = [report.read_run(path) for path in (a, b)]
    if len({run["settings"]["labels"] for run in runs}) > 1:
        raise ValueError(f"{a} and {b}: runs on different faces or labels cannot be compared")
    samples = [run["samples"] for run in runs]
    labels = [run.get("labels") for run in runs]
    if None in labels:  # of an older version, which had another geodesic error, too
        foreign = {"reannotated", "angles", "dense"}
    else:
        foreign = {key for key, own in labels[0].items() if labels[1].get(key, own) != own}
    samples[0] = {
        name: errors
        for name, errors in samples[0].items()
        if name == "yaw" or evaluation.labels_of(name) not in foreign
    }
    compared = evaluation.compare(*samples, samples[0]["yaw"], seed)
    table = report.comparison_table(compared, str(a), str(b))
    print(f"{report.table_text(table)}\n{table.note}")
    if foreign:
        why = "are not known" if None in labels else "are not the same"
        print(f"Left out, because the labels {why}: {', '.join(sorted(foreign))}")
    for name, path, run in zip("AB", (a, b), runs, strict=True):
        print(f"{name}: {path}: {run['settings']['weights']}, border {run['settings']['border']}")


if __name__ == "__main__":
    run_script(main)
