"""Where the tests find what is not part of the repository, and the small models they share.

The reference values of the published computation and the published assets are licensed data that
this repository does not contain. Tests that need them skip, saying so, where they are absent.
"""

import atexit
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from scipy.spatial import Delaunay

from utils import assets, training_log
from utils.augmentation import MIRRORED_LANDMARKS
from utils.cli import run_script
from utils.morphable_model import MorphableModel, load_morphable_model

ROOT = Path(__file__).resolve().parents[1]
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "golden"))
ASSETS_DIR = Path(os.environ.get("ASSETS_DIR", ROOT.parent / "shared" / "assets"))

# the cache of exported networks, also of the programs that tests start, and their temporary folder:
# torchrun, and a browser that is killed, leave something there
_own = tempfile.mkdtemp(prefix="synergynet-tests-")
os.environ["XDG_CACHE_HOME"] = os.environ["TMPDIR"] = _own
atexit.register(shutil.rmtree, _own, ignore_errors=True)

for _name in ("SYNERGYNET_MAX_PIXELS", "MPLBACKEND"):  # of whoever runs the tests
    os.environ.pop(_name, None)

torch.set_num_threads(1)  # the networks here are small; threads would only wait for each other

# whatever published files lie in this checkout (`make published`), which win over the starter kit
assets.FACE_MODELS = (assets.STARTER_FACE_MODEL,)
assets.WEIGHTS = (assets.STARTER_WEIGHTS,)
assets.DETECTOR_WEIGHTS = (assets.STARTER_DETECTOR_WEIGHTS,)


def on_disk(name: str) -> str:
    """A file name as this Python spells its UTF-8 bytes: where the file system's encoding is not
    UTF-8 (LC_ALL=C with PYTHONUTF8=0), not by the characters that it is written in."""
    return os.fsdecode(name.encode())


