"""Makes a set of your own photos with 68-point landmarks, to train on or to be scored on.

python -m tools.prepare_data 300W --out runs/mine            .pts or .mat files beside the photos
python -m tools.prepare_data labels.json --out runs/mine     or .csv; photos are sought beside it
python main_train.py --data runs/mine --held-out 0.1 ...     docs/training.md, "Your own data"
python -m tools.prepare_data others.json --layout aflw2000 --out runs/test
python benchmark.py --data runs/test
"""

import csv
import json
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from utils import aflw2000
from utils.assets import find_face_model, shown
from utils.cli import at_least, complain, first_lines, run_script, script_parser
from utils.datasets import PUBLISHED_CROPS, write_published_labels
from utils.draw import contact_sheet, draw_landmarks
from utils.files import new_folder, write_npz
from utils.fitting import MIN_POINTS, fit_landmarks, whitening
from utils.geometry import camera_angles, decompose_camera, exact_angles, nearest_rotation
from utils.landmark_labels import FORMS, LabelledFace, find_labels
from utils.metrics import box_size, geodesic
from utils.morphable_model import (
    CAMERA,
    NUM_LANDMARKS,
    SHAPE,
    MorphableModel,
    load_morphable_model,
    similarity_on_parameters,
    split_camera,
)
from utils.parallel import in_order
from utils.photo_numbers import no_formula
from utils.pictures import read_image, write_image
from utils.preprocessing import CROP_SIZE, MAX_COORDINATE, crop_faces

EPILOG = f"""\
labels, 68 points of the 300-W scheme:
{FORMS}
  Pixels are the picture's as it is shown: an orientation tag of the photo is obeyed.

written to OUT: crops, list and parameters in the published layout, report.csv (a line for each
face), report.json (summary), contact_sheet.png (worst fits, then some others),
3dmm_data/param_whitening.pkl and, with --whitening set, face_model.npz, which --face-model wants;
with --layout aflw2000 crops, labels (all 68 points must be known) and the report: yaw bins and
poses are those of the fits

exit code: 0 all done, 1 some faces left out (see report.csv), or all (no set), 2 wrong usage
"""
# Standard deviation of 2D and 3D labels, as ``fit_landmarks`` takes it; people's 2D labels have
# 1.6 %.
NOISE = {2: 0.02, 3: 0.01}
MAX_OUTSIDE = 0.25  # share of a face's points outside the picture; with more it is another's
MIN_SIDE = 16  # pixels of a face's box
MIN_DEPTH = 0.2  # of a whole face's landmarks, in box sizes; real ones have 0.75 and more
WHOLE = 60  # known points of what counts as a whole face
FAR_OFF = 10.0  # percent, of a fit; from there it isn't the labels that are inexact
FACING_AWAY = -0.3  # cosine of the angle between the face and the viewer: 17 degrees past profile
MAX_TURN = 30.0  # degrees between the fitted pose and the one that a label file states
SHEET = (4, 8)  # rows of the worst fits and as many of others; columns
REPORT = (
    *("photo", "crop", "x1", "y1", "x2", "y2"),  # the crop's square in the photo
    *("fit_error_percent", "yaw", "pitch", "roll", "left_out_because"),
)


@dataclass(eq=False)
class Sample(LabelledFace):
    """A labelled face on its way into the set.

    Attributes (beside those of ``LabelledFace``):
        parameters: (62,) not whitened, image frame, later the crop's.
        error: of the fit, percent.
        crop: name of its crop, relative to the folder of crops.
        box: (4,) x1 y1 x2 y2 of the crop, image frame.
    """

    parameters: np.ndarray | None = None
    error: float = np.nan
    crop: str = ""
    box: np.ndarray | None = None


# --------------------------------------------------------------------------------- fits and crops


