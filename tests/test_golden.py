"""The published computation's reference values, each to its tolerance.

``GOLDEN_DIR`` and ``ASSETS_DIR`` in the environment point to the reference values and to the
published assets (default: ``../shared/golden`` and ``../shared/assets`` beside the checkout).
"""

import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import GOLDEN_DIR, asset, load_golden
from reference import deterministic_state_dict

import Sim3DR
from FaceBoxes import FaceBoxes
from FaceBoxes.anchors import anchors
from FaceBoxes.network import FaceBoxesNet, WithProbabilities
from FaceBoxes.nms import nms, soft_nms
from loss_definition import SynergyLoss, coefficient_loss, parameter_loss, total, wing_loss
from model_building import SynergyNet
from utils import aflw2000
from utils.aflw2000 import BenchmarkSet, open_benchmark
from utils.evaluation import BINS, PUBLISHED_LABELS, Prediction, labels_fingerprints, score
from utils.fitting import similarity_align
from utils.geometry import decompose_camera, exact_angles, rotation_to_angles
from utils.inference import faces_from_parameters
from utils.metrics import bin_masks, bin_means, nme
from utils.morphable_model import MorphableModel, load_morphable_model, split_camera
from utils.preprocessing import crop_to_image
from utils.render import render_mesh_overlay


@pytest.fixture(scope="module")
def published_model() -> MorphableModel:
    return load_morphable_model(asset("3dmm_data"))


