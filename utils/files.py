"""Reading untrusted files safely and writing our own atomically."""

import os
import secrets
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

PATIENCE = 2.0  # seconds


def read_weights_file(path: str | os.PathLike) -> bytes:
    """The bytes of a file of network weights.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no weights there; check the path, or give another file")
    return path.read_bytes()


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """One ``.npy`` array, read whole; one with pickled objects is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds Python objects.
    """
    try:
        with open(path, "rb") as file:  # numpy leaves damaged archives open
            array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged headers fail in many ways
        raise _no_npy(path, error) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected one .npy array, found an archive")
    return array


def map_npy(path: str | os.PathLike) -> np.ndarray:
    """One ``.npy`` array that stays on the disk until it is used; errors as of ``read_npy``."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:
        raise _no_npy(path, error) from error


def _no_npy(path: str | os.PathLike, error: Exception) -> ValueError:
    reason = _reason(path, error, b"\x93NUMPY")
    return ValueError(f"{path}: not a readable .npy array of numbers ({reason})")


def read_npz(path: str | os.PathLike, limit: int = 4 * 2**30) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file by name; pickled objects are refused.

    Args:
        limit: bytes that the arrays may take together; some kB of zeros unpack to gigabytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds Python objects or unpacks to more than ``limit``.
    """
    try:
        # opened here, so that numpy closes it on damaged archives too
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            total = sum(entry.file_size for entry in file.zip.infolist())
            if total > limit:
                raise ValueError(f"unpacks to {total:,} bytes, expected at most {limit:,}")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged archives fail in several ways
        reason = _reason(path, error, b"PK")
        raise ValueError(f"{path}: not a readable .npz of arrays of numbers ({reason})") from error


def _reason(path: str | os.PathLike, error: Exception, start: bytes) -> str:
    """Why numpy could not read a file; its own words advise to load Python objects unsafely."""
    if "pickle" not in str(error):
        return str(error)
    with open(path, "rb") as file:
        known = file.read(len(start)) == start
    return "it holds Python objects" if known else "it begins like another kind of file"


def is_inside(name: str) -> bool:
    """Whether a stranger's file name stays below the folder that it is joined to."""
    parts = name.replace("\\", "/").split("/")
    is_rooted = not parts[0] or bool(os.path.splitdrive(name)[0])
    return not is_rooted and ".." not in parts and any(part not in ("", ".") for part in parts)


def partial_beside(path: Path) -> Path:
    """A new name beside a path, for what is to become it.

    Not by ``tempfile``: on Windows it takes "access denied" for a name that is taken and tries the
    next one, up to Python 3.12 two thousand million times.
    """
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}.partial"


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb", durable: bool = False) -> Iterator[IO]:
    """A file that appears under its final name complete or not at all. A link of that name is
    replaced, not followed.

    The content goes to a uniquely named ``.partial`` sibling, which takes the final name when the
    block ends without an exception and is removed otherwise. ``durable``: it is on the disk before
    it has the name, so that a power cut leaves the old content or the new (some milliseconds).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_beside(path)
    try:
        encoding = None if "b" in mode else "utf-8"
        with open(partial, mode.replace("w", "x"), encoding=encoding) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        replace_file(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # the system's "no space left" does not say for what
        raise


def replace_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """``os.replace``, with patience on Windows.

    There a file cannot be replaced while somebody has it open; virus scanners and indexers do, for
    moments, whatever is new.

    Raises:
        OSError: it could not be replaced; on Windows, for ``PATIENCE`` seconds.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > end:
                raise
            time.sleep(0.05)


def check_writable(folder: Path, option: str) -> None:
    """Makes the folder; raises OSError, before the work is done, where no file can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = partial_beside(folder / "probe")
        probe.touch(exist_ok=False)
        with suppress(OSError):  # Windows: a virus scanner looks at it
            probe.unlink()
    except OSError as error:
        raise OSError(
            f"{folder}: no files can be written there ({error.strerror}); choose another place "
            f"with {option}"
        ) from error


def remove_partials(folder: str | os.PathLike) -> None:
    """Removes what killed runs left of ``atomic_write`` in a folder that nobody else writes to."""
    for path in Path(folder).glob(".*.partial"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A partial sibling that becomes the folder when the block ends without an exception.

    Raises:
        FileExistsError: ``folder`` is a file, or not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists; remove it, or give another place to write to")
    if folder.is_symlink():
        folder = folder.resolve()  # what it leads to is written, the link stays
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = partial_beside(parent / folder.name)
    partial.mkdir()
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()  # empty; Windows replaces no folder
        replace_file(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """A compressed ``.npz`` of named arrays, written atomically.

    Not by numpy: its files are 2 % smaller, but a face's mesh takes four times as long.
    """
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
