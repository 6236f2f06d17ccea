"""Reading strangers' files safely and writing our own atomically."""

import io
import os
import pickle
import shutil
import struct
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class _PickledDtype:
    """Stands for ``numpy.dtype`` while a pickle is read."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def array(self, shape: tuple, is_fortran: bool, data: bytes | str) -> np.ndarray:
        if self.code not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of type {self.code!r}, expected numbers")
        stored = np.dtype(self.code).newbyteorder(self.order)
        flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, stored)
        return flat.reshape(shape, order="F" if is_fortran else "C").astype(self.code)


class _PickledArray:
    """Stands for an array (``_reconstruct`` and its state) while a pickle is read."""

    def __init__(self, *_: object) -> None:
        self.state = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state[-4:]  # shape, dtype, is_fortran, data; a version in front

    def build(self) -> np.ndarray:
        shape, dtype, is_fortran, data = self.state
        return dtype.array(shape, is_fortran, data)


class _PickledBuffer(_PickledArray):
    def __init__(self, data: bytes, dtype: _PickledDtype, shape: tuple, order: str, *_) -> None:
        self.state = shape, dtype, order == "F", data


class _PickledScalar(_PickledArray):
    def __init__(self, dtype: _PickledDtype, data: bytes) -> None:
        self.state = (), dtype, False, data


def _encode(text: str, encoding: str) -> bytes:
    """Stands for ``codecs.encode``, in which old protocols wrap an array's bytes."""
    if encoding != "latin1":  # "hex" doubles its input, thirty of them in a row fill any memory
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, expected latin1")
    return text.encode(encoding)


# What an honest pickle of arrays and plain containers refers to, in numpy 1 and 2 spelling, and
# what is put in its place: numpy's own functions trust the file, and a bad one crashes them.
_STAND_INS = {
    "numpy.ndarray": _PickledArray,
    "numpy.dtype": _PickledDtype,
    "numpy.core.multiarray._reconstruct": _PickledArray,
    "numpy.core.multiarray.scalar": _PickledScalar,
    "numpy.core.numeric._frombuffer": _PickledBuffer,
    "_codecs.encode": _encode,
}


class _ArrayUnpickler(pickle._Unpickler):
    """An unpickler that knows plain containers and arrays' stand-ins and nothing else.

    The one in Python, not the faster one in C: that one keeps a table as long as the highest number
    in the file, so that nine bytes can make it fill gigabytes.
    """

    def _load_bytearray(self) -> None:
        """As many bytes as there are; Python's own makes room for as many as the file promises."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _load_bytearray}

    def find_class(self, module: str, name: str) -> object:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if known not in _STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
        return _STAND_INS[known]


def read_array_pickle(path: str | os.PathLike) -> object:
    """The content of a pickle of numpy arrays and plain containers; runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything but arrays of numbers and plain
            containers.
    """
    path = Path(path)
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        return _with_arrays(content, {})
    except FileNotFoundError:
        raise
    except Exception as error:  # a pickle can fail in any way; none of them is this program's fault
        raise ValueError(
            f"{path}: not a pickle of numpy arrays and plain containers ({error}); it was not "
            "loaded, since other pickles can run code. Get the file again from its publisher."
        ) from error


def _with_arrays(content: object, done: dict[int, object]) -> object:
    """The content with arrays in place of their stand-ins; ``done``: one visit per object."""
    if id(content) not in done:
        if isinstance(content, _PickledArray):
            result = content.build()
        elif isinstance(content, dict):
            result = {key: _with_arrays(value, done) for key, value in content.items()}
        elif isinstance(content, (list, tuple)):
            result = type(content)(_with_arrays(item, done) for item in content)
        else:
            result = content
        done[id(content)] = result
    return done[id(content)]


def read_weights_file(path: str | os.PathLike) -> bytes:
    """The bytes of a file of network weights.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no weights there; check the path, or give another file (-w for the network, "
            "--detector-weights for the detector)"
        )
    return path.read_bytes()


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """One ``.npy`` array, memory-mapped files and pickled objects excluded.

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
        reason = _reason(path, error, b"\x93NUMPY")
        raise ValueError(f"{path}: not a readable .npy array of numbers ({reason})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected one .npy array, found an archive")
    return array


def require_files(needed: Iterable[tuple[Path, str]]) -> None:
    """Before minutes are spent: every file that a command is to read is there.

    Args:
        needed: each file, and what the option that leads to it is to be.

    Raises:
        FileNotFoundError: one is not; says which, and what was expected.
    """
    for path, what in needed:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; {what}")


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


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb", durable: bool = False) -> Iterator[IO]:
    """A file that appears under its final name complete or not at all.

    The content goes to a uniquely named ``.partial`` sibling, which takes the final name when the
    block ends without an exception and is removed otherwise. ``durable``: it is on the disk before
    it has the name, so that a power cut leaves the old content or the new (some milliseconds).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".partial"
    )
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException as error:
        if os.path.exists(partial):
            os.unlink(partial)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # the system's "no space left" does not say for what
        raise


