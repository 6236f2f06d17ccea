"""The starter kit's road from labelled photos to a packed training set, on a made-up set."""

import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from starter_kit import fit_labels, pack_photos
from starter_kit.fit_labels import LABEL_SIDE
from starter_kit.landmark_statistics import LABEL_UNIT, LANDMARK_MODEL, load_model
from utils.files import read_npz
from utils.preprocessing import CROP_SIZE

MODEL, _ = load_model()
COUNTS = {"train": 4, "val": 3}


def run(monkeypatch, script, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def parameters(count: int, rng: np.random.Generator) -> np.ndarray:
    """Frontal faces of about the labels' size in the middle of the picture, (n, 62)."""
    rows = np.zeros((count, 62), np.float32)
    rows[:, [0, 5, 10]] = 90 / np.ptp(MODEL.landmark_mean[0])
    rows[:, 3], rows[:, 7] = LABEL_SIDE / 2, CROP_SIZE + 1 - LABEL_SIDE / 2
    rows[:, 12:] = rng.normal(0, 0.5, (count, 50))
    return rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder laid out like the photos', with two shards, and its pictures by name."""
    folder, rng, pictures = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), {}
    for split, count in COUNTS.items():
        names = np.array([f"{split}_{i}.png" for i in range(count)])
        shards = np.arange(count) % 2
        landmarks = MODEL.landmarks(parameters(count, rng))
        landmarks[:, 2] += 500  # the labels' depth begins anywhere
        for shard in (0, 1) if split == "train" else (0,):
            end = f"_{shard}" if split == "train" else ""
            with zipfile.ZipFile(folder / f"faces_{split}{end}.zip", "w") as archive:
                for name, its_shard in zip(names, shards, strict=True):
                    if split == "val" or its_shard == shard:
                        image = rng.integers(0, 256, (LABEL_SIDE, LABEL_SIDE, 3), dtype=np.uint8)
                        pictures[str(name)] = image
                        archive.writestr(str(name), cv2.imencode(".png", image)[1].tobytes())
        spread = np.zeros(count, np.float16)
        spread[1] = 0.9  # of no use for training
        np.savez(
            folder / f"faces_{split}_labels.npz",
            name=names,
            shard=shards,
            spread=spread,
            landmarks=np.round(landmarks / LABEL_UNIT).astype(np.int16),
            human_landmarks=landmarks[:, :2] + np.float32([[3], [np.nan]]),
            valid=np.tile(np.int16([0, 0, LABEL_SIDE, LABEL_SIDE]), (count, 1)),
        )
    return folder, pictures


@pytest.fixture(scope="module")
def fits(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fits")
    model = out / "model.npz"
    model.write_bytes(LANDMARK_MODEL.read_bytes())
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = ["--photos", photos[0], "--landmark-model", model, "--out", out]
        run(monkeypatch, fit_labels, *options)
    return out


def test_labels_of_the_model_itself_are_fitted_and_the_model_gets_a_whitening(photos, fits):
    for split, name in (("train", "fits.npz"), ("val", "fits_val.npz")):
        labels, fitted = read_npz(photos[0] / f"faces_{split}_labels.npz"), read_npz(fits / name)
        assert fitted["name"].tolist() == labels["name"].tolist()
        assert fitted["fit_error"].max() < 0.005
        found = MODEL.landmarks(fitted["parameters"])[:, :2]
        np.testing.assert_allclose(found, labels["landmarks"][:, :2] * LABEL_UNIT, atol=0.5)
    before, after = read_npz(LANDMARK_MODEL), read_npz(fits / "model.npz")
    assert before.keys() == after.keys() and (after["param_std"] > 0).all()
    assert not np.array_equal(before["param_mean"], after["param_mean"])
    np.testing.assert_array_equal(before["shape"], after["shape"])


@pytest.mark.parametrize("split", COUNTS)
def test_packing_keeps_pictures_and_labels_together(photos, fits, split, tmp_path, monkeypatch):
    folder, pictures = photos
    name = "fits.npz" if split == "train" else "fits_val.npz"
    fitted = read_npz(fits / name)["parameters"]
    options = ["--photos", folder, "--split", split, "--fits", fits / name, "--out", tmp_path]
    run(monkeypatch, pack_photos, *options, "--human-weight", 0.5)
    images, packed = np.load(tmp_path / "images.npy"), read_npz(tmp_path / "labels.npz")
    kept = [0, 2, 3] if split == "train" else [0, 1, 2]  # doubtful labels are left out of training
    assert packed["names"].tolist() == [f"{split}_{i}.png" for i in kept]
    for image, key in zip(images, packed["names"].tolist(), strict=True):
        np.testing.assert_array_equal(image, pictures[key])
    np.testing.assert_array_equal(packed["parameters"], fitted[kept])
    labels = read_npz(folder / f"faces_{split}_labels.npz")
    flat = labels["landmarks"][kept, :2] * LABEL_UNIT
    # people's x is 3 pixels off and counts half; their y is missing
    expected = flat + np.float32([[1.5], [0]])
    np.testing.assert_allclose(packed["landmarks"][:, :2], expected, atol=0.02)
    depth = MODEL.landmarks(fitted[kept])[:, 2].mean(axis=1)
    np.testing.assert_allclose(packed["landmarks"][:, 2].mean(axis=1), depth, atol=0.02)


@pytest.mark.parametrize("weight", ["50", "-0.1", "nan"])
def test_a_share_is_no_percentage(photos, fits, tmp_path, monkeypatch, capsys, weight):
    """Landmarks would lie far beyond what people have marked, and the set would be packed."""
    options = ["--photos", photos[0], "--split", "train", "--fits", fits / "fits.npz"]
    with pytest.raises(SystemExit):
        run(monkeypatch, pack_photos, *options, "--out", tmp_path, f"--human-weight={weight}")
    assert "--human-weight: expected a number, 0 to 1" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_fits_of_other_photos_are_refused(photos, fits, tmp_path, monkeypatch):
    options = ["--photos", photos[0], "--split", "train", "--out", tmp_path]
    with pytest.raises(SystemExit, match="fits of other photos"):
        run(monkeypatch, pack_photos, *options, "--fits", fits / "fits_val.npz")
    assert not any(tmp_path.iterdir())
