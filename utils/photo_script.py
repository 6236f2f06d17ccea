"""What the scripts that go through photos share: model options, the loop, the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from FaceBoxes import detection_limits, detection_scale
from utils import finished, results
from utils.cli import STOPPED, say
from utils.cores import usable_cores
from utils.files import read_image
from utils.inference import Face
from utils.memory import is_out_of_memory
from utils.model_options import add_model_options, open_model
from utils.onnx_engine import cpu_threads
from utils.parallel import in_order

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet


# options on which no photo's results depend
_WITHOUT_EFFECT = "files png out photos jobs resume finished".split()


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """``-f --png -o``, those of ``add_model_options``, ``--jobs --resume``."""
    add = parser.add_argument
    add("-f", "--files", type=Path, required=True, nargs="+", metavar="PATH",
        help="photos, folders of photos")  # fmt: skip
    add("--png", action="store_true", help="of folders, take the PNG files only")
    add("-o", "--out", type=Path, default=Path("inference_output"),
        help="where to write (default: inference_output)")  # fmt: skip
    add_model_options(parser)
    add("-j", "--jobs", type=int, help="photos at once (default: the cores, at most 8)")
    add("--resume", action="store_true",
        help="leave out the photos that a run with the same options finished")  # fmt: skip


def parse_photo_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, with_sheet: bool = False
) -> argparse.Namespace:
    """Parses, and finds the photos: ``photos`` is a list of (name, path), ``finished`` None.

    Args:
        with_sheet: of several photos, pictures are written into ``--out`` itself.
    """
    options = parser.parse_args(arguments)
    try:
        options.photos = results.find_photos(options.files, options.png)
    except FileNotFoundError as error:
        parser.error(str(error))
    for folder in {path.parent for _, path in options.photos}:
        if would_overwrite(options.out, folder, with_sheet and len(options.photos) > 1):
            parser.error(
                f"{folder}: photos there would be mixed up with the results that -o {options.out} "
                "gets; give another folder with -o"
            )
    if options.jobs is None:
        options.jobs = min(usable_cores(), 8)
    elif options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    options.jobs = min(options.jobs, len(options.photos))
    options.finished = None
    return options


def would_overwrite(out: Path, photos: Path, with_sheet: bool) -> bool:
    """Whether results of the same names can fall on the photos of a folder.

    Args:
        with_sheet: contact sheets are written too, into ``out`` itself.
    """
    photos, out = photos.resolve(), out.resolve()
    if photos == out:
        return with_sheet
    return photos.parent == out and photos.name.casefold() in results.FOLDERS


def comma_list(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: ``a,b`` -> ("a", "b"), each of them one of ``allowed``."""

    def parse(text: str) -> tuple[str, ...]:
        parts = tuple(dict.fromkeys(p.strip().lower() for p in text.split(",") if p.strip()))
        if not parts or not set(parts) <= set(allowed):
            expected = ", ".join(allowed)
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a comma-separated list of {expected}"
            )
        return parts

    return parse


