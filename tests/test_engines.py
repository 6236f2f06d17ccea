"""The ONNX Runtime engine: the same numbers as PyTorch, a cache that is never wrong, no torch."""

import contextlib
import importlib.util
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_python, tiny_face_arrays
from reference import deterministic_state_dict

import utils.onnx_engine as onnx_engine
from FaceBoxes import FaceBoxes
from FaceBoxes.anchors import anchors
from FaceBoxes.network import FaceBoxesNet, TorchEngine
from model_building import SynergyNet as Network
from model_building import load_synergynet
from synergy3DMM import SynergyNet
from utils import assets, cores, evaluation, runtime
from utils.checkpoint import write_checkpoint
from utils.cores import cpu_threads
from utils.errors import UnavailableError, first_line
from utils.morphable_model import load_morphable_model
from utils.onnx_engine import ExportError, cache_folders, export_onnx
from utils.runtime import OnnxRegressor, TorchRegressor, choose_device, choose_engine

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnx", reason="the onnx package is not installed")

CROPS = np.random.default_rng(0).uniform(-1, 1, (5, 3, 120, 120)).astype(np.float32)


def write_weights(path: Path, face_model, backbone: str = "mobilenet_025", seed: int = 0) -> Path:
    network = Network(face_model, backbone)
    network.load_state_dict(deterministic_state_dict(network.state_dict(), seed))
    write_checkpoint(path, network.checkpoint())
    return path


