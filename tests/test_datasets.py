"""Training sets: what lies on disk is read back or refused, and batches are drawn as asked."""

import json
import pickle
import re
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import asset
from utils.assets import STARTER_FACE_MODEL
from utils.datasets import (
    PUBLISHED_CROPS,
    PUBLISHED_LIST,
    PUBLISHED_PARAMETERS,
    Faces,
    PackedFaces,
    PublishedFaces,
    Subset,
    batches,
    epoch_batches,
    open_training_set,
    pack,
    pose_balanced_probabilities,
    source_photo,
    split_held_out,
    write_packed,
)
from utils.morphable_model import load_morphable_model


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
    write_packed(tmp_path, iter(images), 6, 40, **(labels | {"landmarks": landmarks.astype(float)}))
    assert PackedFaces(tmp_path, face_model).landmarks(np.arange(6)).dtype == np.float32
    np.testing.assert_array_equal(batch.valid, valid)


def test_batches_are_copies(folder, face_model):
    faces = PackedFaces(folder, face_model)
    batch = faces.batch(np.array([0]))
    for tensor in batch:
        tensor.zero_()
    assert faces.batch(np.array([0])).images.any()
    assert faces.parameters[0].any() and faces.batch(np.array([0])).landmarks.any()


def test_yaw(tmp_path, images, parameters, face_model):
    parameters = np.repeat(parameters[:1], 6, axis=0)
    for face, degrees in zip(parameters, (-80, -30, 0, 20, 45, 89), strict=True):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # towards the left edge
        face[:12] = np.column_stack([4e-4 * rotation, [60, 60, 0]]).ravel()
    write_packed(tmp_path, iter(images), 6, 40, parameters=parameters)
    yaw = PackedFaces(tmp_path, face_model).yaw()
    np.testing.assert_allclose(yaw, [-80, -30, 0, 20, 45, 89], atol=1e-3)


def test_parameters_that_are_whitened_or_of_another_frame(tmp_path, images, parameters, face_model):
    in_photo = parameters.copy()
    in_photo[:, [3, 7]] += [300, -300]  # of a face cut out of a larger picture; y is up
    for wrong in (face_model.whiten(parameters), in_photo):
        write_packed(tmp_path, iter(images), 6, 40, parameters=wrong)
        with pytest.raises(ValueError, match="labels.npz: parameters: 0% .* not whitened"):
            PackedFaces(tmp_path, face_model)


def test_missing_files(folder, face_model):
    for name in ("labels.npz", "images.npy"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            PackedFaces(folder, face_model)


@pytest.mark.parametrize(
    ("images", "dtype", "labels", "message"),
    [
        *((shape, "u1", (6, 62), "images must") for shape in ((), (6,), (6, 40), (6, 40, 40))),
        ((6, 40, 30, 3), "u1", (6, 62), "images must"),
        ((6, 40, 40, 3), "f4", (6, 62), "images must"),
        ((6, 40, 40, 3), "u1", (5, 62), "parameters should"),
        ((6, 40, 40, 3), "u1", (6, 61), "parameters should"),
    ],
)
def test_misshapen_sets(tmp_path, face_model, images, dtype, labels, message):
    np.save(tmp_path / "images.npy", np.zeros(images, dtype))
    np.savez(tmp_path / "labels.npz", parameters=np.zeros(labels, np.float32))
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: .*{message}"):
        PackedFaces(tmp_path, face_model)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"parameters": (3, np.nan)}, "parameters: 1 of 6 rows are not finite, the first is row 3"),
        ({"landmarks": (4, np.inf)}, "landmarks: 1 of 6 rows are not finite, the first is row 4"),
        ({"parameters": (2, 0.0)}, "parameters: 1 of 6 rows are cameras of zeros, .* row 2"),
        ({"parameters": (3, 1e39)}, "parameters: 1 of 6 rows are not finite, the first is row 3"),
        ({"landmarks": (1, 0.0)}, "landmarks: 1 of 6 rows are in one line, the first is row 1"),
        ({"valid": (5, 0)}, "valid: 1 of 6 rows are empty, the first is row 5"),
        ({"landmarks": "text"}, "landmarks: expected numbers, found <U"),
        ({"parameters": "text"}, "parameters: expected numbers, found <U"),
        ({"names": None}, "names must be text, found int64"),
    ],
)
def test_bad_labels_are_named(tmp_path, images, parameters, face_model, labels, message):
    arrays = {"parameters": parameters.astype(float), "landmarks": face_model.landmarks(parameters)}
    arrays["valid"] = np.tile(np.int16([0, 0, 40, 40]), (6, 1))
    for name, bad in labels.items():
        if bad is None:
            arrays[name] = np.arange(6)
        elif bad == "text":
            arrays[name] = arrays[name].astype(str)
        else:
            arrays[name][bad[0]] = bad[1]
    write_packed(tmp_path, iter(images), 6, 40, **arrays)
    with pytest.raises(ValueError, match=message):
        PackedFaces(tmp_path, face_model)


