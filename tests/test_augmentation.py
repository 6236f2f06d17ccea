"""Augmentation: pixels, landmarks and parameters move together, exactly."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.augmentation import (
    MIRRORED_LANDMARKS,
    Augmentation,
    AugmentationSettings,
    Batch,
    Mirror,
    sample_images,
    similarity_on_parameters,
    similarity_on_points,
    source_grid,
)

SIDE = 160  # of the stored pictures

# nothing random, and what each move adds
STILL = AugmentationSettings(
    **{f.name: 0.0 for f in fields(AugmentationSettings) if isinstance(f.default, float)},
    far_rotation=(0.0, 0.0),
    shift=(0.0, 0.0),
    face_size=(0.68, 0.68),
)
NORMAL = AugmentationSettings()
MOVES = {
    "rotation": replace(STILL, rotation=20.0),
    "far rotation": replace(STILL, far_rotation=(1.0, 180.0)),
    "scale": replace(STILL, face_size=(0.3, 0.9)),
    "shift": replace(STILL, shift=(0.1, 0.1), drop=0.05),
    "mirror": replace(STILL, mirror=1.0),
    "all": replace(
        STILL,
        rotation=NORMAL.rotation,
        far_rotation=NORMAL.far_rotation,
        face_size=NORMAL.face_size,
        shift=NORMAL.shift,
        drop=NORMAL.drop,
        mirror=NORMAL.mirror,
    ),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(face_model, parameters: np.ndarray, images: Tensor | None = None) -> Batch:
    """Faces of the crop frame laid into pictures (160, 160), 20 pixels right and down of it."""
    count = len(parameters)
    moved = similarity_on_parameters(
        torch.from_numpy(parameters), torch.eye(2).expand(count, 2, 2), torch.full((count, 2), 20.0)
    )
    if images is None:
        images = torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator())
    landmarks = torch.from_numpy(face_model.landmarks(moved.numpy()))
    valid = torch.tensor([0.0, 0, SIDE, SIDE]).repeat(count, 1)
    return Batch(images.to(torch.uint8), moved, landmarks, valid)


@pytest.fixture(scope="module")
def batch(face_model, parameters) -> Batch:
    return batch_of(face_model, parameters)


# ---------------------------------------------------------------------------------------- geometry


def random_similarity(count: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    angle, scale = rng.uniform(-3, 3, count), rng.uniform(0.4, 2, count)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    linear = np.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
    offset = rng.uniform(-90, 90, (count, 2))
    return torch.from_numpy(linear).float(), torch.from_numpy(offset).float()


def test_a_similarity_moves_parameters_as_it_moves_points(face_model, parameters):
    linear, offset = random_similarity(len(parameters))
    points = face_model.landmarks(parameters)
    moved = similarity_on_parameters(torch.from_numpy(parameters), linear, offset).numpy()
    for i, point in enumerate(points.astype(np.float64)):
        expected = linear[i].double().numpy() @ point[:2] + offset[i].numpy()[:, None]
        found = face_model.landmarks(moved[i : i + 1])[0]
        assert np.abs(found[:2] - expected).max() < 0.01
        scale = np.sqrt(np.linalg.det(linear[i].numpy()))
        assert np.abs(found[2] - scale * point[2]).max() < 0.01
    same = similarity_on_points(torch.from_numpy(points), linear, offset).numpy()
    assert np.abs(face_model.landmarks(moved) - same).max() < 0.01


def test_mirrored_landmarks_are_pairs():
    assert sorted(MIRRORED_LANDMARKS) == list(range(68))
    np.testing.assert_array_equal(MIRRORED_LANDMARKS[MIRRORED_LANDMARKS], np.arange(68))
    middle = np.flatnonzero(MIRRORED_LANDMARKS == np.arange(68))
    assert middle.tolist() == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    # one pair of each part: jaw, brows, nostrils, eyes (corners, lids), lips (outer, inner)
    for a, b in [(0, 16), (17, 26), (31, 35), (36, 45), (39, 42), (37, 44), (41, 46), (48, 54),
                 (49, 53), (59, 55), (60, 64), (61, 63), (67, 65)]:  # fmt: skip
        assert MIRRORED_LANDMARKS[a] == b


def test_mirroring(face_model, parameters):
    mirror = Mirror(face_model)
    points = torch.from_numpy(face_model.landmarks(parameters))
    expected = points[:, :, MIRRORED_LANDMARKS] * torch.tensor([[-1.0], [1.0], [1.0]])
    expected[:, 0] += SIDE - 1
    torch.testing.assert_close(mirror.points(points, SIDE), expected)
    mirrored = mirror.parameters(torch.from_numpy(parameters), SIDE)
    assert np.abs(face_model.landmarks(mirrored.numpy()) - expected.numpy()).max() < 0.01
    twice = mirror.parameters(mirrored, SIDE).numpy()
    assert np.abs(face_model.landmarks(twice) - points.numpy()).max() < 0.01


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("size", [120, 80])
def test_changed_parameters_give_the_moved_landmarks(face_model, batch, move, size):
    augment = Augmentation(face_model, MOVES[move])
    _, parameters, landmarks = augment(batch, generator(), size)
    assert np.abs(face_model.landmarks(parameters.numpy()) - landmarks.numpy()).max() < 0.01
    _, _, plain = Augmentation(face_model, None)(batch, generator(), size)
    assert (landmarks - plain).abs().amax((1, 2)).min() > 0.5  # it did move


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("size", [120, 80])
def test_pixels_move_with_the_landmarks(face_model, parameters, move, size):
    """A bright dot on one landmark of each picture is found where that landmark went."""
    faces = np.repeat(parameters[:1], 68, axis=0)
    landmarks = batch_of(face_model, faces).landmarks
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images = torch.zeros(68, SIDE, SIDE, 3)
    for i in range(68):
        # of a mirrored face, landmark i is what was its partner
        which = MIRRORED_LANDMARKS[i] if move == "mirror" else i
        dx, dy = x - landmarks[i, 0, which], y - landmarks[i, 1, which]
        images[i] = (250 * torch.exp(-(dx**2 + dy**2) / 18))[..., None]
    settings = replace(MOVES[move], mirror=0.0) if move == "all" else MOVES[move]
    augment = Augmentation(face_model, settings)
    crops, _, moved = augment(batch_of(face_model, faces, images.round()), generator(), size)
    light = crops[:, 0] * 128 + 127.5
    light = torch.where(light > 2, light, 0.0)
    grid = (torch.arange(size) + 0.5) * 120 / size - 0.5  # crop frame
    checked = 0
    for i in range(68):
        point = moved[i, :2, i]
        if not 12 < point.min() <= point.max() < 107:
            continue  # part of the dot is cut off
        found = torch.stack([(light[i].sum(0) * grid).sum(), (light[i].sum(1) * grid).sum()])
        assert (found / light[i].sum() - point).abs().max() < 0.1
        checked += 1
    assert checked > 30


def test_grid_and_sampling():
    """The identity gives the picture back, a shift by whole pixels another part, zeros outside."""
    images = torch.rand(1, 3, 130, 130, generator=generator())
    linear = torch.eye(2)[None]
    for shift in ([0.0, 0.0], [-7.0, -3.0], [4.0, -20.0]):
        crop = sample_images(images, source_grid(linear, torch.tensor([shift]), 120))
        expected = torch.zeros(1, 3, 120, 120)
        x, y = int(-shift[0]), int(-shift[1])  # of the crop's corner in the picture
        part = images[:, :, max(y, 0) : y + 120, max(x, 0) : x + 120]
        left, top = max(-x, 0), max(-y, 0)
        expected[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
        torch.testing.assert_close(crop, expected, atol=1e-4, rtol=0)


def test_half_size_averages_four_pixels():
    images = torch.rand(1, 3, 120, 120, generator=generator())
    crop = sample_images(images, source_grid(torch.eye(2)[None], torch.zeros(1, 2), 60))
    torch.testing.assert_close(crop, torch.nn.functional.avg_pool2d(images, 2), atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------------- the output


def test_without_settings_the_face_is_centred(face_model, batch):
    images, parameters, landmarks = Augmentation(face_model, None)(batch, generator())
    low, high = landmarks[:, :2].amin(2), landmarks[:, :2].amax(2)
    torch.testing.assert_close((low + high) / 2, torch.full((6, 2), 59.5), atol=1e-3, rtol=0)
    torch.testing.assert_close((high - low).amax(1), torch.full((6,), 0.68 * 120))
    torch.testing.assert_close(parameters[:, 12:], batch.parameters[:, 12:])
    again = Augmentation(face_model, None)(batch, generator(1))
    assert torch.equal(images, again[0])  # nothing is random


@pytest.mark.parametrize("size", [48, 80, 120])
def test_shapes_and_range(face_model, batch, size):
    images, parameters, landmarks = Augmentation(face_model, AugmentationSettings())(
        batch, generator(), size
    )
    assert images.shape == (6, 3, size, size) and images.dtype == torch.float32
    assert parameters.shape == (6, 62) and landmarks.shape == (6, 3, 68)
    levels = images * 128 + 127.5
    assert levels.min() >= 0 and levels.max() <= 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)  # 8 bits, as inference


def test_a_seed_gives_one_batch(face_model, batch):
    augment = Augmentation(face_model, AugmentationSettings())
    first, again, other = (augment(batch, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_batch_is_left_alone(face_model, batch):
    before = [tensor.clone() for tensor in batch]
    Augmentation(face_model, AugmentationSettings())(batch, generator())
    assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=True))


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "saturation", "gamma", "tint", "grey", "occlusion",
             "low_resolution", "noise"],
)  # fmt: skip
def test_each_kind_of_damage_changes_pixels_only(face_model, batch, name):
    plain = Augmentation(face_model, STILL)(batch, generator(), 48)
    damaged = Augmentation(face_model, replace(STILL, **{name: 0.9}))(batch, generator(), 48)
    assert not torch.equal(plain[0], damaged[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1:], damaged[1:], strict=True))


@pytest.mark.parametrize("mirror", [0.0, 1.0])
@pytest.mark.parametrize("left", [True, False])
def test_made_up_border_is_covered_and_the_photo_is_not(face_model, parameters, left, mirror):
    own = torch.arange(6)[:, None, None, None]
    images = (200 + own).repeat(1, SIDE, SIDE, 3)
    half = slice(0, SIDE // 2) if left else slice(SIDE // 2, SIDE)
    images[:, :, half] = 10 + own  # declared as border
    batch = batch_of(face_model, parameters, images)
    batch.valid[:, 0 if left else 2] = SIDE // 2
    settings = replace(STILL, face_size=(0.9, 0.9), fill=1.0, mirror=mirror)
    crops, _, _ = Augmentation(face_model, settings)(batch, generator())
    levels = (crops * 128 + 127.5).round()
    border, photo = levels[..., :20], levels[..., -20:]
    if left == bool(mirror):
        border, photo = photo, border
    assert (photo == 200 + own).all()
    assert not (border == 10 + own).any()
