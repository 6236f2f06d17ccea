"""Networks in ONNX Runtime: exported once from weights at hand, from then on opened without torch.

    weights file --PyTorch, the first time--> ONNX graph, compared with PyTorch --> cache file
    cache file   --every other time---------> OnnxNetwork, a function from numpy to numpy

Cache files of weights in ``pretrained/`` and ``FaceBoxes/weights/`` lie in ``.onnx_cache/`` beside
them, if that can be written; all others in the user's cache folder, since a folder of weights from
somebody else may bring a cache, which is not compared with them again. Their names are
``WEIGHTS.KEY.CHECKSUM.onnx``: the key stands for the content of the weights, the code of the
networks and of their export, and the version of ONNX Runtime; the checksum is the file's own. So
where weights, code or ONNX Runtime have changed, networks are exported anew, and a damaged file is
not used. Deleting a cache file only costs the time to make it.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import assets
from utils.cores import cpu_threads
from utils.errors import UnavailableError, first_line
from utils.files import atomic_write, read_weights_file
from utils.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

OPSET = 17  # tried with ONNX Runtime from 1.15 on
# The code that an exported graph depends on, below the repository's folder.
SOURCES = (
    "backbone_nets/*.py",
    "model_building.py",
    "FaceBoxes/network.py",
    "utils/checkpoint.py",
    "utils/onnx_engine.py",
    "utils/precision.py",
)
TOLERANCE = 1e-4  # allowed difference to PyTorch, of the largest magnitude
CACHE_FOLDER = ".onnx_cache"

# Before it is imported: else the wheels from 1.29 on keep an identifier and a record of each run in
# the user's cache folder and send them to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

logger = logging.getLogger(__name__)
_EXPORTING = threading.Lock()  # PyTorch's exporter keeps state of its own
# While the import of onnxruntime fails in one thread, another gets a module that is empty.
_IMPORTING = threading.Lock()


class ExportError(UnavailableError):
    """This machine cannot run the network in ONNX Runtime; the reason is the message."""


class OnnxNetwork:
    """An ONNX graph as a function of numpy arrays; threads may share it.

    Args:
        graph: content of an ``.onnx`` file.
        threads: how many work on one call; ``utils.cores.cpu_threads()`` if None.
    """

    def __init__(self, graph: bytes, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpu_threads()
        options.log_severity_level = 3  # errors
        # Idle threads sleep: spinning ones slow down whatever else runs, such as our other network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]

    @property
    def metadata(self) -> dict[str, str]:
        """What ``export_onnx`` wrote into the graph."""
        return self._session.get_modelmeta().custom_metadata_map

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """The outputs, in their order, of one batch: an array for each input, in their order."""
        return self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))


def missing_packages() -> list[str]:
    """Which of the packages that this module needs are not installed."""
    return [n for n in ("onnxruntime", "onnx") if importlib.util.find_spec(n) is None]


# ------------------------------------------------------------------------------------- the cache


def open_network(
    weights: str | os.PathLike,
    export: Callable[[], bytes],
    expected: dict[str, str],
    threads: int | None = None,
) -> OnnxNetwork:
    """The network of a weights file: from the cache, or exported now and kept for the next time.

    Several processes may do this at once: each file appears under its name complete or not at all.

    Args:
        weights: the file that the network's weights are in.
        export: makes the graph from them, checks included; called where no cache file fits.
        expected: metadata that a cache file must have; ``network`` is the network's name.
        threads: as for ``OnnxNetwork``.

    Raises:
        FileNotFoundError: there are no such weights.
        ExportError: ONNX Runtime is installed, but does not load.
        UnavailableError: no cache file fits, and there is no torch to export.
        Exception: whatever ``export`` raises.
    """
    try:
        with _IMPORTING:
            import onnxruntime

            version = onnxruntime.__version__
    except Exception as error:  # half removed, or made for another system
        raise ExportError(
            f"onnxruntime does not load ({first_line(error)}); use the torch engine"
        ) from error

    weights = Path(weights)
    digest = hashlib.blake2b(read_weights_file(weights), digest_size=8)
    digest.update(f"|{version}|{code_digest()}".encode())  # another version may not read it
    key = digest.hexdigest()

    folders = cache_folders(weights)
    for folder in folders:
        for path in _cache_files(folder, weights.name, key):
            network = _open_file(path, threads)
            if network is not None and expected.items() <= network.metadata.items():
                return network
    if importlib.util.find_spec("torch") is None:
        tried = " or ".join(map(str, folders)) or "a cache folder (XDG_CACHE_HOME names one)"
        raise UnavailableError(
            f"{expected['network']}: not exported yet for ONNX Runtime {version}, which takes "
            f"torch; make a model where torch is, and copy what that writes into {tried}"
        )
    logger.warning("exporting %s for ONNX Runtime, once for these weights", expected["network"])
    with _EXPORTING:
        graph = export()
    _store(graph, folders, weights.name, key)
    return OnnxNetwork(graph, threads)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Of ``SOURCES``."""
    digest = hashlib.blake2b(digest_size=8)
    for pattern in SOURCES:
        for path in sorted(assets.ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folders(weights: Path) -> list[Path]:
    """Where the cache files of a weights file may lie, best place first."""
    beside = weights.resolve().parent
    own = {path.parent for path in (assets.STARTER_WEIGHTS, assets.STARTER_DETECTOR_WEIGHTS)}
    folders = [beside / CACHE_FOLDER] if beside in own else []
    try:
        users = _user_cache()
    except RuntimeError:  # no home, as of users that a container does not know
        return folders
    # weights of the same name in different folders must not replace each other
    place = hashlib.blake2b(os.fsencode(beside), digest_size=4).hexdigest()
    return [*folders, users / "synergynet" / place]


def _user_cache() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(chosen):  # by its specification others do not count
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path.home() / ".cache"


def _cache_files(folder: Path, name: str, key: str = "[0-9a-f]{16}") -> list[Path]:
    """Cache files of the weights called ``name``: those of one key, or all."""
    pattern = re.compile(rf"{re.escape(name)}\.{key}\.[0-9a-f]{{8}}\.onnx")
    try:
        return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]
    except OSError:  # no such folder, or closed to us
        return []


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _open_file(path: Path, threads: int | None) -> OnnxNetwork | None:
    """The network of a cache file; None where the file is damaged or has just been removed."""
    try:
        graph = path.read_bytes()
    except OSError:
        return None
    if path.name.split(".")[-2] != _checksum(graph):
        return None
    try:
        return OnnxNetwork(graph, threads)
    except Exception as error:  # whole, but nothing that this ONNX Runtime opens
        if is_out_of_memory(error):
            raise
        return None


