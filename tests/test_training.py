"""main_train.py end to end on a made-up set: what it writes, and that nothing can be lost."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import cv2
import distributed_gradients
import numpy as np
import pytest
import torch
from conftest import ROOT, exit_code, run_python

import main_train
from backbone_nets.fused_norm import FusedBatchNorm2d
from backbone_nets.strided_depthwise import StridedDepthwiseConv2d
from model_building import load_synergynet
from tools import train_demo
from utils import datasets, files, training
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.datasets import write_packed
from utils.distributed import World, join_world
from utils.errors import UnavailableError
from utils.evaluation import torch_network
from utils.geometry import angle_differences, camera_angles
from utils.metrics import YAW_BINS
from utils.morphable_model import load_morphable_model, split_camera
from utils.preprocessing import PROTOCOL_BORDER
from utils.training_log import TrainingLog, draw_curves

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU works here")
pytestmark = pytest.mark.usefixtures("no_curves")  # whole_run has them: it is made before


@pytest.fixture(scope="module")
def options(face_npz, face_model, tmp_path_factory) -> list[str]:
    """Arguments of a run that takes a second: 24 noisy faces, the smallest backbone."""
    rng = np.random.default_rng(0)
    folders = [tmp_path_factory.mktemp(name) for name in ("train", "val")]
    for folder, count in zip(folders, (24, 8), strict=True):
        whitened = 0.5 * rng.normal(size=(count, 62)).astype(np.float32)
        pictures = iter(rng.integers(0, 256, (count, 64, 64, 3)).astype(np.uint8))
        write_packed(folder, pictures, count, 64, parameters=face_model.dewhiten(whitened))
    sets = ["--data", str(folders[0]), "--val", str(folders[1]), "--face-model", str(face_npz)]
    small = ["--backbone", "mobilenet_025", "--train-size", "48", "--batch-size", "8"]
    plan = ["--epochs", "2", "--schedule", "linear", "--cooldown", "1", "--warmup", "3"]
    return [*sets, *small, *plan, "--lr", "0.01", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def whole_run(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert main_train.main([*options, "--out", str(out)]) == 0
    return out


def make_trainer(arguments: list[str]) -> training.Trainer:
    settings = main_train.parse_options(arguments)
    return training.Trainer(settings, load_morphable_model(settings.face_model), World())


def log(folder) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_equal_content(a, b, where: str = "") -> None:
    """Equal to the bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal_content(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal_content(*pair, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_runs(one: Path, other: Path) -> None:
    for file in ("last.pth.tar", "best.pth.tar"):
        assert_equal_content(read_checkpoint(one / file), read_checkpoint(other / file))
    rows = [[{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
             for row in log(folder)] for folder in (one, other)]  # fmt: skip
    assert rows[0] == rows[1]
    assert not list(other.glob(".*.partial"))


# ------------------------------------------------------------------------------ what a run leaves


def test_a_run_leaves_a_log_curves_and_checkpoints(whole_run, face_model):
    rows = log(whole_run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    terms = [name for name in rows[0] if name.startswith("loss")]
    assert len(terms) == 6  # the total and its five terms
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[n]) for n in terms[1:]), abs=1e-3)
        assert float(row["nme"]) > 0 and float(row["nme_refined"]) > 0
        assert 0 < float(row["pose_mae"]) < 180
        assert row["skipped"] == "0"
        assert all(f"nme_{low}_{high}" in row for low, high in YAW_BINS)
    last = read_checkpoint(whole_run / "last.pth.tar")
    best = read_checkpoint(whole_run / "best.pth.tar")
    assert last["epoch"] == 2 and last["step"] == 0
    assert "optimizer" in last and "optimizer" not in best
    scores = [float(row["nme_balanced"]) for row in rows]
    assert last["best_score"] == best["best_score"] == pytest.approx(min(scores), abs=1e-3)
    assert best["epoch"] == last["best_epoch"] == 1 + scores.index(min(scores))
    for name in ("last", "best"):
        load_synergynet(whole_run / f"{name}.pth.tar", face_model)
    assert cv2.imread(str(whole_run / "curves.png")) is not None
    names = {p.name for p in whole_run.iterdir()} - {"tensorboard"}
    assert names == {"log.csv", "curves.png", "last.pth.tar", "best.pth.tar"}


def test_a_run_repeats_itself(options, whole_run, tmp_path):
    main_train.main([*options, "--out", str(tmp_path / "same")])
    assert_same_runs(whole_run, tmp_path / "same")
    main_train.main([*options, "--out", str(tmp_path / "other"), "--seed", "1", "--epochs", "1"])
    states = [read_checkpoint(f / "last.pth.tar")["state_dict"] for f in tmp_path.iterdir()]
    assert not torch.equal(*(next(iter(state.values())) for state in states))


def test_epochs_to_keep_have_the_published_name(options, tmp_path, face_model):
    main_train.main([*options, "--out", str(tmp_path), "--save_val_freq", "2"])
    kept = [p.name for p in tmp_path.glob("SynergyNet_*")]
    assert kept == ["SynergyNet_checkpoint_epoch_2.pth.tar"]
    load_synergynet(tmp_path / kept[0], face_model)


def test_scores_of_small_crops_are_told_to_be_such(options, tmp_path, capsys):
    for name, said in (("small", True), ("none", False)):
        more = ["--epochs", str(int(said))]
        main_train.main([*options, *more, "--out", str(tmp_path / name)])
        told = capsys.readouterr().out
        assert ("the scores are of crops of 48 pixels" in told) == said


def test_validation_faces_that_are_trained_on_are_told(options, tmp_path, capsys):
    main_train.main([*options, "--out", str(tmp_path / "a"), "--dry-run"])
    assert "trained on too" not in capsys.readouterr().out
    data = options[options.index("--data") + 1]
    main_train.main([*options, "--out", str(tmp_path / "b"), "--dry-run", "--val", data])
    assert f"{data}: 24 of its 24 faces are trained on too" in capsys.readouterr().out


def test_without_a_validation_set_a_part_of_the_training_set_is_held_out(options, tmp_path):
    at = options.index("--val")
    arguments = [*options[:at], *options[at + 2 :], "--held-out", "0.3"]
    trainer = make_trainer([*arguments, "--out", str(tmp_path)])
    train, val = (set(s.indices.tolist()) for s in (trainer.train_set, trainer.val_set))
    assert len(train) + len(val) == 24 and not train & val and val


def test_a_dry_run_tells_what_to_expect_and_writes_nothing(options, tmp_path, capsys):
    out = tmp_path / "out"
    assert main_train.main([*options, "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("M weights", "GiB", "images/s", "for 2 epochs"))
    assert main_train.main([*options, "--out", str(out), "--dry-run", "--epochs", "3600000"]) == 0
    text = capsys.readouterr().out
    step, hours = (
        float(re.search(rf"([\d.]+) {what}", text)[1])
        for what in ("s a step", "hours for 3600000 epochs")
    )
    assert hours == pytest.approx(3000 * step, abs=1.6)  # 3 steps an epoch; both are rounded
    assert not out.exists()


def test_the_time_left_is_told_after_each_epoch_but_the_last(options, tmp_path, capsys):
    assert main_train.main([*options, "--out", str(tmp_path / "out")]) == 0
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert ["  left: " in line for line in epochs] == [True, False]


def test_initial_weights(options, whole_run, tmp_path, capsys):
    best = whole_run / "best.pth.tar"
    trainer = make_trainer([*options, "--out", str(tmp_path), "--init", str(best)])
    assert_equal_content(dict(trainer.model.state_dict()), read_checkpoint(best)["state_dict"])
    for other in (["--backbone", "mobilenet_v2"], ["--heads", "signed"]):
        start = [*options, "--out", str(tmp_path), "--init", str(best), *other]
        assert main_train.main(start) == 2
        assert re.search(f"{re.escape(str(best))}.*to have .*{other[1]}", capsys.readouterr().err)


# ---------------------------------------------------------------------------- stopping and resuming


class Killed(BaseException):
    """What the process ends with; no handler for ordinary errors sees it."""


def run_until_killed(
    monkeypatch, arguments: list[str], owner, name: str, call: int, after: bool
) -> None:
    """A run that ends before or after the given call of a function."""
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == call and not after:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == call and after:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            main_train.main(arguments)


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (training.Trainer, "_train_epoch", 2, False),  # between the epochs
        (training, "validate", 2, True),  # late in the second epoch
        (training, "validate", 1, False),  # before the first score
        (training, "write_checkpoint", 2, True),  # between the first epoch's two checkpoints
    ],
)
def test_a_stopped_and_resumed_run_ends_as_if_never_stopped(
    options, whole_run, tmp_path, monkeypatch, owner, name, call, after
):
    arguments = [*options, "--out", str(tmp_path)]
    run_until_killed(monkeypatch, arguments, owner, name, call, after)
    # last must not promise a best that is not there
    saved = read_checkpoint(tmp_path / "last.pth.tar")
    assert (tmp_path / "best.pth.tar").exists() or not saved["best_epoch"]
    main_train.main([*arguments, "--resume"])
    assert_same_runs(whole_run, tmp_path)


def test_a_validation_that_fails_costs_no_epoch(options, tmp_path, monkeypatch):
    arguments = [*options, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", Mock(side_effect=OSError("no disk")))
        assert main_train.main(arguments) == 1
    steps = []
    original = training.Trainer.train_step
    monkeypatch.setattr(
        training.Trainer, "train_step", lambda self, b: steps.append(0) or original(self, b)
    )
    assert main_train.main([*arguments, "--resume"]) == 0
    assert len(steps) == 3  # of the second epoch


@pytest.mark.parametrize("schedule", ["linear", "published"])
def test_each_step_has_the_rate_of_its_schedule(options, tmp_path, schedule):
    arguments = [*options, "--epochs", "80", "--schedule", schedule, "--out", str(tmp_path)]
    trainer = make_trainer(arguments)
    trainer.step.train()
    batch, steps = trainer.train_set.batch(np.arange(8)), trainer.steps_per_epoch
    for epoch, step in ((0, 0), (0, 1), (5, 0), (48, 2), (64, 0), (79, 1)):
        trainer.progress.epoch, trainer.progress.step = epoch, step
        trainer.train_step(batch)
        expected = training.published_rate(epoch, 80, 0.01)
        if schedule == "linear":  # --warmup 3 --cooldown 1
            expected = training.linear_rate(epoch * steps + step, 80 * steps, 0.01, 3, steps)
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [expected]


def test_optimisers_are_what_they_are_called():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    sgd = training.make_optimizer(network, "sgd", 0.1, 5e-4)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["dampening"]) == (
        0.9,
        True,
        0,
    )
    assert [group["weight_decay"] for group in sgd.param_groups] == [5e-4]
    decayed, others = training.make_optimizer(network, "adamw", 0.1, 0.02).param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.02
    assert {p.ndim for p in others["params"]} == {1} and others["weight_decay"] == 0


def test_steps_are_clipped_and_poses_balanced(options, tmp_path):
    def moved(clip: str) -> float:
        more = ["--clip-norm", clip, "--weight-decay", "0", "--warmup", "1", "--pose-balanced"]
        trainer = make_trainer([*options, *more, "--optimizer", "sgd", "--out", str(tmp_path)])
        expected = datasets.pose_balanced_probabilities(trainer.train_set.yaw())
        order = datasets.epoch_batches(24, expected, 24, 8, (trainer.options.seed, 0))
        for batch, indices in zip(trainer._batches(), order, strict=True):
            rows = trainer.train_set.parameters[indices]
            np.testing.assert_array_equal(batch.parameters, rows)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.step.train()
        trainer.train_step(trainer.train_set.batch(np.arange(8)))
        after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        return float((after - before).norm())

    clipped = moved("1e-3")
    # Nesterov's first step: rate times 1 + momentum times the gradient
    assert clipped == pytest.approx(0.01 * 1.9 * 1e-3, rel=0.05)
    assert moved("0") > 10 * clipped


def test_validation_scores_what_the_network_says(options, tmp_path, monkeypatch):
    """A network that gives the labels a pixel (refined: two) to the right, and turned by 10."""
    trainer = make_trainer([*options, "--out", str(tmp_path)])
    faces, model, shifts = trainer.val_set, trainer.model, iter([1.0, 2.0])
    labelled = faces.parameters.copy()
    c, s = math.cos(math.radians(10)), math.sin(math.radians(10))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    cameras = turn @ labelled[:, :12].reshape(-1, 3, 4)
    said = np.concatenate([cameras.reshape(-1, 12), labelled[:, 12:]], 1).astype(np.float32)
    cut = []

    def plain(batch, generator, size):
        cut.append(size)
        return torch.zeros(len(batch.images), 3, 4, 4), batch.parameters, batch.landmarks

    def network(images, loop):
        target = torch.from_numpy(faces.landmarks(np.arange(len(faces))))
        raw, refined = (target + torch.tensor([next(shifts), 0, 0])[:, None] for _ in range(2))
        return Mock(
            whitened=model.face_model.whiten(torch.from_numpy(said)),
            landmarks=raw,
            refined=refined,
        )

    stub = Mock(side_effect=network, face_model=model.face_model, training=False)
    scores = training.validate(stub, faces, "full", plain, 48, torch.device("cpu"))
    points = faces.landmarks(np.arange(len(faces))).astype(np.float64)
    sizes = np.sqrt((points[:, :2].max(2) - points[:, :2].min(2)).prod(1))
    assert scores["nme"] == pytest.approx((100 / sizes).mean(), rel=1e-4)
    assert scores["nme_refined"] == pytest.approx((200 / sizes).mean(), rel=1e-4)
    angles = [camera_angles(split_camera(p)) for p in (said, labelled)]
    expected = angle_differences(*angles).mean()
    assert expected > 1 and scores["pose_mae"] == pytest.approx(expected, rel=1e-3)
    assert cut == [48]
    for augment, border in (("strong", 0), ("published", PROTOCOL_BORDER)):
        trainer = make_trainer([*options, "--augment", augment, "--out", str(tmp_path)])
        assert trainer.plain.border == border


def test_a_run_is_not_overwritten_unasked(options, tmp_path, capsys):
    arguments = [*options, "--epochs", "1", "--out", str(tmp_path)]
    assert main_train.main(arguments) == 0
    before = (tmp_path / "last.pth.tar").read_bytes()
    assert exit_code(main_train.main, *arguments) == 2
    assert (tmp_path / "last.pth.tar").read_bytes() == before
    said = capsys.readouterr().err
    assert all(option in said for option in ("last.pth.tar", "--resume", "--overwrite", "--out"))
    assert main_train.main([*arguments, "--dry-run"]) == 0
    (tmp_path / "last.pth.tar").rename(tmp_path / "elsewhere")  # twice as large as best.pth.tar
    kept = (tmp_path / "best.pth.tar").read_bytes()
    for more in ([], ["--resume"]):
        assert exit_code(main_train.main, *arguments, *more) == 2
        assert "best.pth.tar: a run was there" in capsys.readouterr().err
    assert (tmp_path / "best.pth.tar").read_bytes() == kept
    assert main_train.main([*arguments, "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "last.pth.tar").read_bytes() != before


def test_a_run_that_was_given_up_is_gone_when_the_new_one_begins(
    options, tmp_path, monkeypatch, capsys
):
    arguments = [*options, "--out", str(tmp_path)]
    assert main_train.main([*arguments, "--save_val_freq", "1"]) == 0
    files = {path for path in tmp_path.iterdir() if path.is_file()}
    assert len(files) == 6  # last, best, two epochs, log and curves
    files.add(tmp_path / "tensorboard" / "events.out.tfevents.1.somewhere.0")
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "notes.txt").touch()
    anew = [*arguments, "--overwrite", "--seed", "1"]

    # not by what never begins
    assert main_train.main([*anew, "--dry-run"]) == 0
    assert main_train.main([*anew, "--batch-size", "64"]) == 2
    init = ["--init", str(tmp_path / "best.pth.tar")]
    for owner, name in ((main_train, "load_morphable_model"), (training, "validate")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Mock(side_effect=KeyboardInterrupt))
            assert main_train.main([*anew, *init]) == 130
        assert "--resume goes on from" in capsys.readouterr().out  # the old run is as it was
    assert all(path.exists() for path in files)
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "train_step", Mock(side_effect=KeyboardInterrupt))
        assert main_train.main(anew) == 130
    assert "nothing saved" in capsys.readouterr().out
    assert not any(path.exists() for path in files) and (tmp_path / "notes.txt").exists()
    assert main_train.main([*arguments, "--resume", "--seed", "1", "--epochs", "1"]) == 0
    assert "last.pth.tar: nothing saved yet" in capsys.readouterr().out
    assert [row["epoch"] for row in log(tmp_path)] == ["1"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_options_of_the_optimiser_are_taken_as_given_now(options, tmp_path, capsys, optimizer):
    arguments = [*options, "--optimizer", optimizer, "--out", str(tmp_path), "--epochs"]
    assert main_train.main([*arguments, "1", "--weight-decay", "0.05"]) == 0
    assert main_train.main([*arguments, "2", "--weight-decay", "0.01", "--resume"]) == 0
    assert "weight_decay 0.05 (now 0.01)" in capsys.readouterr().out
    groups = read_checkpoint(tmp_path / "last.pth.tar")["optimizer"]["param_groups"]
    expected = [0.01] if optimizer == "sgd" else [0.01, 0.0]
    assert [group["weight_decay"] for group in groups] == expected


@pytest.fixture(autouse=True)
def started_once(monkeypatch):
    for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_command_that_is_started_again_goes_on(options, tmp_path, monkeypatch, name):
    arguments = [*options, "--out", str(tmp_path), "--epochs"]
    monkeypatch.setenv(name, "0")
    assert main_train.main([*arguments, "1"]) == 0
    monkeypatch.setenv(name, "1")
    assert main_train.main([*arguments, "2", "--overwrite"]) == 0
    assert [row["epoch"] for row in log(tmp_path)] == ["1", "2"]


def test_an_epoch_may_go_on_in_other_processes(options, tmp_path, monkeypatch, capsys):
    arguments = [*options, "--out", str(tmp_path), "--save-every-steps", "1"]
    run_until_killed(monkeypatch, arguments, training.Trainer, "train_step", 2, False)
    path = tmp_path / "last.pth.tar"
    saved = read_checkpoint(path)
    write_checkpoint(path, saved | {"recipe": saved["recipe"] | {"processes": 8}})
    assert main_train.main([*arguments, "--resume"]) == 0
    assert "processes 8 (now 1)" in capsys.readouterr().out


def test_a_run_may_go_on_with_another_loop(options, tmp_path, capsys):
    arguments = [*options, "--out", str(tmp_path)]
    assert main_train.main([*arguments, "--epochs", "1", "--loop", "backbone"]) == 0
    assert main_train.main([*arguments, "--loop", "refiner", "--resume"]) == 0
    assert "loop backbone (now refiner)" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "last.pth.tar")["trained_loop"] == "refiner"


def test_scores_on_other_faces_are_not_compared(options, tmp_path, capsys):
    at = options.index("--val")
    mine, other = options[:at] + options[at + 2 :], options[options.index("--data") + 1]
    arguments = [*options, "--out", str(tmp_path / "a")]
    assert main_train.main([*arguments, "--epochs", "1"]) == 0
    path = tmp_path / "a" / "last.pth.tar"
    write_checkpoint(path, read_checkpoint(path) | {"best_score": 0.001})  # cannot be beaten
    again = [*mine, "--val", other, "--out", str(tmp_path / "a"), "--resume"]
    assert main_train.main(again) == 0
    assert "the best epoch is chosen anew" in capsys.readouterr().out
    saved = read_checkpoint(path)
    assert saved["best_epoch"] == 2 and saved["best_score"] > 0.001
    # nor on crops of another size
    assert main_train.main([*again, "--epochs", "3", "--train-size", "40"]) == 0
    assert "other validation crops; the best epoch is chosen anew" in capsys.readouterr().out
    assert read_checkpoint(path)["best_epoch"] == 3
    # a held-out part that moves would be faces that were trained on
    held_out = [*mine, "--held-out", "0.25", "--out", str(tmp_path / "b")]
    assert main_train.main([*held_out, "--epochs", "1"]) == 0
    assert main_train.main([*held_out, "--resume", "--seed", "1"]) == 2
    assert "it held out other faces" in capsys.readouterr().err
    assert main_train.main([*held_out, "--resume"]) == 0


def test_the_checkpoint_says_whether_the_refiner_was_trained(options, tmp_path):
    for loop in ("backbone", "full"):
        arguments = [*options, "--epochs", "1", "--out", str(tmp_path / loop), "--loop", loop]
        assert main_train.main(arguments) == 0
        model = load_morphable_model(options[options.index("--face-model") + 1])
        network = load_synergynet(tmp_path / loop / "best.pth.tar", model)
        crops = np.zeros((2, 3, 120, 120), np.float32)
        refined = torch_network(network, torch.device("cpu"))(crops).refined
        assert (refined is None) == (loop == "backbone")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip-norm", "-1"], "--clip-norm: expected a number, 0 or more, not '-1'"),
        (["--lr", "nan"], "--lr: expected a number, 0 or more, not 'nan'"),
        (["--seed", "1.5"], "--seed: expected a whole number, 0 or more, not '1.5'"),
        (["--batch-size", "1"], "leaves batch norm a single sample; give 2 or more"),
        (["--batch-size", "64"], "no full batch of 64"),
        pytest.param(["--device", "cuda"], "device 'cuda' does not work here", marks=NO_GPU),
    ],
)
def test_options_that_cannot_be_are_wrong_usage(options, tmp_path, call, arguments, message):
    code, said = call(main_train.main, *options, *arguments, "--out", tmp_path)
    assert code == 2 and message in said