def check_points(points: np.ndarray) -> str:
    """What is wrong with a face's points (2 or 3, 68); empty if nothing is."""
    points = points[:, np.isfinite(points).all(0)]  # the known ones
    if points.shape[1] < MIN_POINTS:
        return f"{points.shape[1]} points are known, expected at least {MIN_POINTS}"
    side = np.ptp(points[:2], axis=1)
    if (farthest := np.abs(points).max()) > MAX_COORDINATE:
        return f"the points reach {farthest:.0f} pixels; are they pixels?"
    if side.min() < MIN_SIDE:
        return f"the points span {side[0]:.0f}x{side[1]:.0f} pixels, expected at least {MIN_SIDE}"
    if len(points) == 3 and points.shape[1] >= WHOLE:
        depth = np.ptp(points[2])
        if depth < MIN_DEPTH * np.sqrt(side.prod()):
            return (
                f"z spans {depth:.3g} pixels, which is no face's depth (a visibility, or another "
                "unit?); without it the points count as 2D"
            )
    return ""


def fit_samples(face_model: MorphableModel, samples: list[Sample], max_error: float) -> None:
    """Fits the face model to the labels of all that are not left out; leaves out bad fits."""
    groups: dict[tuple[int, bool], list[Sample]] = {}
    for sample in samples:
        sample.reason = sample.reason or check_points(sample.points)
        if not sample.reason:
            groups.setdefault((len(sample.points), sample.visible_contour), []).append(sample)
    total = sum(map(len, groups.values()))
    with tqdm(total=total, desc="fitting", unit="face") as bar:
        for (dims, contour), group in groups.items():
            for start in range(0, len(group), 256):
                part = group[start : start + 256]
                labels = np.stack([sample.points for sample in part])
                fits = fit_landmarks(face_model, labels, noise=NOISE[dims], visible_contour=contour)
                for sample, parameters, error in zip(part, *fits, strict=True):
                    sample.parameters, sample.error = parameters, 100 * float(error)
                    sample.reason = _misfit(face_model, sample, max_error)
                bar.update(len(part))


def _misfit(face_model: MorphableModel, sample: Sample, max_error: float) -> str:
    if not (np.isfinite(sample.parameters).all() and np.isfinite(sample.error)):
        return "no face fits its points; are they the 68 of 300-W, in their order?"
    if sample.error > max_error:
        reason = f"the fit is {sample.error:.1f} % off the labels, at most {max_error:g} is allowed"
        if sample.error > FAR_OFF:
            reason += "; are they 300-W's 68 in order, x y (z) by point, y down, z to the viewer?"
        return reason
    size = box_size(face_model.landmarks(sample.parameters[None]))[0]
    if size < MIN_SIDE:
        return f"the fitted face has {size:.0f} pixels, expected at least {MIN_SIDE}"
    fitted = decompose_camera(split_camera(sample.parameters[None]))[1]  # (1, 3, 3)
    if fitted[0, 2, 2] < FACING_AWAY:
        return (
            "its points are those of a face seen from behind; are x and y, or the points of left "
            "and right, swapped?"
        )
    if sample.rotation is not None:
        turn = geodesic(fitted, sample.rotation[None])[0]
        if turn > MAX_TURN:
            return (
                f"its points show a pose {turn:.0f} degrees from its Pose_Para (300W-LP's turned "
                "views carry the points of the photo they were made from; give its landmarks/ too)"
            )
    return ""


def roi_box(landmarks: np.ndarray) -> np.ndarray:
    """The square around landmarks (2+, 68) that is cut out: (4,) x1 y1 x2 y2, image frame.

    The published rule, but not cut to the picture: training crops show a face at one scale across
    and down.
    """
    return aflw2000.published_roi_box(landmarks[:2] + 1) - aflw2000.BOX_TO_LABEL_FRAME


