"""Arrays of numbers from MATLAB's ``.mat`` files (version 5 to 7), read without trusting them.

scipy's reader is written for files one trusts: a damaged one can end the interpreter. This one
reads what face data needs, real arrays of numbers, in plain Python, and checks every length.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_BYTES = 2**28  # of all arrays of a file, unpacked
_COMPRESSED, _MATRIX = 15, 14
# element type or array class -> numpy's name
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_TYPES |= {12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4"}
_CLASSES |= {14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def read_mat(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All real numeric arrays of a file by name; what else it holds is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a MATLAB 5 to 7 file, or a damaged one.
    """
    data = Path(path).read_bytes()
    if data.startswith(b"MATLAB 7.3"):
        raise ValueError(f"{path}: a MATLAB 7.3 file; save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError(f"{path}: not a MATLAB file of version 5 to 7")
    try:
        arrays = {}
        for kind, content in _elements(memoryview(data)[128:], order):
            if kind == _COMPRESSED:
                unpacked = zlib.decompressobj().decompress(content, MAX_BYTES)
                kind, content = next(_elements(memoryview(unpacked), order), (0, b""))
            if kind == _MATRIX:
                arrays.update(_matrix(content, order))
                if sum(array.nbytes for array in arrays.values()) > MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
        return arrays
    except (ValueError, IndexError, OverflowError, zlib.error) as error:
        raise ValueError(f"{path}: a damaged MATLAB file ({error})") from error


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of the tagged elements that follow each other."""
    at = 0
    while at + 8 <= len(data):
        first, count = np.frombuffer(data[at : at + 8], order + "u4").tolist()
        if first >> 16:  # the small form: up to four bytes in the tag itself
            kind, count, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
        else:
            kind, start = first, at + 8
            # compressed elements are not padded to 8 bytes
            end = start + (count if kind == _COMPRESSED else -(-count // 8) * 8)
        if start + count > len(data) or (first >> 16 and count > 4):
            raise ValueError("an element is longer than the file")
        yield kind, data[start : start + count]
        at = end


def _matrix(data: memoryview, order: str) -> dict[str, np.ndarray]:
    """An array by its name; nothing where it is not one of real numbers."""
    parts = _elements(data, order)

    def numbers(what: str, kinds: str = "iu") -> np.ndarray:
        kind, content = next(parts, (0, b""))
        if _TYPES.get(kind, "-")[0] not in kinds:
            raise ValueError(f"no {what} where they should be")
        return np.frombuffer(content, order + _TYPES[kind])

    flags = int(numbers("array flags")[0])
    if flags & 0xFF not in _CLASSES or flags & _COMPLEX:
        return {}
    shape = numbers("shape").tolist()
    name = numbers("name").tobytes().decode("ascii", "replace")
    values = numbers("values", "iuf")
    if values.size * int(_CLASSES[flags & 0xFF][1]) > MAX_BYTES:  # a class may be wider
        raise ValueError(f"{name!r} takes more than {MAX_BYTES:,} bytes")
    if min(shape, default=0) < 0 or int(np.prod(shape, dtype=object)) != values.size:
        raise ValueError(f"{name!r} has {values.size} values but the shape {shape}")
    # MATLAB stores values in the narrowest type that holds them: what overflows its class here is
    # from a damaged file
    with np.errstate(all="ignore"):
        return {name: values.astype(_CLASSES[flags & 0xFF]).reshape(shape, order="F")}