@pytest.mark.parametrize("step", [2, 5, 6])
def test_resuming_in_the_middle_of_an_epoch(options, whole_run, tmp_path, monkeypatch, step):
    arguments = [*options, "--out", str(tmp_path), "--save-every-steps", "1"]
    run_until_killed(monkeypatch, arguments, training.Trainer, "train_step", step, False)
    saved = read_checkpoint(tmp_path / "last.pth.tar")
    assert saved["epoch"] * 3 + saved["step"] == step - 1
    main_train.main([*arguments, "--resume"])
    assert_same_runs(whole_run, tmp_path)


def test_other_losses_begin_new_means(options, tmp_path, capsys, monkeypatch):
    arguments = [*options, "--out", str(tmp_path), "--epochs", "1", "--save-every-steps", "1"]
    alone = [*arguments, "--loop", "backbone"]
    run_until_killed(monkeypatch, alone, training.Trainer, "train_step", 2, False)
    step, terms = training.Trainer.train_step, []

    def kept(self, batch):
        terms.append(step(self, batch))
        return terms[-1]

    monkeypatch.setattr(training.Trainer, "train_step", kept)
    assert main_train.main([*arguments, "--resume"]) == 0
    assert "loop backbone (now full)" in capsys.readouterr().out
    (row,) = log(tmp_path)
    assert len(terms) == 2
    for name in ("loss", "loss_LMK_pointNet", "loss_Param_S2"):
        expected = np.mean([values[name] for values in terms])
        assert float(row[name]) == pytest.approx(expected, abs=1e-4), name


