"""What the scripts that go through photos share: options, the loop, the exit code."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from FaceBoxes import detection_scale
from utils import photo_numbers, results
from utils.cli import STOPPED, at_least, counted, say
from utils.cores import cpu_threads, usable_cores
from utils.files import check_writable
from utils.finished import LIST_NAME, FinishedPhotos
from utils.inference import Face
from utils.memory import is_out_of_memory
from utils.model_options import add_model_options, open_model
from utils.parallel import in_order
from utils.photos import find_photos, shown_in, unread
from utils.pictures import read_image

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet


# Options on which no photo's results depend: ``--resume`` goes on where they differ.
_WITHOUT_EFFECT = "files png recursive out photos jobs resume".split()


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """``-f --png -r -o``, those of ``add_model_options``, ``--largest --jobs --resume``."""
    add = parser.add_argument
    add("-f", "--files", type=Path, required=True, nargs="+", metavar="PATH",
        help="photos, folders of photos")  # fmt: skip
    add("--png", action="store_true", help="take only PNG files from folders")
    add("-r", "--recursive", action="store_true", help="search the folders in folders too")
    add("-o", "--out", type=Path, default=Path("inference_output"),
        help="where to write (default: inference_output)")  # fmt: skip
    add_model_options(parser)
    add("--largest", type=at_least(1), metavar="N", help="only the N largest faces of each photo")
    add("-j", "--jobs", type=at_least(1), help="photos at once (default: the cores, at most 8)")
    add("--resume", action="store_true",
        help="leave out the photos that a run with the same options finished")  # fmt: skip


def parse_photo_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, with_sheet: bool = False
) -> argparse.Namespace:
    """Parses, and finds the photos: ``photos`` is a list of (name, path).

    Args:
        with_sheet: of several photos, pictures are written into ``--out`` itself.
    """
    options = parser.parse_args(arguments)
    try:
        options.photos = find_photos(options.files, options.png, options.recursive, options.out)
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
    options.jobs = min(options.jobs, len(options.photos))
    return options


def would_overwrite(out: Path, folder: Path, with_sheet: bool) -> bool:
    """Whether results of the same names can fall on the photos of a folder.

    Args:
        with_sheet: contact sheets are written too, into ``out`` itself.
    """
    if _is_same(folder, out):
        return with_sheet
    folder = folder.resolve()
    return _is_same(folder.parent, out) and folder.name.casefold() in results.FOLDERS


def _is_same(a: Path, b: Path) -> bool:
    """Whether two paths lead to one folder, however spelt (macOS and Windows ignore case)."""
    return a.samefile(b) if a.exists() and b.exists() else a.resolve() == b.resolve()


def load_model(options: argparse.Namespace) -> SynergyNet:
    """The model of the options; says which it is, and which photos of the folders are not taken.

    Raises:
        OSError, ValueError, UnavailableError: see ``open_model``.
    """
    model = open_model(options, threads=max(1, cpu_threads() // options.jobs))
    say(model.description)
    for folder in filter(Path.is_dir, options.files):
        if left_out := unread(shown_in(folder, options.recursive, options.out)):
            say(f"{folder}: not all photos are taken{left_out}")
    return model


def finished_photos(
    options: argparse.Namespace,
    model: SynergyNet,
    companion_of: Callable[[Path], Path] | None = None,
) -> FinishedPhotos | None:
    """Makes the output folder and, in it, the list of the photos that are done.

    A single photo gets no list (None), unless photos were listed in that folder before.

    Args:
        companion_of: of a photo's path, a file of its own that its results depend on too.

    Raises:
        OSError: the folder cannot be made, or the list not be read or written.
    """
    check_writable(options.out, "-o")  # tried before any photo is read
    is_folder = len(options.photos) > 1 or options.files[0].is_dir()
    if not (is_folder or (options.out / LIST_NAME).exists()):
        return None
    settings = {key: value for key, value in vars(options).items() if key not in _WITHOUT_EFFECT}
    given = [value for value in settings.values() if isinstance(value, Path)]
    read = [*model.files, *filter(Path.is_file, given)]
    settings |= {
        "model": model.description,
        "content": [_content(Path(path)) for path in read],
    }
    if "csv" in settings.get("save", ()):  # another version's lines do not fit into our faces.csv
        settings["columns"] = photo_numbers.CSV_COLUMNS
    return FinishedPhotos(options.out, settings, options.resume, companion_of)


def _content(path: Path) -> object:
    """What tells files that results depend on apart: not by time, which each checkout sets anew."""
    if path.is_dir():  # a published face model's, which lies among labels for training
        own = [*path.glob("*.npy"), *path.glob("*.mat"), *path.glob("param_whitening.pkl")]
        return [_content(file) for file in sorted(own)]
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


# What can become of a photo, in the words of the summary.
KINDS = WITH_FACES, FINISHED_BEFORE, WITHOUT_FACE, FAILED = (
    "with faces",
    "finished before",
    "without a face",
    "failed",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a photo; neither picture nor meshes, so that those waiting cost no memory.

    Attributes:
        kind: one of ``KINDS``.
        line: what is said of it; empty where that is nothing.
        result: what ``save`` or ``kept`` returned.
    """

    kind: str
    line: str = ""
    result: Any = None


