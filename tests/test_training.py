"""main_train.py end to end on a made-up set: what it writes, and that resuming changes nothing."""

import csv

import numpy as np
import pytest
import torch

import main_train
from model_building import load_synergynet
from utils.checkpoint import read_checkpoint
from utils.datasets import write_packed
from utils.metrics import YAW_BINS


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
    plan = ["--epochs", "2", "--cooldown", "1", "--warmup", "3", "--lr", "0.01"]
    return [*sets, *small, *plan, "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def whole_run(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    main_train.main([*options, "--out", str(out)])
    return out


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


def test_a_run_leaves_a_log_and_checkpoints(whole_run, face_model):
    rows = log(whole_run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    terms = [name for name in rows[0] if name.startswith("loss")]
    assert len(terms) == 6  # the total and its five terms
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[n]) for n in terms[1:]), abs=1e-3)
        assert float(row["nme"]) > 0 and float(row["nme_refined"]) > 0
        assert all(f"nme_{low}_{high}" in row for low, high in YAW_BINS)
    last = read_checkpoint(whole_run / "last.pth.tar")
    best = read_checkpoint(whole_run / "best.pth.tar")
    assert last["epoch"] == 2
    assert "optimizer" in last and "optimizer" not in best
    scores = [float(row["nme_balanced"]) for row in rows]
    assert last["best_score"] == best["best_score"] == pytest.approx(min(scores), abs=1e-3)
    assert best["epoch"] == 1 + scores.index(min(scores))
    for name in ("last", "best"):
        load_synergynet(whole_run / f"{name}.pth.tar", face_model)
    assert {p.name for p in whole_run.iterdir()} == {"log.csv", "last.pth.tar", "best.pth.tar"}


def test_a_run_repeats_itself(options, whole_run, tmp_path):
    main_train.main([*options, "--out", str(tmp_path)])
    files = [folder / "last.pth.tar" for folder in (whole_run, tmp_path)]
    assert_equal_content(*map(read_checkpoint, files))
    main_train.main([*options, "--out", str(tmp_path / "other"), "--seed", "1"])
    other = read_checkpoint(tmp_path / "other" / "last.pth.tar")["state_dict"]
    assert not torch.equal(next(iter(other.values())), next(iter(
        read_checkpoint(files[0])["state_dict"].values()
    )))  # fmt: skip


class Killed(BaseException):
    """What the process ends with; no handler for ordinary errors sees it."""


def run_until_killed(monkeypatch, arguments: list[str], name: str, call: int, after: bool) -> None:
    """A run that ends before or after the given call of one of main_train's functions."""
    original, calls = getattr(main_train, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == call and not after:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == call and after:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(main_train, name, dying)
        with pytest.raises(Killed):
            main_train.main(arguments)


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [
        ("epoch_batches", 2, False),  # between the epochs
        ("validate", 2, True),  # late in the second epoch
        ("write_checkpoint", 1, True),  # between the first epoch's two checkpoints
    ],
)
def test_a_stopped_and_resumed_run_ends_as_if_never_stopped(
    options, whole_run, tmp_path, monkeypatch, name, call, after
):
    arguments = [*options, "--out", str(tmp_path)]
    run_until_killed(monkeypatch, arguments, name, call, after)
    main_train.main([*arguments, "--resume"])
    for file in ("last.pth.tar", "best.pth.tar"):
        assert_equal_content(read_checkpoint(whole_run / file), read_checkpoint(tmp_path / file))
    assert not list(tmp_path.glob("*.partial"))


def test_no_score_without_its_weights(options, tmp_path, monkeypatch):
    """The run may end between an epoch's two checkpoints; last must not promise a missing best."""
    arguments = [*options, "--out", str(tmp_path)]
    run_until_killed(monkeypatch, arguments, "write_checkpoint", 1, after=True)
    promised = (tmp_path / "last.pth.tar").exists()
    assert (tmp_path / "best.pth.tar").exists() or not promised


def test_a_resumed_run_remembers_its_best_score(options, tmp_path, monkeypatch):
    arguments, scores = [*options, "--out", str(tmp_path)], iter([5.0, 7.0])
    monkeypatch.setattr(main_train, "validate", lambda *_: {"nme_balanced": next(scores)})
    run_until_killed(monkeypatch, arguments, "epoch_batches", 2, after=False)
    main_train.main([*arguments, "--resume"])
    assert read_checkpoint(tmp_path / "best.pth.tar")["epoch"] == 1
    last = read_checkpoint(tmp_path / "last.pth.tar")
    assert (last["epoch"], last["best_score"]) == (2, 5.0)


@pytest.mark.parametrize("loop", ["backbone", "refiner"])
def test_shorter_loops(options, tmp_path, loop):
    """Networks outside the loop keep their first weights but for weight decay, and are not run."""
    out = ["--out", str(tmp_path), "--loop", loop, "--epochs", "1", "--heads", "signed"]
    main_train.main([*options, *out, "--optimizer", "adamw", "--samples-per-epoch", "8"])
    (row,) = log(tmp_path)
    assert ("loss_LMK_pointNet" in row) == (loop == "refiner")
    assert (row["nme_refined"] != "nan") == (loop == "refiner")
    assert read_checkpoint(tmp_path / "last.pth.tar")["heads"] == "signed"
    state = read_checkpoint(tmp_path / "last.pth.tar")["state_dict"]
    seen = {key.split(".")[0] for key, v in state.items() if "num_batches" in key and v > 0}
    assert seen == {"I2P"} | ({"forwardDirection"} if loop == "refiner" else set())


def test_learning_rate(options):
    plan = ["--epochs", "10", "--cooldown", "4", "--warmup", "8", "--lr", "1"]
    settings = main_train.parse_options([*options, *plan])
    rates = [main_train.learning_rate(step, 10, settings) for step in range(100)]
    np.testing.assert_allclose(rates[:8], np.arange(1, 9) / 8)
    assert set(rates[8:61]) == {1}
    np.testing.assert_allclose(rates[60:], np.arange(40, 0, -1) / 40)


def test_missing_sets_and_checkpoints_are_named(options, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        main_train.main([*options, "--data", str(tmp_path / "nothing")])


def test_resuming_a_run_that_saved_nothing_says_so_and_starts(options, tmp_path, capsys):
    main_train.main([*options, "--epochs", "0", "--out", str(tmp_path), "--resume"])
    assert "last.pth.tar: nothing saved yet" in capsys.readouterr().out