def test_a_run_killed_by_the_system_is_resumed_bit_for_bit(options, whole_run, tmp_path):
    arguments = [*options, "--out", str(tmp_path), "--save-every-steps", "1"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main_train.py"), *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "last.pth.tar").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    main_train.main([*arguments, "--resume"])
    assert_same_runs(whole_run, tmp_path)


def test_an_epoch_under_way_goes_on_with_its_own_settings_only(
    options, tmp_path, monkeypatch, capsys
):
    arguments = [*options, "--out", str(tmp_path), "--save-every-steps", "1"]
    run_until_killed(monkeypatch, arguments, training.Trainer, "train_step", 2, True)
    assert main_train.main([*arguments, "--resume", "--seed", "4"]) == 2
    assert "seed 0 (now 4)" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_refused(options, whole_run, tmp_path, capsys):
    weights_only = read_checkpoint(whole_run / "best.pth.tar")
    torch.save(weights_only, tmp_path / "last.pth.tar")
    assert main_train.main([*options, "--out", str(tmp_path), "--resume"]) == 2
    assert "needs last.pth.tar" in capsys.readouterr().err
    older = read_checkpoint(whole_run / "last.pth.tar")
    del older["counted"]
    torch.save(older, tmp_path / "last.pth.tar")
    assert main_train.main([*options, "--out", str(tmp_path), "--resume"]) == 2
    assert "another version of this program (no counted in it)" in capsys.readouterr().err
    for other, said in (
        (["--heads", "signed"], "heads published, this run has signed"),
        (["--optimizer", "adamw"], "optimiser's state does not fit --optimizer adamw"),
    ):
        assert main_train.main([*options, "--out", str(whole_run), "--resume", *other]) == 2
        assert said in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ steps


def test_a_step_that_is_not_finite_leaves_no_trace(options, tmp_path):
    trainer = make_trainer([*options, "--out", str(tmp_path)])
    trainer.step.train()
    batch = trainer.train_set.batch(np.arange(8))
    assert trainer.train_step(batch) is not None
    weights = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    moments = [s["momentum_buffer"].clone() for s in trainer.optimizer.state.values()]
    spoilt = batch._replace(
        landmarks=batch.landmarks.clone().index_fill_(0, torch.tensor(3), math.nan)
    )
    assert trainer.train_step(spoilt) is None
    assert_equal_content(weights, dict(trainer.model.state_dict()))
    after = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
    assert_equal_content(moments, after)


def test_steps_that_are_not_finite_are_counted_and_end_the_run(
    options, tmp_path, monkeypatch, capsys
):
    original, calls = training.Trainer.train_step, []

    def spoil(self, batch):
        calls.append(1)
        if len(calls) == 2 or len(calls) > 4:
            batch = batch._replace(landmarks=batch.landmarks * math.inf)
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "train_step", spoil)
    arguments = [*options, "--out", str(tmp_path), "--epochs", "9", "--max-skipped", "4"]
    assert main_train.main(arguments) == 1
    message = capsys.readouterr().err
    assert "4 steps in a row" in message and "epoch 3, step 2" in message
    assert [row["skipped"] for row in log(tmp_path)] == ["1", "3"]
    assert math.isfinite(float(log(tmp_path)[0]["loss"]))