def to_crop(parameters: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Parameters (62,) of the image frame -> of the crop cut along a square box of whole pixels.

    By the pixels that ``crop_faces`` makes: landmarks lie on the same spot of the face. t_z stays
    what ``fit_landmarks`` made it.
    """
    zoom = CROP_SIZE / (box[2] - box[0])
    # cv2.resize puts the centre of pixel x of the box at (x + 0.5) * zoom - 0.5
    offset = (0.5 - box[:2]) * zoom - 0.5
    arguments = (parameters[None], zoom * np.eye(2)[None], offset[None])
    moved = similarity_on_parameters(*(torch.from_numpy(np.float64(a)) for a in arguments))
    moved = moved[0].numpy().astype(np.float32)
    moved[CAMERA - 1] = parameters[CAMERA - 1]
    return moved


def name_crops(samples: list[Sample], separator: str = "/") -> None:
    """Gives each a crop of its own, named after the photo, further faces in folders face2, ...

    With another separator than ``/`` folders become part of the name, of which the end is kept.

    What a list of names cannot hold (line ends, spaces at the ends) becomes ``_``.
    """
    plain = {}
    for sample in samples:
        parts = ["".join(c if c.isprintable() else "_" for c in p) for p in Path(sample.name).parts]
        parts = [part.strip() if part.strip(" .") else "_" for part in parts]
        name = separator.join([*parts[:-1], f"{Path(parts[-1]).stem}.jpg"])
        if separator != "/":  # file systems take 255 bytes, and more are put before it
            name = name.encode()[-200:].decode(errors="ignore").strip()
        plain[sample] = Path(name)
    # a folder may be called like another photo's crop
    taken = {folder.as_posix().casefold() for path in plain.values() for folder in path.parents}
    for sample, path in plain.items():
        sample.crop, number = path.as_posix(), 1
        while sample.crop.casefold() in taken:
            number += 1
            sample.crop = f"face{number}{separator}{path.as_posix()}"
        taken.add(sample.crop.casefold())


def write_crops(face_model: MorphableModel | None, samples: list[Sample], folder: Path) -> int:
    """Cuts and writes the crops of one photo's faces (``write_crop``); returns how many these are.

    A picture that cannot be read leaves all of them out.
    """
    try:
        image = read_image(samples[0].photo)
    except (OSError, ValueError) as error:
        for sample in samples:
            sample.reason = str(error)
    else:
        for sample in samples:
            write_crop(face_model, sample, image, folder)
    return len(samples)


def write_crop(
    face_model: MorphableModel | None, sample: Sample, image: np.ndarray, folder: Path
) -> None:
    """Cuts the crop, writes it below ``folder`` and moves the parameters into its frame.

    A picture that does not belong to the labels leaves the sample out.

    Args:
        face_model: cut around the fit's landmarks, as for training; None: around the labels, as
            the benchmark's protocol has it, and the parameters stay.
    """
    height, width = image.shape[:2]
    x, y = sample.points[:2, np.isfinite(sample.points).all(0)]
    outside = np.mean((x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5))
    if outside > MAX_OUTSIDE:
        sample.reason = f"{outside:.0%} of the points lie outside the picture of {width}x{height}"
        return
    path = folder / sample.crop
    path.parent.mkdir(parents=True, exist_ok=True)
    if face_model is None:
        sample.box = roi_box(sample.points)
    else:
        fitted = face_model.landmarks(sample.parameters[None])[0]
        sample.box = roi_box(fitted.astype(np.float64))
        sample.parameters = to_crop(sample.parameters, sample.box)
    write_image(path, crop_faces(image, sample.box[None])[0])


# ------------------------------------------------------------------------------------------ output


def prepare(
    sources: list[Path],
    out: Path,
    face_model: MorphableModel,
    *,
    photos: Path | None = None,
    jaw: str = "auto",
    max_error: float = 5.0,
    own_whitening: bool = False,
    layout: str = "training",
    jobs: int = 2,
    seed: int = 0,
) -> list[Sample]:
    """Writes the set; the folder appears complete or not at all, and not without a usable face.

    Args:
        sources: folders, ``.json`` and ``.csv`` files.
        out: new or empty.
        face_model: numpy arrays; what is fitted, and whitens.
        photos: where the photos of ``.json`` and ``.csv`` files lie; beside them if None.
        jaw: what 2D labels' jaw points are: on the visible ``contour``, points of the ``model``, or
            ``auto``: as each form has it (300W-LP's pts_3d is the model's, others the contour).
        max_error: of a fit, percent of sqrt(w·h) of the labels' box.
        own_whitening: whiten with mean and deviation of this set, not with the face model's.
        layout: ``training``, or ``aflw2000`` for a set that ``benchmark.py`` scores on.
        jobs: threads.
        seed: chooses the faces of the contact sheet beside the worst.

    Returns:
        All faces found; of those left out, the reason.

    Raises:
        FileExistsError: ``out`` is a file, or not empty.
        OSError, ValueError: a source cannot be read or holds no labels, or OUT cannot be written.
    """
    faces = (face for source in sources for face in find_labels(source, photos))
    samples = [Sample(**vars(face)) for face in faces]
    if not samples:
        raise ValueError(f"{', '.join(map(str, sources))}: no labels in it")
    if jaw != "auto":
        for sample in samples:
            if sample.points is not None and len(sample.points) == 2:
                sample.visible_contour = jaw == "contour"
    # looked for before minutes are spent on fits
    missing = {photo for photo in {s.photo for s in samples} if not os.path.exists(photo)}
    for sample in samples:
        if sample.photo in missing:
            sample.reason = sample.reason or f"{sample.photo}: missing"
    with new_folder(out) as partial:
        fit_samples(face_model, samples, max_error)
        is_benchmark = layout == "aflw2000"
        if is_benchmark:
            for sample in samples:
                if not (sample.reason or np.isfinite(sample.points).all()):
                    sample.reason = "not all of its points are known, as a benchmark needs them"
        usable = [sample for sample in samples if not sample.reason]
        name_crops(usable, "_" if is_benchmark else "/")  # a benchmark's list holds plain names
        crops = partial / (aflw2000.CROPS if is_benchmark else PUBLISHED_CROPS)
        crops.mkdir()
        around = None if is_benchmark else face_model
        photos_faces: dict[Path, list[Sample]] = {}
        for sample in usable:
            photos_faces.setdefault(sample.photo, []).append(sample)
        with tqdm(total=len(usable), desc="cropping", unit="face") as bar:
            for count in in_order(
                lambda faces: write_crops(around, faces, crops), photos_faces.values(), jobs
            ):
                bar.update(count)
        used = [sample for sample in usable if not sample.reason]
        if not used:
            raise NoneUsable(samples)
        if is_benchmark:
            write_benchmark_labels(partial, used)
            write_report(partial, face_model, samples, used, max_error)
            return samples
        own_model = write_labels(partial, face_model, used, own_whitening)
        write_report(partial, own_model, samples, used, max_error)
        write_sheet(partial, face_model, used, seed)
    return samples


class NoneUsable(ValueError):
    """Not one face could be used; ``samples`` say why."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__(f"none of {len(samples)} faces can be used, nothing was written")
        self.samples = samples


def write_labels(
    folder: Path, face_model: MorphableModel, used: list[Sample], own_whitening: bool
) -> MorphableModel:
    """List, whitened parameters and whitening, in the published layout (``utils/datasets.py``).

    Returns:
        The face model that the set belongs to: the given one, or with the set's own whitening.
    """
    parameters = np.stack([sample.parameters for sample in used])  # (n, 62)
    if own_whitening:
        mean, std = whitening(parameters)
        face_model = replace(face_model, param_mean=mean, param_std=std)
        write_npz(folder / "face_model.npz", face_model_arrays(face_model))
    names = [sample.crop for sample in used]
    write_published_labels(folder, names, face_model.whiten(parameters))
    whitened_by = {"param_mean": face_model.param_mean, "param_std": face_model.param_std}
    path = folder / "3dmm_data" / "param_whitening.pkl"
    path.write_bytes(pickle.dumps(whitened_by, protocol=4))
    return face_model


def write_benchmark_labels(folder: Path, used: list[Sample]) -> None:
    """Labels for ``benchmark.py``: the points themselves; yaw bins and poses are the fits'."""
    cameras = split_camera(np.stack([sample.parameters for sample in used]))
    yaw, pitch, roll = exact_angles(nearest_rotation(decompose_camera(cameras)[1])).T
    points = np.zeros((len(used), 3, NUM_LANDMARKS))
    for row, sample in zip(points, used, strict=True):
        row[: len(sample.points)] = sample.points
        row[:2] += 1  # the label frame counts from 1
    aflw2000.write_labels(
        folder,
        [sample.crop for sample in used],
        landmarks=points,
        yaw=yaw,
        roi_boxes=np.stack([sample.box for sample in used]) + aflw2000.BOX_TO_LABEL_FRAME,
        angles=np.stack([pitch, yaw, roll], 1),
    )


def face_model_arrays(face_model: MorphableModel) -> dict[str, np.ndarray]:
    """A model's arrays under the published names: what ``build_morphable_model`` reads."""
    interleaved = face_model.basis.transpose(2, 1, 0).reshape(-1, len(face_model.basis))
    mean = face_model.mean.T.reshape(-1, 1)
    arrays = {
        "u_shp": mean,
        "u_exp": np.zeros_like(mean),
        "w_shp_sim": interleaved[:, :SHAPE],
        "w_exp_sim": interleaved[:, SHAPE:],
        "keypoints_sim": (3 * face_model.landmark_indices[:, None] + np.arange(3)).ravel(),
        "tri": face_model.triangles.T + 1,
        "param_mean": face_model.param_mean,
        "param_std": face_model.param_std,
        "pixel_centres": np.int8(1),  # as the set counts
    }
    if face_model.uv is not None:
        arrays["uv"] = face_model.uv
    if face_model.kept_vertices is not None:
        arrays["keptInd"] = face_model.kept_vertices
        arrays["deletedTri"] = face_model.kept_triangles.T + 1
    return arrays


def write_report(
    folder: Path,
    face_model: MorphableModel,
    samples: list[Sample],
    used: list[Sample],
    max_error: float,
) -> None:
    """report.csv, a line for each face, and report.json, the summary."""
    with open(folder / "report.csv", "w", encoding="utf-8", newline="", errors="replace") as file:
        table = csv.writer(file)
        table.writerow(REPORT)
        for sample in samples:
            error = "" if np.isnan(sample.error) else f"{sample.error:.3f}"
            name = no_formula(sample.name)
            if sample.reason:
                table.writerow([name, *[""] * 5, error, *[""] * 3, no_formula(sample.reason)])
                continue
            angles = camera_angles(split_camera(sample.parameters[None]))[0].round(1).tolist()
            box = sample.box.astype(int).tolist()
            table.writerow([name, no_formula(sample.crop), *box, error, *angles, ""])
    errors = np.array([sample.error for sample in used])
    summary = {
        "face_model": face_model.fingerprint,
        "faces": len(used),
        "left_out": len(samples) - len(used),
        "max_error_percent": max_error,
        "fit_error_percent": {"mean": round(float(errors.mean()), 3)}
        | {f"{q}th percentile": round(float(np.percentile(errors, q)), 3) for q in (50, 90, 99)},
    }
    (folder / "report.json").write_text(json.dumps(summary, indent=1) + "\n")


def write_sheet(folder: Path, face_model: MorphableModel, used: list[Sample], seed: int) -> None:
    """contact_sheet.png: the worst fits, then as many others, with the landmarks of the fit."""
    rows, columns = SHEET
    order = np.argsort([-sample.error for sample in used], kind="stable")
    worst, rest = np.split(order, [rows * columns])
    others = np.random.default_rng(seed).permutation(rest)[: rows * columns]
    pictures, captions = [], []
    for index in (*worst, *others):
        sample = used[index]
        crop = read_image(folder / PUBLISHED_CROPS / sample.crop)
        large = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        points = face_model.landmarks(sample.parameters[None])[0, :2]
        pictures.append(draw_landmarks(large, 2 * points + 0.5))
        captions.append(f"{sample.error:.1f} % {Path(sample.crop).stem}")
    write_image(
        folder / "contact_sheet.png", contact_sheet(pictures, columns, (240, 240), captions)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(
        __doc__, EPILOG, "LABELS --out FOLDER [options]", module="tools.prepare_data"
    )
    add = parser.add_argument
    add("labels", type=Path, nargs="+", help="folder, .json or .csv (forms below)")
    add("-o", "--out", type=Path, required=True, help="folder to write, new or empty")
    add("--photos", type=Path, help="where the photos of .json and .csv lie (default: beside them)")
    about = "2D jaw points lie on the visible contour, or on the model's jaw (auto: pts_3d only)"
    add("--jaw", choices=["auto", "contour", "model"], default="auto", help=about)
    add("--max-error", type=at_least(1e-6, float), default=5.0,
        help="largest fit error, %% of sqrt(w*h) (default: 5)")  # fmt: skip
    add("--whitening", choices=["model", "set"], default="model",
        help="whose mean and deviation (default: the face model's, as existing weights want it)",
    )  # fmt: skip
    add("--layout", choices=["training", "aflw2000"], default="training",
        help="aflw2000: for benchmark.py, to be scored on")  # fmt: skip
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("-j", "--jobs", type=at_least(1), default=2, help="threads (default: 2)")
    add("--seed", type=at_least(0), default=0, help="of the contact sheet's choice (default: 0)")
    options = parser.parse_args(arguments)
    if options.photos and all(source.is_dir() for source in options.labels):
        parser.error(
            "--photos is for .json and .csv files; in a folder .pts and .mat files must lie beside "
            "their photos"
        )
    if options.layout == "aflw2000" and options.whitening == "set":
        parser.error("--whitening is of training sets; a set to be scored on has none")
    cv2.setNumThreads(1)  # the threads are --jobs
    try:
        face_model = load_morphable_model(options.face_model or find_face_model())
        samples = prepare(
            options.labels,
            options.out,
            face_model,
            photos=options.photos,
            jaw=options.jaw,
            max_error=options.max_error,
            own_whitening=options.whitening == "set",
            layout=options.layout,
            jobs=options.jobs,
            seed=options.seed,
        )
    except NoneUsable as error:
        complain("prepare_data.py", f"{error}\n{_reasons(error.samples)}")
        return 1
    errors = [sample.error for sample in samples if not sample.reason]
    print(f"{options.out}: {len(errors)} faces, fitted with {shown(face_model.source)}")
    sheet = "" if options.layout == "aflw2000" else f"; look at {options.out / 'contact_sheet.png'}"
    print(f"    fit error: mean {np.mean(errors):.2f} %, largest {max(errors):.2f} %{sheet}")
    if options.whitening == "set":
        print(f"    train with --face-model {options.out / 'face_model.npz'}")
    elif options.layout == "training" and not face_model.pixel_centres:
        print(
            "    the set counts pixels by their centres, the face model does not (pixel_centres in "
            "docs/face_model.md): networks trained on it find points up to half a crop pixel off"
        )
    if len(errors) < len(samples):
        print(f"left out {len(samples) - len(errors)} (report.csv):\n{_reasons(samples)}")
        return 1
    return 0


def _reasons(samples: list[Sample]) -> str:
    """Why faces were left out, the first of them a line each."""
    return first_lines(
        [
            sample.reason if sample.name in sample.reason else f"{sample.name}: {sample.reason}"
            for sample in samples
            if sample.reason
        ]
    )


if __name__ == "__main__":
    run_script(main)
