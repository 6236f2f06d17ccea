"""Fetches the published SynergyNet files from Google Drive and puts them where they are looked for.

    python -m tools.fetch_published                      everything
    python -m tools.fetch_published weights 3dmm_data    some of it
    python -m tools.fetch_published --force weights      replace files that are already there

Needs `pip install -e '.[published]'`, which `make published` does. A file that was downloaded by
hand is used when it lies in published_downloads/ as NAME or NAME.zip, NAME.tar.gz and so on.
Exit codes: 0 all done, 1 some failed, 2 wrong usage.
"""

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from utils.assets import ROOT
from utils.cli import plain, run_script, script_parser
from utils.files import replace_file
from utils.unpack import ArchiveError, Limits, member_names, unpack

# The published folders: an archive's member below one of these names goes to that place, whatever
# stands in front of it in the archive.
FOLDERS = ("3dmm_data", "aflw2000_data", "train_aug_120x120", "art-all", "uv_art", "texture_data")
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")


class FetchError(Exception):
    """One published file could not be had; the message says why and what to do."""


@dataclass(frozen=True)
class Published:
    """One published download.

    Attributes:
        about: what it is, for the user.
        ids: Google Drive file ids of equal content, tried in this order.
        folder: where the folder goes that holds ``marker``, for archives without named folders.
        marker: pattern of a file that tells that folder, relative to it; must be there afterwards.
        file: for a single file instead of a folder: its place.
    """

    about: str
    ids: tuple[str, ...]
    folder: str = ""
    marker: str = ""
    file: str = ""

    def is_in(self, root: Path) -> bool:
        """Whether the files lie at their places below ``root``."""
        if self.file:
            return (root / self.file).is_file()
        return any((root / self.folder).glob(self.marker))


PUBLISHED = {
    "3dmm_data": Published(
        "published face model (Basel Face Model 2009 basis)",
        ids=("1SQsMhvAmpD1O8Hm0yEGom0C0rXtA0qs8",),
        folder="3dmm_data",
        marker="u_shp.npy",
    ),
    "weights": Published(
        "published SynergyNet checkpoint",
        ids=("1BVHbiLTfX6iTeJcNbh-jgHjWDoemfrzG", "1RUOOWT1oSLOJYFpkWF_st2ZrVs8dpEcg"),
        file="pretrained/best.pth.tar",
    ),
    "pose_weights": Published(
        "SynergyNet weights with the best head pose (for -w)",
        ids=("13LagnHnPvBjWoQwkR3p7egYC6_MVtmG0",),
        file="pretrained/best_pose.pth.tar",
    ),
    "data": Published(
        "AFLW2000-3D crops and labels",
        ids=("1YVBRcXmCeO1t5Bepv67KVr_QKcOur3Yy",),
        folder="aflw2000_data",
        marker="eval/AFLW2000-3D.pts68.npy",
    ),
    "artistic": Published(
        "artistic faces",
        ids=("1yYR5aqSCUGnggjhTbwU4vEwHxV1xq9ko",),
        folder="art-all",
        marker="*.png",
    ),
    "uv_maps": Published(
        "UV maps of the artistic faces",
        ids=("1TWJiitXAfZD_AwoJLw58XBPgOdanqgcG",),
        folder="uv_art",
        marker="*_fake_B.png",
    ),
}


def url(file_id: str) -> str:
    """The page of a file on Google Drive."""
    return f"https://drive.google.com/file/d/{file_id}"