def test_weights_that_a_step_has_spoilt_replace_no_others(options, tmp_path, capsys):
    """In fewer steps than it takes --max-skipped to end the run."""
    arguments = [*options, "--out", str(tmp_path), "--epochs", "2", "--resume"]
    assert main_train.main([*arguments, "--lr", "1e30"]) == 1
    message = capsys.readouterr().err
    assert "answers are not finite in epoch 1" in message and "smaller --lr" in message
    assert not (tmp_path / "last.pth.tar").exists() and "--resume" not in message
    assert main_train.main([*arguments[:-1], "--epochs", "1"]) == 0
    good = (tmp_path / "last.pth.tar").read_bytes()
    assert main_train.main([*arguments, "--lr", "1e30", "--save-every-steps", "1"]) == 1
    assert "--resume goes on from" in capsys.readouterr().err
    assert (tmp_path / "last.pth.tar").read_bytes() == good


@pytest.mark.parametrize("loop", ["backbone", "refiner", "inverse"])
def test_shorter_loops(options, tmp_path, loop):
    """Networks outside the loop are not run."""
    out = ["--out", str(tmp_path), "--loop", loop, "--epochs", "1", "--heads", "signed"]
    main_train.main([*options, *out, "--optimizer", "adamw", "--samples-per-epoch", "8"])
    (row,) = log(tmp_path)
    assert ("loss_LMK_pointNet" in row) == (loop != "backbone")
    assert ("loss_Param_S2" in row) == (loop == "inverse") and "loss_Param_S1S2" not in row
    assert (row["nme_refined"] != "nan") == (loop != "backbone")
    assert read_checkpoint(tmp_path / "last.pth.tar")["heads"] == "signed"
    state = read_checkpoint(tmp_path / "last.pth.tar")["state_dict"]
    seen = {key.split(".")[0] for key, v in state.items() if "num_batches" in key and v > 0}
    parts = ["I2P", "forwardDirection", "reverseDirection"]
    assert seen == set(parts[: ["backbone", "refiner", "inverse"].index(loop) + 1])