def load_golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of one reference file; skips the test where the folder is absent."""
    if not GOLDEN_DIR.is_dir():
        pytest.skip(f"reference values not present: {GOLDEN_DIR}")
    with np.load(GOLDEN_DIR / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def asset(*parts: str) -> Path:
    """Path of one published asset; skips the test where the folder is absent."""
    if not ASSETS_DIR.is_dir():
        pytest.skip(f"published assets not present: {ASSETS_DIR}")
    return ASSETS_DIR.joinpath(*parts)


# ------------------------------------------------------------------ a tiny made-up face model


def tiny_face_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A face model of 150 vertices, 68 of them landmarks, under the published names.

    Mean and bases are random but smooth, and symmetric: mirroring maps the model onto itself.
    Lengths are micrometres and coefficients some 10,000, as in the published model.
    """
    rng = np.random.default_rng(seed)
    partner = np.concatenate([MIRRORED_LANDMARKS, np.arange(68, 150) ^ 1])
    x = -rng.uniform(8, 70, 150)
    y = rng.uniform(-90, 90, 150)
    y[[8, 30]] = np.sort(y[[8, 30]])  # the chin, the tip of the nose
    second, middle = partner < np.arange(150), partner == np.arange(150)
    x[second], y[second] = -x[partner[second]], y[partner[second]]
    x[middle] = 0
    mean = np.stack([x, y, 60 * np.cos(x / 70) * np.cos(y / 90)], 1)  # (150, 3) millimetres

    flip = np.array([-1.0, 1.0, 1.0])
    fields = []
    for i in range(51):
        waves, phases = rng.normal(size=(3, 3)) / 60, rng.uniform(0, 6, 3)
        plain, mirrored = (np.sin(points @ waves + phases) for points in (mean, mean * flip))
        sign = -1 if i % 5 == 4 else 1  # every fifth direction is a skew one
        fields.append((plain + sign * flip * mirrored) / 4)
    fields = np.stack(fields, -1)  # (150, 3, 51)

    order = rng.permutation(150)  # landmarks anywhere among the vertices
    landmarks = np.argsort(order)[:68]
    mean, fields = mean[order], fields[order].reshape(450, 51)
    interleaved = 1000 * mean.reshape(450, 1)
    expression = 500 * fields[:, 50:]
    camera = np.array([[4.5e-4, 0, 0, 60], [0, 4.5e-4, 0, 60], [0, 0, 4.5e-4, 0]]).ravel()
    spread = np.array([[1e-4, 1e-4, 1e-4, 8]] * 3).ravel()
    triangles = Delaunay(mean[:, :2]).simplices[:, [0, 2, 1]]  # clockwise, as published
    kept = np.sort(rng.permutation(150)[:120])
    arrays = {
        "u_shp": interleaved - expression,
        "u_exp": expression,
        "w_shp_sim": fields[:, :40],
        "w_exp_sim": fields[:, 40:50],
        "param_mean": np.concatenate([camera, rng.normal(scale=100, size=50)]),
        "param_std": np.concatenate([spread, rng.uniform(5e3, 2e4, 50)]),
        "uv": (mean[:, :2] / [70, 90] + 1) / 2,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {
        "keypoints_sim": (3 * landmarks[:, None] + np.arange(3)).ravel(),
        "tri": triangles.T + 1,
        "keptInd": kept,
        "deletedTri": Delaunay(mean[kept, :2]).simplices[:, [0, 2, 1]].T + 1,
    }


def write_face_folder(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Writes a face model's arrays in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    whitening = {name: arrays[name] for name in ("param_mean", "param_std")}
    (folder / "param_whitening.pkl").write_bytes(pickle.dumps(whitening))
    scipy.io.savemat(folder / "tri.mat", {"tri": arrays["tri"]})
    for name, array in arrays.items():
        if name not in (*whitening, "tri"):
            np.save(folder / f"{'BFM_UV' if name == 'uv' else name}.npy", array)
    return folder


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory) -> Path:
    """The tiny face model in the published layout."""
    return write_face_folder(tmp_path_factory.mktemp("face") / "3dmm_data", tiny_face_arrays())


@pytest.fixture(scope="session")
def face_npz(tmp_path_factory) -> Path:
    """The tiny face model as one .npz file."""
    path = tmp_path_factory.mktemp("face") / "face.npz"
    np.savez(path, **tiny_face_arrays())
    return path


@pytest.fixture(scope="session")
def face_model(face_folder) -> MorphableModel:
    return load_morphable_model(face_folder)


@pytest.fixture(scope="session")
def parameters(face_model) -> np.ndarray:
    """(6, 62) float32 parameters, not whitened, of faces within the crop."""
    whitened = 0.5 * np.random.default_rng(1).normal(size=(6, 62))
    return face_model.dewhiten(whitened.astype(np.float32))


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """Training draws none: that takes longer than the training of a few small faces."""
    monkeypatch.setattr(training_log, "draw_curves", lambda rows, path: path.touch())


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Torch's random numbers are those of the test alone, whatever ran before it."""
    torch.manual_seed(0)


class Evil:
    """Leaves a file behind when it is unpickled carelessly."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def call(capsys):
    """``call(main, *arguments)`` of a script: its exit code and all that it printed."""

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str]:
        try:
            run_script(lambda: main([str(argument) for argument in arguments]))
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def exit_code(main: Callable[[list[str]], int | None], *arguments: object) -> int:
    """A script's, run as from the command line: wrong input is a line on stderr, not an error."""
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: main([str(argument) for argument in arguments]))
    return ended.value.code or 0


def run_python(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """A Python of its own, in the checkout, its output as text; killed after five minutes."""
    command = [sys.executable, *map(str, arguments)]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300} | options
    return subprocess.run(command, **options)


def build_sanitized(program: Path, sanitizers: str, folder: str, sources: list[str]) -> None:
    """Compiles C++ with sanitizers; skips the test where there is no compiler that has them."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    build = [compiler, "-std=c++17", "-g1", "-O0", "-pthread", "-I", folder, "-o", program]
    build += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-ffp-contract=off"]
    english = os.environ | {"LC_ALL": "C"}  # what the linker misses is read from its message
    done = subprocess.run([*build, *sources], cwd=ROOT, env=english, capture_output=True, text=True)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip(f"{compiler} has no sanitizer libraries")
    assert done.returncode == 0, done.stderr
