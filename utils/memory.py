"""Keeping freed memory for reuse, and recognising out-of-memory errors."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's malloc.h
_CV_NO_MEMORY = -4  # cv2.Error.StsNoMem
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Failed to allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",  # cuBLAS and cuDNN 8, for what they need themselves
    "ALLOCATION_FAILED",  # cuDNN 9
)


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory for reuse, for the rest of the process.

    glibc asks the system for every large array anew and gives it back when it is freed; the system
    clears each of its pages again. A training step on the CPU allocates gigabytes of activations of
    the same sizes every time and spends a tenth of its time or more on that. Call it once, before
    the first step: from then on the process never shrinks, and stays as large as at its largest.

    Returns:
        Whether it took effect; False on systems without glibc, where nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return False
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, -1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy, OpenCV, ONNX Runtime or torch (GPU or CPU) found no more memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if type(error).__module__ == "cv2":
        return getattr(error, "code", None) == _CV_NO_MEMORY
    # MPS, the CPU's allocator and ONNX Runtime have no kind of error of their own.
    is_runtime = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return is_runtime and any(text in str(error) for text in _NO_MEMORY)