def test_bfloat16_touches_the_image_encoder_only(options, tmp_path):
    trainers = [
        make_trainer([*options, "--out", str(tmp_path), "--amp", amp]) for amp in ("off", "bf16")
    ]
    losses, seen, model = [], {}, trainers[1].model
    convolution = next(m for m in model.I2P.modules() if isinstance(m, torch.nn.Conv2d))
    parts = {"encoder": convolution, "refiner": model.forwardDirection}
    for name, part in (parts | {"inverse": model.reverseDirection}).items():
        part.register_forward_hook(
            lambda module, given, answer, name=name: seen.update({name: answer.dtype})
        )
    for trainer in trainers:
        trainer.step.train()  # with running statistics an untrained network answers nothing
        losses.append(trainer.train_step(trainer.train_set.batch(np.arange(8))))
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=0.05) and losses[1][name] != value
    layers = {type(layer) for layer in trainers[1].model.modules()}
    assert {StridedDepthwiseConv2d, FusedBatchNorm2d} <= layers  # what makes a CPU's step fast
    assert seen["encoder"] == torch.bfloat16
    assert seen["refiner"] == seen["inverse"] == torch.float32


def test_the_published_schedule():
    """Epochs 1-5 at 0.016, 6-48 at 0.08, 49-64 at 0.016, 65-80 at 0.0032."""
    rates = [training.published_rate(epoch, 80, 0.08) for epoch in range(80)]
    expected = [0.016] * 5 + [0.08] * 43 + [0.016] * 16 + [0.0032] * 16
    np.testing.assert_allclose(rates, expected)
    assert training.published_rate(95, 160, 0.08) == 0.08
    assert training.published_rate(96, 160, 0.08) == pytest.approx(0.016)