def _store(graph: bytes, folders: Sequence[Path], name: str, key: str) -> None:
    """Writes a cache file into the first folder that takes it; removes those it replaces."""
    for folder in folders:
        path = folder / f"{name}.{key}.{_checksum(graph)}.onnx"
        try:
            with atomic_write(path) as file:
                file.write(graph)
        except OSError:
            continue
        for old in _cache_files(folder, name):
            if old != path:
                try:
                    old.unlink(missing_ok=True)
                except OSError:  # in use, on some systems: it goes another time
                    logger.info("%s: replaced, but could not be removed", old)
        return
    tried = ", ".join(map(str, folders)) or "none: there is no home, and no XDG_CACHE_HOME"
    logger.warning("no folder takes the exported network (tried %s): every run exports", tried)


# ------------------------------------------------------------------------------------- the export


def random_pictures(
    shapes: Sequence[tuple[int, int, int]], scale: float, offset: float
) -> list[torch.Tensor]:
    """Samples (B, 3, H, W) for ``export_onnx``, one for each (B, H, W): float32 on the CPU, uniform
    from ``offset`` to ``offset + scale``, the same at each call."""
    import torch

    plain = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float32, "device": "cpu"}
    return [torch.rand(n, 3, h, w, **plain) * scale + offset for n, h, w in shapes]


