"""Own photos with landmarks become a training set: rendered faces with known parameters."""

import csv
import json
import os
import pickle

import cv2
import numpy as np
import pytest
import scipy.io
from conftest import exit_code, on_disk

import benchmark
import main_train
from tools import prepare_data
from tools.prepare_data import Sample, name_crops, roi_box, to_crop
from utils.aflw2000 import CROPS, crop_published, open_benchmark
from utils.assets import STARTER_FACE_MODEL, STARTER_OPTIONS
from utils.datasets import open_training_set
from utils.fitting import fit_landmarks, whitening
from utils.geometry import camera_angles, decompose_camera, exact_angles
from utils.landmark_labels import find_labels, read_mat_labels, read_pts
from utils.metrics import geodesic, nme
from utils.morphable_model import load_morphable_model, split_camera
from utils.photo_numbers import CSV_COLUMNS
from utils.pictures import read_image
from utils.synthetic import FaceRenderer, random_background, random_parameters

COUNT = 8
STARTER = STARTER_FACE_MODEL
BOXES = np.array([[40, 30, 280, 270], [90, 60, 270, 240], [5, 5, 305, 305], [100, 20, 340, 260]])
FORMS = ("pts", "mat", "json", "csv")


@pytest.fixture(scope="module")
def model():
    return load_morphable_model(STARTER)


@pytest.fixture(scope="module")
def faces(model):
    """Eight photos 360x320, their landmarks (8, 3, 68) in the image frame, and the rotations.

    Landmarks lie on the drawn face to the pixel, as labels do: where ``FaceRenderer`` draws them.
    """
    rng = np.random.default_rng(5)
    yaw = np.array([0, 12, -25, 40, -55, 20, 5, -8])
    parameters = model.dewhiten(random_parameters(model, yaw, rng))
    renderer = FaceRenderer(model)
    photos, landmarks = [], model.landmarks(parameters).astype(np.float64)
    for index in range(COUNT):
        box = BOXES[index % len(BOXES)]
        canvas = random_background(320, 360, rng)
        photos.append(renderer.render(parameters[index], canvas, tuple(map(int, box)), rng))
        scale = (box[2] - box[0]) / 120
        landmarks[index, :2] = (landmarks[index, :2] + 0.5) * scale - 0.5 + box[:2, None]
        landmarks[index, 2] *= scale
    return photos, landmarks, decompose_camera(split_camera(parameters))[1]