def remove_partials(folder: str | os.PathLike) -> None:
    """Removes what killed runs left of ``atomic_write`` in a folder that nobody else writes to."""
    for path in Path(folder).glob(".*.partial"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A partial sibling that becomes the folder when the block ends without an exception.

    Raises:
        FileExistsError: something lies at ``folder`` already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists; remove it, or give another place to write to")
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name[:40]}.", suffix=".partial"))
    try:
        yield partial
        partial.chmod(parent.stat().st_mode & 0o777)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """A compressed ``.npz`` of named arrays, written atomically."""
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def _umask() -> int:
    with _UMASK_LOCK:  # reading it sets it: two threads at once would leave it at zero
        mask = os.umask(0)
        os.umask(mask)
    return mask


_UMASK_LOCK = threading.Lock()


def max_pixels() -> int:
    """The largest picture that is read: SYNERGYNET_MAX_PIXELS, or 2^28 (0.8 GB as BGR)."""
    text = os.environ.get("SYNERGYNET_MAX_PIXELS", str(2**28))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"SYNERGYNET_MAX_PIXELS={text!r}: expected a number of pixels")
    return int(text)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """A picture file as BGR.

    Grey becomes BGR, transparency is laid over black, 16-bit is scaled to 8-bit, floating point is
    cut to [0, 1] and scaled, and the camera's orientation tag is obeyed. The path may hold any
    characters the system allows.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the path is a folder.
        ValueError: the file is empty, not a picture, cut short, of a kind that is no photo, or says
            that it is larger than ``max_pixels`` (in formats that pack a few colours to nothing;
            other formats have OpenCV's own limit).
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected a picture file")
    content = path.read_bytes()  # cv2.imread fails on some systems' non-ASCII paths
    if not content:
        raise ValueError(f"{path}: the file is empty")
    refuse_absurd_size(path, content)
    is_jpeg = content.startswith(b"\xff\xd8\xff")
    if is_jpeg and not _jpeg_is_complete(content):
        # libjpeg fills the missing part with grey and only warns; say it instead.
        raise ValueError(f"{path}: the JPEG is cut short (no end marker); get the file again")
    # COLOR obeys the orientation, but drops alpha and halves 16 bits without rounding; UNCHANGED
    # makes OS/2's bitmaps grey.
    is_plain = is_jpeg or _is_os2_bitmap(content)
    data = np.frombuffer(content, dtype=np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR if is_plain else cv2.IMREAD_UNCHANGED)
        if not is_jpeg and any(tag in content for tag in (b"eXIf", b"EXIF", b"Exif")):
            upright = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
            image = _turned_like(image, upright)
    except cv2.error as error:
        reason = f"OpenCV cannot decode it ({error.err})"
        if "CV_IO_MAX_IMAGE" in error.err:  # OpenCV names its constants, not what one can set
            reason = (
                "it says that it is larger than OpenCV reads; if that is true, set the environment "
                "variables OPENCV_IO_MAX_IMAGE_PIXELS, _WIDTH and _HEIGHT to what it needs"
            )
        raise ValueError(f"{path}: {reason}") from error
    if image is None:
        raise ValueError(f"{path}: not a picture in a format that OpenCV reads, or damaged")
    if image.dtype.kind == "f":
        # .hdr, .exr, .pfm: no upper end
        is_radiance = content.startswith((b"#?", b"\x76\x2f\x31\x01", b"PF", b"Pf"))
        brightest = np.nanmax(image if image.ndim == 2 else image[..., :3])
        if not is_radiance and 1.5 < brightest < np.inf:  # resampling goes a little beyond 1
            raise ValueError(
                f"{path}: floating point up to {brightest:g}, expected [0, 1]; save it with 8 or "
                "16 bits"
            )
        image = np.clip(image, 0, 1)
    try:
        return to_bgr8(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_zipped_image(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A photo of a set that lies in a zip, (H, W, 3) uint8 BGR.

    Raises:
        KeyError: the zip has no such member.
        ValueError: OpenCV cannot read it; names zip and member.
    """
    image = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{archive.filename}: {name} is no picture that OpenCV reads")
    return image


