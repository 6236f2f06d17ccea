"""Rendered faces: labels are exact, sets are complete, repeatable and as the layouts say."""

import shutil

import cv2
import numpy as np
import pytest
from conftest import exit_code

from tools import render_faces
from utils import assets
from utils.aflw2000 import crop_published
from utils.array_pickle import read_array_pickle
from utils.datasets import open_training_set, source_photo
from utils.geometry import camera_angles, decompose_camera, exact_angles
from utils.metrics import bin_means, nme
from utils.morphable_model import CAMERA, Y_FLIP, load_morphable_model, split_camera
from utils.pictures import read_image
from utils.preprocessing import CROP_SIZE, crop_faces, crop_to_image
from utils.synthetic import FaceRenderer, random_parameters
from utils.synthetic_sets import is_rendered, write_benchmark_set, write_training_set

COUNT = 24  # the smallest set that holds a face turned past the profile


@pytest.fixture(scope="module")
def model():
    return load_morphable_model(assets.STARTER_FACE_MODEL)


@pytest.fixture(scope="module")
def renderer(model):
    return FaceRenderer(model)


@pytest.fixture(scope="module")
def training(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("sets") / "training"
    write_training_set(folder, model, 4, seed=3)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory, face_model):
    """Of the tiny face model: any topology will do."""
    folder = tmp_path_factory.mktemp("sets") / "aflw2000"
    write_benchmark_set(folder, face_model, COUNT, seed=3)
    return folder


def labels(folder, name: str) -> np.ndarray:
    return np.load(folder / "eval" / f"{name}.npy")


# ------------------------------------------------------------------ parameters


def test_framing_and_angles(model):
    yaw = np.linspace(-90, 90, 200)
    parameters = model.dewhiten(random_parameters(model, yaw, np.random.default_rng(0)))
    xy = model.landmarks(parameters)[:, :2]
    low, high = xy.min(2), xy.max(2)
    size = (high - low).max(1) / CROP_SIZE
    assert abs(size.mean() - 0.707) < 0.01 and size.min() > 0.59 and size.max() < 0.83
    centre = (low + high) / 2 - (CROP_SIZE - 1) / 2
    assert abs(centre.mean()) < 1 and np.abs(centre).max() < 0.06 * CROP_SIZE
    angles = camera_angles(split_camera(parameters))
    for pair in (angles[:, 0], yaw):
        assert np.corrcoef(pair, yaw)[0, 1] > 0.98
    bins = [np.digitize(np.abs(a), (30, 60), right=True) for a in (yaw, angles[:, 0])]
    np.testing.assert_array_equal(*bins)
    assert 8 < angles[:, 1].std() < 16 and 8 < angles[:, 2].std() < 16


def test_a_turn_about_one_axis_is_exact(model):
    class NoTurn(np.random.Generator):
        def normal(self, *args, **kwargs):
            return 0 * np.asarray(super().normal(*args, **kwargs)) + (args[0] if args else 0)

    rng = NoTurn(np.random.PCG64(0))
    yaw = np.array([-80.0, -20, 0, 50])
    angles = camera_angles(split_camera(model.dewhiten(random_parameters(model, yaw, rng))))
    np.testing.assert_allclose(angles, np.stack([yaw, 0 * yaw, 0 * yaw], 1), atol=0.02)


def test_faces_turned_away(model):
    """Drawing the turns anew came to no end beyond 120 degrees."""

    class Impatient(np.random.Generator):
        draws = 0

        def normal(self, *args, **kwargs):
            self.draws += 1
            assert self.draws < 1000
            return super().normal(*args, **kwargs)

    yaw = np.array([121.0, -130, 150, 180, 200])
    parameters = random_parameters(model, yaw, Impatient(np.random.PCG64(0)))
    rotation = decompose_camera(split_camera(model.dewhiten(parameters)))[1]
    assert (rotation[:, 2, 2] < 0).all()  # the nose points away


# ------------------------------------------------------------------ pictures


def test_a_face_is_painted_where_its_parameters_say(model, renderer):
    """The silhouette of the rendered face alone, half-pixel conventions included."""
    parameters = model.param_mean.copy()
    camera = np.float32([[6e-4, 0, 0, 60.5], [0, 6e-4, 0, Y_FLIP - 60.5], [0, 0, 6e-4, 0]])
    parameters[:CAMERA] = camera.ravel()
    for side in (120, 180, 331):
        canvas = np.zeros((400, 400, 3), np.uint8)
        box = (30, 20, 30 + side, 20 + side)
        painted = renderer.render(parameters, canvas, box, np.random.default_rng(1))
        crop = crop_faces(painted, np.array([box]))[0]
        columns = np.flatnonzero(crop[58:62].max((0, 2)) > 10)
        # cheeks and ears are symmetric about x = 60.5, whatever the scale
        assert abs((columns[0] + columns[-1]) / 2 - 60.5) <= 0.51


