"""Which photos the scripts take, and what their results are called."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

PHOTO_SUFFIXES = frozenset(
    ".avif .bmp .dib .exr .gif .hdr .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .pic .png .pnm .ppm .pxm "
    ".ras .sr .tif .tiff .webp".split()
)
# formats of photos that OpenCV does not read
UNREAD_SUFFIXES = frozenset(".heic .heif .jxl .arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split())


def find_photos(
    paths: Sequence[Path],
    png_only: bool = False,
    recursive: bool = False,
    results: Path | None = None,
) -> list[tuple[str, Path]]:
    """The photos of files and folders, each with the name its results get, no file twice.

    Of a folder, hidden files are left out (what macOS puts beside each photo is one).

    Args:
        png_only: of folders, take PNG files only.
        recursive: take the photos of folders' folders too, hidden ones left out.
        results: a folder that is not searched for it.

    Raises:
        FileNotFoundError: nothing is there, or a folder has no picture.
    """
    found: dict[str, Path] = {}  # absolute path -> path as it was first given
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        files = _pictures_of(path, png_only, recursive, results) if path.is_dir() else [path]
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    files = list(found.values())
    return list(zip(result_names(files), files, strict=True))


def result_names(files: Sequence[Path]) -> list[str]:
    """What the results of each of some different files are called, all of them differently.

    The name is the file's without its suffix; where files would share it, the suffix is kept, and
    where that is not enough the folder's name comes before it.
    """
    stems = Counter(_folded(file.stem) for file in files)
    names = [f.name if stems[_folded(f.stem)] > 1 else f.stem for f in files]
    if _shared(names):  # a.jpg, a.png and a.jpg.png
        names = [f.name for f in files]
    # where names are still shared, the folder's name comes before them, then all of its path
    for parts in (slice(-1, None), slice(None)):
        shared = _shared(names)
        names = [
            "_".join([*_folders(f)[parts], f.name]) if _folded(n) in shared else n
            for f, n in zip(files, names, strict=True)
        ]
    return names


def _folders(file: Path) -> list[str]:
    """The folders that a file lies in, outermost first; on Windows the drive before them."""
    anchor, *folders = file.absolute().parent.parts
    drive = re.sub(r"[\\/:]+", "_", anchor).strip("_")  # C:\ is C, \\server\share\ server_share
    return [drive, *folders] if drive else folders


def _shared(names: Sequence[str]) -> set[str]:
    """Names, ``_folded``, that are there more than once."""
    return {name for name, times in Counter(map(_folded, names)).items() if times > 1}


def _folded(name: str) -> str:
    """The name without what some systems see no difference in: case, and accents as characters of
    their own."""
    return unicodedata.normalize("NFC", name).casefold()


def shown_in(folder: Path, recursive: bool, results: Path | None) -> list[Path]:
    """What a folder holds that is not hidden, files and folders; ``recursive``: the files in it and
    in its folders, but for the one of ``results``."""
    if not recursive:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    shown = []
    for parent, folders, names in os.walk(folder):  # goes into no link
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and not (results and results.exists() and results.samefile(Path(parent, name)))
        ]
        shown += [Path(parent, name) for name in names if not name.startswith(".")]
    return shown


def _pictures_of(folder: Path, png_only: bool, recursive: bool, results: Path | None) -> list[Path]:
    suffixes = {".png"} if png_only else PHOTO_SUFFIXES
    shown = shown_in(folder, recursive, results)
    # a folder called x.jpg is taken too: reading it will say what it is
    files = sorted(path for path in shown if path.suffix.lower() in suffixes)
    # A link that leads nowhere stays, so that it is reported; a named pipe would be waited for.
    files = [f for f in files if os.path.isfile(f) or os.path.isdir(f) or not os.path.exists(f)]
    if not files:
        kind = "PNG file" if png_only else "picture"
        deeper = ""
        if not recursive and any(path.is_dir() for path in shown):
            deeper = " (-r searches the folders in it too)"
        raise FileNotFoundError(
            f"{folder}: the folder has no {kind}; give a photo or a folder{deeper}{unread(shown)}"
        )
    return files


def unread(paths: Iterable[Path]) -> str:
    """What to say of photos among the files whose formats OpenCV does not read; '' of none."""
    found = sorted({p.suffix.lower() for p in paths} & UNREAD_SUFFIXES)
    return f" ({', '.join(found)} files are not read: convert them to JPEG)" if found else ""


def face_names(name: str, count: int, others: set[str]) -> list[str]:
    """A file name for each face of a photo: ``name``, ``name_1``, ...

    Args:
        others: case-folded names of all photos; a face whose name another photo has gets an
            underscore more.
    """
    names = [name]
    for i in range(1, count):
        own = f"{name}_{i}"
        while own.casefold() in others:
            own += "_"
        names.append(own)
    return names