def test_the_linear_schedule():
    rates = [training.linear_rate(step, 100, 1, warmup=8, cooldown=40) for step in range(100)]
    np.testing.assert_allclose(rates[:8], np.arange(1, 9) / 8)
    assert set(rates[8:61]) == {1}
    np.testing.assert_allclose(rates[60:], np.arange(40, 0, -1) / 40)


# ---------------------------------------------------------------------------------- many processes


def run_in_two_processes(script: Path, *arguments: object) -> None:
    """From the checkout, where nothing need be installed."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    # not by the machine's name, which need not lead to an address: it would be waited for
    command += ["--local-addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = run_python(*command, script, *arguments, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """On the same global batch, with batch-norm statistics frozen."""
    distributed_gradients.main(tmp_path / "one.pt")
    run_in_two_processes(Path(distributed_gradients.__file__), tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 100
    for name in one:
        scale = one[name].abs().max().clamp(min=1e-12)
        assert ((one[name] - two[name]).abs().max() / scale) < 1e-4, name


TOGETHER = """
import sys, main_train, torch
from utils import training_log
from utils.training import Trainer

training_log.draw_curves = lambda rows, path: None
run = Trainer.run

def checked(trainer):
    run(trainer)
    for weights in trainer.model.parameters():  # each has seen pictures of its own
        assert torch.equal(trainer.world.mean(weights.detach()), weights)