def test_pictures_depend_on_the_seed_alone_and_show_something(model, renderer):
    parameters = model.dewhiten(random_parameters(model, np.zeros(1), np.random.default_rng(0)))[0]
    first, again, other = (
        renderer.crop(parameters, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first.shape == (CROP_SIZE, CROP_SIZE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10 and first.std() > 10


def test_eyes_and_mouth_stand_out(model, renderer):
    """Averaged over people, the painted parts differ from the skin around them."""
    camera = np.float32([[6e-4, 0, 0, 60], [0, 6e-4, 0, 60], [0, 0, 6e-4, 0]])
    parameters = model.param_mean.copy()
    parameters[:CAMERA] = camera.ravel()
    side = 240
    canvas = np.zeros((side, side, 3), np.uint8)
    images = [
        renderer.render(parameters, canvas, (0, 0, side, side), np.random.default_rng(i))
        for i in range(12)
    ]
    grey = np.mean([cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images], axis=0)
    marks = 2 * model.landmarks(parameters[None])[0, :2].T + 0.5

    def level(x: float, y: float) -> float:
        return grey[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean()

    cheek = level(*(marks[2] + 2 * marks[31]) / 3)
    for dark in (marks[19], marks[24], marks[36:42].mean(0), marks[42:48].mean(0)):
        assert level(*dark) < 0.8 * cheek  # brows and irises
    assert level(*marks[[62, 66]].mean(0)) < 0.8 * cheek  # the mouth


# ------------------------------------------------------------------ training layout


def test_training_layout(training, model):
    faces = open_training_set(training, model)
    assert len(faces) == 4 and faces.names == sorted(faces.names)
    assert len({source_photo(name) for name in faces.names}) == 4  # each of its own
    stored = read_array_pickle(training / "3dmm_data" / "param_all_norm_v201.pkl")
    assert stored.shape == (4, 102) and stored.dtype == np.float32
    assert not stored[:, 62:].any() and np.abs(stored[:, :62]).max() < 15
    np.testing.assert_allclose(faces.parameters, model.dewhiten(stored[:, :62]), rtol=1e-6)
    assert faces.images(np.arange(4)).std((1, 2, 3)).min() > 5
    assert {path.name for path in (training / "train_aug_120x120").iterdir()} == set(faces.names)
    assert is_rendered(training, model, 4, 3)
    assert not is_rendered(training, model, 4, 4) and not is_rendered(training / "x", model, 4, 3)


def test_sets_repeat_themselves_on_any_number_of_threads(training, tmp_path, model):
    write_training_set(tmp_path / "again", model, 4, seed=3, jobs=3)
    files = sorted(path.relative_to(training) for path in training.rglob("*") if path.is_file())
    assert len(files) == 4 + 3
    for file in files:
        assert (training / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


# ------------------------------------------------------------------ benchmark layout


def test_a_perfect_prediction_scores_zero(benchmark, face_model):
    whitened = np.load(benchmark / "parameters.npy")
    boxes = labels(benchmark, "AFLW2000-3D_crop.roi_box")
    assert boxes.shape == (COUNT, 4) and boxes.dtype == np.float32 and not (boxes % 1).any()
    parameters = face_model.dewhiten(whitened)
    landmarks = crop_to_image(face_model.landmarks(parameters), boxes)
    original = labels(benchmark, "AFLW2000-3D.pts68")
    again = labels(benchmark, "AFLW2000-3D-Reannotated.pts68")
    assert original.shape == (COUNT, 3, 68) and again.shape == (COUNT, 2, 68)
    assert original.dtype == again.dtype == np.float32
    assert nme(landmarks, original).max() < 0.05
    assert 1.1 < nme(landmarks, again).mean() < 1.4  # one percent of noise in x and y

    angles = exact_angles(decompose_camera(split_camera(parameters))[1])[:, [1, 0, 2]]
    skip = labels(benchmark, "ALFW2000-3D_pose_3ANG_skip")
    kept = labels(benchmark, "ALFW2000-3D_pose_3ANG_excl")
    np.testing.assert_array_equal(skip, [23])
    np.testing.assert_allclose(kept, np.delete(angles, skip, axis=0), atol=1e-4)
    assert np.abs(kept).max() <= 99 < np.abs(angles[skip]).max()
    yaw = labels(benchmark, "AFLW2000-3D.pose")
    np.testing.assert_allclose(yaw, angles[:, 1], atol=1e-3)
    np.testing.assert_array_equal(bin_means(np.ones(COUNT), yaw), 1)  # no bin is empty
    shifted = landmarks + np.float32([[[5], [0], [0]]])
    assert nme(shifted, original).min() > 1


def test_crops_are_cut_from_the_pictures(benchmark):
    names = (benchmark / "AFLW2000-3D_crop.list").read_text().split()
    assert len(names) == COUNT
    boxes = labels(benchmark, "AFLW2000-3D_crop.roi_box")
    assert boxes.min() >= 1 and boxes.max() <= 450  # as published
    for index in (0, 7, 23):
        photo = read_image(benchmark / "AFLW2000-3D" / names[index])
        crop = read_image(benchmark / "AFLW2000-3D_crop" / names[index])
        assert photo.shape == (450, 450, 3) and crop.shape == (120, 120, 3)
        again = crop_published(photo, boxes[index])
        assert np.abs(again.astype(int) - crop).mean() < 4  # both went through JPEG


# ------------------------------------------------------------------ errors


def test_nothing_is_left_of_a_set_that_fails(tmp_path, model, monkeypatch):
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(ValueError, match="cannot encode"):
        write_training_set(tmp_path / "set", model, 3)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_file(tmp_path, model):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large: .*render_000000\.jpg"):
            write_training_set(tmp_path / "set", model, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("write", "count", "seed"),
    [(write_training_set, 0, 0), (write_benchmark_set, 2, 0), (write_training_set, 1, -1)],
)
def test_counts_and_seeds(tmp_path, face_model, write, count, seed):
    with pytest.raises(ValueError, match="at least|negative"):
        write(tmp_path / "set", face_model, count, seed)


def test_the_script(tmp_path, face_folder, capsys):
    out = tmp_path / "out"
    arguments = [render_faces.main, out, "--count", "2", "--face-model", face_folder]
    assert exit_code(*arguments) == 0
    assert "2 faces" in capsys.readouterr().out
    assert exit_code(*arguments) == 2
    assert "exists" in capsys.readouterr().err
    shutil.rmtree(out)
    assert exit_code(*arguments[:-1], tmp_path / "none.npz") == 2
    assert "none.npz" in capsys.readouterr().err
