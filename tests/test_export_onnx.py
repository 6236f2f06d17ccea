"""The exported files give what FacePipeline gives, for any batch, and need no torch."""

import contextlib
import io
import json
import os
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_python
from scipy.spatial.transform import Rotation

from model_building import SynergyNet as Network
from model_building import load_synergynet
from tools import export_onnx
from utils import assets
from utils.checkpoint import write_checkpoint
from utils.inference import FacePipeline
from utils.morphable_model import load_morphable_model
from utils.preprocessing import boxes_to_roi_boxes, crop_faces, normalize_crops
from utils.runtime import TorchRegressor

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

FORMS = ("onnx", "torchscript")
PHOTO = cv2.imread(str(ROOT / "img" / "astronaut.jpg"))
# The astronaut's face; the same off its place; far across the photo's left and upper edges.
BOXES = np.float32([[183, 59, 271, 180], [160.5, 80, 250, 190.25], [-60, -40, 80, 120]])
# Pixels and degrees. Seen: 3e-5 for whole runs, where the network's rounding counts, 1e-4 for the
# geometry at 1,000 pixels from the origin; the rest is room for other processors' kernels.
CLOSE = {
    "yaw_pitch_roll": 1e-3,
    "rotation": 1e-5,
    "scale": 1e-8,
    "translation": 1e-3,
    "landmarks": 1e-3,
    "vertices": 1e-3,
}


