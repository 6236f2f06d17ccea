"""Unpacking untrusted zip and tar archives: plain files inside one folder, or nothing at all.

A name that leaves the folder, a link, a device, a lying size or a bomb makes the whole archive
unacceptable; so does a name that means something else on another system.
"""

import bz2
import errno
import gzip
import lzma
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
try:  # Python 3.14 reads Zstandard in zip files
    from compression.zstd import ZstdError
except ImportError:
    pass
else:
    _DAMAGED += (ZstdError,)

CHUNK = 1 << 20
# tarfile reads extended headers into memory at once; honest ones are tiny.
LARGEST_READ = 1 << 24


class ArchiveError(ValueError):
    """The archive is damaged, or holds what an honest archive of data files does not."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to; the defaults admit the largest published one."""

    files: int = 1_000_000
    size: int = 64 << 30  # bytes in all
    ratio: float = 100.0  # unpacked to packed bytes; judged above ``ratio_from`` only
    ratio_from: int = 64 << 20  # bytes


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]] | None  # None: a folder


def unpack(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    place: Callable[[str], str | None] = lambda name: name,
    limits: Limits = Limits(),
) -> list[Path]:
    """Unpacks the files of a zip or a (compressed) tar.

    Args:
        archive: the file; its content decides what it is, not its name.
        folder: where to; created if absent. On an error it may hold part of the files, so hand
            over a temporary folder and move the result when this function returns.
        place: gives each member's path below ``folder``, or None to leave the member out.
        limits: on number and size of the files.

    Returns:
        The written files, in the archive's order.

    Raises:
        ArchiveError: not a readable zip or tar, or one that is not acceptable (see above).
        OSError: the files cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    written = []
    for member in _members(archive, limits):
        target = place(member.name)
        if target is None:
            continue
        _check_name(target, archive)
        path = folder / target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                _copy(member, file, archive)
        except (FileExistsError, NotADirectoryError) as error:
            raise ArchiveError(f"{archive}: {member.name!r} appears twice") from error
        written.append(path)
    return written


def member_names(archive: str | os.PathLike, limits: Limits = Limits()) -> list[str]:
    """Names of the files in a zip or a tar, in its order.

    Everything but the files' content has been judged, with the errors of ``unpack``.
    """
    return [member.name for member in _members(Path(archive), limits)]


def _members(archive: Path, limits: Limits) -> Iterator[_Member]:
    """The files of the archive, every one judged by its name, kind and declared size."""
    packed = archive.stat().st_size
    allowed = min(limits.size, max(limits.ratio_from, int(limits.ratio * packed)))
    with open(archive, "rb") as file:
        magic = file.read(4)
    is_zip = magic in (b"PK\x03\x04", b"PK\x05\x06")
    members = _read_zip(archive) if is_zip else _read_tar(archive, magic)
    total = 0
    with _one_error(archive):
        for count, member in enumerate(members, start=1):
            _check_name(member.name, archive)
            total += member.size
            if count > limits.files:
                raise ArchiveError(f"{archive}: refused, more than {limits.files:,} files")
            if member.size < 0 or total > allowed:
                raise ArchiveError(
                    f"{archive}: refused, unpacks to more than {allowed:,} bytes, the limit for "
                    f"an archive of {packed:,} bytes"
                )
            if member.open is not None:
                yield member


def _check_name(name: str, archive: Path) -> None:
    """Refuses a name that does not lead to a place below the folder on every system."""
    # Backslash and colon: a separator and a drive on Windows, in no honest data file's name.
    if any(part in ("", ".", "..") for part in name.split("/")) or set(name) & set("\\:\0"):
        raise ArchiveError(f"{archive}: refused, the name {name!r} leads out of its folder")


@contextmanager
def _one_error(archive: Path) -> Iterator[None]:
    """Whatever the archive modules raise on damaged files, as one kind of error."""
    try:
        yield
    except ArchiveError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the system's: disk full, no permission
            raise  # EINVAL: a zip whose directory points before its beginning
        raise ArchiveError(f"{archive}: damaged ({error})") from error
    except _DAMAGED as error:
        raise ArchiveError(f"{archive}: not a zip or tar archive, or damaged ({error})") from error
    except (ValueError, struct.error, OverflowError, RuntimeError) as error:
        raise ArchiveError(f"{archive}: damaged or of an unknown kind ({error})") from error


def _read_zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive}: refused, {info.filename!r} is a link or a device")
            if info.flag_bits & 1:
                raise ArchiveError(f"{archive}: {info.filename!r} is encrypted")
            # orig_filename: zipfile cuts names at a zero byte and, on Windows, turns backslashes
            name = info.orig_filename
            if name.endswith("/"):
                yield _Member(name[:-1], 0, None)
            else:
                yield _Member(name, info.file_size, lambda info=info: file.open(info))


class _BoundedReads:
    """A file that gives little at once: no header in it can ask for gigabytes of memory."""

    def __init__(self, file: IO[bytes]):
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.left = LARGEST_READ  # bytes that may be read before it is set again

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ArchiveError(
                f"{self._file.name}: refused, it holds a header of more than {LARGEST_READ:,} bytes"
            )
        self.left -= size
        return self._file.read(size)


def _read_tar(archive: Path, magic: bytes) -> Iterator[_Member]:
    opener = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(magic[:2], open)
    with (
        opener(archive, "rb") as raw,
        tarfile.open(fileobj=(reads := _BoundedReads(raw)), mode="r:") as file,  # unpacked once
    ):

        def next_member() -> tarfile.TarInfo | None:
            reads.left = LARGEST_READ  # newer Pythons read a header in pieces
            try:
                return file.next()
            finally:
                reads.left = sys.maxsize  # what the members hold is judged by their sizes

        while (info := next_member()) is not None:
            file.members.clear()  # a million headers are kept in memory otherwise
            name = info.name.removeprefix("./")
            if info.isdir():
                if name.rstrip("/") not in ("", ".") or name.startswith("/"):
                    yield _Member(name.removesuffix("/"), 0, None)
            elif info.isreg() and not info.issparse():
                yield _Member(name, info.size, lambda info=info: file.extractfile(info))
            else:
                raise ArchiveError(f"{archive}: refused, {info.name!r} is a link or a device")
        # tarfile takes a broken header for the end; a true end is zeros, then a checksum is read
        raw.seek(file.offset)
        rest = raw.read(LARGEST_READ)
        if not rest or any(rest) or len(rest) == LARGEST_READ:
            raise ArchiveError(f"{archive}: damaged at byte {file.offset:,} of its content")


def _copy(member: _Member, target: IO[bytes], archive: Path) -> None:
    """Writes a member. Its declared size, which the limits were judged by, must be the true one."""
    size = 0
    with _one_error(archive), member.open() as source:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > member.size:
                break
            target.write(chunk)
    if size != member.size:
        raise ArchiveError(f"{archive}: {member.name!r} is not as long as the archive says")