def run_on_photos(
    options: argparse.Namespace,
    find_faces: Callable[[np.ndarray], list[Face]],
    writer: results.PhotoWriter,
    finished: FinishedPhotos | None = None,
) -> int:
    """Reads each photo, finds its faces, saves; says what happened; returns the exit code.

    Several photos are worked on at once, each from file to files in a thread of its own: reading,
    networks, drawing and writing overlap, and all of them leave Python's lock to the others. No
    more photos are in memory than there are threads.

    Ctrl-C ends it; what is finished by then is kept, and listed for ``--resume``.

    Args:
        options: with ``photos``, ``out``, ``jobs``, ``largest`` and ``detect_size``.
        find_faces: of a (H, W, 3) uint8 BGR picture.
        writer: writes what there is to write for a photo.
        finished: the list of the photos that are done: those on it are left out, and those that
            become so are added.

    Returns:
        0, 1 if a photo failed, or ``STOPPED``.
    """
    kinds: list[str] = []  # of the photos so far; a list, since threads append to it safely

    def work(photo: tuple[str, Path]) -> Outcome:
        name, path = photo
        try:
            if finished and photo in finished:
                result = writer.kept(name) if finished.has_result(name) else None
                outcome = Outcome(FINISHED_BEFORE, result=result)
            else:
                outcome = work_anew(photo)
        except Exception as error:
            if is_out_of_memory(error):
                reason = str(error) or "not enough memory for it"
            elif isinstance(error, (OSError, ValueError, cv2.error)):
                reason = str(error)  # this photo's fault; the others go on
            else:
                raise
            reason = reason if str(path) in reason else f"{path}: {reason}"
            return Outcome(FAILED, f"failed: {reason}")
        kinds.append(outcome.kind)  # it counts as done even where Ctrl-C comes before it is said
        return outcome

    def work_anew(photo: tuple[str, Path]) -> Outcome:
        name, path = photo
        state = finished.state(photo) if finished else []  # of what is read, not of a later change
        image = read_image(path)
        faces = largest_faces(find_faces(image), options.largest)
        if finished:
            finished.begin(name)
        result = writer.save(name, path, image, faces)
        if finished:
            finished.add(state, writer.result_of(name) if faces else None)
        if faces:
            return Outcome(WITH_FACES, f"{path}: {results.summary(faces)}", result)
        note = small_faces_note(image.shape, options.detect_size) or NO_FACE_NOTE
        return Outcome(WITHOUT_FACE, f"{path}: no face found{note}", result)

    is_stopped = False
    if options.jobs == 1:
        outcomes = (work(photo) for photo in options.photos)
    else:
        outcomes = in_order(work, options.photos, options.jobs, ahead=2 * options.jobs)
    try:
        for (name, _), outcome in zip(with_progress(options.photos), outcomes, strict=True):
            if outcome.kind == FAILED:
                kinds.append(FAILED)  # not in work: one that Ctrl-C leaves unsaid counts as left
                say(outcome.line, file=sys.stderr)
                continue
            if outcome.line:
                say(outcome.line)
            writer.saved(name, outcome.result)
    except KeyboardInterrupt:
        is_stopped = True
        outcomes.close()  # waits for what has begun
    counts = Counter(kinds)
    summary = [f"{counted(counts[WITH_FACES], 'photo')} {WITH_FACES} written to {options.out}"]
    summary += [f"{counted(counts[kind], 'photo')} {kind}" for kind in KINDS[1:] if counts[kind]]
    if is_stopped:
        left = counted(len(options.photos) - counts.total(), "photo")
        summary.append(f"stopped with {left} left (--resume goes on)")
    say(", ".join(summary))
    return STOPPED if is_stopped else 1 if counts[FAILED] else 0


def largest_faces(faces: list[Face], count: int | None) -> list[Face]:
    """The ``count`` largest faces (None: all), in the order in which they were."""
    if count is None:
        return faces
    kept = sorted(range(len(faces)), key=lambda i: -faces[i].scale)[:count]
    return [faces[i] for i in sorted(kept)]


# what finds many of the faces that are missed (docs/troubleshooting.md)
NO_FACE_NOTE = " (if there is one: turn it upright, brighten it, or --threshold 0.2)"


def small_faces_note(shape: tuple[int, ...], detect_size: int) -> str:
    """What to say of a photo (H, W, ...) without a face that is shrunk much for the detector."""
    shrunk = detection_scale(shape, detect_size)
    if shrunk >= 0.5:
        return ""
    return f" (looked for in {shrunk:.0%} of its size; --detect-size finds smaller ones)"


def with_progress(photos: list[tuple[str, Path]]) -> Iterable[tuple[str, Path]]:
    """The photos, and where there are several, on a terminal, a progress bar: in a log it would
    stand before the lines of what failed."""
    if len(photos) == 1:
        return photos
    from tqdm import tqdm  # imported here: it takes a tenth of the time of a run on one photo

    return tqdm(photos, unit="photo", disable=None)
