"""What a GPU would refuse or be slowed down by, found without one (``pretend_gpu.py``)."""

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, GpuTensor, pretend_gpu
from torch.utils._python_dispatch import TorchDispatchMode

import main_train
from benchmarks.gpu import FramesToLandmarks
from FaceBoxes.network import TorchEngine
from model_building import load_synergynet
from utils import assets, training
from utils.augmentation import AUGMENTATIONS, Batch
from utils.datasets import write_packed
from utils.distributed import World
from utils.evaluation import torch_network
from utils.inference import FacePipeline
from utils.morphable_model import load_morphable_model
from utils.pictures import read_image
from utils.preprocessing import boxes_to_roi_boxes, crop_faces, crop_to_image
from utils.runtime import TorchRegressor


def test_the_pretended_gpu():
    with pretend_gpu() as gpu:
        a = torch.arange(4.0).to(GPU)
        with pytest.raises(RuntimeError, match="both devices"):
            a + torch.ones(4)
        with pytest.raises(RuntimeError, match="numpy"):
            a.numpy()
        view = a[1:3]
        view += 1
        weight = a.clone().requires_grad_()
        (weight * weight).sum().backward()
        assert gpu.waits == []
        assert isinstance(weight.grad, GpuTensor) and a.device == GPU
        assert weight.grad.tolist() == [0, 4, 6, 6] and bool((a > 0).any())
        assert gpu.waits == ["aten::_to_copy", "aten::_local_scalar_dense"]


@pytest.mark.parametrize("side", [120, 160])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_stays_on_the_device_and_never_waits(face_model, name, side):
    rng = np.random.default_rng(0)
    parameters = face_model.dewhiten(0.5 * rng.normal(size=(12, 62)).astype(np.float32))
    batch = Batch(
        torch.from_numpy(rng.integers(0, 256, (12, side, side, 3), dtype=np.uint8)),
        torch.from_numpy(parameters),
        torch.from_numpy(face_model.landmarks(parameters)),
        torch.tensor([[0.0, 0.0, side, side - 20]]).expand(12, 4),
    )
    expected = AUGMENTATIONS[name](face_model)(batch, torch.Generator().manual_seed(0))
    with pretend_gpu() as gpu:
        augment = AUGMENTATIONS[name](face_model)
        made = augment(batch.to(GPU), torch.Generator().manual_seed(0))
        assert gpu.waits == []
        assert all(isinstance(tensor, GpuTensor) for tensor in made)
        for a, b in zip(made, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    "more", [[], ["--heads", "signed", "--optimizer", "adamw", "--clip-norm", "5"]]
)
def test_training_waits_once_a_step(face_npz, face_model, tmp_path, more):
    rng = np.random.default_rng(0)
    parameters = face_model.dewhiten(0.5 * rng.normal(size=(16, 62)).astype(np.float32))
    pictures = iter(rng.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8))
    write_packed(tmp_path / "set", pictures, 16, 64, parameters=parameters)
    command = [
        "--data", str(tmp_path / "set"), "--held-out", "0.4", "--face-model", str(face_npz),
        "--backbone", "mobilenet_025", "--train-size", "48", "--batch-size", "4",
        "--samples-per-epoch", "8", "--device", "cpu", "--out", str(tmp_path / "run"), *more,
    ]  # fmt: skip

    def trainer(*arguments: str, device: torch.device = GPU) -> training.Trainer:
        options = main_train.parse_options([*command, *arguments])
        return training.Trainer(options, load_morphable_model(face_npz), World(device=device))

    with pretend_gpu() as gpu:
        first = trainer("--epochs", "1")
        assert all(isinstance(p, GpuTensor) for p in first.model.parameters())
        batch = next(iter(first._batches()))
        gpu.waits.clear()
        first.train_step(batch)
        assert gpu.waits == ["aten::_to_copy"]
        first.run()
        resumed = trainer("--epochs", "2", "--resume")
        resumed.run()
        momentum = next(iter(resumed.optimizer.state.values()))
        assert all(isinstance(v, GpuTensor) for v in momentum.values() if v.ndim)
    assert resumed.progress.epoch == 2 and resumed.progress.skipped == 0

    trainer("--epochs", "3", "--resume", device=torch.device("cpu")).run()
    with pretend_gpu() as gpu:
        moved = trainer("--epochs", "4", "--resume")
        gpu.waits.clear()
        moved.train_step(batch)
        assert gpu.waits == ["aten::_to_copy"]


class TimesInverse(TorchDispatchMode):
    """Divides by a number as CUDA does: multiplies with its inverse, which is rounded."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.div_.Tensor and not isinstance(args[1], torch.Tensor):
            inverse = 1 / torch.tensor(float(args[1]))
            func, args = torch.ops.aten.mul_.Tensor, (args[0], inverse.item())
        return func(*args, **(kwargs or {}))


def test_the_mean_of_what_all_processes_have_is_it(monkeypatch):
    """Or a run is not resumed: "not every process found the same one"."""
    counts = torch.arange(1.0, 100.0)
    monkeypatch.setattr("utils.distributed.dist.all_reduce", lambda values: values.mul_(7))
    with TimesInverse():
        assert torch.equal(World(size=7).mean(counts), counts)


def test_networks_on_the_device(face_model):
    rng = np.random.default_rng(0)
    crops = rng.normal(size=(2, 3, 120, 120)).astype(np.float32)
    photos = 60 * rng.normal(size=(1, 3, 64, 96)).astype(np.float32)

    def answers(device: torch.device) -> list[np.ndarray]:
        model = load_synergynet(assets.find_weights(), starter)
        output = torch_network(model, device)(crops)
        regressed = TorchRegressor(model, device)(crops)
        detected = TorchEngine(assets.find_detector_weights(), str(device))(photos)
        return [*output, regressed, *detected]

    starter = load_morphable_model(assets.find_face_model())
    expected = answers(torch.device("cpu"))
    with pretend_gpu():
        found = answers(GPU)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_benchmark_finds_the_landmarks(dtype):
    photo = read_image(assets.ROOT / "img" / "astronaut.jpg")
    roi_boxes = boxes_to_roi_boxes(np.array([[183.0, 59.0, 271.0, 180.0, 1.0]]))  # (1, 4)
    face_model = load_morphable_model(assets.find_face_model())
    model = load_synergynet(assets.find_weights(), face_model)
    pipeline = FacePipeline(None, TorchRegressor(model, "cpu"), face_model)
    crops = crop_faces(photo, roi_boxes)
    (face,) = pipeline.faces_from_crops(crops, roi_boxes, np.zeros((1, 5)), dense=False)
    module = FramesToLandmarks(model.I2P.to(dtype), face_model.to_torch("cpu"), dtype)
    with torch.inference_mode():
        frames, boxes = torch.from_numpy(photo)[None], torch.from_numpy(roi_boxes)[None].float()
        found = crop_to_image(module(frames, boxes).numpy(), roi_boxes)[0]
    # another way to resize, and three digits: pixels of a face 105 wide
    distance = np.linalg.norm(found[:2] - face.landmarks[:2], axis=0)
    assert distance.mean() < 1.0