Trainer.run = checked
sys.exit(main_train.main(sys.argv[1:]))
"""


def test_two_processes_train_together(options, tmp_path, face_model):
    (tmp_path / "together.py").write_text(TOGETHER)
    run_in_two_processes(tmp_path / "together.py", *options, "--out", tmp_path)
    assert [row["epoch"] for row in log(tmp_path)] == ["1", "2"]
    load_synergynet(tmp_path / "best.pth.tar", face_model)


# --------------------------------------------------------------------------------------- bad input


def test_missing_sets_are_named_in_one_line(options, tmp_path, capsys):
    arguments = [*options, "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    assert main_train.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'nothing'}" in line
    assert not (tmp_path / "out").exists()


def test_a_set_is_packed_once(options, tmp_path, capsys):
    pack = ["--pack", str(tmp_path / "pack")]
    assert main_train.main([*options, *pack, "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    written = (tmp_path / "pack" / "images.npy").stat().st_mtime_ns
    at = options.index("--data")
    without = [*options[:at], "--data", str(tmp_path / "none"), *options[at + 2 :]]
    assert main_train.main([*without, *pack, "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "pack" / "images.npy").stat().st_mtime_ns == written
    assert_same_runs(tmp_path / "a", tmp_path / "b")


def test_a_set_that_another_process_packed_meanwhile_is_taken(tmp_path, monkeypatch, capsys):
    def pack(faces, folder, workers):
        if folder.name == "pack":
            folder.mkdir()
            (folder / "labels.npz").touch()
        raise FileExistsError(f"{folder}: exists")

    monkeypatch.setattr(datasets, "pack", pack)
    monkeypatch.setattr(datasets, "open_training_set", lambda *arguments: None)
    datasets.provide_pack(tmp_path, tmp_path / "pack", None)
    assert f"{tmp_path / 'pack'}: packed by another process" in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        datasets.provide_pack(tmp_path, tmp_path / "other", None)


def test_a_reader_that_has_seen_enough_ends_no_training(options, tmp_path, monkeypatch):
    """As in ``main_train.py ... | head -1``."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main_train.main([*options, "--out", str(tmp_path)]) == 0
    assert len(log(tmp_path)) == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("[enforce fail] can't allocate memory: 9 bytes"), 1, "--batch-size 8"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), 1, "--batch-size 8"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_faults_on_the_way_end_with_a_message(
    options, tmp_path, monkeypatch, capsys, error, code, message
):
    monkeypatch.setattr(training.Trainer, "train_step", Mock(side_effect=error))
    assert main_train.main([*options, "--out", str(tmp_path)]) == code
    assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_ends_the_training_with_its_reason(
    options, tmp_path, monkeypatch, capsys
):
    fault = ValueError("picture.jpg: the JPEG is cut short")
    monkeypatch.setattr(datasets.PackedFaces, "images", Mock(side_effect=fault))
    assert main_train.main([*options, "--out", str(tmp_path)]) == 1
    assert "main_train.py: picture.jpg: the JPEG is cut short" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_named_and_the_last_one_kept(
    options, tmp_path, monkeypatch, capsys
):
    resource = pytest.importorskip("resource")
    arguments = [*options, "--out", str(tmp_path), "--epochs"]
    assert main_train.main([*arguments, "1"]) == 0
    before = (tmp_path / "last.pth.tar").read_bytes()

    def on_full_disk(path, content):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            write_checkpoint(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(training, "write_checkpoint", on_full_disk)
    assert main_train.main([*arguments, "2", "--resume"]) == 1
    error = capsys.readouterr().err
    assert "too large" in error and ".pth.tar: " in error
    assert (tmp_path / "last.pth.tar").read_bytes() == before
    assert not list(tmp_path.glob(".*.partial"))


def test_aflw2000_is_reported_where_its_data_is(options, tmp_path, monkeypatch, capsys):
    arguments = [*options, "aflw2000", "--epochs", "1", "--out", str(tmp_path)]
    arguments.insert(arguments.index("--val") + 2, arguments.pop(len(options)))
    monkeypatch.setattr(training, "DEFAULT_FOLDER", tmp_path / "none")
    assert main_train.main(arguments) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    monkeypatch.setattr(training, "open_benchmark", lambda folder: None)
    scores = {"aflw_original": 5.0}
    monkeypatch.setattr(training, "score_aflw2000", lambda model, data, device: scores)
    assert main_train.main(arguments) == 0
    assert log(tmp_path)[0]["aflw_original"] == "5.0"


def test_batches_are_shared_out_evenly_and_leave_each_batch_norm_two_samples():
    world = World(size=4, device=torch.device("cuda", 0))
    training.check_batch_size(4, 100, world, "all")
    with pytest.raises(ValueError, match="9 cannot be shared out among 4 processes"):
        training.check_batch_size(9, 100, world, "all")
    with pytest.raises(ValueError, match="single sample; give 8 or more"):
        training.check_batch_size(4, 100, world, "own")


def test_a_log_that_is_open_elsewhere_is_written_with_the_next_epoch(tmp_path, monkeypatch, capsys):
    log = TrainingLog(tmp_path)
    with monkeypatch.context() as patch:
        error = PermissionError(13, "in use", "log.csv")
        patch.setattr(files.os, "replace", Mock(side_effect=error))
        log.add({"epoch": 1, "loss": 0.5})
    assert "in use: 'log.csv': this epoch is added with the next one" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.csv"))
    log.add({"epoch": 2, "loss": 0.25})
    assert (tmp_path / "log.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"


def test_curves_stay_where_the_last_epoch_has_no_losses(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn, legend = [], figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        drawn.extend(line.get_label() for axes in self.axes for line in axes.lines)
        legend(self, *args, **kwargs)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    rows = [{"epoch": "1", "loss": "0.5", "lr": "0.1"}, {"epoch": "2", "lr": "0.1"}]
    scores = {"nme_refined": "nan", "aflw_original": "5.0"}  # of a backbone alone
    draw_curves([row | scores for row in rows], tmp_path / "curves.png")
    assert drawn == ["loss", "nme_refined", "aflw_original", "lr"]


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "process 3 of this machine has no GPU, it has 2"), ("mps", "in one process only")],
)
def test_processes_without_a_device_of_their_own_are_refused(monkeypatch, device, message):
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UnavailableError, match=message), join_world(device):
        pass