def test_a_subset_of_a_mask(folder, images, face_model):
    """It had the parameters of the faces asked for, and the pictures of the first two."""
    part = Subset(PackedFaces(folder, face_model), np.arange(6) % 2 == 1)
    np.testing.assert_array_equal(part.images(np.arange(3)), images[1::2])
    np.testing.assert_array_equal(part.landmarks(np.arange(3)), part.faces.landmarks([1, 3, 5]))


def test_any_bad_row_of_the_published_set_is_named(root, face_model):
    whitened = np.zeros((len(PublishedFaces(root, face_model)), 62), np.float32)
    whitened[1, 5] = np.nan
    write_parameters(root, whitened)
    with pytest.raises(ValueError, match=r"1 of \d+ rows are not finite, the first is row 1"):
        PublishedFaces(root, face_model)


def test_a_list_that_an_editor_has_put_a_mark_before(root, face_model):
    path = root / PUBLISHED_LIST
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert PublishedFaces(root, face_model).names == NAMES


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "/secret.jpg", "."])
def test_a_list_that_leads_elsewhere(root, face_model, name):
    path = root / PUBLISHED_LIST
    names = path.read_text().splitlines()
    path.write_text("\n".join([name, *names[1:]]))
    with pytest.raises(ValueError, match=r"leads out of train_aug_120x120"):
        PublishedFaces(root, face_model)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(np.zeros((40, 41, 3), np.uint8), "40, 41"), (np.zeros((40, 40, 3)), "got float64")],
)
def test_a_wrong_picture_leaves_no_set(tmp_path, parameters, wrong, named):
    pictures = [np.zeros((40, 40, 3), np.uint8), wrong]
    with pytest.raises(ValueError, match=named):
        write_packed(tmp_path / "set", iter(pictures), 2, 40, parameters=parameters[:2])
    assert list((tmp_path / "set").iterdir()) == []


# ----------------------------------------------------------------------------------------- drawing


def test_large_poses_are_drawn_more_often():
    yaw = np.array([0, 3, -8, 14, -20, 40, -50, 50, 80, -90, 95])
    weights = pose_balanced_probabilities(yaw)
    assert weights.sum() == pytest.approx(1)
    bins = [4, 4, 4, 4, 1, 1, 2, 2, 3, 3, 3]  # faces in each one's bin; the last holds 75 and more
    np.testing.assert_allclose(weights / weights[4], 1 / np.sqrt(bins))


def test_epochs_are_drawn_from_their_seed():
    probabilities = np.array([0.7, 0.1, 0.1, 0.1, 0])
    epoch = list(epoch_batches(5, probabilities, 1000, 64, seed=5))
    assert [len(batch) for batch in epoch] == [64] * 15  # the short one is dropped
    drawn = np.concatenate(epoch)
    assert (drawn == 0).mean() == pytest.approx(0.7, abs=0.05)
    assert not (drawn == 4).any()
    again = list(epoch_batches(5, probabilities, 1000, 64, seed=5))
    assert all((a == b).all() for a, b in zip(epoch, again, strict=True))
    other = list(epoch_batches(5, probabilities, 1000, 64, seed=6))
    assert not all((a == b).all() for a, b in zip(epoch, other, strict=True))
    assert list(epoch_batches(5, probabilities, 63, 64, seed=5)) == []


def test_without_probabilities_everyone_comes_once():
    order = np.concatenate(list(epoch_batches(10, None, 25, 5, seed=0)))
    for part in (order[:10], order[10:20]):
        assert sorted(part) == list(range(10))
    assert len(set(order[20:])) == 5
    assert not (order[:10] == order[10:20]).all()


# ----------------------------------------------------------------------------------------- batches


class NumberedFaces(Faces):
    """Picture i is all i, so a batch tells which faces it holds; reading is recorded."""

    def __init__(self, count: int, face_model) -> None:
        super().__init__("numbered", face_model)
        self.parameters, self.side = np.tile(face_model.param_mean, (count, 1)), 4
        self.parameters[:, 12] = np.arange(count)
        self.read = []

    def images(self, indices: np.ndarray) -> np.ndarray:
        self.read += indices.tolist()
        return np.tile(indices[:, None, None, None], (1, 4, 4, 3)).astype(np.uint8)