class Files:
    """The exported files of a folder, opened."""

    def __init__(self, folder: Path, told: str = "") -> None:
        self.folder, self.told = folder, told

    def session(self, graph: str):
        path = self.folder / f"synergynet_{graph}.onnx"
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def script(self, graph: str, extra: dict | None = None):
        with warnings.catch_warnings():
            # torch announces the end of torch.jit, which is what these files are for
            warnings.filterwarnings("ignore", r".*torch\.jit")
            path = self.folder / f"synergynet_{graph}.pt"
            return torch.jit.load(str(path), _extra_files=extra)

    def run(self, graph: str, form: str, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name; those of TorchScript have the names of the same ONNX graph."""
        session = self.session(graph)
        names = [tensor.name for tensor in session.get_outputs()]
        if form == "onnx":
            inputs = [tensor.name for tensor in session.get_inputs()]
            outputs = session.run(None, dict(zip(inputs, arrays, strict=True)))
        else:
            with torch.inference_mode():
                outputs = [t.numpy() for t in self.script(graph)(*map(torch.from_numpy, arrays))]
        return dict(zip(names, outputs, strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    """Everything, exported once from the weights at hand (published or starter)."""
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert export_onnx.main(["-o", str(folder)]) == 0
    return Files(folder, told.getvalue())


@pytest.fixture(scope="module")
def model_3d():
    return load_morphable_model(assets.find_face_model())


@pytest.fixture(scope="module")
def pipeline(model_3d) -> FacePipeline:
    network = load_synergynet(assets.find_weights(), model_3d)
    return FacePipeline(None, TorchRegressor(network, "cpu"), model_3d)


@pytest.fixture
def small(face_npz, face_model, tmp_path) -> list[str]:
    """Options that export a small network with the tiny face model."""
    torch.manual_seed(0)
    write_checkpoint(tmp_path / "w.pth", Network(face_model, "mobilenet_025").checkpoint())
    return ["-w", str(tmp_path / "w.pth"), "--face-model", str(face_npz)]


def crops_and_roi_boxes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    roi_boxes = boxes_to_roi_boxes(boxes)
    return crop_faces(PHOTO, roi_boxes), roi_boxes.astype(np.float32)


@pytest.fixture
def run_wrongly(call):
    """What is on the screen of a run that ends as wrong usage."""

    def run_wrongly(*arguments: object) -> str:
        code, told = call(export_onnx.main, *arguments)
        assert code == 2, told
        return told

    return run_wrongly


# ------------------------------------------------------------------------------------ same numbers


@pytest.mark.parametrize("form", FORMS)
def test_faces_are_the_pipelines(files, pipeline, form):
    (faces,) = pipeline([PHOTO], [BOXES])
    found = files.run("face", form, *crops_and_roi_boxes(BOXES))
    std = pipeline.face_model.param_std
    expected = np.stack([face.parameters for face in faces])
    assert np.abs((found["parameters"] - expected) / std).max() < 1e-4
    angles = [[face.yaw, face.pitch, face.roll] for face in faces]
    np.testing.assert_allclose(found["yaw_pitch_roll"], angles, atol=1e-3, rtol=0)
    for name in ("rotation", "scale", "translation", "landmarks", "vertices"):
        expected = np.stack([getattr(face, name) for face in faces])
        assert found[name].shape == expected.shape and found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, atol=CLOSE[name], rtol=0, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_are_the_networks(files, pipeline, form):
    images = normalize_crops(crops_and_roi_boxes(BOXES)[0])
    found = files.run("parameters", form, images)
    np.testing.assert_allclose(found["whitened"], pipeline.regressor(images), atol=1e-4)
    expected = pipeline.face_model.dewhiten(found["whitened"])
    np.testing.assert_allclose(found["parameters"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 7])
def test_any_batch(files, form, batch):
    crops, roi_boxes = crops_and_roi_boxes(BOXES)
    picked = np.arange(batch) % len(BOXES)
    whole = files.run("face", form, crops, roi_boxes)
    found = files.run("face", form, crops[picked], roi_boxes[picked])
    for name, array in found.items():
        # other sizes are summed in another order
        scale = np.abs(whole[name]).max()
        np.testing.assert_allclose(array, whole[name][picked], atol=1e-5 * scale, rtol=0)
    images = normalize_crops(crops[picked])
    assert files.run("parameters", form, images)["whitened"].shape == (batch, 62)


def cameras() -> np.ndarray:
    """(n, 3, 4) cameras of heads in all poses: random up to yaw 130, poles, quarter turns."""
    rng = np.random.default_rng(0)

    spread = rng.uniform([-130, -80, -180], [130, 80, 180], (60, 3))
    poles = np.stack([np.tile([90.0, -90.0], 12), *rng.uniform(-180, 180, (2, 24))], 1)
    near = poles.copy()
    near[:, 0] -= np.sign(poles[:, 0]) * np.repeat([1, 0.1, 0.01, 0.005, -0.005, -0.5], 4)
    quarters = np.array([[y, p, r] for y in (0, 180) for p in (0, 90, -90) for r in (0, 90, 180)])
    yaw, pitch, roll = np.concatenate([spread, poles, near, quarters]).T
    turns = np.stack([roll, -yaw, pitch], 1)
    rotation = Rotation.from_euler("ZYX", turns, degrees=True).as_matrix()
    scales = rng.uniform(3e-4, 7e-4, (len(yaw), 1, 1))
    translation = rng.uniform(20, 100, (len(yaw), 3, 1))
    result = np.concatenate([scales * rotation, translation], 2)
    # as fitted: rows of unequal length, sheared
    result[:60, :, :3] *= rng.uniform(0.9, 1.1, (60, 3, 1))
    result[:60, 0, :3] += 0.1 * result[:60, 1, :3]
    return result


def decode(files: Files, form: str, parameters: np.ndarray, roi_boxes: np.ndarray) -> dict:
    """The part of the written face graph after its network."""
    names = [tensor.name for tensor in files.session("face").get_outputs()][1:]
    if form == "onnx":
        whole = onnx.load(files.folder / "synergynet_face.onnx")
        whole.graph.value_info.extend(whole.graph.output)  # older extractors look only there
        part = onnx.utils.Extractor(whole).extract_model(["parameters", "roi_boxes"], names)
        session = onnxruntime.InferenceSession(
            part.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        outputs = session.run(None, {"parameters": parameters, "roi_boxes": roi_boxes})
    else:
        decoder = files.script("face").decoder
        # tracing orders, and mostly renames, the arguments of what is inside
        given = decoder.forward.schema.arguments[1:]
        arrays = [roi_boxes if argument.name == "roi_boxes" else parameters for argument in given]
        with torch.inference_mode():
            outputs = [tensor.numpy() for tensor in decoder(*map(torch.from_numpy, arrays))]
    return dict(zip(names, outputs, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_all_poses(files, model_3d, form):
    rng = np.random.default_rng(1)
    camera = cameras().reshape(-1, 12)
    coefficients = model_3d.param_mean[12:] + model_3d.param_std[12:] * rng.normal(
        size=(len(camera), 50)
    )
    parameters = np.concatenate([camera, coefficients], 1).astype(np.float32)
    corners = rng.uniform(-100, 900, (len(camera), 2))
    roi_boxes = np.concatenate([corners, corners + rng.uniform(40, 400, (len(camera), 1))], 1)
    roi_boxes = roi_boxes.astype(np.float32)
    found = decode(files, form, parameters, roi_boxes)
    expected = export_onnx.reference_outputs(model_3d, parameters, roi_boxes, dense=True)
    assert np.isfinite(expected["yaw_pitch_roll"]).all()
    at_pole = expected["yaw_pitch_roll"][:, 2] == 0
    assert at_pole.sum() >= 24  # the poles were met
    assert (found["yaw_pitch_roll"][at_pole, 2] == 0).all()
    turn = found.pop("yaw_pitch_roll") - expected.pop("yaw_pitch_roll")
    assert np.abs((turn + 180) % 360 - 180).max() < 1e-4  # -180 and 180 are one
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=CLOSE[name], rtol=0, err_msg=name)


def test_arctan2_is_numpys():
    values = np.array([0.0, 1e-300, 1e-9, 0.5, 1.0, 1e9])
    values = np.concatenate([values, -values[1:]])
    y, x = (grid.ravel() for grid in np.meshgrid(values, values))
    found = export_onnx.arctan2(torch.from_numpy(y), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, np.arctan2(y, x), atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", ["landmarks", "vertices", "yaw_pitch_roll", "translation"])
def test_other_numbers_than_numpys_are_an_error(face_model, name):
    network = Network(face_model, "mobilenet_025").eval()
    graph = export_onnx.make_graphs(network, face_model, dense=True)[1]

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        outputs = [t.numpy().copy() for t in graph.module(*map(torch.from_numpy, arrays))]
        outputs[graph.outputs.index(name)].ravel()[0] += error
        return outputs

    error = 0.0
    export_onnx.compare_with_numpy(call, graph, face_model)
    error = 0.02
    with pytest.raises(RuntimeError, match=f"exported {name} differ from numpy's"):
        export_onnx.compare_with_numpy(call, graph, face_model)


# -------------------------------------------------------------------------------- what is written


def test_files_say_what_they_hold(files, model_3d):
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "synergynet_face.onnx",
        "synergynet_face.pt",
        "synergynet_parameters.onnx",
        "synergynet_parameters.pt",
        "synergynet_triangles.npy",
    ]
    for graph in ("face", "parameters"):
        session = files.session(graph)
        onnx.checker.check_model(str(files.folder / f"synergynet_{graph}.onnx"), full_check=True)
        metadata = session.get_modelmeta().custom_metadata_map
        extra = {"metadata.json": ""}
        files.script(graph, extra)
        assert json.loads(extra["metadata.json"]) == metadata
        assert metadata["graph"] == f"synergynet_{graph}"
        assert metadata["face_model"] == model_3d.fingerprint
        is_exact = model_3d.pixel_centres
        assert metadata["mapping"].startswith(f"roi_boxes are {'' if is_exact else 'not '}rounded")
        for tensor in (*session.get_inputs(), *session.get_outputs()):
            dtype = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}[tensor.type]
            sizes = [{"batch": "B"}.get(size, str(size)) for size in tensor.shape]
            shape = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
            assert metadata[tensor.name].startswith(f"{dtype} {shape}: ")
            assert f"{tensor.name:<15} {metadata[tensor.name]}" in files.told
    triangles = np.load(files.folder / "synergynet_triangles.npy")
    np.testing.assert_array_equal(triangles, model_3d.triangles)


def test_the_graphs_are_plain(files):
    for graph in ("face", "parameters"):
        model = onnx.load(str(files.folder / f"synergynet_{graph}.onnx"))
        # other domains, which the optimiser names in versions of its own, shut older runtimes out
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
        for stored in model.graph.initializer:
            array = onnx.numpy_helper.to_array(stored)
            assert array.dtype.kind != "f" or np.abs(array).max(initial=0) < 65504, stored.name


def test_nothing_tells_where_they_were_made(files):
    for path in files.folder.iterdir():
        contents = [path.read_bytes()]
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        assert not [c for c in contents if str(ROOT).encode() in c or b"export_onnx.py" in c]


def test_the_printed_program_runs_without_torch_and_this_project(files, pipeline):
    told = files.told.split("face.onnx in use:\n")[1].split(f"{files.folder.as_posix()}/")
    program = f"{files.folder.as_posix()}/".join(told[:2]).rstrip()
    blocked = "import sys\nsys.modules['torch'] = sys.modules['utils'] = None\n"
    photo = (ROOT / "img" / "astronaut.jpg").as_posix()
    done = run_python(
        "-I", "-c", blocked + program.replace("img/astronaut.jpg", photo), cwd=files.folder
    )
    assert done.returncode == 0, done.stderr
    (face,) = pipeline([PHOTO], [BOXES[:1]], dense=False)[0]
    angles, shape = done.stdout.strip().split("] ")
    expected = [face.yaw, face.pitch, face.roll]
    np.testing.assert_allclose(np.array(angles[1:].split(), float), expected, atol=1e-3)
    assert shape == "(1, 3, 68)"


def test_the_printed_torchscript_program(files, capsys):
    program = files.told.split("face.pt in use:\n")[1]
    photo = (ROOT / "img" / "astronaut.jpg").as_posix()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit")  # as above
        exec(program.replace("img/astronaut.jpg", photo), {})
    assert "torch.Size([1, 3, 68])" in capsys.readouterr().out


def test_sparse_files_have_no_mesh(small, tmp_path, call):
    out = tmp_path / "deep" / "out"
    code, told = call(export_onnx.main, *small, "-o", out, "--sparse")
    assert code == 0 and "vertices" not in told and "of the mesh" not in told
    assert len(list(out.iterdir())) == 4
    found = {form: Files(out).run("face", form, *crops_and_roi_boxes(BOXES)) for form in FORMS}
    for name, array in found["onnx"].items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(found["torchscript"][name], array, atol=1e-4 * scale)
    assert [*found["onnx"]][-1] == "landmarks"
    decoder = Files(out).script("face").decoder
    assert {name for name, _ in decoder.named_buffers()} == set(export_onnx.Decoder.POINTS)


def test_one_format(small, tmp_path, call):
    code, told = call(export_onnx.main, *small, "-o", tmp_path / "out", "--format", "torchscript")
    assert code == 0 and "opset" not in told
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".pt", ".npy"}


# ---------------------------------------------------------------------------------- what goes wrong


def test_missing_weights(tmp_path, run_wrongly):
    told = run_wrongly("-w", tmp_path / "none.pth", "-o", tmp_path / "out")
    assert "none.pth: no weights there; check the path" in told
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(small, tmp_path, run_wrongly, monkeypatch):
    monkeypatch.setattr(export_onnx, "export_graph", lambda *_: pytest.fail("it was exported"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        told = run_wrongly(*small, "-o", out)
        assert f"{out}: no files can be written there" in told and "with -o" in told


def test_without_the_onnx_package(small, tmp_path, run_wrongly, call, monkeypatch):
    monkeypatch.setattr(export_onnx, "missing_packages", lambda: ["onnx"])
    told = run_wrongly(*small, "-o", tmp_path / "out")
    assert "pip install onnx;" in told and "--format torchscript" in told
    options = (*small, "--format", "torchscript", "--sparse", "-o", tmp_path / "out")
    assert call(export_onnx.main, *options)[0] == 0


def test_an_unknown_format(run_wrongly):
    told = run_wrongly("--format", "onnx,tflite")
    assert "'onnx,tflite': expected a comma-separated list of onnx, torchscript" in told


def test_a_failed_export_writes_nothing(small, tmp_path, call, monkeypatch):
    def fail(*_) -> bytes:
        raise RuntimeError("the traced form computes something else")

    monkeypatch.setattr(export_onnx, "export_torchscript", fail)
    code, told = call(export_onnx.main, *small, "-o", tmp_path / "out")
    assert code == 1 and "export_onnx.py: the traced form computes something else" in told
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_write_leaves_the_old_file(small, tmp_path, call, monkeypatch):
    old = tmp_path / "out" / "synergynet_parameters.onnx"
    old.parent.mkdir()
    old.write_bytes(b"old")

    def full(*_) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("utils.files.os.replace", full)
    monkeypatch.setattr(export_onnx, "export_graph", lambda *_: b"new")
    code, told = call(export_onnx.main, *small, "-o", old.parent)
    assert code == 1 and os.strerror(28) in told
    assert [path.read_bytes() for path in old.parent.iterdir()] == [b"old"]