def refuse_absurd_size(path: Path, content: bytes) -> None:
    """Raises ValueError where a picture file says that it is larger than ``max_pixels``."""
    width, height = _stated_size(content)
    if width * height > max_pixels():
        raise ValueError(
            f"{path}: it says that it has {width}x{height} pixels, more than {max_pixels():,}; if "
            "that is true and there is the memory for it, set the environment variable "
            "SYNERGYNET_MAX_PIXELS to more"
        )


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Code and offset of each segment of a JPEG's header, the start of its scan the last one."""
    at = 2
    while content[at : at + 1] == b"\xff" and at + 1 < len(content):
        code = content[at + 1]
        yield code, at
        if code == 0xDA:  # start of scan
            return
        is_fill = code == 0xFF
        at += 1 if is_fill else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    yield 0, at


def _jpeg_is_complete(content: bytes) -> bool:
    """Whether an end marker follows the picture's data; a thumbnail's in the header is not it."""
    *_, (_, at) = _jpeg_segments(content)
    return content.find(b"\xff\xd9", at) >= 0  # what follows it (a phone's film) does not matter


def _is_os2_bitmap(content: bytes) -> bool:
    return content.startswith(b"BM") and content[14:18] == struct.pack("<I", 12)


def _stated_size(content: bytes) -> tuple[int, int]:
    """Width and height in a header of PNG, JPEG, BMP, GIF or TIFF; zeros where none is found."""

    def numbers(format_: str, at: int) -> tuple[int, ...]:
        piece = content[at : at + struct.calcsize(format_)]
        return struct.unpack(format_, piece.ljust(struct.calcsize(format_), b"\0"))

    if content.startswith(b"\x89PNG"):
        return numbers(">II", 16)
    if content.startswith(b"\xff\xd8\xff"):
        sizes = [numbers(">HH", at + 5)[::-1] for code, at in _jpeg_segments(content)
                 if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)]  # fmt: skip
        return max(sizes, default=(0, 0))
    if content.startswith(b"BM"):
        width, height = numbers("<HH" if _is_os2_bitmap(content) else "<ii", 18)
        return abs(width), abs(height)
    if content.startswith(b"GIF8"):
        return numbers("<HH", 6)
    if content[:4] in (b"II*\0", b"MM\0*"):
        order = "<" if content[0] == ord("I") else ">"
        (at,) = numbers(f"{order}I", 4)
        sizes = {}
        for i in range(*numbers(f"{order}H", at)):
            tag, kind = numbers(f"{order}HH", at + 2 + 12 * i)
            (sizes[tag],) = numbers(f"{order}{'H' if kind == 3 else 'I'}", at + 10 + 12 * i)
        return sizes.get(256, 0), sizes.get(257, 0)
    return 0, 0


def _turned_like(stored: np.ndarray | None, upright: np.ndarray | None) -> np.ndarray | None:
    """The stored picture, with its alpha, in the orientation that OpenCV gave ``upright``."""
    if stored is None or upright is None or stored.ndim == 2 or stored.shape[2] != 4:
        return upright
    for transposed in (stored, stored.transpose(1, 0, 2)):
        for turned in (transposed[::a, ::b] for a in (1, -1) for b in (1, -1)):
            if np.array_equal(turned[..., :3], upright):
                return turned
    return stored


def opened(image: np.ndarray | str | os.PathLike) -> np.ndarray:
    """The picture of a path (``read_image``); arrays as they are."""
    return read_image(image) if isinstance(image, (str, os.PathLike)) else image


WHAT_IS_A_PICTURE = (
    "a picture is an array (H, W, 3) in BGR: np.asarray(image.convert('RGB'))[..., ::-1] of "
    "Pillow's"
)


def to_bgr8(image: np.ndarray) -> np.ndarray:
    """Any picture array as BGR uint8.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, uint16 (full range) or
            floating point in [0, 1].

    Returns:
        (H, W, 3) uint8; the input itself where nothing had to be changed.

    Raises:
        ValueError: another type, shape, an empty picture, or non-finite values.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a numpy array, got {type(image).__name__}; {WHAT_IS_A_PICTURE}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"expected a picture (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.shape}"
        )
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif image.dtype.kind == "f":
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise ValueError("a floating point picture must be finite and within [0, 1]")
        image = np.round(image * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"expected uint8, uint16 or floating point in [0, 1], got {image.dtype}")
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.uint16)
        image = ((image[..., :3] * alpha + 127) // 255).astype(np.uint8)
    elif image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return image


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a picture in the format of the path's extension, atomically.

    Raises:
        OSError: it cannot be written there.
        ValueError: OpenCV cannot encode the picture in that format.
    """
    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        done, data = cv2.imencode(path.suffix, image, options)
    except cv2.error as error:  # an unknown suffix
        raise ValueError(f"{path}: OpenCV cannot write such a file ({error.err})") from error
    if not done:
        raise ValueError(f"{path}: OpenCV cannot encode a picture of shape {image.shape} as such")
    with atomic_write(path) as file:
        file.write(data.tobytes())