def export_onnx(
    module: torch.nn.Module,
    samples: Sequence[torch.Tensor | tuple[torch.Tensor, ...]],
    outputs: Sequence[str],
    dynamic: dict[str, dict[int, str]],
    metadata: dict[str, str],
    reference: torch.nn.Module | None = None,
    inputs: Sequence[str] = ("images",),
) -> bytes:
    """A PyTorch network as an ONNX graph, batch norm folded, compared with PyTorch.

    Args:
        module: tensors in, a tuple of tensors out; it is put into evaluation mode.
        samples: inputs that the two are compared on, a tensor or, for several inputs, a tuple of
            them each; the first is traced. Give different sizes along the dynamic axes.
        outputs: their names.
        dynamic: for each input and output, the axes of varying size and what they are called.
        metadata: to be stored in the graph.
        reference: what to compare with, where ``module`` is a rewritten form of it.
        inputs: their names.

    Raises:
        ExportError: this machine's PyTorch cannot do it, or the ``onnx`` package is missing.
        UnavailableError: the graph computes something else.
    """
    import torch

    from utils.precision import full_precision

    reference = (reference or module).eval()
    module.eval()
    file = io.BytesIO()
    try:
        import onnx

        cpu = torch.device("cpu")
        with warnings.catch_warnings(), cpu, full_precision(cpu), torch.no_grad():
            # TorchScript's exporter warns that it is to be replaced; the other one (dynamo) takes
            # ten times as long (20 s) and needs further packages.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                _as_tuple(samples[0]),
                file,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=dynamic,
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # another version of PyTorch may fail in any way
        raise ExportError(
            f"the ONNX export failed ({first_line(error)}); use the torch engine"
        ) from error
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, metadata)
    graph = _simplified(model.SerializeToString())

    compare_with_torch(OnnxNetwork(graph), reference, samples, outputs)
    return graph


def _as_tuple(sample: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return sample if isinstance(sample, tuple) else (sample,)


def compare_with_torch(
    network: Callable[..., Sequence[np.ndarray]],
    reference: torch.nn.Module,
    samples: Sequence[torch.Tensor | tuple[torch.Tensor, ...]],
    outputs: Sequence[str],
) -> None:
    """Raises UnavailableError where the network is further from the truth than PyTorch in float32.

    The truth is PyTorch in float64: some networks amplify rounding beyond any fixed tolerance.

    Args:
        network: the exported form, an ``OnnxNetwork`` or what is called like one.
        reference, samples, outputs: as for ``export_onnx``.
    """
    import torch

    from utils.precision import full_precision

    exact = copy.deepcopy(reference).double()
    for sample in samples:
        tensors = _as_tuple(sample)
        with full_precision(tensors[0].device), torch.inference_mode():
            theirs = [tensor.numpy() for tensor in reference(*tensors)]
            truth = [tensor.numpy() for tensor in exact(*(tensor.double() for tensor in tensors))]
        ours = network(*(tensor.numpy() for tensor in tensors))
        results = zip(outputs, ours, theirs, truth, strict=True)
        for name, our, their, true in results:
            rounding = float(np.abs(their - true).max(initial=0))
            allowed = max(TOLERANCE * float(np.abs(true).max(initial=0)), 2 * rounding)
            if our.shape != true.shape or not (np.abs(our - true) <= allowed).all():
                raise UnavailableError(
                    f"the exported network disagrees with PyTorch in {name} on an input of shape "
                    f"{tuple(tensors[0].shape)} by more than {allowed:g}: use the torch engine, "
                    "and please report it"
                )


def _simplified(graph: bytes) -> bytes:
    """Constants folded, by ONNX Runtime's own optimiser; still plain ONNX that runs anywhere.

    Opening it takes a quarter less time. Optimisations for one processor are left to the opening.
    Where nothing can be written, not even temporary files, the graph stays as it is.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: what fails here fails again, and is told, when opened
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            options.optimized_model_filepath = str(path)
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            model = onnx.load(path)
    except Exception as error:  # of a full disk ONNX Runtime says only "serialization failed"
        if is_out_of_memory(error):
            raise
        return graph
    # The optimiser names all domains that it knows, in its own versions, which older releases
    # refuse; no node is of them.
    used = {node.domain for node in model.graph.node}
    for opset in [o for o in model.opset_import if o.domain not in used]:
        model.opset_import.remove(opset)
    return model.SerializeToString()
