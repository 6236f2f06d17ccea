"""SynergyNet and its weights on disk: what is saved, what is loaded, and what is refused."""

import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import Evil, tiny_face_arrays, write_face_folder
from torch import nn

from loss_definition import SynergyLoss, coefficient_loss
from model_building import SynergyNet, load_synergynet
from utils.checkpoint import (
    FACE_MODEL_BUFFERS,
    check_face_model,
    read_checkpoint,
    write_checkpoint,
)
from utils.morphable_model import load_morphable_model


def network(face_model, backbone: str = "mobilenet_025", heads: str = "published") -> SynergyNet:
    torch.manual_seed(0)
    model = SynergyNet(face_model, backbone, heads)
    for module in model.modules():  # statistics other than 0 and 1, as after training
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.bias, 0, 1)
    return model.eval()


@pytest.fixture(scope="module")
def model(face_model) -> SynergyNet:
    return network(face_model)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def outputs(model: SynergyNet, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model(images))


def published_buffers(prefix: str = "") -> dict[str, torch.Tensor]:
    """The eight copies of the 3DMM that published checkpoints carry."""
    arrays = tiny_face_arrays()
    keypoints = arrays["keypoints_sim"]
    buffers = {
        "param_mean": arrays["param_mean"],
        "param_std": arrays["param_std"],
        "w_shp": arrays["w_shp_sim"],
        "w_exp": arrays["w_exp_sim"],
        "u": arrays["u_shp"] + arrays["u_exp"],
    }
    buffers |= {f"{name}_base": buffers[name][keypoints] for name in ("u", "w_shp", "w_exp")}
    assert set(buffers) == set(FACE_MODEL_BUFFERS)
    return {prefix + name: torch.from_numpy(array.copy()) for name, array in buffers.items()}


# -------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("heads", ["published", "signed"])
def test_saved_and_loaded_networks_agree(tmp_path, face_model, images, heads):
    model = network(face_model, heads=heads)
    write_checkpoint(tmp_path / "w.pth", model.checkpoint(epoch=3))
    loaded = load_synergynet(tmp_path / "w.pth", face_model)
    assert not loaded.training
    assert (loaded.backbone_name, loaded.heads) == ("mobilenet_025", heads)
    assert read_checkpoint(tmp_path / "w.pth")["epoch"] == 3
    for ours, theirs in zip(outputs(model, images), outputs(loaded, images), strict=True):
        assert torch.equal(ours, theirs)


def test_a_bare_state_dict_is_a_published_mobilenet_v2(tmp_path, face_model, images):
    model = network(face_model, "mobilenet_v2")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    loaded = load_synergynet(tmp_path / "bare.pth", face_model)
    assert torch.equal(outputs(loaded, images)[0], outputs(model, images)[0])
    torch.save(network(face_model).state_dict(), tmp_path / "bare.pth")
    told = "does not name its backbone, mobilenet_v2 was tried", "--backbone"
    refused(tmp_path / "bare.pth", face_model, *told)