@pytest.fixture
def labelled(faces, tmp_path):
    """A function that writes photos and labels in one form and returns what the tool is given."""
    photos, landmarks, rotation = faces

    def write(form: str):
        folder = tmp_path / form
        folder.mkdir()
        names = [f"photo_{index}.png" for index in range(COUNT)]
        for name, photo in zip(names, photos, strict=True):
            cv2.imwrite(str(folder / name), photo)
        from_one = landmarks + np.array([[1], [1], [0]])
        if form == "pts":
            for name, points in zip(names, from_one, strict=True):
                write_pts(folder / name, points[:2])
        elif form == "mat":
            angles = np.radians(exact_angles(rotation))[:, [1, 0, 2]]
            for name, points, pose in zip(names, from_one, angles, strict=True):
                pose_para = np.concatenate([pose, [1, 2, 3, 4]])[None]
                arrays = {"pt3d_68": points, "Pose_Para": pose_para, "pt2d": np.ones((2, 21))}
                scipy.io.savemat(folder / f"{name[:-4]}.mat", arrays)
        elif form == "json":
            content = {n: p.T.tolist() for n, p in zip(names, landmarks, strict=True)}
            (folder / "labels.json").write_text(json.dumps(content))
        else:
            with open(folder / "labels.csv", "w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["file", *(f"{axis}{k}" for k in range(68) for axis in "xy")])
                for name, points in zip(names, landmarks, strict=True):
                    table.writerow([name, *points[:2].T.ravel()])
        return folder if form in ("pts", "mat") else folder / f"labels.{form}"

    return write


def write_pts(photo, points):
    rows = "\n".join(" ".join(f"{value:.4f}" for value in row) for row in points.T)
    photo.with_suffix(".pts").write_text(
        f"version: 1\nn_points: {points.shape[1]}\n{{\n{rows}\n}}\n"
    )


def run(*arguments) -> int:
    return exit_code(prepare_data.main, *arguments, "--face-model", STARTER)


def report(out):
    with open(out / "report.csv", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------ the whole way


@pytest.mark.parametrize("form", FORMS)
def test_the_set_of_each_form_shows_the_labelled_faces(
    form, labelled, faces, model, tmp_path, monkeypatch
):
    photos, landmarks, rotation = faces
    out, sheet, captions = tmp_path / "set", prepare_data.contact_sheet, []
    monkeypatch.setattr(
        prepare_data,
        "contact_sheet",
        lambda *given: captions.extend(given[-1]) or sheet(*given),
    )
    # the jaw of these 2D labels is the model's own
    assert run(labelled(form), "--out", out, "--jaw", "model") == 0
    made = open_training_set(out, model)
    assert made.names == [f"photo_{index}.jpg" for index in range(COUNT)]
    crops, fitted = made.images(np.arange(COUNT)), made.landmarks(np.arange(COUNT))
    flat = form in ("pts", "csv")
    lines = report(out)
    for index in range(COUNT):
        box = np.array([int(lines[index][side]) for side in ("x1", "y1", "x2", "y2")])
        assert np.abs(box - roi_box(landmarks[index])).max() <= (3 if flat else 2)
        zoom = 120 / (box[2] - box[0])
        expected = (landmarks[index, :2] - box[:2, None] + 0.5) * zoom - 0.5
        error = nme(fitted[index][None], expected[None])[0]
        assert error < (0.6 if flat else 0.4)  # percent
        depth = fitted[index, 2] - landmarks[index, 2] * zoom
        assert (depth - depth.mean()).std() < (2.0 if flat else 0.5)  # crop pixels
        # a crop shows what the photo shows there
        x, y = np.round(landmarks[index, :2]).astype(int)
        moved = np.float32([[zoom, 0, (0.5 - box[0]) * zoom - 0.5], [0, zoom, 0]])
        moved[1, 2] = (0.5 - box[1]) * zoom - 0.5
        same = cv2.warpAffine(photos[index], moved, (120, 120))
        assert np.abs(same.astype(int) - crops[index]).mean() < 4  # levels; JPEG, borders
    turned = geodesic(decompose_camera(split_camera(made.parameters))[1], rotation)
    assert turned.max() < (3 if flat else 1)  # degrees
    assert [line["photo"] for line in lines] == [f"photo_{index}.png" for index in range(COUNT)]
    assert all(0 < float(line["fit_error_percent"]) < 0.6 for line in lines)
    written = [[float(line[name]) for name in ("yaw", "pitch", "roll")] for line in lines]
    angles = camera_angles(split_camera(made.parameters))
    np.testing.assert_allclose(written, angles, atol=0.06)
    by_error = sorted(lines, key=lambda line: -float(line["fit_error_percent"]))
    assert [caption.split()[-1] for caption in captions] == [
        line["crop"].removesuffix(".jpg") for line in by_error
    ]
    summary = json.loads((out / "report.json").read_text())
    assert summary["faces"] == COUNT
    assert summary["face_model"] == made.face_model.fingerprint
    assert read_image(out / "contact_sheet.png").shape[1] > 8 * 240
    assert not list(tmp_path.glob("*.partial"))


def test_a_set_to_be_scored_on(labelled, faces, model, tmp_path, capsys):
    photos, landmarks, rotation = faces
    source = labelled("json")
    content = json.loads(source.read_text())
    content["photo_1.png"][3] = [None, None, None]
    source.write_text(json.dumps(content))
    out = tmp_path / "set"
    options = ["--layout", "aflw2000", "--out", out]
    assert exit_code(prepare_data.main, source, *options, "--whitening", "set") == 2
    assert run(source, *options) == 1
    assert "photo_1.png: not all of its points are known" in capsys.readouterr().out
    made, kept = open_benchmark(out), np.delete(np.arange(COUNT), 1)
    assert made.names == [f"photo_{index}.jpg" for index in kept]
    expected = landmarks[kept] + [[1], [1], [0]]  # the label frame
    np.testing.assert_allclose(made.landmarks["original"], expected, atol=1e-3)
    np.testing.assert_allclose(made.angles, exact_angles(rotation)[kept], atol=1.5)
    np.testing.assert_array_equal(made.yaw, np.float32(made.angles[:, 0]))
    for name, box, index in zip(made.names, made.roi_boxes, kept, strict=True):
        crop = crop_published(photos[index], box)
        shown = read_image(out / CROPS / name)
        assert np.abs(shown.astype(int) - crop).mean() < 4  # levels; JPEG
    command = ["--data", out, "-o", tmp_path / "scored", "--engine", "torch", "--device", "cpu"]
    assert benchmark.main([*map(str, command), *map(str, STARTER_OPTIONS)]) == 0
    scores = json.loads((tmp_path / "scored" / "results.json").read_text())["scores"]
    assert scores["nme"]["original"]["raw"]["mean"] < 6  # percent; drawn faces
    assert scores["pose"]["exact"]["mean"] < 8  # degrees


def test_photos_in_folders_and_with_several_faces_can_be_scored_on(faces, tmp_path):
    photos, landmarks, _ = faces
    content = {}
    for index, name in enumerate(["a/x.png", "b/x.png", "a_x.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), photos[index])
        content[name] = landmarks[index].T.tolist()
    content["b/x.png"] = [content["b/x.png"]] * 2
    source = tmp_path / "labels.json"
    source.write_text(json.dumps(content))
    assert run(source, "--layout", "aflw2000", "--out", tmp_path / "set") == 0
    names = ["a_x.jpg", "b_x.jpg", "face2_b_x.jpg", "face2_a_x.jpg"]
    assert open_benchmark(tmp_path / "set").names == names
    assert sorted(path.name for path in (tmp_path / "set" / CROPS).iterdir()) == sorted(names)


def test_photos_in_deep_folders_can_be_scored_on(faces, tmp_path):
    photos, landmarks, _ = faces
    deep = on_disk("/".join(["é" * 60] * 4))
    (tmp_path / deep).mkdir(parents=True)
    content = {}
    for index, name in enumerate(["x.png", "y.png"]):
        cv2.imwrite(str(tmp_path / "photo.png"), photos[index])
        (tmp_path / "photo.png").replace(tmp_path / deep / name)
        content[f"{deep}/{name}"] = landmarks[index].T.tolist()
    (tmp_path / "labels.json").write_text(json.dumps(content))
    options = ["--layout", "aflw2000", "--out", tmp_path / "set"]
    assert run(tmp_path / "labels.json", *options) == 0
    assert [name[-5:] for name in open_benchmark(tmp_path / "set").names] == ["x.jpg", "y.jpg"]


def test_the_table_that_singleimage_writes_is_labels_too(faces, tmp_path):
    photos, landmarks, _ = faces
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"{index}.png"), photos[index])
    table = tmp_path / "faces.csv"
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(CSV_COLUMNS)
        for index in range(2):
            others = [f"{index}.png", 0, *[0.5] * (len(CSV_COLUMNS) - 2 - 3 * 68)]
            rows.writerow([*others, *landmarks[index].T.ravel()])
    found = list(find_labels(table))
    assert [face.name for face in found] == ["0.png", "1.png"] and not any(f.reason for f in found)
    np.testing.assert_allclose([face.points for face in found], landmarks[:2])


def test_no_reason_is_a_formula(faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the photo's path begins with its name
    photos, landmarks, _ = faces
    cv2.imwrite("a.png", photos[0])
    points = landmarks[0].T.tolist()
    (tmp_path / "labels.json").write_text(json.dumps({"a.png": points, "=1+1.png": points}))
    assert run("labels.json", "--out", "set") == 1
    assert report(tmp_path / "set")[1]["left_out_because"] == "./=1+1.png: missing"


def test_a_made_set_trains(labelled, tmp_path, capsys):
    assert run(labelled("json"), "--out", tmp_path / "set", "--jobs", 1) == 0
    options = ["--data", tmp_path / "set", "--face-model", STARTER, "--dry-run", "--device", "cpu"]
    options += ["--batch-size", 2, "--held-out", 0.3, "--train-size", 32, "--workers", 1]
    options += ["--backbone", "mobilenet_025", "--out", tmp_path / "run"]
    assert main_train.main([*map(str, options)]) == 0


def test_own_whitening_comes_with_a_face_model_that_has_it(labelled, model, tmp_path):
    source = labelled("mat")
    for kind in ("model", "set"):
        assert run(source, "--out", tmp_path / kind, "--whitening", kind) == 0
    with_model = open_training_set(tmp_path / "model", model)
    own_model = load_morphable_model(tmp_path / "set" / "face_model.npz")
    with_own = open_training_set(tmp_path / "set", own_model)
    np.testing.assert_allclose(with_own.parameters, with_model.parameters, rtol=1e-3, atol=1e-4)
    stored = pickle.loads((tmp_path / "set/3dmm_data/param_all_norm_v201.pkl").read_bytes())
    assert stored.shape == (COUNT, 102)
    np.testing.assert_allclose(stored[:, :62].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.delete(stored, 11, 1)[:, :61].std(0), 1, atol=1e-3)
    mean, std = whitening(with_model.parameters)
    np.testing.assert_allclose(own_model.param_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(own_model.mean, model.mean)
    np.testing.assert_array_equal(own_model.triangles, model.triangles)
    assert own_model.pixel_centres  # as the set counts
    file = pickle.loads((tmp_path / "model/3dmm_data/param_whitening.pkl").read_bytes())
    np.testing.assert_array_equal(file["param_std"], model.param_std)


def test_a_face_model_that_counts_pixels_otherwise_than_the_set(labelled, tmp_path, capsys):
    arrays = dict(np.load(STARTER)) | {"pixel_centres": np.int8(0)}
    np.savez(tmp_path / "own.npz", **arrays)
    source, options = labelled("json"), ["--face-model", tmp_path / "own.npz", "--out"]
    told = "points up to half a crop pixel off"
    for out, more in (("a", []), ("b", ["--whitening", "set"]), ("c", ["--layout", "aflw2000"])):
        assert exit_code(prepare_data.main, source, *options, tmp_path / out, *more) == 0
        assert (told in capsys.readouterr().out) == (not more)


def test_the_result_does_not_depend_on_the_threads(labelled, tmp_path):
    source = labelled("csv")
    for jobs in (1, 3):
        assert run(source, "--out", tmp_path / f"{jobs}", "--jobs", jobs) == 0
    first, second = (
        {path.relative_to(tmp_path / jobs): path for path in (tmp_path / jobs).rglob("*.*")}
        for jobs in "13"
    )
    assert first.keys() == second.keys()
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


# ------------------------------------------------------------------------------- what is left out


def test_bad_faces_are_left_out_and_named(labelled, faces, tmp_path, capsys):
    _, landmarks, _ = faces
    path = labelled("json")
    content = json.loads(path.read_text())
    content["photo_0.png"] = content["photo_0.png"][:67]
    content["photo_1.png"] = np.random.default_rng(0).uniform(0, 300, (68, 3)).tolist()
    content["photo_2.png"] = (landmarks[2].T * 4).tolist()  # of a picture four times as large
    content["photo_3.png"][7] = "text"
    content["nothing.png"] = content["photo_4.png"]
    content["broken.png"] = content["photo_4.png"]
    content["../json/photo_4.png"] = content["photo_4.png"]
    content["photo_5.png"][:50] = [[None] * 3] * 50
    content["photo_7.png"] = [[x, y, 2.0] for x, y, _ in content["photo_7.png"]]  # a visibility
    content["photo_6.png"] = [content["photo_6.png"], landmarks[6].T.tolist()]  # two faces
    (path.parent / "broken.png").write_bytes(b"\x89PNG no")
    path.write_text(json.dumps(content))
    out = tmp_path / "set"
    assert run(path, "--out", out, "--photos", path.parent) == 1
    reasons = {line["photo"]: line["left_out_because"] for line in report(out)}
    for name, reason in {
        "photo_0.png": "expected 68 points",
        "photo_1.png": "at most 5 is allowed",
        "photo_2.png": "outside the picture of 360x320",
        "photo_3.png": "68 rows of numbers x, y or x, y, z (unknown: [null, null] in .json,",
        "photo_5.png": "18 points are known",
        "photo_7.png": "z spans 0 pixels, which is no face's depth",
        "nothing.png": "missing",
        "broken.png": "not a picture",
        "../json/photo_4.png": "must lie in",
    }.items():
        assert reason in reasons.pop(name)
    assert set(reasons.values()) == {""}
    names = (out / "3dmm_data/train_aug_120x120.list.train").read_text().split()
    assert names == ["photo_4.jpg", "photo_6.jpg", "face2/photo_6.jpg"]
    files = {str(f.relative_to(out / "train_aug_120x120")) for f in out.rglob("*.jpg")}
    assert files == set(names)
    said = capsys.readouterr()
    assert "3 faces" in said.out and "left out 9" in said.out and "nothing.png: missing" in said.out


def test_nothing_is_written_without_a_usable_face(labelled, tmp_path, capsys):
    path = labelled("json")
    assert run(path, "--out", tmp_path / "set", "--max-error", 1e-4) == 1
    assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".*"))
    assert "none of 8 faces" in capsys.readouterr().err


def test_a_name_moves_no_cursor(labelled, tmp_path, capsys):
    path = labelled("json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"\x1b[31mevil.jpg": content["photo_0.png"], **content}))
    assert run(path, "--out", tmp_path / "set") == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[31mevil.jpg: missing" in said
    path.write_text(json.dumps({"\x1b[31mevil.jpg": content["photo_0.png"]}))
    assert run(path, "--out", tmp_path / "none") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "\x1b" not in said and "\\x1b[31mevil.jpg: missing" in said


FAULTS = ["exists", "no labels", "no source", "damaged", "empty", "twice", "photos apart"]


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_usage(fault, labelled, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tools/prepare_data.py"])
    source = labelled("json")
    if fault == "exists":
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "file").touch()
    elif fault == "no labels":
        source = source.parent  # photos alone
    elif fault == "no source":
        source = tmp_path / "nothing.csv"
    elif fault == "photos apart":
        assert run(source.parent, "--photos", tmp_path, "--out", tmp_path / "set") == 2
        assert "--photos is for .json and .csv files" in capsys.readouterr().err
        return
    elif fault == "twice":
        source.write_text('{"a.jpg": [], "a.jpg": []}')
    else:
        source.write_text("{" if fault == "damaged" else "{}")
    assert run(source, "--out", tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert error.startswith("prepare_data.py: ") and error.count("\n") == 1
    assert str(tmp_path) in error


# -------------------------------------------------------------------------------------- the forms


def test_pts_files_count_from_one(tmp_path):
    points = np.random.default_rng(0).uniform(1, 200, (2, 68))
    write_pts(tmp_path / "a.jpg", points)
    np.testing.assert_allclose(read_pts(tmp_path / "a.pts"), points - 1, atol=1e-4)
    for bad in ("", "{ 1 2 }", "{ 1 2", "n_points: 68 {" + "1 2\n" * 67 + "x y }"):
        (tmp_path / "a.pts").write_text(bad)
        with pytest.raises(ValueError, match=r"a\.pts: expected"):
            read_pts(tmp_path / "a.pts")


def test_mat_files_of_300w_lp(tmp_path):
    rng = np.random.default_rng(0)
    flat, hidden = rng.uniform(1, 200, (2, 68)), np.full((2, 68), -1.0)
    path = tmp_path / "a.mat"
    hidden[:, 10:] = flat[:, 10:]
    scipy.io.savemat(path, {"pt2d": hidden})
    points, contour, rotation = read_mat_labels(path)
    assert contour and rotation is None and np.isnan(points[:, :10]).all()
    np.testing.assert_allclose(points[:, 10:], flat[:, 10:] - 1)
    scipy.io.savemat(path, {"pts_2d": hidden.T, "pts_3d": flat.T})
    points, contour, _ = read_mat_labels(path)
    assert not contour
    np.testing.assert_allclose(points, flat - 1)
    scipy.io.savemat(path, {"pt2d": np.ones((2, 21))})
    with pytest.raises(ValueError, match=r"expected 68 points .* found pt2d \(2, 21\)"):
        read_mat_labels(path)


def test_300w_lp_turned_views_need_their_own_points(labelled, faces, tmp_path):
    """The .mat beside a turned view has the pose of the view and the points of the photo."""
    _, landmarks, rotation = faces
    root = labelled("mat")
    pose = np.radians([0, 70, 0, 0, 0, 0, 0])[None]
    scipy.io.savemat(root / "photo_0.mat", {"pt2d": landmarks[0, :2] + 1, "Pose_Para": pose})
    assert run(root, "--out", tmp_path / "one") == 1
    assert "from its Pose_Para" in report(tmp_path / "one")[0]["left_out_because"]
    (root / "landmarks").mkdir()
    scipy.io.savemat(root / "landmarks/photo_0_pts.mat", {"pts_3d": landmarks[0, :2].T + 1})
    assert run(root, "--out", tmp_path / "two") == 0


@pytest.mark.parametrize("slip", ["x and y", "left and right"])
def test_points_of_a_face_from_behind_are_left_out(slip, labelled, faces, tmp_path):
    """They fit as well as others, so the fit's error does not tell."""
    folder = labelled("pts")
    points = faces[1][0, :2].copy()  # of a frontal face
    points = points[::-1] if slip == "x and y" else np.stack([360 - points[0], points[1]])
    write_pts(folder / "photo_0.png", points)
    assert run(folder, "--out", tmp_path / "out") == 1
    (row,) = [row for row in report(tmp_path / "out") if row["photo"] == "photo_0.png"]
    assert "seen from behind; are x and y, or the points of left" in row["left_out_because"]


@pytest.mark.parametrize("slip", ["z", "y", "blocks"])
def test_points_in_another_order_or_frame_are_told_of_the_right_one(
    slip, labelled, faces, tmp_path, capsys
):
    points = faces[1].copy()
    if slip == "blocks":  # x0 ... x67, y0 ... y67
        points = points[:, :2].reshape(COUNT, 68, 2).transpose(0, 2, 1)
    else:
        axis = "xyz".index(slip)
        points[:, axis] = 320 - points[:, axis]
    source = labelled("json")
    names = [f"photo_{index}.png" for index in range(COUNT)]
    content = {n: p.T.tolist() for n, p in zip(names, points, strict=True)}
    source.write_text(json.dumps(content))
    run(source, "--out", tmp_path / "set")
    said = capsys.readouterr()
    assert "x y (z) by point, y down, z to the viewer?" in said.out + said.err


def test_suffixes_of_labels_may_be_written_large(labelled, tmp_path):
    folder = labelled("pts")
    (folder / "photo_3.pts").rename(folder / "photo_3.PTS")
    (folder / "lost.MAT").write_bytes(b"")
    found = {face.name: face.reason for face in find_labels(folder)}
    assert len(found) == COUNT + 1 and not found["photo_3.png"]
    assert "lost.MAT: has no picture" in found["lost.MAT"]


def test_missing_photos_are_found_before_the_fits_and_each_is_read_once(
    labelled, faces, tmp_path, monkeypatch
):
    path = labelled("json")
    content = json.loads(path.read_text())
    content["photo_6.png"] = [content["photo_6.png"], faces[1][6].T.tolist()]
    content["not_there.png"] = content["photo_0.png"]
    path.write_text(json.dumps(content))
    fitted, read = [], []

    def fit(face_model, labels, **options):
        fitted.append(len(labels))
        return fit_landmarks(face_model, labels, **options)

    def read_photo(path):
        read.append(path.name)
        return read_image(path)

    monkeypatch.setattr(prepare_data, "fit_landmarks", fit)
    monkeypatch.setattr(prepare_data, "read_image", read_photo)
    assert run(path, "--out", tmp_path / "set") == 1
    assert fitted == [COUNT + 1]
    photos = [name for name in read if name.endswith(".png")]
    assert sorted(photos) == [f"photo_{index}.png" for index in range(COUNT)]


def test_points_that_no_face_fits_do_not_run_away(model):
    """Columns in blocks, x0 ... x67, y0 ... y67, read as pairs."""
    labels = np.random.default_rng(3).uniform(50, 250, (64, 2, 68))
    labels = np.sort(labels, axis=2).reshape(64, 68, 2).transpose(0, 2, 1)
    parameters, error = fit_landmarks(model, labels, noise=0.02, visible_contour=True)
    assert np.isfinite(parameters).all() and (error > 0.05).all()


def test_two_pictures_share_no_labels(labelled, tmp_path):
    folder = labelled("pts")
    (folder / "photo_3.jpg").write_bytes((folder / "photo_3.png").read_bytes())
    reasons = {face.name: face.reason for face in find_labels(folder)}
    assert reasons["photo_3.jpg"] == ""
    assert "photo_3.pts is taken as that of photo_3.jpg" in reasons["photo_3.png"]


def test_json_as_other_programs_write_it(tmp_path):
    face = np.arange(136.0).reshape(68, 2).tolist()
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "x.json").write_text(json.dumps({"é.jpg": face}), encoding=encoding)
        (found,) = find_labels(tmp_path / "x.json")
        assert found.name == "é.jpg" and found.points.shape == (2, 68)
    (tmp_path / "x.json").write_text('{"a.jpg": [[1' + "0" * 400 + ", 1]]}")
    (found,) = find_labels(tmp_path / "x.json")
    assert "68 rows of numbers" in found.reason


@pytest.mark.parametrize("head", ["", "\n", "sep=;\n", "photo;" + ";".join(map(str, range(136)))])
def test_tables_with_decimal_commas(tmp_path, head):
    points = np.random.default_rng(0).uniform(10, 90, (2, 2, 68)).round(2)
    rows = [";".join(["a b.jpg", *map(str, p.T.ravel())]).replace(".", ",") for p in points]
    rows = [row.replace("b,jpg", "b.jpg") + ";;;" for row in rows]
    (tmp_path / "x.csv").write_text("\n".join([head, *rows]))
    faces = list(find_labels(tmp_path / "x.csv"))
    np.testing.assert_allclose([face.points for face in faces], points)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("titles", ["", "file,landmark_0_x,landmark_0_y", "photo,X0,Y0"])
def test_tables_as_programs_write_them(tmp_path, delimiter, titles):
    points = np.random.default_rng(0).uniform(10, 90, (2, 2, 68)).round(2)
    rows = [[f"{i}.jpg", *map(str, points[i].T.ravel()), ""] for i in range(2)]
    lines = [delimiter.join(row) for row in ([titles.split(",")] if titles else []) + rows]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    faces = list(find_labels(tmp_path / "x.csv"))
    assert [face.name for face in faces] == ["0.jpg", "1.jpg"]
    np.testing.assert_allclose([face.points for face in faces], points)


def test_a_pts_file_without_its_picture_is_named(labelled, tmp_path):
    folder = labelled("pts")
    (folder / "photo_3.png").unlink()
    found = {face.name: face.reason for face in find_labels(folder)}
    assert len(found) == COUNT and "has no picture" in found["photo_3.pts"]


def test_names_of_crops_fit_a_list(tmp_path):
    names = ["a.jpg", "a.png", "A.jpg", "b/a.jpg", "x\ny .png", " . /c.jpg", "caf\udce9.jpg"]
    names += ["d.png", "d.jpg/e.png"]  # a folder called like the other's crop
    samples = [Sample(tmp_path, name) for name in names]
    name_crops(samples)
    expected = ["a.jpg", "face2/a.jpg", "face3/A.jpg", "b/a.jpg", "x_y .jpg", "_/c.jpg"]
    expected += ["caf_.jpg", "face2/d.jpg", "d.jpg/e.jpg"]
    assert [sample.crop for sample in samples] == expected


def test_the_box_is_the_published_one_and_square():
    points = np.full((2, 68), 50.0)
    points[0, 0], points[0, 1], points[1, 2] = 40, 80, 60  # 40 by 10 around (60, 55)
    np.testing.assert_array_equal(roi_box(points), [32, 27, 90, 85])  # 1-based 33..90, 28..85


def test_parameters_move_with_the_pixels(face_model, parameters):
    box = np.array([-7.0, 20.0, 353.0, 380.0])  # three pixels of the photo are one of the crop
    parameters = np.array(parameters)
    parameters[:, 11] = -76
    for row, seen in zip(parameters, face_model.landmarks(parameters), strict=True):
        moved = to_crop(row, box)
        expected = (seen[:2] - [[-6], [21]]) / 3  # the centre of the first three by three
        np.testing.assert_allclose(face_model.landmarks(moved[None])[0, :2], expected, atol=1e-3)
        assert moved[11] == -76


def test_hidden_files_of_a_mac_are_no_faces(labelled, tmp_path):
    folder = labelled("pts")
    for name in ("._photo_0.png", "._photo_0.pts"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    found = list(find_labels(folder))
    assert len(found) == COUNT and not any(face.reason for face in found)


def test_a_closed_folder_is_not_passed_over(labelled, tmp_path, capsys, monkeypatch):
    folder = labelled("pts")
    (folder / "closed").mkdir()
    scandir = os.scandir

    def closed(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert run(folder, "--out", tmp_path / "set") == 2
    assert "Permission denied" in capsys.readouterr().err