def test_a_dry_run_of_what_was_stopped_while_validating(options, tmp_path, capsys, monkeypatch):
    arguments = [*options, "--out", str(tmp_path)]

    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", Mock(side_effect=KeyboardInterrupt))
        assert main_train.main(arguments) == 130
    before = (tmp_path / "last.pth.tar").read_bytes()
    assert main_train.main([*arguments, "--resume", "--dry-run"]) == 0
    assert "s a step" in capsys.readouterr().out
    assert (tmp_path / "last.pth.tar").read_bytes() == before


def test_a_log_that_another_program_has_saved(whole_run, tmp_path):
    (tmp_path / "log.csv").write_text((whole_run / "log.csv").read_text().replace(",", ";"))
    with pytest.raises(ValueError, match=r"log\.csv: not as it was written; move it away"):
        TrainingLog(tmp_path, 2)
    (tmp_path / "log.csv").write_text("epoch,loss\nabc,1\n")
    with pytest.raises(ValueError, match=r"log\.csv: not as it was written \(invalid literal"):
        TrainingLog(tmp_path, 2)


def test_a_folder_that_cannot_be_written_costs_no_epoch(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training.Trainer, "train_step", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert main_train.main([*options, "--out", str(out)]) == 2
        assert f"{out}: no files can be written there" in capsys.readouterr().err


# ----------------------------------------------------------------------------- the published recipe

STUB = """#!{python}
import json, pathlib, sys
if sys.argv[1] == "-c":
    print({gpus})
else:
    pathlib.Path({calls!r}).write_text(json.dumps(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize(("gpus", "cpu"), [(0, False), (0, True), (1, False), (4, False)])
def test_the_recipe_of_train_script_sh(tmp_path, gpus, cpu):
    calls, stub = tmp_path / "calls.json", tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, gpus=gpus, calls=str(calls)))
    stub.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("CPU", "GPUS")}
    environment |= {"PYTHON": str(stub)} | ({"CPU": "1"} if cpu else {})
    done = subprocess.run(
        ["bash", ROOT / "train_script.sh", "--seed", "3"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if not gpus and not cpu:
        assert done.returncode == 2 and "CPU=1 bash train_script.sh" in done.stderr
        assert not calls.exists()
        return
    assert done.returncode == 0, done.stderr
    arguments = json.loads(calls.read_text())
    at = arguments.index(str(ROOT / "main_train.py"))
    several = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    several += ["--nproc_per_node", "4"]
    assert arguments[:at] == (several if gpus > 1 else [])
    found = main_train.parse_options(arguments[at + 1 :])
    assert found.seed == 3
    if cpu:
        assert (found.device, found.batch_size, found.clip_norm) == ("cpu", 64, 5)
        return
    assert (found.optimizer, found.schedule, found.augment) == ("sgd", "published", "published")
    assert (found.lr, found.weight_decay, found.batch_size, found.epochs) == (0.08, 5e-4, 1024, 80)
    assert (found.backbone, found.heads, found.loop) == ("mobilenet_v2", "published", "full")


def test_make_train_demo_trains_and_shows_what_was_learnt(tmp_path, capsys, monkeypatch):
    """With fewer faces, which a second run does not render again."""
    monkeypatch.setattr(train_demo, "HELD_OUT", train_demo.SHOWN)
    monkeypatch.setattr(cv2, "setNumThreads", lambda _: None)
    arguments = ["--out", str(tmp_path), "--count", "64", "--epochs", "1"]
    for rendered_before in (0, 2):
        assert train_demo.main(arguments) == 0
        said = capsys.readouterr().out
        assert said.count("rendered before, used again") == rendered_before
        assert re.search(r"NME: [\d.]+ % before, [\d.]+ % after\n", said)
        for name in ("held_out.png", "run/best.pth.tar"):
            (tmp_path / name).unlink()


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_compiled_step_trains_alike(options, whole_run, tmp_path, monkeypatch):
    traced = []

    def backend(graph, _):  # what is traced is the same; this runs it without a compiler
        traced.append(graph)
        return graph

    monkeypatch.setattr(
        training.TrainingStep,
        "compile",
        lambda step: torch.nn.Module.compile(step, backend=backend),
    )
    assert main_train.main([*options, "--compile", "--out", str(tmp_path)]) == 0
    assert traced
    ours, whole = (log(folder) for folder in (tmp_path, whole_run))
    # rounding grows with every step: with torch 2.4 to 2 % in the second epoch
    for row, expected, far in zip(ours, whole, (1e-2, 5e-2), strict=True):
        assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=far)
