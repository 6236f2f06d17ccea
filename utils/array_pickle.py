"""Reads untrusted pickles: arrays of numbers and plain containers, and nothing that runs."""

import io
import os
import pickle
import reprlib
import struct
from pathlib import Path

import numpy as np

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


_short = reprlib.repr  # of tuples that hold one another twice, sixty deep, too


class _PickledDtype:
    """Stands for ``numpy.dtype`` while a pickle is read."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def array(self, shape: tuple, is_fortran: bool, data: bytes | str) -> np.ndarray:
        if not isinstance(self.code, str) or self.code not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of type {_short(self.code)}, expected numbers")
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
        raise pickle.UnpicklingError(f"bytes encoded as {_short(encoding)}, expected latin1")
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

    def _load_dict(self) -> None:
        self._check_keys(self.stack)  # since the mark
        self.load_dict()

    def _load_item(self) -> None:
        self._check_keys(self.stack[-2:])
        self.load_setitem()

    def _load_items(self) -> None:
        self._check_keys(self.stack)
        self.load_setitems()

    @staticmethod
    def _check_keys(items: list) -> None:
        """Hashing tuples that hold one another twice, sixty deep, would take for ever."""
        if not all(isinstance(key, (str, bytes, int, float)) for key in items[::2]):
            raise pickle.UnpicklingError("a dict whose keys are not text or numbers")

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
    }
    for _opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        del dispatch[_opcode[0]]  # sets hash what they hold

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
        stored = path.read_bytes()
        content = _ArrayUnpickler(io.BytesIO(stored), encoding="latin1").load()
        return _with_arrays(content, {}, [len(stored)])
    except FileNotFoundError:
        raise
    except Exception as error:  # a pickle can fail in any way; none of them is this program's fault
        raise ValueError(
            f"{path}: not a pickle of numpy arrays and plain containers ({error}); it was not "
            "loaded, since other pickles can run code. Get the file again from its publisher."
        ) from error


def _with_arrays(content: object, done: dict[int, object], left: list[int]) -> object:
    """The content with arrays in place of their stand-ins; ``done``: one visit each; ``left``:
    bytes that arrays may still take, in all as many as the file has: a thousand may name one."""
    if id(content) not in done:
        if isinstance(content, _PickledArray):
            result = content.build()
            left[0] -= result.nbytes
            if left[0] < 0:
                raise pickle.UnpicklingError("its arrays are larger than the file")
        elif isinstance(content, dict):
            result = {key: _with_arrays(value, done, left) for key, value in content.items()}
        elif isinstance(content, (list, tuple)):
            result = type(content)(_with_arrays(item, done, left) for item in content)
        else:
            result = content
        done[id(content)] = result
    return done[id(content)]
