"""Picture files: read as BGR whatever they are, and written atomically."""

import os
import struct
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from utils.files import atomic_write
from utils.preprocessing import CROP_SIZE


def max_pixels() -> int:
    """The largest picture that is read: SYNERGYNET_MAX_PIXELS, or 2^28 (0.8 GB as BGR).

    Raises:
        ValueError: the variable is no number.
    """
    text = os.environ.get("SYNERGYNET_MAX_PIXELS", str(2**28))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"SYNERGYNET_MAX_PIXELS={text!r}: expected a number of pixels")
    return int(text)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """A picture file as BGR; its path may hold any characters the system allows.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the path is a folder.
        ValueError: as ``decode_image``.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected a picture file")
    return decode_image(path.read_bytes(), path)  # cv2.imread fails on some non-ASCII paths


def read_crop(path: str | os.PathLike) -> np.ndarray:
    """A crop of a stored data set, (120, 120, 3) uint8 BGR.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as ``decode_image``; or it has another size.
    """
    crop = read_image(path)
    height, width = crop.shape[:2]
    if (height, width) != (CROP_SIZE, CROP_SIZE):
        raise ValueError(
            f"{path}: {width}x{height} pixels, expected a crop of {CROP_SIZE}x{CROP_SIZE}"
        )
    return crop


def decode_image(content: bytes, path: Path | str = "the picture") -> np.ndarray:
    """The content of a picture file as BGR.

    Grey becomes BGR, transparency is laid over black, 16-bit is scaled to 8-bit, floating point is
    cut to [0, 1] and scaled, and the camera's orientation tag is obeyed.

    Args:
        content: of the whole file.
        path: what messages call it.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ValueError: it is empty, not a picture, cut short, of a kind that is no photo, or says that
            it is larger than ``max_pixels`` (in formats that pack a few colours to nothing; other
            formats have OpenCV's own limit).
    """
    if not content:
        raise ValueError(f"{path}: the file is empty")
    _refuse_absurd_size(path, content)
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
        if content[4:11] == b"ftypavi":
            image = None if image is None else _upright_avif(content, image)
        elif not is_jpeg and any(tag in content for tag in (b"eXIf", b"EXIF", b"Exif")):
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
        raise ValueError(
            f"{path}: not a picture in a format that OpenCV reads (convert HEIC and raw photos to "
            "JPEG), or damaged"
        )
    if image.dtype.kind == "f":
        # .hdr, .exr, .pfm: no upper end
        is_radiance = content.startswith((b"#?", b"\x76\x2f\x31\x01", b"PF", b"Pf"))
        brightest = np.fmax.reduce(image if image.ndim == 2 else image[..., :3], axis=None)
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
        ValueError: as ``decode_image``; names zip and member.
    """
    return decode_image(archive.read(name), f"{archive.filename}: {name}")


def _refuse_absurd_size(path: Path | str, content: bytes) -> None:
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
    ((_, at),) = deque(_jpeg_segments(content), maxlen=1)
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
            (size,) = numbers(f"{order}{'H' if kind == 3 else 'I'}", at + 10 + 12 * i)
            sizes[tag] = max(size, sizes.get(tag, 0))  # of a tag that is there twice one counts
        return sizes.get(256, 0), sizes.get(257, 0)
    return 0, 0


def _upright_avif(content: bytes, image: np.ndarray) -> np.ndarray:
    """The stored picture turned as its ``irot`` and then ``imir`` say, which OpenCV passes over."""
    start = content.find(b"meta")  # a box of properties; those of a thumbnail are the picture's
    length = int.from_bytes(content[max(start - 4, 0) : start], "big")
    header = content[start : start + length]
    if (at := header.find(b"irot")) >= 0:  # quarters, counter-clockwise
        image = np.rot90(image, header[at + 4] & 3)
    if (at := header.find(b"imir")) >= 0:
        image = image[:, ::-1] if header[at + 4] & 1 else image[::-1]
    return np.ascontiguousarray(image)


def _turned_like(stored: np.ndarray | None, upright: np.ndarray | None) -> np.ndarray | None:
    """The stored picture, with its alpha, in the orientation that OpenCV gave ``upright``."""
    if stored is None or upright is None or stored.ndim == 2 or stored.shape[2] != 4:
        return upright
    for transposed in (stored, stored.transpose(1, 0, 2)):
        for turned in (transposed[::a, ::b] for a in (1, -1) for b in (1, -1)):
            if np.array_equal(turned[..., :3], upright):
                return turned
    return stored


# what stands for a picture: the array, the path of a file, or that file's content
Picture = np.ndarray | str | os.PathLike[str] | bytes
CONTENT = (bytes, bytearray, memoryview)


def as_picture(image: Picture) -> np.ndarray:
    """The picture of a path (``read_image``) or a file's bytes (``decode_image``); arrays as they
    are."""
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
        raise ValueError(  # without the address, which may hold a password
            f"{image.partition(':')[0]}: an address is not fetched; give the file's bytes, "
            "urllib.request.urlopen(address).read()"
        )
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    return decode_image(bytes(image)) if isinstance(image, CONTENT) else image


WHAT_IS_A_PICTURE = (
    "a picture is an array (H, W, 3) in BGR (of Pillow's, upright as phones mean it, "
    "np.asarray(ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1]), the path of a picture "
    "file, or that file's bytes; cv2.imread gives None for a file that it cannot read"
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
            f"expected a picture (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.shape}; "
            "several pictures are a list of them"
        )
    if image.dtype == np.uint16:
        wide, image = image, np.empty(image.shape, np.uint8)
        for row, stored in zip(image, wide, strict=True):  # by rows: a whole picture takes 10 GB
            row[:] = (stored.astype(np.uint32) * 255 + 32767) // 65535
    elif image.dtype.kind == "f":
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise ValueError("a floating point picture must be finite and within [0, 1]")
        image = np.round(image * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"expected uint8, uint16 or floating point in [0, 1], got {image.dtype}")
    if image.shape[2] == 4:
        with_alpha, image = image, np.empty((*image.shape[:2], 3), np.uint8)
        for row, stored in zip(image, with_alpha, strict=True):
            row[:] = (stored[:, :3] * stored[:, 3:].astype(np.uint16) + 127) // 255
    elif image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return image


def write_image(path: str | os.PathLike, image: np.ndarray, quality: int = 95) -> None:
    """Writes a picture in the format of the path's extension, atomically.

    Args:
        path: its folder is made where it does not exist.
        image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA, uint8.
        quality: of a JPEG, up to 100.

    Raises:
        OSError: it cannot be written there.
        ValueError: another dtype, or OpenCV cannot encode the picture in that format.
    """
    path = Path(path)
    if image.dtype != np.uint8:  # OpenCV would cut floating point off: [0, 1] becomes black
        raise ValueError(f"{path}: expected a uint8 picture, got {image.dtype}")
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if is_jpeg else []
    try:
        done, data = cv2.imencode(path.suffix, image, options)
    except cv2.error as error:  # an unknown suffix
        raise ValueError(f"{path}: OpenCV cannot write such a file ({error.err})") from error
    if not done:
        raise ValueError(f"{path}: OpenCV cannot encode a picture of shape {image.shape} as such")
    with atomic_write(path) as file:
        file.write(data.tobytes())