@pytest.fixture
def weights(face_model, tmp_path, monkeypatch) -> Path:
    """A small network's checkpoint in a folder of its own, with a cache of its own: older pytests
    give the next test a folder of the same name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_weights(tmp_path / "weights" / "w.pth.tar", face_model)


@pytest.fixture(scope="module")
def detector_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "d.pth"
    state = deterministic_state_dict(FaceBoxesNet().state_dict(), 5)
    for i in range(3):  # outputs as mild as a trained network's
        state[f"loc.{i}.weight"] *= 0.02
        state[f"conf.{i}.weight"] *= 0.02
    torch.save(state, path)
    return path


@pytest.fixture
def exports(monkeypatch) -> list:
    """Gets an entry for every export."""
    done, real = [], onnx_engine._simplified

    def counted(graph: bytes) -> bytes:
        done.append(len(graph))
        return real(graph)

    monkeypatch.setattr(onnx_engine, "_simplified", counted)
    return done


def files(weights: Path) -> list[Path]:
    return sorted(cache_folders(weights)[0].iterdir())


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)


# ------------------------------------------------------------------------------------ same numbers


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18", "ghostnet"])
def test_families_equal_torch(face_model, tmp_path, backbone):
    path = write_weights(tmp_path / "w.pth", face_model, backbone)
    ours = OnnxRegressor(path, face_model)
    theirs = TorchRegressor(load_synergynet(path, face_model), "cpu")
    for batch in (1, 5):
        found = ours(CROPS[:batch])
        assert found.shape == (batch, 62) and found.dtype == np.float32
        close(found, theirs(CROPS[:batch]))


def test_many_crops_go_through_in_parts(face_model, weights, monkeypatch):
    regressor = OnnxRegressor(weights, face_model)
    whole = regressor(CROPS)
    sizes, network = [], regressor.network
    monkeypatch.setattr(OnnxRegressor, "BATCH", 2)
    monkeypatch.setattr(
        regressor, "network", lambda crops: sizes.append(len(crops)) or network(crops)
    )
    np.testing.assert_allclose(regressor(CROPS), whole, atol=1e-5)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("size", [(1, 1), (97, 64), (200, 333)])
def test_detector_equals_torch(detector_weights, size):
    detector = FaceBoxes(detector_weights, engine="onnx", top_k=100)
    images = np.random.default_rng(1).uniform(-120, 150, (2, 3, *size)).astype(np.float32)
    for ours, theirs in zip(
        detector.engine(images), TorchEngine(detector_weights)(images), strict=True
    ):
        assert ours.shape[:2] == (2, len(anchors(*size)))
        close(ours, theirs)


def test_whole_pipeline_equals_torch():
    image = cv2.imread(str(ROOT / "img" / "astronaut.jpg"))
    faces = [SynergyNet(device="cpu", engine=engine)(image) for engine in ("onnx", "torch")]
    assert len(faces[0]) == len(faces[1]) == 1
    ours, theirs = faces[0][0], faces[1][0]
    np.testing.assert_allclose(ours.box, theirs.box, atol=0.01)
    np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=0.01)
    np.testing.assert_allclose(ours.vertices, theirs.vertices, atol=0.01)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_calling_programs_defaults_of_torch_do_not_matter(
    face_model, weights, detector_weights, engine, monkeypatch
):
    def outputs() -> list[np.ndarray]:
        regressor = runtime.open_regressor(engine, weights, face_model, "cpu")
        detector = FaceBoxes(detector_weights, engine=engine)
        return [regressor(CROPS), *detector.engine(CROPS)]

    monkeypatch.setattr(onnx_engine, "_cache_files", lambda *_: [])  # export each time
    expected, numbers = outputs(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")  # stands for a GPU: what is made there cannot be read
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = outputs()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_the_benchmark_scores_both_engines_alike(face_model, weights):
    cpu = torch.device("cpu")
    ours, theirs = (
        evaluation.NETWORKS[engine](weights, face_model, cpu)(CROPS) for engine in ("onnx", "torch")
    )
    for name, expected in theirs._asdict().items():
        close(getattr(ours, name), expected)
    assert np.abs(theirs.refined - theirs.landmarks).max() > 0


def test_another_result_than_torchs_is_an_error():
    class Undecided(torch.nn.Module):
        def forward(self, x):
            return (x * 2 if torch.jit.is_tracing() else x,)

    with pytest.raises(RuntimeError, match=r"disagrees with PyTorch in y .*\(1, 3\)"):
        export_onnx(Undecided(), [torch.ones(1, 3)], ("y",), {}, {"network": "it"})


# --------------------------------------------------------------------------------------- the cache
# Of several processes at once: test_faults.py.


def test_one_export_for_the_same_weights(face_model, weights, exports):
    for _ in range(3):
        OnnxRegressor(weights, face_model)
    assert len(exports) == 1 and len(files(weights)) == 1


def test_other_weights_are_exported_anew_and_the_old_file_goes(face_model, weights, exports):
    first = OnnxRegressor(weights, face_model)(CROPS)
    (old,) = files(weights)
    write_weights(weights, face_model, seed=9)
    second = OnnxRegressor(weights, face_model)(CROPS)
    (new,) = files(weights)
    assert len(exports) == 2 and new != old
    assert np.abs(first - second).max() > 1e-3
    close(second, TorchRegressor(load_synergynet(weights, face_model), "cpu")(CROPS))


def test_no_memory_for_the_detector_is_one_line(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FaceBoxesNet, "to", full)
    with pytest.raises(UnavailableError, match="cpu: no memory for the network .CUDA out of mem"):
        FaceBoxes(engine="torch")


@pytest.mark.parametrize("name", ["backbone_nets/mobilenet_v2.py", "utils/checkpoint.py"])
def test_changed_code_is_exported_anew(face_model, weights, exports, monkeypatch, tmp_path, name):
    OnnxRegressor(weights, face_model)
    for pattern in onnx_engine.SOURCES:  # the same code elsewhere
        for path in assets.ROOT.glob(pattern):
            copy = tmp_path / path.relative_to(assets.ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
    monkeypatch.setattr(assets, "ROOT", tmp_path)
    onnx_engine.code_digest.cache_clear()
    try:
        OnnxRegressor(weights, face_model)
        assert len(exports) == 1
        with open(tmp_path / name, "a") as file:  # the network; what is taken for its backbone
            file.write("# another\n")
        onnx_engine.code_digest.cache_clear()
        OnnxRegressor(weights, face_model)
    finally:
        onnx_engine.code_digest.cache_clear()
    assert len(exports) == 2 and len(files(weights)) == 1


def test_weights_of_similar_names_keep_their_files(face_model, weights, exports):
    for name in ("w.pth.tar", "w.pth.tar.old", "W+.tar"):
        other = weights.with_name(name)
        other.write_bytes(weights.read_bytes())
        OnnxRegressor(other, face_model)
    for name in ("w.pth.tar", "w.pth.tar.old", "W+.tar"):
        OnnxRegressor(weights.with_name(name), face_model)
    assert len(exports) == 3 and len(files(weights)) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_is_replaced(face_model, weights, exports, damage):
    whole = OnnxRegressor(weights, face_model)(CROPS)
    (path,) = files(weights)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    damaged = {"cut": content[:-9], "flipped": content, "empty": b"", "text": b"no graph"}
    path.write_bytes(damaged[damage])
    np.testing.assert_array_equal(OnnxRegressor(weights, face_model)(CROPS), whole)
    assert len(exports) == 2 and len(files(weights)) == 1
    OnnxRegressor(weights, face_model)
    assert len(exports) == 2


def test_a_folder_that_cannot_be_written(face_model, weights, exports, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "STARTER_WEIGHTS", weights)  # so that both places are tried
    beside, users = cache_folders(weights)
    beside.write_text("a file in the folder's place")
    assert users.is_relative_to(os.environ["XDG_CACHE_HOME"])
    for _ in range(2):
        OnnxRegressor(weights, face_model)
    assert len(exports) == 1 and len(list(users.iterdir())) == 1


def test_a_cache_that_strange_weights_bring_is_not_opened(face_model, weights, exports):
    whole = OnnxRegressor(weights, face_model)(CROPS)
    (cached,) = files(weights)
    brought = weights.parent / ".onnx_cache"
    shutil.move(cached.parent, brought)
    np.testing.assert_array_equal(OnnxRegressor(weights, face_model)(CROPS), whole)
    assert len(exports) == 2 and [path.name for path in brought.iterdir()] == [cached.name]


def test_no_folder_at_all(face_model, weights, exports, tmp_path, monkeypatch, caplog):
    closed = tmp_path / "file"
    closed.write_text("")
    monkeypatch.setattr(onnx_engine, "cache_folders", lambda weights: [closed, closed / "deeper"])
    assert OnnxRegressor(weights, face_model)(CROPS).shape == (5, 62)
    assert f"(tried {closed}, {closed / 'deeper'}): every run exports" in caplog.text


def test_a_system_without_a_place_for_temporary_files(face_model, weights, monkeypatch):
    def no_place() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(onnx_engine.tempfile, "TemporaryDirectory", no_place)
    ours = OnnxRegressor(weights, face_model)(CROPS)
    close(ours, TorchRegressor(load_synergynet(weights, face_model), "cpu")(CROPS))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_a_full_disk_for_temporary_files(face_model, weights, tmp_path, monkeypatch):
    (tmp_path / "graph.onnx").symlink_to("/dev/full")
    place = contextlib.nullcontext(str(tmp_path))
    monkeypatch.setattr(onnx_engine.tempfile, "TemporaryDirectory", lambda: place)
    ours = OnnxRegressor(weights, face_model)(CROPS)
    close(ours, TorchRegressor(load_synergynet(weights, face_model), "cpu")(CROPS))


def test_weights_of_another_face_model_are_refused_with_a_warm_cache(face_model, weights, tmp_path):
    np.savez(tmp_path / "other.npz", **tiny_face_arrays(seed=1))
    other = load_morphable_model(tmp_path / "other.npz")
    OnnxRegressor(weights, face_model)
    with pytest.raises(ValueError, match=f"{face_model.fingerprint}.*{other.fingerprint}"):
        OnnxRegressor(weights, other)
    OnnxRegressor(weights, face_model)


def test_the_cache_file_of_another_network_is_not_taken(face_model, detector_weights):
    FaceBoxes(detector_weights, engine="onnx")
    with pytest.raises(ValueError, match="not the weights of this SynergyNet"):
        OnnxRegressor(detector_weights, face_model)


def test_missing_weights(face_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: no weights there"):
        OnnxRegressor(tmp_path / "nothing.pth", face_model)


# -------------------------------------------------------------------------------------- the choice


def test_auto_is_onnx_on_the_cpu(monkeypatch):
    assert choose_engine("auto", "cpu") == ("onnx", "cpu")
    assert choose_engine("onnx", "auto") == ("onnx", "cpu")
    assert choose_engine("torch", "cpu") == ("torch", "cpu")
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cuda", 1))
    assert choose_engine("auto", "cuda:1") == ("torch", "cuda:1")
    monkeypatch.setattr(runtime, "_may_have_accelerator", lambda: True)
    assert choose_engine("auto", "auto") == ("torch", "cuda:1")
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cpu"))
    assert choose_engine("auto", "auto") == ("onnx", "cpu")


def test_without_the_packages_it_is_torch(monkeypatch, face_npz, weights, detector_weights):
    monkeypatch.setattr(runtime, "missing_packages", lambda: ["onnxruntime"])
    assert choose_engine("auto", "cpu") == ("torch", "cpu")
    with pytest.raises(RuntimeError, match="pip install onnxruntime"):
        choose_engine("onnx", "cpu")
    model = SynergyNet(weights, face_npz, detector_weights, "cpu")
    assert "engine torch, device cpu" in model.description


def test_without_torch_what_is_exported_runs(monkeypatch, face_npz, weights, detector_weights):
    find = importlib.util.find_spec
    own = SynergyNet(weights, face_npz, detector_weights, "cpu")  # into the cache
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "torch" else find(n))
    with monkeypatch.context() as patch:  # on a machine with a GPU
        patch.setattr(runtime, "_may_have_accelerator", lambda: True)
        patch.setitem(sys.modules, "torch", None)
        assert choose_engine() == ("onnx", "cpu")
        for options in (("auto", "cuda"), ("torch", "auto")):
            with pytest.raises(UnavailableError, match="pip install torch"):
                choose_engine(*options)
    assert SynergyNet(weights, face_npz, detector_weights, "cpu").engine == own.engine == "onnx"
    weights.write_bytes(weights.read_bytes() + b"\0")  # other content: not in the cache
    for device in ("auto", "cpu"):
        with pytest.raises(UnavailableError, match="SynergyNet: not exported yet .* copy"):
            SynergyNet(weights, face_npz, detector_weights, device, engine="onnx")
    with pytest.raises(UnavailableError, match="pip install torch"):
        SynergyNet(weights, face_npz, detector_weights, "cpu", engine="torch")


def test_packages_that_do_not_load_are_told_and_torch_takes_over(
    monkeypatch, tmp_path, face_npz, weights, detector_weights
):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('DLL load failed')")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = SynergyNet(weights, face_npz, detector_weights, "cpu")
    assert "engine torch (onnxruntime does not load (DLL load failed)" in model.description
    with pytest.raises(RuntimeError, match="DLL load failed"):
        SynergyNet(weights, face_npz, detector_weights, "cpu", engine="onnx")


def test_a_device_that_fails_without_a_word_is_named(monkeypatch):
    def fail(*size, device):
        raise MemoryError

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(RuntimeError, match=r"device 'cpu' does not work here \(MemoryError\)"):
        choose_device("cpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("  a\nb"), "a"), (ValueError("\n"), "ValueError"), (KeyError(), "KeyError")],
)
def test_the_first_line_of_an_error(error, said):
    assert first_line(error) == said


def test_a_cache_folder_of_the_current_folder_is_not_taken(monkeypatch, weights):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert all(folder.is_absolute() for folder in cache_folders(weights))


def test_a_user_without_a_home_has_the_cache_beside_our_own_weights_alone(monkeypatch, weights):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert cache_folders(weights) == []  # a stranger's folder may bring one
    beside = assets.STARTER_WEIGHTS.parent / ".onnx_cache"
    assert cache_folders(assets.STARTER_WEIGHTS) == [beside]


def test_onnx_runtime_keeps_no_record_of_who_runs_it(tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for name in ("CI", "ORT_DISABLE_TELEMETRY"):  # each would switch it off
        env.pop(name, None)
    done = run_python("-c", "import utils.onnx_engine, onnxruntime", env=env)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_choices(weights):
    with pytest.raises(ValueError, match="unknown engine 'tflite'"):
        choose_engine("tflite", "cpu")
    with pytest.raises(ValueError, match="on the CPU, not on 'cuda'"):
        choose_engine("onnx", "cuda")
    with pytest.raises(ValueError, match="unknown engine 'tflite'"):
        FaceBoxes(weights, engine="tflite")


def test_what_cannot_be_exported_runs_in_torch_and_says_so(
    monkeypatch, face_npz, weights, detector_weights
):
    def fail(*arguments, **options):
        raise TypeError("no such exporter any more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    own = detector_weights.read_bytes() + b"\0"  # other content: not in the cache
    path = weights.with_name("d.pth")
    path.write_bytes(own)
    model = SynergyNet(weights, face_npz, path, "cpu")
    assert "engine torch (the ONNX export failed (no such exporter any more)" in model.description
    assert type(model.pipeline.regressor) is TorchRegressor
    with pytest.raises(ExportError, match="no such exporter"):
        SynergyNet(weights, face_npz, path, "cpu", engine="onnx")


def test_the_number_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert cpu_threads() == 3
    for unusable in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert 1 <= cpu_threads() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert cpu_threads() == 1  # as `taskset` or a container leaves it


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 8), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 8), (None, 8)],
)
def test_the_cores_that_a_container_may_use(tmp_path, monkeypatch, limit, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "CONTAINER_LIMIT", tmp_path / "cpu.max")
    if limit:
        cores.CONTAINER_LIMIT.write_text(limit + "\n")
    assert cores.usable_cores() == expected
    assert cpu_threads() <= expected


# ---------------------------------------------------------------------------------- the cold start


def test_a_warm_run_imports_no_more_than_it_needs(tmp_path):
    code = (
        "import sys, singleImage\n"
        "code = singleImage.main(sys.argv[1:])\n"
        "loaded = {'torch', 'onnx', 'matplotlib', 'scipy', 'trimesh', 'PIL'} & set(sys.modules)\n"
        "sys.exit(code or ' '.join(loaded) or 0)"
    )
    photo = ["-f", "img/astronaut.jpg", "-o", str(tmp_path), "--device", "cpu"]
    SynergyNet(device="cpu", engine="onnx")  # warm
    done = run_python("-c", code, *photo, *assets.STARTER_OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine onnx" in done.stdout + done.stderr
    assert len(list(tmp_path.rglob("*.jpg"))) == 3


def test_one_thread_at_a_time_on_an_apple_gpu():
    apple = torch.device("mps")
    with runtime.alone_on(apple), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(runtime.alone_on(apple).acquire, blocking=False).result()
    assert runtime.alone_on(apple) is runtime.alone_on(apple)
    for name in ("cpu", "cuda"):
        with runtime.alone_on(torch.device(name)), runtime.alone_on(torch.device(name)):
            pass  # nobody waits


def test_an_accelerator_that_does_not_work_is_said_and_the_cpu_taken(monkeypatch, caplog):
    def fail(*size, device):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", fail)
    assert choose_device("auto") == torch.device("cpu")
    assert "no kernel image is available" in caplog.text and "going on with the CPU" in caplog.text
    with pytest.raises(UnavailableError, match="no kernel image"):
        choose_device("cuda")


def test_an_apple_gpu_needs_a_torch_that_knows_autocast_there(monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: kind != "mps")
    with pytest.raises(UnavailableError, match=r"needs torch 2\.5"):  # 2.4
        choose_device("mps")


def test_pictures_lie_plainly_on_an_apple_gpu():
    layouts = {name: runtime.picture_layout(name) for name in ("cpu", "cuda:1", "mps")}
    assert layouts.pop("mps") == torch.contiguous_format
    assert set(layouts.values()) == {torch.channels_last}