def test_published_layout(tmp_path, face_model, images):
    """{'epoch', 'state_dict'}, every key with `module.`, the eight buffers among them."""
    model = network(face_model, "mobilenet_v2")
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    state |= published_buffers("module.")
    torch.save({"epoch": 80, "state_dict": state}, tmp_path / "best.pth.tar")
    loaded = load_synergynet(tmp_path / "best.pth.tar", face_model)
    for ours, theirs in zip(outputs(model, images), outputs(loaded, images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(tmp_path, face_model, model, images, dtype):
    content = model.checkpoint()
    content["state_dict"] = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in content["state_dict"].items()
    }
    write_checkpoint(tmp_path / "half.pth", content)
    loaded = load_synergynet(tmp_path / "half.pth", face_model)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    difference = outputs(loaded, images)[0] - outputs(model, images)[0]
    assert difference.abs().max() < 0.05 * outputs(model, images)[0].abs().max()


def test_nothing_of_the_face_model_is_saved(tmp_path, face_model, model):
    write_checkpoint(tmp_path / "w.pth", model.checkpoint())
    content = read_checkpoint(tmp_path / "w.pth")
    assert not set(content["state_dict"]) & set(FACE_MODEL_BUFFERS)
    assert content["face_model"] == face_model.fingerprint
    learnable = {k for k, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert set(content["state_dict"]) == learnable
    saved = [v for v in content["state_dict"].values() if v.numel() >= 62]
    for secret in published_buffers().values():
        assert not any(v.shape == secret.shape and torch.allclose(v, secret) for v in saved)


def test_an_interrupted_save_keeps_the_old_weights(tmp_path, model):
    write_checkpoint(tmp_path / "w.pth", model.checkpoint(epoch=1))
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        write_checkpoint(tmp_path / "w.pth", {"state_dict": lambda: None})
    assert read_checkpoint(tmp_path / "w.pth")["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------------------------- refusals


def test_one_weight_under_two_names(tmp_path):
    state = {"module.bias": torch.zeros(3), "bias": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match="with and without the prefix module"):
        read_checkpoint(tmp_path / "twice.pth")


def refused(path, face_model, *words: str, error=ValueError) -> None:
    with pytest.raises(error) as caught:
        load_synergynet(path, face_model)
    for word in (str(path), *words):
        assert word in str(caught.value)


def other_face_model(tmp_path, name: str):
    arrays = tiny_face_arrays()
    arrays[name] = arrays[name] * np.float32(1.001)
    return load_morphable_model(write_face_folder(tmp_path / "other", arrays))


@pytest.mark.parametrize("name", ["u_shp", "w_shp_sim", "w_exp_sim", "param_mean", "param_std"])
def test_published_weights_of_another_face_model(tmp_path, face_model, model, name):
    content = {"epoch": 1, "state_dict": {**model.state_dict(), **published_buffers()}}
    torch.save(content, tmp_path / "w.pth")
    other = other_face_model(tmp_path, name)
    buffer = {"u_shp": "u", "w_shp_sim": "w_shp", "w_exp_sim": "w_exp"}.get(name, name)
    theirs, ours = face_model.fingerprint, other.fingerprint
    refused(tmp_path / "w.pth", other, f"({buffer}, ", theirs, ours, other.source)


def test_published_weights_with_few_of_the_buffers(tmp_path, model):
    few = {name: published_buffers()[name] for name in ("param_mean", "u")}
    torch.save({"state_dict": {**model.state_dict(), **few}}, tmp_path / "w.pth")
    other = other_face_model(tmp_path, "param_mean")
    refused(tmp_path / "w.pth", other, "fingerprint unknown", other.fingerprint)


@pytest.mark.parametrize("name", ["param_mean", "param_std"])
def test_the_small_numbers_of_a_camera_are_compared_too(tmp_path, model, name):
    arrays = tiny_face_arrays()
    arrays[name][0] = 3e-4
    face_model = load_morphable_model(write_face_folder(tmp_path / "small", arrays))
    buffers = published_buffers()
    for moved in (0.0, 9e-7):
        buffers[name][0] = 3e-4 + moved
        torch.save({"state_dict": {**model.state_dict(), **buffers}}, tmp_path / "w.pth")
        if moved:
            refused(tmp_path / "w.pth", face_model, f"({name}, ")
        else:
            check_face_model(read_checkpoint(tmp_path / "w.pth"), face_model, "w.pth")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path, face_model, model, value):
    content = copy.deepcopy(model.checkpoint())
    key = "I2P.backbone.classifier_shape.1.bias"
    content["state_dict"][key][3] = value
    write_checkpoint(tmp_path / "w.pth", content)
    refused(tmp_path / "w.pth", face_model, key, "NaN or infinite values")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.to_sparse(), "not a plain tensor"),
        (lambda x: x.to("meta"), "not a plain tensor"),
        (lambda x: x.to(torch.complex64), "not a plain tensor"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "not a plain tensor"),
        (lambda x: x.long(), "int64, expected floating point"),
        (lambda x: x > 0, "bool, expected floating point"),
        (lambda x: -x.abs() - 1, "negative variances"),
        (lambda x: x[:1].expand(10**12), "more numbers than the file holds"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # quantisation goes from PyTorch
def test_weights_of_another_kind(tmp_path, face_model, model, change, reason):
    content = copy.deepcopy(model.checkpoint())
    key = next(k for k in content["state_dict"] if k.endswith("running_var"))
    content["state_dict"][key] = change(content["state_dict"][key])
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", face_model, key, reason)


def test_weights_that_share_their_numbers_are_refused(tmp_path, face_model, model):
    """Half precision becomes float32, of each of them: two megabytes would become gigabytes."""
    content, half = model.checkpoint(), torch.zeros(10**6, dtype=torch.float16)
    content["state_dict"] |= {f"more{i}": half for i in range(50)}
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", face_model, "more", "more numbers than the file holds")


def test_compressed_weights_are_refused(tmp_path, face_model, model):
    """A megabyte of them could become gigabytes."""
    whole = io.BytesIO()
    torch.save(model.checkpoint(), whole)
    with (
        zipfile.ZipFile(whole) as stored,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    refused(tmp_path / "w.pth", face_model, "its tensors are compressed")


def test_published_weights_of_another_size(tmp_path, face_model, model):
    buffers = published_buffers()
    buffers["u"] = buffers["u"][:-3]
    torch.save({"state_dict": {**model.state_dict(), **buffers}}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", face_model, "447 numbers", "450 numbers")


def test_own_weights_of_another_face_model(tmp_path, face_model, model):
    write_checkpoint(tmp_path / "w.pth", model.checkpoint())
    other = other_face_model(tmp_path, "w_exp_sim")
    assert other.fingerprint != face_model.fingerprint
    refused(tmp_path / "w.pth", other, face_model.fingerprint, other.fingerprint, other.source)


def test_missing_extra_and_misshapen_weights(tmp_path, face_model, model):
    path, name = tmp_path / "w.pth", "forwardDirection.conv7.bias"
    for change in ("missing", "extra", "misshapen"):
        content = model.checkpoint()
        state = content["state_dict"] = dict(content["state_dict"])
        if change == "missing":
            del state[name]
        elif change == "extra":
            state["surprise"] = torch.zeros(2)
        else:
            state[name] = torch.zeros(7)
        write_checkpoint(path, content)
        refused(path, face_model, "surprise" if change == "extra" else name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"backbone": "vgg16"}, "vgg16"),
        ({"backbone": ["mobilenet_025"]}, "SynergyNet"),
        ({"trained_loop": "half"}, "unknown loop 'half'; expected one of: backbone, refiner"),
        ({"heads": "double"}, "double"),
        ({"state_dict": {}}, "state dict"),
        ({"state_dict": {"a": 1}}, "state dict"),
        ({"state_dict": {1: torch.zeros(2)}}, "state dict"),
    ],
)
def test_other_content(tmp_path, face_model, model, change, word):
    torch.save({**model.checkpoint(), **change}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", face_model, word)


def test_files_that_are_no_checkpoints(tmp_path, face_model, model):
    path, whole = tmp_path / "w.pth", io.BytesIO()
    refused(path, face_model, "no weights there; check the path", error=FileNotFoundError)
    refused(tmp_path, face_model, error=FileNotFoundError)
    torch.save(model.checkpoint(), whole)
    for content in (b"", b"text", whole.getvalue()[:1000], whole.getvalue()[:-1000]):
        path.write_bytes(content)
        refused(path, face_model)
    for other in ([torch.zeros(2)], torch.zeros(2)):
        torch.save(other, path)
        refused(path, face_model, "expected a dict")


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_malicious_checkpoints_do_not_run(tmp_path, face_model, model, kind):
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    content = {**model.checkpoint(), "epoch": Evil(trace)}
    if kind == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    refused(path, face_model)
    assert not trace.exists()


# ----------------------------------------------------------------------------------------- network


def test_what_the_forward_pass_returns(model, face_model, images):
    with torch.no_grad():
        x = model(images)
    assert x.whitened.shape == x.inverse.shape == (2, 62)
    assert x.features.shape == (2, 256)
    assert x.landmarks.shape == x.residual.shape == x.refined.shape == (2, 3, 68)
    expected = face_model.landmarks(face_model.dewhiten(x.whitened.numpy()))
    np.testing.assert_allclose(x.landmarks.numpy(), expected, atol=1e-3)
    torch.testing.assert_close(x.refined, x.landmarks + 0.05 * x.residual)
    assert (x.residual >= 0).all() and (x.inverse >= 0).all()  # as published
    assert x.residual.any() and x.inverse.any()


def test_signed_heads_have_no_limit_below(face_model, images):
    model = network(face_model, heads="signed")
    with torch.no_grad():
        x = model(images)
    assert (x.residual < 0).any() and (x.inverse < 0).any()
    keys = set(network(face_model).state_dict()) - set(model.state_dict())
    norms = {"forwardDirection.bn9", *(f"reverseDirection.bn6_{i}" for i in (1, 2, 3))}
    assert {key.rsplit(".", 1)[0] for key in keys} == norms


def test_unknown_heads(face_model):
    with pytest.raises(ValueError, match="double.*published, signed"):
        SynergyNet(face_model, "mobilenet_025", "double")


@pytest.mark.parametrize(("loop", "ran"), [("backbone", 0), ("refiner", 1), ("full", 2)])
def test_loops_run_what_they_need(model, images, monkeypatch, loop, ran):
    calls = []
    for network_ in (model.forwardDirection, model.reverseDirection):
        original = network_.forward

        def count(*arguments, original=original):
            calls.append(original)
            return original(*arguments)

        monkeypatch.setattr(network_, "forward", count)
    with torch.no_grad():
        x = model(images, loop)
    assert len(calls) == ran
    assert (x.refined is not None, x.inverse is not None) == (ran > 0, ran > 1)
    terms = model.loss(images, torch.zeros(2, 62), SynergyLoss(loop))
    assert all(torch.isfinite(term).all() for term in terms.values())


@pytest.mark.parametrize("heads", ["published", "signed"])
def test_the_loss_compares_what_the_heads_mean(face_model, images, heads):
    model = network(face_model, heads=heads)
    with torch.no_grad():
        output = model(images)
        target = torch.randn(2, 62, generator=torch.Generator().manual_seed(1))
        found = model.loss(images, target, SynergyLoss())["loss_Param_S2"]
    expected = 0.02 * coefficient_loss(output.inverse, target, aligned=heads == "signed")
    torch.testing.assert_close(found, expected)


def test_target_landmarks_come_from_the_target(model, images):
    target = torch.randn(2, 62, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        terms = model.loss(images, target, SynergyLoss())
        same = model.loss(images, target, SynergyLoss(), model.landmarks_from_whitened(target))
    assert all(torch.equal(terms[name], same[name]) for name in terms)


def test_the_face_model_moves_along(model, images):
    double = copy.deepcopy(model).double()
    assert double.face_model.basis.dtype == double.face_model.flip.dtype == torch.float64
    with torch.no_grad():
        landmarks = double(images.double()).landmarks
    assert landmarks.dtype == torch.float64
    torch.testing.assert_close(landmarks.float(), outputs(model, images)[2], atol=1e-2, rtol=0)
    assert double.face_model.fingerprint == model.face_model.fingerprint
    assert model.face_model.basis.dtype == torch.float32  # the original stays
    assert copy.deepcopy(model).to("meta").face_model.mean.device.type == "meta"
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert torch.equal(last.face_model.basis, model.face_model.basis)
