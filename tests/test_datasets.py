"""Packed training sets: what is written is read back, and batches are drawn as asked."""

import numpy as np
import pytest
import torch

from utils.datasets import (
    YAW_WEIGHTS,
    PackedFaces,
    epoch_batches,
    pose_balanced_weights,
    write_packed,
)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, images, parameters):
    write_packed(tmp_path / "set", iter(images), len(images), 40, parameters=parameters)
    return tmp_path / "set"


def test_round_trip(folder, images, parameters, face_model):
    faces = PackedFaces(folder, face_model)
    assert len(faces) == 6
    batch = faces.batch(np.array([1, 4, 4]))
    assert batch.images.dtype == torch.uint8
    assert {t.dtype for t in batch[1:]} == {torch.float32}
    np.testing.assert_array_equal(batch.images, images[[1, 4, 4]])
    np.testing.assert_array_equal(batch.parameters, parameters[[1, 4, 4]])
    expected = face_model.landmarks(parameters)
    np.testing.assert_allclose(batch.landmarks, expected[[1, 4, 4]], atol=1e-4)
    np.testing.assert_array_equal(batch.valid, np.tile([0, 0, 40, 40], (3, 1)))
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "labels.npz"]


def test_own_landmarks_and_valid_parts(tmp_path, images, parameters, face_model):
    landmarks = np.random.default_rng(1).normal(size=(6, 3, 68)).astype(np.float32)
    valid = np.arange(24, dtype=np.int16).reshape(6, 4)
    labels = {"parameters": parameters, "landmarks": landmarks, "valid": valid}
    write_packed(tmp_path, iter(images), 6, 40, **labels)
    batch = PackedFaces(tmp_path, face_model).batch(np.arange(6))
    np.testing.assert_array_equal(batch.landmarks, landmarks)
    np.testing.assert_array_equal(batch.valid, valid)


def test_batches_are_copies(folder, face_model):
    faces = PackedFaces(folder, face_model)
    batch = faces.batch(np.array([0]))
    for tensor in batch:
        tensor.zero_()
    assert faces.batch(np.array([0])).images.any()
    assert faces.parameters[0].any() and faces.landmarks[0].any()


def test_yaw(tmp_path, images, parameters, face_model):
    parameters = np.repeat(parameters[:1], 6, axis=0)
    for face, degrees in zip(parameters, (-80, -30, 0, 20, 45, 89), strict=True):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # towards the left edge
        face[:12] = np.column_stack([4e-4 * rotation, [60, 60, 0]]).ravel()
    write_packed(tmp_path, iter(images), 6, 40, parameters=parameters)
    yaw = PackedFaces(tmp_path, face_model).yaw()
    np.testing.assert_allclose(yaw, [-80, -30, 0, 20, 45, 89], atol=1e-3)


def test_missing_files(folder, face_model):
    for name in ("labels.npz", "images.npy"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            PackedFaces(folder, face_model)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((6, 40, 30, 3), np.uint8), (6, 62)),
        (np.zeros((6, 40, 40, 3), np.float32), (6, 62)),
        (np.zeros((6, 40, 40, 3), np.uint8), (5, 62)),
        (np.zeros((6, 40, 40, 3), np.uint8), (6, 61)),
    ],
)
def test_misshapen_sets(tmp_path, face_model, images, labels):
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "labels.npz", parameters=np.zeros(labels, np.float32))
    with pytest.raises(ValueError, match=str(tmp_path)):
        PackedFaces(tmp_path, face_model)


def test_a_wrong_picture_leaves_no_set(tmp_path, parameters):
    pictures = [np.zeros((40, 40, 3), np.uint8), np.zeros((40, 41, 3), np.uint8)]
    with pytest.raises(ValueError, match="40, 41"):
        write_packed(tmp_path / "set", iter(pictures), 2, 40, parameters=parameters[:2])
    assert list((tmp_path / "set").iterdir()) == []


# ----------------------------------------------------------------------------------------- drawing


def test_large_poses_are_drawn_more_often():
    yaw = np.array([0, -20, 40, -50, 70, -90, 3])
    weights = pose_balanced_weights(yaw)
    assert weights.sum() == pytest.approx(1)
    table = [max(w for start, w in YAW_WEIGHTS if abs(y) >= start) for y in yaw]
    np.testing.assert_allclose(weights / weights[0], table)


def test_epochs_are_drawn_from_their_seed():
    probabilities = np.array([0.7, 0.1, 0.1, 0.1, 0])
    epoch = list(epoch_batches(probabilities, 1000, 64, seed=5))
    assert [len(batch) for batch in epoch] == [64] * 15  # the short one is dropped
    assert all((np.diff(batch) >= 0).all() for batch in epoch)
    drawn = np.concatenate(epoch)
    assert (drawn == 0).mean() == pytest.approx(0.7, abs=0.05)
    assert not (drawn == 4).any()
    again = list(epoch_batches(probabilities, 1000, 64, seed=5))
    assert all((a == b).all() for a, b in zip(epoch, again, strict=True))
    other = list(epoch_batches(probabilities, 1000, 64, seed=6))
    assert not all((a == b).all() for a, b in zip(epoch, other, strict=True))
    assert list(epoch_batches(probabilities, 63, 64, seed=5)) == []