def load_model(
    options: argparse.Namespace, beside: Callable[[Path], Path] | None = None
) -> SynergyNet:
    """The model of the options, its description shown; the output folder is made.

    Of several photos, or where they were listed before, ``options.finished`` becomes the list of
    those that are done.

    Args:
        beside: of a photo's path, a file of its own that its results depend on too.

    Raises:
        OSError, ValueError, RuntimeError: a file is missing or does not fit, the device does not
            work, or the folder cannot be made.
    """
    model = open_model(options, threads=max(1, cpu_threads() // options.jobs))
    options.out.mkdir(parents=True, exist_ok=True)  # tried before any photo is read
    say(model.description)
    for folder in filter(Path.is_dir, options.files):
        if left_out := results.unread(folder.iterdir()):
            say(f"{folder}: not all photos are taken{left_out}")
    is_folder = len(options.photos) > 1 or options.files[0].is_dir()
    if is_folder or (options.out / finished.NAME).exists():
        settings = vars(options).items()
        settings = {key: value for key, value in settings if key not in _WITHOUT_EFFECT}
        settings["model"] = model.description
        given = [value for value in settings.values() if isinstance(value, Path)]
        read = [*model.files, *filter(Path.is_file, given)]
        settings["changed"] = [Path(path).stat().st_mtime_ns for path in read]
        options.finished = finished.FinishedPhotos(options.out, settings, options.resume, beside)
    return model


def run_on_photos(
    options: argparse.Namespace,
    find_faces: Callable[[np.ndarray], list[Face]],
    save: Callable[[str, Path, np.ndarray, list[Face]], Any],
    result_of: Callable[[str], Path],
    saved: Callable[[str, Any], None] = lambda name, result: None,
    kept: Callable[[str], Any] = lambda name: None,
) -> int:
    """Reads each photo, finds its faces, saves; says what happened; returns the exit code.

    Several photos are worked on at once, each from file to files in a thread of its own: reading,
    networks, drawing and writing overlap, and all of them leave Python's lock to the others. No
    more photos are in memory than there are threads.

    Ctrl-C ends it; what is finished by then is kept, and listed for ``--resume``.

    Args:
        options: with ``photos``, ``out`` and ``jobs``.
        find_faces: of a (H, W, 3) uint8 BGR picture.
        save: gets name, path, picture and faces, of which there may be none.
        result_of: one of the files that ``save`` writes for a photo of that name with faces.
        saved: gets the name of each photo that did not fail and what ``save`` returned for it, in
            their order and one at a time.
        kept: gets the name of a photo with faces that an earlier run finished; what ``save``
            returned then.

    Returns:
        0, 1 if a photo failed, or ``STOPPED``.
    """
    listed = options.finished

    def work(photo: tuple[str, Path]) -> tuple[list[Face] | None, str, Any] | Exception:
        name, path = photo
        try:
            if listed and photo in listed:
                return None, "", kept(name) if listed.has_result(name) else None
            state = listed.state(photo) if listed else []  # of what is read, not of a later change
            image = read_image(path)
            faces = find_faces(image)
            if listed:
                listed.begin(name)
            result = save(name, path, image, faces)
            if listed:
                listed.add(state, result_of(name) if faces else None)
            with_face.append(bool(faces))
        except Exception as error:
            if is_out_of_memory(error):
                return MemoryError(str(error) or "not enough memory for it")
            if isinstance(error, (OSError, ValueError, cv2.error)):
                return error  # this photo's fault; the others go on
            raise
        note = "" if faces else small_faces_note(image.shape, options.detect_size)
        return [replace(face, vertices=None) for face in faces], note, result  # for the summary

    failures = before = 0
    with_face: list[bool] = []  # of the photos that are finished
    is_stopped = False
    if options.jobs == 1:
        outcomes = map(work, options.photos)
    else:
        outcomes = in_order(work, options.photos, options.jobs, ahead=2 * options.jobs)
    try:
        for (name, path), outcome in zip(with_progress(options.photos), outcomes, strict=True):
            if isinstance(outcome, Exception):
                failures += 1
                message = str(outcome)
                if str(path) not in message:
                    message = f"{path}: {message}"
                say(f"failed: {message}", file=sys.stderr)
                continue
            faces, note, result = outcome
            if faces is None:
                before += 1
            elif faces:
                say(f"{path}: {results.summary(faces)}")
            else:
                say(f"{path}: no face found{note}")
            saved(name, result)
    except KeyboardInterrupt:
        is_stopped = True
        if isinstance(outcomes, Generator):
            outcomes.close()  # waits for what has begun
    done, without_face = with_face.count(True), with_face.count(False)
    summary = [f"{results.count(done, 'photo')} with faces written to {options.out}"]
    if before:
        summary.append(f"{results.count(before, 'photo')} finished before")
    if without_face:
        summary.append(f"{results.count(without_face, 'photo')} without a face")
    if failures:
        summary.append(f"{results.count(failures, 'photo')} failed")
    if is_stopped:
        left = len(options.photos) - done - failures - without_face - before
        summary.append(f"stopped with {results.count(left, 'photo')} left (--resume goes on)")
    say(", ".join(summary))
    return STOPPED if is_stopped else 1 if failures else 0


def small_faces_note(shape: tuple[int, ...], detect_size: int) -> str:
    """What to say of a photo (H, W, ...) without a face that is shrunk much for the detector."""
    shrunk = detection_scale(shape, detection_limits(detect_size))
    if shrunk >= 0.5:
        return ""
    return f" (looked for in {shrunk:.0%} of its size; --detect-size finds smaller ones)"


def with_progress(photos: list[tuple[str, Path]]) -> Iterable[tuple[str, Path]]:
    """The photos, and where there are several, a progress bar."""
    if len(photos) == 1:
        return photos
    from tqdm import tqdm  # here: it takes a tenth of the time of a run on one photo

    return tqdm(photos, unit="photo")
