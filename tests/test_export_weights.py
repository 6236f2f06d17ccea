"""The export of starter weights: what is averaged, what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model_building import SynergyNet, load_synergynet
from starter_kit import export_weights
from utils import assets
from utils.checkpoint import mixed_state, read_checkpoint, write_checkpoint
from utils.morphable_model import load_morphable_model

SHIPPED = assets.STARTER_WEIGHTS


def export(monkeypatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export_weights", *map(str, options)])
    export_weights.main()


def test_the_average_of_two_runs(monkeypatch, tmp_path):
    """Of the shipped weights and others that differ by a known step."""
    content = read_checkpoint(SHIPPED)
    state = content["state_dict"]
    moved = {k: v.float() + 0.5 if v.is_floating_point() else v + 7 for k, v in state.items()}
    trained, out = tmp_path / "last.pth.tar", tmp_path / "out.pth"
    write_checkpoint(trained, content | {"state_dict": moved})
    export(monkeypatch, trained, "--init", SHIPPED, "--init-share", 0.4, "-o", out)
    exported = torch.load(out, weights_only=True)
    assert exported["face_model"] == content["face_model"]
    for name, value in exported["state_dict"].items():
        if value.is_floating_point():
            assert value.dtype == torch.float16
            expected = state[name].float() + 0.6 * 0.5
            torch.testing.assert_close(value.float(), expected, rtol=2e-3, atol=1e-3)
        else:  # counters are the trained run's
            assert torch.equal(value, moved[name])


def test_without_init_nothing_is_averaged(monkeypatch, tmp_path):
    export(monkeypatch, SHIPPED, "-o", tmp_path / "out.pth")
    before = read_checkpoint(SHIPPED)["state_dict"]
    after = read_checkpoint(tmp_path / "out.pth")["state_dict"]
    assert before.keys() == after.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_weights_that_half_precision_cannot_hold_replace_no_file(monkeypatch, tmp_path):
    """They would become infinite, and the file one that is refused wherever it is loaded."""
    content = read_checkpoint(SHIPPED)
    name = next(k for k in content["state_dict"] if k.endswith("running_var"))
    content["state_dict"][name][0] = 1e5
    trained, out = tmp_path / "last.pth.tar", tmp_path / "out.pth"
    write_checkpoint(trained, content)
    out.write_bytes(b"the weights before")
    with pytest.raises(ValueError, match=rf"last\.pth\.tar: {name} does not fit half precision"):
        export(monkeypatch, trained, "-o", out)
    assert out.read_bytes() == b"the weights before"


@pytest.mark.parametrize("loop", ["backbone", "full"])
def test_the_export_says_what_was_trained(monkeypatch, tmp_path, loop):
    """Or a refiner that still has its random weights would be taken for a trained one."""
    trained, out = tmp_path / "best.pth.tar", tmp_path / "out.pth"
    write_checkpoint(trained, read_checkpoint(SHIPPED) | {"trained_loop": loop})
    export(monkeypatch, trained, "-o", out)
    model = load_synergynet(out, load_morphable_model(assets.STARTER_FACE_MODEL))
    assert model.trained_loop == loop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init-share", "0.4"], "--init"),
        (["--init", SHIPPED, "--init-share", "1.4"], "0 to 1"),
        (["--init", SHIPPED, "--init-share", "nan"], "0 to 1"),
    ],
)
def test_shares_that_mean_nothing_are_refused(monkeypatch, capsys, tmp_path, options, message):
    out: Path = tmp_path / "out.pth"
    with pytest.raises(SystemExit):
        export(monkeypatch, SHIPPED, *options, "-o", out)
    assert message in capsys.readouterr().err and not out.exists()


def test_a_face_model_that_counts_pixels_otherwise_is_refused(monkeypatch, tmp_path):
    """Its fingerprint is the same, but the weights' landmarks would move."""
    arrays = dict(np.load(assets.STARTER_FACE_MODEL)) | {"pixel_centres": np.int8(0)}
    np.savez(tmp_path / "own.npz", **arrays)
    options = ["--trained-with", assets.STARTER_FACE_MODEL, "--face-model", tmp_path / "own.npz"]
    with pytest.raises(SystemExit, match="pixel_centres differs between"):
        export(monkeypatch, SHIPPED, *options, "-o", tmp_path / "out.pth")


def test_weights_of_another_network_are_refused():
    state = {"a": torch.zeros(2, 3), "n": torch.tensor(1)}
    with pytest.raises(ValueError, match=r"other\.pth: has not the tensors"):
        mixed_state(state, {"a": torch.zeros(2, 4), "n": torch.tensor(1)}, 0.5, "other.pth")
    with pytest.raises(ValueError, match="has not the tensors"):
        mixed_state(state, {"a": torch.zeros(2, 3)}, 0.5, "other.pth")


@pytest.mark.parametrize("as_init", [False, True])
def test_signed_and_published_heads_are_not_averaged(monkeypatch, tmp_path, as_init):
    """They have the same tensors, of which the last are trained for other outputs."""
    other, out = tmp_path / "published.pth", tmp_path / "out.pth"
    write_checkpoint(other, read_checkpoint(SHIPPED) | {"heads": "published"})
    line = [SHIPPED, "--init", other, "--init-share", 0.5] if as_init else [other, SHIPPED]
    with pytest.raises(ValueError, match=r"published\.pth: has heads published, .* have signed"):
        export(monkeypatch, *line, "-o", out)
    assert not out.exists()


def test_weights_that_say_nothing_of_themselves_are_the_published_kind(monkeypatch, tmp_path):
    bare, out = tmp_path / "best.pth.tar", tmp_path / "out.pth"
    face_model = load_morphable_model(assets.STARTER_FACE_MODEL)
    state = {f"module.{k}": v for k, v in SynergyNet(face_model).state_dict().items()}
    write_checkpoint(bare, {"state_dict": state})
    export(monkeypatch, bare, "-o", out)
    assert read_checkpoint(out)["face_model"] == face_model.fingerprint
    model = load_synergynet(out, face_model)
    assert (model.heads, model.trained_loop) == ("published", "full")


def test_several_epochs_are_averaged(monkeypatch, tmp_path):
    content = read_checkpoint(SHIPPED)
    epochs, out = (
        [tmp_path / f"epoch_{number}.pth.tar" for number in (1, 2, 3)],
        tmp_path / "out.pth",
    )
    for step, path in zip((0.0, 0.25, 1.25), epochs, strict=True):
        state = {
            k: v.float() + step if v.is_floating_point() else v + int(4 * step)
            for k, v in content["state_dict"].items()
        }
        write_checkpoint(path, content | {"state_dict": state, "epoch": int(4 * step)})
    export(monkeypatch, *epochs, "-o", out)
    exported = read_checkpoint(out)
    assert exported["epoch"] == 5
    for name, value in exported["state_dict"].items():
        if value.is_floating_point():
            expected = content["state_dict"][name].float() + 0.5
            torch.testing.assert_close(value.float(), expected, rtol=2e-3, atol=1e-3)
        else:
            assert torch.equal(value, content["state_dict"][name] + 5)