def faces_of(stream) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].tolist() for batch in stream]


@pytest.mark.parametrize("weighted", [False, True])
def test_batches(face_model, weighted):
    faces = NumberedFaces(50, face_model)
    probabilities = np.arange(50) / np.arange(50).sum() if weighted else None
    plain = faces_of(batches(faces, probabilities, 50, 8, 3, 1, workers=1))
    order = epoch_batches(50, probabilities, 50, 8, (3, 1))
    assert plain == [indices.tolist() for indices in order] and len(plain) == 6
    assert faces_of(batches(faces, probabilities, 50, 8, 3, 1, workers=3)) == plain
    assert faces_of(batches(faces, probabilities, 50, 8, 3, 2)) != plain
    assert faces_of(batches(faces, probabilities, 50, 8, 4, 1)) != plain
    shares = [
        faces_of(batches(faces, probabilities, 50, 8, 3, 1, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert [a + b for a, b in zip(*shares, strict=True)] == plain
    for batch in batches(faces, probabilities, 50, 8, 3, 1):  # labels stay with their pictures
        assert batch.parameters[:, 12].tolist() == batch.images[:, 0, 0, 0].tolist()


def test_skipped_steps_are_not_read(face_model):
    faces = NumberedFaces(50, face_model)
    plain = faces_of(batches(faces, None, 50, 8, 0, 0))
    faces.read = []
    assert faces_of(batches(faces, None, 50, 8, 0, 0, start_step=4)) == plain[4:]
    assert sorted(faces.read) == sorted(plain[4] + plain[5])


def test_an_error_while_reading_ends_the_batches_with_its_reason(face_model):
    class Broken(NumberedFaces):
        def images(self, indices):
            if 7 in indices:
                raise ValueError("picture 7 is damaged")
            return super().images(indices)

    with pytest.raises(ValueError, match="picture 7"):
        list(batches(Broken(20, face_model), None, 20, 2, 0, 0, workers=3))
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_stopping_early_stops_the_workers(face_model):
    faces = NumberedFaces(200, face_model)
    stream = batches(faces, None, 200, 2, 0, 0, workers=2)
    next(stream)
    assert [t for t in threading.enumerate() if t.name.startswith("ahead")]
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]
    assert len(faces.read) < 20


# ---------------------------------------------------------------------------- the published layout

NAMES = [f"AFW_AFW_10516{i // 2}_1_0_{i % 2}.jpg" for i in range(12)]


def turned_faces(face_model, count: int) -> np.ndarray:
    """(count, 62) parameters with cameras that are scaled rotations, faces amid the crop."""
    rng = np.random.default_rng(2)
    parameters = face_model.dewhiten(rng.normal(size=(count, 62)).astype(np.float32) / 2)
    size = np.ptp(np.asarray(face_model.landmark_mean), axis=1).max()
    angles = rng.uniform(-1, 1, count)
    for face, c, s in zip(parameters, np.cos(angles), np.sin(angles), strict=True):
        rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        face[:12] = np.column_stack([80 / size * rotation, [60, 60, 0]]).ravel()
    return parameters


@pytest.fixture
def root(tmp_path, face_model):
    """Twelve faces in the published layout."""
    (tmp_path / PUBLISHED_CROPS).mkdir()
    (tmp_path / "3dmm_data").mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        rough = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        crop = cv2.resize(rough, (120, 120))
        cv2.imwrite(str(tmp_path / PUBLISHED_CROPS / name), crop)
    (tmp_path / PUBLISHED_LIST).write_text("\n".join(NAMES) + "\n")
    write_parameters(tmp_path, face_model.whiten(turned_faces(face_model, 12)))
    return tmp_path


def write_parameters(root, whitened: np.ndarray) -> None:
    texture = np.full((len(whitened), 40), 1e9, np.float32)  # not used
    stored = np.concatenate([whitened, texture], 1)
    (root / PUBLISHED_PARAMETERS).write_bytes(pickle.dumps(stored))


def test_published_faces(root, face_model):
    faces = open_training_set(root, face_model)
    assert isinstance(faces, PublishedFaces)
    assert len(faces) == 12 and faces.names == NAMES
    expected = turned_faces(face_model, 12)
    batch = faces.batch(np.array([3, 0, 3]))
    assert batch.images.shape == (3, 120, 120, 3) and batch.images.dtype == torch.uint8
    assert {tensor.dtype for tensor in batch[1:]} == {torch.float32}
    stored = cv2.imread(str(root / PUBLISHED_CROPS / NAMES[3]))
    np.testing.assert_array_equal(batch.images[0], stored)
    np.testing.assert_allclose(batch.parameters, expected[[3, 0, 3]], rtol=1e-3, atol=1e-2)
    points = face_model.landmarks(expected[[3, 0, 3]])
    np.testing.assert_allclose(batch.landmarks, points, atol=0.01)
    np.testing.assert_array_equal(batch.valid, np.tile([0, 0, 120, 120], (3, 1)))
    assert np.abs(faces.yaw()).max() < 90
    whitened = face_model.whiten(expected)
    (root / PUBLISHED_PARAMETERS).write_bytes(pickle.dumps(whitened))  # without texture
    np.testing.assert_array_equal(PublishedFaces(root, face_model).parameters, faces.parameters)


def test_a_crop_taken_out_of_a_set_of_ones_own_is_no_download(root, face_model):
    (root / "report.json").write_text("{}")
    (root / PUBLISHED_CROPS / NAMES[1]).unlink()
    with pytest.raises(FileNotFoundError, match="missing; make the set again"):
        PublishedFaces(root, face_model).images(np.arange(3))


@pytest.mark.parametrize("name", [PUBLISHED_LIST, PUBLISHED_PARAMETERS, PUBLISHED_CROPS])
def test_missing_published_files_are_named(root, face_model, name):
    (root / name).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{name}: missing.*download"):
        PublishedFaces(root, face_model)


def test_bad_published_files(root, face_model):
    whitened = face_model.whiten(turned_faces(face_model, 12))
    write_parameters(root, whitened[:11])
    with pytest.raises(ValueError, match=r"11 rows.*12 pictures"):
        PublishedFaces(root, face_model)
    (root / PUBLISHED_PARAMETERS).write_bytes(pickle.dumps(np.zeros((12, 61))))
    with pytest.raises(ValueError, match=r"\(12, 61\)"):
        PublishedFaces(root, face_model)


def test_bad_crops_are_named(root, face_model):
    faces = PublishedFaces(root, face_model)
    folder = root / PUBLISHED_CROPS
    (folder / NAMES[0]).unlink()
    (folder / NAMES[1]).write_bytes((folder / NAMES[2]).read_bytes()[:-300])
    cv2.imwrite(str(folder / NAMES[3]), np.zeros((120, 100, 3), np.uint8))
    for i, error, reason in [
        (0, FileNotFoundError, "missing"),
        (1, ValueError, "cut short"),
        (3, ValueError, "100"),
    ]:
        with pytest.raises(error, match=f"{NAMES[i]}.*{reason}"):
            faces.batch(np.array([2, i]))
        with pytest.raises(error, match=NAMES[i]):
            list(batches(Subset(faces, [2, i]), None, 2, 2, 0, 0))


def test_another_models_whitening_is_refused(root, face_model):
    other = replace(face_model, param_std=face_model.param_std * 1.5, source="other")
    with pytest.raises(ValueError, match=r"other.*another face model"):
        PublishedFaces(root, other)
    moved = face_model.param_mean.copy()
    moved[3] += 300
    with pytest.raises(ValueError, match="another face model"):
        PublishedFaces(root, replace(face_model, param_mean=moved))


def test_a_set_that_names_another_face_model_is_refused(root, face_model):
    path = root / "report.json"
    for fine in ("{}", "[1]", "no json", json.dumps({"face_model": face_model.fingerprint})):
        path.write_text(fine)
        assert len(PublishedFaces(root, face_model)) == 12
    path.write_text(json.dumps({"face_model": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="made with face model 0123456789abcdef .report.json"):
        PublishedFaces(root, face_model)


def test_published_whitening_is_not_the_starter_models(root):
    starter = load_morphable_model(STARTER_FACE_MODEL)
    published = load_morphable_model(asset("3dmm_data"))
    for own, other in ((published, starter), (starter, published)):
        write_parameters(root, own.whiten(turned_faces(own, 12)))
        assert len(PublishedFaces(root, own)) == 12
        with pytest.raises(ValueError, match="another face model"):
            PublishedFaces(root, other)


def test_nothing_there(tmp_path, face_model):
    with pytest.raises(FileNotFoundError, match=r"images\.npy.*param_all_norm_v201\.pkl.*README"):
        open_training_set(tmp_path, face_model)


# ----------------------------------------------------------------------------------------- packing


def test_a_packed_set_equals_its_source(root, face_model):
    faces = PublishedFaces(root, face_model)
    pack(faces, root / "deep" / "packed")
    packed = open_training_set(root / "deep" / "packed", face_model)
    assert isinstance(packed, PackedFaces)
    assert list(packed.names) == NAMES and packed.side == 120
    indices = np.array([11, 0, 5])
    for a, b in zip(faces.batch(indices), packed.batch(indices), strict=True):
        assert torch.equal(a, b)
    pack(Subset(packed, indices), root / "part")
    part = PackedFaces(root / "part", face_model)
    assert part.names == [NAMES[i] for i in indices]
    for a, b in zip(faces.batch(indices), part.batch(np.arange(3)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FileExistsError, match="part"):
        pack(faces, root / "part")


def test_a_packed_set_belongs_to_its_face_model(root, face_model):
    pack(PublishedFaces(root, face_model), root / "packed")
    other = replace(face_model, mean=face_model.mean + 1, source="other model")
    with pytest.raises(
        ValueError, match=f"{face_model.fingerprint}.*other model.*{other.fingerprint}"
    ):
        PackedFaces(root / "packed", other)


def test_a_failed_pack_leaves_nothing(root, face_model):
    faces = PublishedFaces(root, face_model)
    (root / PUBLISHED_CROPS / NAMES[7]).unlink()
    before = sorted(root.rglob("*"))
    with pytest.raises(FileNotFoundError, match=NAMES[7]):
        pack(faces, root / "packed")
    assert sorted(root.rglob("*")) == before


# --------------------------------------------------------------------------------- held-out photos


def test_source_photos():
    for name, photo in {
        "AFW_AFW_1051618982_1_0_1.jpg": "AFW_AFW_1051618982",
        "AFW_Flip_AFW_1051618982_1_12_3.jpg": "AFW_AFW_1051618982",
        "AFW/AFW_1051618982_1_0.jpg": "AFW_1051618982",
        "HELEN_HELEN_232194_1_0_3.jpg": "HELEN_HELEN_232194",
        "LFPW_LFPW_image_train_0001_0_1.jpg": "LFPW_LFPW_image_train_0001",
        "LFPW_LFPW_image_test_0001_0_1.jpg": "LFPW_LFPW_image_test_0001",
        "IBUG_IBUG_image_003_1_7_0.jpg": "IBUG_IBUG_image_003",
        "net_00012.jpg": "net_00012",
        "000123.png": "000123",
        "portrait.jpg": "portrait",
        "portrait.jpg@45": "portrait",  # a view of rotate_views
        "alice/photo_1.jpg": "alice/photo_1",
        "bob\\photo_1.jpg": "bob/photo_1",
        "face2/bob/photo_1.jpg": "bob/photo_1",
        "face0002/photo_1.jpg": "face0002/photo_1",  # somebody's own folder
        "holiday_2024_0012.jpg": "holiday_2024_0012",
    }.items():
        assert source_photo(name) == photo


def named(names: list[str], face_model) -> Faces:
    faces = NumberedFaces(len(names), face_model)
    faces.names = names
    return faces


def test_held_out_photos_are_whole(face_model):
    names = [f"AFW_AFW_{1000 + photo}_1_{pose}_0.jpg" for photo in range(300) for pose in range(3)]
    train, val = split_held_out(named(names, face_model), 0.2, seed=1)
    assert sorted([*train, *val]) == list(range(900))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    sides = [{source_photo(names[i]) for i in side} for side in (train, val)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) / 300 == pytest.approx(0.2, abs=0.07)
    # neither order nor size matter to the side a photo is on
    shuffled = np.random.default_rng(0).permutation(900)[:500]
    other = split_held_out(named([names[i] for i in shuffled], face_model), 0.2, seed=1)
    assert set(shuffled[other[1]]) == set(shuffled) & set(val)
    assert not np.array_equal(split_held_out(named(names, face_model), 0.2, seed=2)[1], val)


def test_sets_without_names_are_split_by_index(face_model):
    train, val = split_held_out(NumberedFaces(400, face_model), 0.1)
    assert sorted([*train, *val]) == list(range(400))
    assert 15 < len(val) < 70


def test_impossible_splits(face_model):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_held_out(NumberedFaces(40, face_model), 1.5)
    with pytest.raises(ValueError, match="1 photos .*AFW_1.* cannot be split"):
        split_held_out(named(["AFW_1_0_1.jpg", "AFW_1_0_2.jpg"], face_model), 0.5)