def download(file_id: str, target: Path) -> None:
    """One file of Google Drive, under its final name only when complete; ``FetchError`` if not."""
    try:
        import gdown
    except ImportError as error:
        raise FetchError("gdown is not installed: pip install -e '.[published]'") from error
    by_hand = f"or open {url(file_id)} in a browser and save the file as {target}"
    partial = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        gdown.download(id=file_id, output=str(partial), resume=True, timeout=60, retries=3)
    except (gdown.DownloadError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FetchError(f"download failed ({reason}); try again later, {by_hand}") from error
    if not partial.is_file():
        raise FetchError(f"download failed: gdown wrote nothing; try again later, {by_hand}")
    with open(partial, "rb") as file:
        start = file.read(1024).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        partial.unlink()
        raise FetchError(
            "Google Drive sent a web page instead of the file: its download quota is used up or "
            f"it is no longer shared; try again tomorrow, {by_hand}"
        )
    replace_file(partial, target)


def downloaded(name: str, folder: Path) -> Path | None:
    """The downloaded file called NAME or NAME.anything, or None."""
    found = [p for p in sorted(folder.glob(f"{name}*")) if p.is_file() and p.suffix != ".partial"]
    return next((p for p in found if p.name.split(".")[0] == name), None)


def placer(item: Published, names: list[str]) -> Callable[[str], str | None]:
    """Where each member of an archive belongs, relative to the repository; None: nowhere.

    Archives differ in how many folders they wrap around the files: known folder names are found at
    any depth, else the folder that holds the item's marker is taken for the item's folder.
    """
    names = [name for name in names if not set(JUNK) & set(name.split("/"))]
    pattern = "*.pth.tar" if item.file else item.marker
    depth = item.marker.count("/") + 1
    marked = sorted(
        (name for name in names if fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}")),
        key=lambda name: (Path(name).name != Path(item.file).name, name.count("/"), name),
    )
    base = marked[0].split("/")[:-depth] if marked else None

    def place(name: str) -> str | None:
        if item.file:
            return item.file if marked and name == marked[0] else None
        parts = name.split("/")
        if set(JUNK) & set(parts):
            return None
        for position, part in enumerate(parts[:-1]):
            if part in FOLDERS:
                return "/".join(parts[position:])
        if base is not None and parts[: len(base)] == base:
            return "/".join([item.folder, *parts[len(base) :]])
        return None

    return place


def is_checkpoint(path: Path, names: list[str] | None) -> bool:
    """Whether a file is what torch.save writes: a zip with a data.pkl, or (old) a bare pickle."""
    if names is not None:
        return any(name.split("/")[1:] == ["data.pkl"] for name in names)
    with open(path, "rb") as file:
        return file.read(2) == b"\x80\x02"


def install(item: Published, archive: Path, root: Path, force: bool, limits: Limits) -> str:
    """Unpacks a downloaded file beside its final place, checks it, and moves it there.

    Returns:
        What was done, in words.

    Raises:
        FetchError: the file is not what it should be; nothing was put anywhere.
    """
    staging = archive.with_name(archive.name.split(".")[0] + ".unpacked.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        try:
            names = member_names(archive, limits)
        except ArchiveError:
            if not item.file or not is_checkpoint(archive, None):
                raise
            names = None
        if item.file and is_checkpoint(archive, names):
            target = staging / item.file
            target.parent.mkdir(parents=True)
            shutil.copyfile(archive, target)
        else:
            unpack(archive, staging, placer(item, names), limits)
        if not item.is_in(staging):
            held = ", ".join(sorted({name.split("/")[0] for name in names or []})[:8])
            raise FetchError(
                f"{archive} does not hold {item.file or f'{item.folder}/{item.marker}'} (but: "
                f"{held}); unpack it by hand, or remove it to download it again"
            )
        placed, kept = _move_tree(staging, root, force)
    except ArchiveError as error:
        raise FetchError(f"{error}; remove the file to download it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    done = f"{placed:,} files put in place"
    return f"{done}, {kept:,} that were there kept (--force replaces them)" if kept else done


def _move_tree(source: Path, target: Path, force: bool) -> tuple[int, int]:
    """Moves files below ``source`` to the same places below ``target``: number moved, number kept.

    A folder that is not there yet appears complete, by one rename.
    """
    if not target.exists():
        count = sum(path.is_file() for path in source.rglob("*"))
        try:
            replace_file(source, target)
            return count, 0
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    target.mkdir(exist_ok=True)
    moved = kept = 0
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir():
            counts = _move_tree(path, place, force)
            moved, kept = moved + counts[0], kept + counts[1]
        elif place.exists() and not force:
            kept += 1
        else:
            _move_file(path, place)
            moved += 1
    return moved, kept


def _move_file(source: Path, target: Path) -> None:
    try:
        replace_file(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = target.with_name(target.name + ".partial")  # the folder lies on another disk
        shutil.copyfile(source, partial)
        replace_file(partial, target)


def fetch(name: str, root: Path, force: bool = False, limits: Limits | None = None) -> str:
    """Gets one published download into place; returns what was done in words.

    Raises:
        FetchError: it could not be done; the message says why.
    """
    item = PUBLISHED[name]
    if item.is_in(root) and not force:
        return "already there"
    folder = root / "published_downloads"
    try:
        archive = downloaded(name, folder)
        failures = []
        for file_id in item.ids if archive is None else ():
            try:
                download(file_id, folder / f"{name}.download")
            except FetchError as error:
                failures.append(str(error))
            else:
                archive = folder / f"{name}.download"
                break
        if archive is None:
            raise FetchError("\n    ".join(dict.fromkeys(failures)))
        return install(item, archive, root, force, limits or Limits())
    except OSError as error:
        raise FetchError(f"cannot write the files: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    table = "\n".join(f"  {name:13} {item.about}" for name, item in PUBLISHED.items())
    parser = script_parser(
        __doc__, f"names:\n{table}", "[NAME ...] [--force]", module="tools.fetch_published"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch (all)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in PUBLISHED]:
        parser.error(f"no such name: {', '.join(unknown)}; there are {', '.join(PUBLISHED)}")
    failed = []
    for name in options.names or PUBLISHED:
        print(f"{name}: {PUBLISHED[name].about}", flush=True)
        try:
            print(f"    {fetch(name, ROOT, options.force)}", flush=True)
        except FetchError as error:
            failed.append(name)
            print(f"    FAILED: {plain(str(error))}", flush=True)
    if failed:
        print(f"Not fetched: {', '.join(failed)}")
    pair = [PUBLISHED[name] for name in ("3dmm_data", "weights")]
    there = [item.is_in(ROOT) for item in pair]
    if any(there) and not all(there):
        present, absent = (pair[there.index(state)].about for state in (True, False))
        print(
            f"The {present} is here, the {absent} not: they belong together and the starter "
            "kit's counterpart will be refused. Get the other one too, or move this one away."
        )
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