def assert_close_to_largest(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Largest difference within ``tolerance`` times the largest magnitude."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


# ---------------------------------------------------------------- 3DMM and camera (morphable.npz)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_morphable_model(published_model, backend):
    golden = load_golden("morphable.npz")
    model, whitened = published_model, golden["param"]
    if backend == "torch":
        model, whitened = model.to_torch(), torch.from_numpy(whitened)
    parameters = model.dewhiten(whitened)
    landmarks = crop_to_image(np.asarray(model.landmarks(parameters)), golden["roi_box"])
    vertices = crop_to_image(np.asarray(model.vertices(parameters)), golden["roi_box"])
    assert np.abs(landmarks - golden["landmarks"]).max() < 1e-2
    assert np.abs(vertices[:, :, golden["dense_index"]] - golden["dense"]).max() < 1e-2


def test_angles(published_model):
    golden = load_golden("morphable.npz")
    camera = split_camera(published_model.dewhiten(golden["param"]))
    _, rotation, _ = decompose_camera(camera)
    assert np.abs(rotation_to_angles(rotation) - golden["angles_deg"]).max() < 1e-4


def test_translation(published_model):
    """The published one's faults put right: its y counts from the bottom, its z in crop pixels."""
    golden = load_golden("morphable.npz")
    parameters, boxes = published_model.dewhiten(golden["param"]), golden["roi_box"]
    detections = np.zeros((len(boxes), 5))
    faces = faces_from_parameters(published_model, parameters, boxes, detections, dense=False)
    sides = (boxes[:, 2:4] - boxes[:, :2]) / 120
    x, y, z = golden["translation"].T
    expected = np.stack([x, 2 * boxes[:, 1] + 121 * sides[:, 1] - y, z * sides.mean(1)], axis=1)
    assert np.abs([face.translation for face in faces] - expected).max() < 1e-2


# ---------------------------------------------------------------- network (network.npz)


def deterministic_synergynet(face_model: MorphableModel, seed: int) -> SynergyNet:
    model = SynergyNet(face_model)
    model.load_state_dict(deterministic_state_dict(model.state_dict(), seed))
    return model


def test_network_evaluation(published_model):
    golden = load_golden("network.npz")
    model = deterministic_synergynet(published_model, int(golden["seed"])).eval()
    with torch.inference_mode():
        output = model(torch.from_numpy(golden["input"]))
    assert_close_to_largest(output.whitened.numpy(), golden["eval_param"], 1e-4)
    assert_close_to_largest(output.features.numpy(), golden["eval_pool"], 1e-4)
    assert_close_to_largest(output.residual.numpy(), golden["eval_residual"], 1e-4)
    assert_close_to_largest(output.inverse.numpy(), golden["eval_inverse"], 1e-4)
    assert np.abs(output.landmarks.numpy() - golden["eval_landmarks"]).max() < 1e-2


def test_network_training(published_model):
    golden = load_golden("network.npz")
    model = deterministic_synergynet(published_model, int(golden["seed"])).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images, target = (torch.from_numpy(golden[key]).double() for key in ("input", "target"))
    terms = model.loss(images, target, SynergyLoss())
    loss = total(terms)
    loss.backward()

    close = {"rtol": 1e-6, "atol": 1e-9}
    for name, value in terms.items():
        np.testing.assert_allclose(value.detach().numpy(), golden[f"train_{name}"], **close)
    np.testing.assert_allclose(loss.item(), golden["train_total"], **close)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = dict(zip(golden["grad_names"].tolist(), golden["grad_norms"], strict=True))
    assert gradients.keys() == expected.keys()
    for name, norm in expected.items():
        np.testing.assert_allclose(gradients[name].norm().item(), norm, err_msg=name, **close)


# ---------------------------------------------------------------- losses (losses.npz)


def test_losses():
    golden = {
        key: torch.from_numpy(np.atleast_1d(value))
        for key, value in load_golden("losses.npz").items()
    }
    close = {"rtol": 1e-6, "atol": 1e-6}
    a, b = golden["param_a"], golden["param_b"]
    torch.testing.assert_close(
        wing_loss(golden["wing_pred"], golden["wing_target"]).double(), golden["wing"][0], **close
    )
    torch.testing.assert_close(parameter_loss(a, b), golden["param_loss"], **close)
    torch.testing.assert_close(coefficient_loss(a, b), golden["param_loss_3dmm"], **close)


# ---------------------------------------------------------------- detector (faceboxes, priors, nms)


def test_anchors():
    golden = load_golden("priors.npz")
    for key in (key for key in golden if key.startswith("priors_")):
        size = key.removeprefix("priors_")
        ours, expected = anchors(*map(int, size.split("x"))), golden[key]
        assert len(ours) == golden[f"count_{size}"]
        every = -(-len(ours) // len(expected))  # large sets are stored thinned out
        assert np.abs(ours[::every] - expected).max() <= 1e-6


def test_suppression():
    golden = load_golden("nms.npz")
    for i in sorted(key.removeprefix("dets") for key in golden if key.startswith("dets")):
        rows = golden[f"dets{i}"]
        assert nms(rows, 0.3).tolist() == golden[f"keep{i}"].tolist()
        for method in (0, 1, 2):
            if (key := f"soft{method}_{i}") in golden:
                result = soft_nms(rows, 0.5, 0.3, 0.001, method)
                assert result.shape == golden[key].shape
                assert np.abs(result - golden[key]).max(initial=0) <= 1e-5


def test_detector_network():
    golden, seed = load_golden("faceboxes.npz"), int(load_golden("network.npz")["seed"])
    network = FaceBoxesNet().eval()
    network.load_state_dict(deterministic_state_dict(network.state_dict(), seed))
    images = torch.from_numpy(golden["raw_input"])
    with torch.inference_mode():
        offsets, logits = network(images)
        probabilities = WithProbabilities(network)(images)[1]
    assert_close_to_largest(offsets.numpy(), golden["raw_loc"], 1e-5)
    assert_close_to_largest(logits.numpy(), golden["raw_logits"], 1e-5)
    assert_close_to_largest(probabilities.numpy(), golden["raw_conf"], 1e-5)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_detections(engine):
    if engine == "onnx":  # the default on a CPU, where they are installed
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    golden = load_golden("faceboxes.npz")
    detector = FaceBoxes(asset("FaceBoxesProd.pth"), engine=engine)
    five = cv2.imread(str(GOLDEN_DIR / "five.png"))
    pictures = {
        "astronaut": cv2.imread(str(GOLDEN_DIR / "astronaut.png")),
        "five": five,
        "large": cv2.resize(five, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    }
    for name, picture in pictures.items():
        ours, expected = detector(picture), golden[f"dets_{name}"]
        assert ours.shape == expected.shape
        assert np.abs(ours - expected)[:, :4].max(initial=0) <= 0.01
        assert np.abs(ours - expected)[:, 4].max(initial=0) <= 1e-4


# ---------------------------------------------------------------- rasteriser (raster.npz)


def assert_same_picture(actual: np.ndarray, expected: np.ndarray) -> None:
    """99.9 % of pixels within one level; the rest is what collinear triangles painted."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected).max(-1)
    assert (difference <= 1).mean() >= 0.999


def test_random_triangles():
    golden = load_golden("raster.npz")
    vertices, triangles = golden["tri_vertices"], golden["tri_triangles"]
    for name, reverse in (("tri_image", False), ("tri_image_reversed", True)):
        image = Sim3DR.rasterize(
            vertices,
            triangles,
            golden["tri_colors"],
            golden["tri_background"],
            reverse=reverse,
        )
        assert_same_picture(image, golden[name])
    normals, expected = Sim3DR.vertex_normals(vertices, triangles), golden["tri_normals"]
    unused = np.isnan(expected).any(1)
    assert not normals[unused].any()
    np.testing.assert_allclose(normals[~unused], expected[~unused], atol=1e-6)


@pytest.mark.parametrize("face", [0, 1, 2])
def test_face_renders(published_model, face):
    golden = load_golden("raster.npz")
    triangles = published_model.triangles
    vertices = golden[f"face_vertices{face}"]
    parameters = published_model.dewhiten(golden[f"face_param{face}"][None])
    computed = crop_to_image(published_model.vertices(parameters), golden["face_roi_box"][None])
    assert np.abs(computed[0].T - vertices).max() < 1e-2

    normals = Sim3DR.vertex_normals(vertices, triangles)
    expected = golden[f"face_normals{face}"]  # thinned out
    every = -(-len(normals) // len(expected))
    np.testing.assert_allclose(normals[::every], expected, atol=1e-6)
    background = golden[f"face_background{face}"]
    dim = Sim3DR.Lighting(ambient=0.3, directional=0.6, specular=0.1)
    for name, lighting in (("render", Sim3DR.PUBLISHED), ("render_dim", dim)):
        colors = Sim3DR.shade(vertices, normals, lighting)
        image = Sim3DR.rasterize(vertices, triangles, colors, background)
        assert_same_picture(image, golden[f"face_{name}{face}"])
        overlay = render_mesh_overlay(background, [vertices.T], triangles, lighting, alpha=1)
        np.testing.assert_array_equal(overlay, image)


def test_textured_face(published_model):
    golden = load_golden("raster.npz")
    vertices, triangles = golden["face_vertices2"], published_model.triangles
    normals = Sim3DR.vertex_normals(vertices, triangles)
    colors = Sim3DR.shade(vertices, normals, Sim3DR.PUBLISHED, golden["face_texture2"])
    image = Sim3DR.rasterize(vertices, triangles, colors, golden["face_background2"])
    assert_same_picture(image, golden["face_textured2"])


# ---------------------------------------------------------------- AFLW2000-3D protocol


@pytest.fixture(scope="module")
def published_benchmark(tmp_path_factory) -> BenchmarkSet:
    """The published labels in the published layout; the crops are empty files, never read."""
    folder = tmp_path_factory.mktemp("published") / "aflw2000_data"
    shutil.copytree(asset("aflw2000_eval"), folder / "eval")
    names = [f"{i:04d}.jpg" for i in range(2000)]
    (folder / aflw2000.LIST).write_text("\n".join(names))
    (folder / aflw2000.CROPS).mkdir()
    for name in names:
        (folder / aflw2000.CROPS / name).touch()
    return open_benchmark(folder)


def test_aflw2000_protocol(published_benchmark):
    """Both label sets in one run, twice over: scoring one must not change the other."""
    golden, data = load_golden("aflw2000_protocol.npz"), published_benchmark
    landmarks = crop_to_image(golden["pred_crop"].astype(np.float32), data.roi_boxes)
    rotation = np.tile(np.eye(3), (2000, 1, 1))
    prediction = Prediction(golden["pred_crop"], {"raw": landmarks}, rotation, 1.0)
    for _ in range(2):
        scores, samples = score(data, prediction)
        for labels, key in (("original", "ori"), ("reannotated", "re")):
            found, errors = scores["nme"][labels]["raw"], samples[f"nme_{labels}_raw"]
            np.testing.assert_allclose(errors, 100 * golden[f"nme_{key}"], rtol=1e-5)
            bins = [found[name] for name in (*BINS, "balanced", "std_balanced")]
            np.testing.assert_allclose(bins, golden[f"bins_{key}"], rtol=1e-5)


def test_aflw2000_labels(published_benchmark):
    data = published_benchmark
    assert labels_fingerprints(data)["original"] == PUBLISHED_LABELS
    assert bin_masks(data.yaw).sum(1).tolist() == [1312, 383, 305]
    original, reannotated = (data.landmarks[name] for name in ("original", "reannotated"))
    # the two label sets against each other, either one's boxes as the norm
    assert round(bin_means(nme(original, reannotated), data.yaw).mean(), 2) == 3.40
    assert round(bin_means(nme(reannotated, original), data.yaw).mean(), 2) == 3.38


def test_aflw2000_yaw_is_what_exact_angles_reads(published_model, published_benchmark):
    """The labels' own landmarks, fitted: R[0, 2] holds the labelled yaw, R[2, 0] does not."""
    data = published_benchmark
    points = data.landmarks["original"].transpose(0, 2, 1) * (1, -1, 1)  # y up
    mean = published_model.landmark_mean.T.astype(np.float64)
    linear, _ = similarity_align(np.broadcast_to(mean, points.shape), points)
    rotation = linear / np.linalg.norm(linear, axis=2, keepdims=True)
    exact, published = exact_angles(rotation)[:, 0], rotation_to_angles(rotation)[:, 0]
    # past the profile most labels are the other triple: yaw 180 - y, pitch and roll the other way
    other = np.sign(exact) * 180 - exact
    exact = np.where(np.abs(exact - data.yaw) <= np.abs(other - data.yaw), exact, other)
    scored = np.abs(data.yaw) <= 99
    means = [np.abs(yaw - data.yaw)[scored].mean() for yaw in (exact, published)]
    assert means[0] < 0.55 and 2.2 < means[1] < 2.5  # right rotations, read as published
    differ = (np.abs(exact - published) > 5) & scored
    assert differ.sum() > 200
    errors = [np.median(np.abs(yaw - data.yaw)[differ]) for yaw in (exact, published)]
    assert errors[0] < 3 < 6 < errors[1]
