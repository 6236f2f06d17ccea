"""The benchmark on a small rendered set: truth scores zero, wrong answers are scored wrong."""

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import exit_code

import benchmark
from model_building import SynergyNet
from utils import (
    aflw2000,
    benchmark_report,
    benchmark_script,
    evaluation,
    geometry,
    metrics,
)
from utils.aflw2000 import crop_published, crop_to_label_frame, open_aflw21, open_benchmark
from utils.benchmark_report import Table, html_report, table_text
from utils.checkpoint import write_checkpoint
from utils.evaluation import CropOutput, Prediction
from utils.geometry import decompose_camera
from utils.morphable_model import split_camera
from utils.preprocessing import crop_to_image
from utils.synthetic_sets import write_benchmark_set

COUNT = 30  # one of them is turned past the profile and not in the pose lists


@pytest.fixture(scope="session")
def folder(tmp_path_factory, face_model):
    """Of the tiny face model: any topology will do."""
    folder = tmp_path_factory.mktemp("benchmark") / "aflw2000_data"
    write_benchmark_set(folder, face_model, COUNT, seed=5)
    return folder


@pytest.fixture(scope="session")
def data(folder):
    return open_benchmark(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """The set, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def perfect(folder, face_model, seen=None):
    """A network that knows the answers, in the set's order, over and over; ``seen`` collects its
    input."""
    parameters = face_model.dewhiten(np.load(folder / "parameters.npy"))
    start = 0

    def network(crops):
        nonlocal start
        if seen is not None:
            seen.append(crops)
        chunk = parameters[start : start + len(crops)]
        start = (start + len(crops)) % len(parameters)
        landmarks = face_model.landmarks(chunk)
        return CropOutput(chunk, landmarks, landmarks + 1)

    return network


@pytest.fixture(scope="session")
def truth(folder, data, face_model):
    network = perfect(folder, face_model)
    return evaluation.predict(network, data.crops, data.roi_boxes, batch_size=7, title=None)


# ------------------------------------------------------------------------------------- scores


def test_truth_scores_zero(data, truth):
    scores, samples = evaluation.score(data, truth)
    assert scores["counts"] == {"0_30": 10, "30_60": 10, "60_90": 10}
    raw = scores["nme"]["original"]["raw"]
    assert raw["balanced"] < 1e-3 and raw["failure_rate"] == 0 and raw["auc"] > 99.9
    assert max(raw["parts"].values()) < 1e-3
    noise = scores["nme"]["reannotated"]["raw"]["balanced"]  # 1 % a coordinate
    assert noise == pytest.approx(np.sqrt(np.pi / 2), rel=0.05)
    assert scores["nme"]["original"]["refined"]["balanced"] > 0.5  # moved by a pixel
    # the labels hold the angles of Rx Ry Rz, not what the published formulas make of them
    assert scores["pose"]["exact"]["mean"] < 1e-3 and scores["pose"]["geodesic"]["mean"] < 1e-3
    assert scores["pose"]["published"]["yaw"] > 0.5 > 1e-3 > scores["pose"]["published"]["pitch"]
    assert np.isnan(samples["pitch_published"]).sum() == np.isnan(data.angles).any(1).sum() == 1


def test_past_the_profile_published_formulas_throw_the_face_over(copy, data, truth):
    past = np.isnan(data.angles).any(1)
    angles = geometry.exact_angles(truth.rotation)
    np.save(copy / aflw2000.POSE, angles[past][:, [1, 0, 2]])
    skipped = np.flatnonzero(~past)[:, None].astype(float)  # as MATLAB writes them
    np.save(copy / aflw2000.POSE_SKIPPED, skipped)
    pose = evaluation.score(open_benchmark(copy), truth)[0]["pose"]
    assert pose["exact"]["mean"] < 1e-3 and pose["published"]["pitch"] > 90


@pytest.mark.parametrize("batch", [evaluation.BATCH, 7])
def test_dense(data, truth, face_model, monkeypatch, batch):
    monkeypatch.setattr(evaluation, "BATCH", batch)
    assert not data.dense.points.flags.writeable and not data.dense.indices.flags.writeable
    errors = evaluation.dense_errors(face_model, data, truth)
    assert errors.shape == (COUNT,) and errors.max() < 1e-3
    size = metrics.box_size(data.landmarks["original"])
    moved = replace(truth, parameters=truth.parameters.copy())
    moved.parameters[:, 3] += 3  # crop pixels to the right
    scale = (data.roi_boxes[:, 2] - data.roi_boxes[:, 0]) / 120
    errors = evaluation.dense_errors(face_model, data, moved)
    np.testing.assert_allclose(errors, 100 * 3 * scale / size, rtol=1e-3)


def test_wrong_answers_are_scored_wrong(data, truth):
    def scored(landmarks, rotation=truth.rotation):
        wrong = Prediction(truth.crop_landmarks, {"raw": landmarks}, rotation, 1.0)
        return evaluation.score(data, wrong)[0]

    right = truth.landmarks["raw"]
    target = data.landmarks["original"][:, :2]
    size = np.sqrt(np.ptp(target, axis=2).prod(1))
    shifted = right.copy()
    shifted[:, 0] += 0.05 * size[:, None]
    found = scored(shifted)["nme"]["original"]["raw"]
    assert found["balanced"] == pytest.approx(5, abs=0.01)
    assert found["auc"] == pytest.approx(100 * 3 / 8, abs=0.1)
    assert scored(np.roll(right, 1, axis=0))["nme"]["original"]["raw"]["failure_rate"] > 90
    one_bin = right.copy()
    one_bin[np.abs(data.yaw) > 60] += 1000
    found = scored(one_bin)["nme"]["original"]["raw"]
    assert found["30_60"] < 1e-3 < 100 < found["60_90"]
    assert found["balanced"] == pytest.approx(found["60_90"] / 3, rel=1e-3)
    mirrored = truth.rotation * np.outer([-1, 1, 1], [-1, 1, 1])
    pose = scored(right, mirrored)["pose"]
    assert pose["published"]["yaw"] > 60 and pose["geodesic"]["60_90"] > 90
    assert pose["published"]["pitch"] < 1e-3


def test_scoring_changes_nothing(data, truth, face_model):
    def everything():
        labels = (*data.landmarks.values(), data.roi_boxes, data.yaw, data.angles)
        answers = (*truth.landmarks.values(), truth.crop_landmarks, truth.rotation)
        return [*labels, data.dense.points, *answers, truth.parameters]

    before = [array.copy() for array in everything()]
    runs = []
    for _ in range(2):
        scores, samples = evaluation.score(data, truth)
        dense = evaluation.dense_errors(face_model, data, truth)
        boxes, _ = evaluation.score_boxes(data, truth, truth, np.arange(COUNT))
        runs.append((json.dumps([scores, boxes]), np.stack([*samples.values(), dense])))
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    for old, new in zip(before, everything(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("border", [0, 5])
def test_border(folder, data, face_model, border):
    seen, expected = [], data.crops(np.arange(COUNT)).transpose(0, 3, 1, 2)
    network = perfect(folder, face_model, seen)
    evaluation.predict(network, data.crops, data.roi_boxes, border, title=None)
    crops = np.concatenate(seen)
    assert crops.shape == (COUNT, 3, 120, 120) and crops.dtype == np.float32
    inside = np.zeros((120, 120), bool)
    inside[border : 120 - border, border : 120 - border] = True
    assert (crops[:, :, ~inside] == -127.5 / 128).all()
    np.testing.assert_allclose(crops[:, :, inside] * 128 + 127.5, expected[:, :, inside], atol=1e-4)


def test_training_gets_the_main_numbers(data, face_model):
    torch.manual_seed(0)
    model = SynergyNet(face_model).train()
    cpu = torch.device("cpu")
    found = evaluation.score_aflw2000(model, data, cpu)
    assert model.training
    network = evaluation.torch_network(model.eval(), cpu)
    prediction = evaluation.predict(network, data.crops, data.roi_boxes, title=None)
    scores, _ = evaluation.score(data, prediction)
    assert found["aflw_reannotated"] == scores["nme"]["reannotated"]["raw"]["balanced"]
    assert found["aflw_pose_mae"] == scores["pose"]["published"]["mean"]
    assert all(np.isfinite(value) for value in found.values())


# ------------------------------------------------------------------------------------- boxes


def test_jittered_boxes(data):
    moved = evaluation.jittered_boxes(data.roi_boxes, seed=1)
    side, before = moved[:, 2] - moved[:, 0], data.roi_boxes[:, 2] - data.roi_boxes[:, 0]
    np.testing.assert_allclose(side, moved[:, 3] - moved[:, 1])
    assert 0.9 <= (side / before).min() < 0.95 and 1.05 < (side / before).max() <= 1.1
    shift = (moved - data.roi_boxes).reshape(-1, 2, 2).mean(1) / before[:, None]
    assert 0.05 < np.abs(shift).max() <= 0.1
    np.testing.assert_array_equal(moved, evaluation.jittered_boxes(data.roi_boxes, seed=1))


def test_detected_boxes_are_of_the_labelled_face(data):
    points = data.landmarks["original"][:, :2]
    boxes = np.concatenate([points.min(2), points.max(2)], axis=1)
    calls = iter(range(COUNT))

    def detector(image):
        i = next(calls)
        away = [*(boxes[i, [2, 3, 2, 3]] + [5, 5, 60, 60]), 0.99]
        return np.array([away] if i == 3 else [away, [*boxes[i], 0.6]])

    indices, found = evaluation.detected_boxes(data, detector)
    assert indices.tolist() == [i for i in range(COUNT) if i != 3]
    centres = (boxes[indices, :2] + boxes[indices, 2:]) / 2
    seen = (found[:, :2] + found[:, 2:] + 1) / 2  # label frame: x2 y2 are the last pixels
    np.testing.assert_allclose(seen, centres + 1, atol=1e-3)


def test_label_frame_on_a_drawn_picture(copy):
    """Of x from 31 to 150, y from 51 to 170, the first pixel being 1; inside it is white."""
    drawn = np.zeros((300, 300, 3), np.uint8)
    drawn[50:170, 30:150] = 255
    published = np.array([31.0, 51, 150, 170])
    assert crop_published(drawn, published).min() == 255
    for k, grown in enumerate(published + np.diag([-1, -1, 1, 1])):
        edge = [np.s_[:, :2], np.s_[:2], np.s_[:, -2:], np.s_[-2:]][k]
        crop = crop_published(drawn, grown)
        assert crop[edge].min() < 255 and (crop == 255).mean() > 0.95

    # a detector that sees the white square's middle gives the very same crop
    name = open_benchmark(copy).names[0]
    cv2.imwrite(str(copy / aflw2000.PHOTOS / name), drawn, [cv2.IMWRITE_JPEG_QUALITY, 100])
    points = np.load(copy / aflw2000.ORIGINAL)
    points[0, :2] = np.random.default_rng(0).uniform([[51], [71]], [[130], [150]], (2, 68))
    np.save(copy / aflw2000.ORIGINAL, points)
    data = open_benchmark(copy)
    photo = data.photo(0)

    def detector(image):  # half the roi's side is floor(1.2 * height / 2)
        same = image.shape == photo.shape and (image == photo).all()
        return np.array([[40, 60, 140, 160, 0.9]] if same else np.zeros((0, 5)))

    indices, boxes = evaluation.detected_boxes(data, detector)
    assert indices.tolist() == [0] and boxes.tolist() == [published.tolist()]
    assert data.crops_at(indices, boxes)(np.array([0])).min() > 250
    # and what the network sees at the middle of the crop lies in the middle of the labels' square
    middle = crop_to_image(np.full((1, 2, 1), 59.5), boxes)[0, :, 0]
    np.testing.assert_allclose(middle, [(31 + 150) / 2, (51 + 170) / 2], atol=0.51)
    exact = crop_to_label_frame(np.full((1, 3, 1), 59.5), boxes, pixel_centres=True)[0, :2, 0]
    np.testing.assert_allclose(exact, [(31 + 150) / 2, (51 + 170) / 2])


def test_the_face_model_says_how_crops_go_back(data, monkeypatch):
    def network(crops):
        middle = np.full((len(crops), 3, 68), 59.5, np.float32)
        camera = np.tile(np.eye(3, 4, dtype=np.float32).ravel(), (len(crops), 1))
        return evaluation.CropOutput(np.pad(camera, ((0, 0), (0, 50))), middle, None)

    published, exact = (
        evaluation.predict(network, data.crops, data.roi_boxes, pixel_centres=is_exact, title=None)
        for is_exact in (False, True)
    )
    centre = (data.roi_boxes[:, :2] + data.roi_boxes[:, 2:]) / 2  # label frame, both ends inside
    found = exact.landmarks["raw"][:, :2, 0]
    np.testing.assert_allclose(found, centre, atol=1e-4)
    away = (published.landmarks["raw"][:, :2, 0] - found) / (data.roi_boxes[:, 2:3] + 1)
    assert away.max() < 0  # up and left


def test_other_boxes_are_cut_from_the_photos(folder, data, truth, face_model):
    indices = np.array([4, 9])
    crops = data.crops_at(indices, data.roi_boxes[indices])(np.array([0, 1]))
    difference = np.abs(crops.astype(int) - data.crops(indices))
    assert difference.mean() < 4  # JPEG twice
    again = data.crops_at(indices, data.roi_boxes[indices] + 1)(np.array([0, 1]))
    assert np.abs(again.astype(int) - data.crops(indices)).mean() > difference.mean()
    parameters = face_model.dewhiten(np.load(folder / "parameters.npy"))[indices]
    moved = data.roi_boxes[indices] + 10
    landmarks = crop_to_image(face_model.landmarks(parameters), moved)
    _, rotation, _ = decompose_camera(split_camera(parameters))
    other = Prediction(landmarks, {"raw": landmarks}, rotation, 1.0)
    found, columns = evaluation.score_boxes(data, truth, other, indices)
    assert found["found"] == pytest.approx(100 * 2 / COUNT) and found["moved"] > 3
    assert found["nme_supplied"]["original"]["raw"]["mean"] < 1e-3
    assert found["nme"]["original"]["raw"]["mean"] == pytest.approx(found["moved"], rel=1e-3)
    assert columns.keys() == {"nme_original_raw", "nme_reannotated_raw"}
    (rows,) = np.nonzero(np.isfinite(columns["nme_original_raw"]))
    assert rows.tolist() == [4, 9]  # which faces were not found can be seen
    mean = columns["nme_original_raw"][rows].mean()
    assert mean == pytest.approx(found["nme"]["original"]["raw"]["mean"])


# ------------------------------------------------------------------------------------- bad sets


@pytest.mark.parametrize(
    "name", [aflw2000.LIST, aflw2000.ORIGINAL, aflw2000.YAW, aflw2000.ROI_BOXES]
)
def test_missing_files_are_named_with_where_to_get_them(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{re.escape(name)}.*README.*prepare_aflw2000"):
        open_benchmark(copy)


def test_missing_crops_are_counted(copy, data):
    for name in data.names[3:6]:
        (copy / aflw2000.CROPS / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{data.names[3]}.* 2 more of {COUNT}"):
        open_benchmark(copy)


def test_optional_parts_are_listed(copy, data):
    (copy / aflw2000.REANNOTATED).unlink()
    (copy / aflw2000.POSE).unlink()
    (copy / aflw2000.DENSE).unlink()
    (copy / aflw2000.PHOTOS / data.names[0]).unlink()
    smaller = open_benchmark(copy)
    assert len(smaller.missing) == 4 and not data.missing
    assert set(smaller.landmarks) == {"original"}
    assert smaller.angles is smaller.dense is None
    assert smaller.pictured.tolist() == list(range(1, COUNT))


@pytest.mark.parametrize(
    "name",
    [
        aflw2000.ORIGINAL,
        aflw2000.REANNOTATED,
        aflw2000.YAW,
        aflw2000.ROI_BOXES,
        aflw2000.POSE,
    ],
)
def test_row_counts_must_agree(copy, name):
    np.save(copy / name, np.load(copy / name)[:-1])
    with pytest.raises(ValueError, match=f"{re.escape(name)}: .*expected"):
        open_benchmark(copy)


def test_broken_contents_are_named(copy, data):
    def refused(name, array, message):
        kept = (copy / name).read_bytes()
        np.save(copy / name, array)
        with pytest.raises(ValueError, match=message):
            open_benchmark(copy)
        (copy / name).write_bytes(kept)

    nan = data.yaw.copy()
    nan[4] = np.nan
    refused(aflw2000.YAW, nan, "row 4 .*finite")
    flat = data.landmarks["original"].copy()
    flat[7, 0] = 3
    refused(aflw2000.ORIGINAL, flat, "row 7 .*span a box")
    refused(aflw2000.ROI_BOXES, data.roi_boxes[:, [2, 1, 0, 3]], "x1 < x2")
    refused(aflw2000.POSE_SKIPPED, np.array([COUNT]), f"indices below {COUNT}")
    refused(aflw2000.POSE_SKIPPED, np.array([1, 1]), "distinct")
    refused(aflw2000.POSE_SKIPPED, np.array([0.5]), "distinct")
    dense = dict(vars(data.dense))
    for name, value, message in (
        ("points", dense["points"][:-1], rf"\({COUNT - 1}, 3, 150\).*names {COUNT} faces"),
        ("indices", dense["indices"] + 1, "vertices"),
        ("num_vertices", "x", "vertices"),
    ):
        np.savez(copy / aflw2000.DENSE, **{**dense, name: value})
        with pytest.raises(ValueError, match=f"dense.npz: .*{message}"):
            open_benchmark(copy)
    (copy / aflw2000.DENSE).unlink()
    names = (copy / aflw2000.LIST).read_text()
    for text, message in (("", "empty"), (names + "../x.jpg\n", "plain file name")):
        (copy / aflw2000.LIST).write_text(text)
        with pytest.raises(ValueError, match=message):
            open_benchmark(copy)


# ------------------------------------------------------------------------------------- AFLW


@pytest.fixture
def aflw_folder(copy, data):
    """The same faces with AFLW's points: some hidden as NaN, some as -1; no ears in the 68."""
    (copy / aflw2000.CROPS).rename(copy / aflw2000.AFLW_CROPS)
    for old, new in (
        (aflw2000.LIST, aflw2000.AFLW_LIST),
        (aflw2000.YAW, aflw2000.AFLW_YAW),
        (aflw2000.ROI_BOXES, aflw2000.AFLW_ROI_BOXES),
    ):
        (copy / old).rename(copy / new)
    points = metrics.to_aflw21(data.landmarks["original"])[:, :2]
    points[:, :, metrics.AFLW_EARS[0]] = data.landmarks["original"][:, :2, 0]
    points[np.abs(data.yaw) > 60, :, :6], points[3, :, 7:10] = -1, np.nan
    np.save(copy / aflw2000.AFLW_LANDMARKS, points)
    return copy


def test_aflw21(aflw_folder, truth, data):
    aflw = open_aflw21(aflw_folder)
    hidden = np.isnan(aflw.landmarks).all(1).sum(1)
    assert hidden[3] == 4 and set(hidden[np.abs(data.yaw) > 60]) == {7}  # one ear, six of the brows
    scores = evaluation.aflw21_scores(aflw, truth)
    assert scores["counts"] == {"0_30": 10, "30_60": 10, "60_90": 10}
    assert scores["nme"]["raw"]["balanced"] < 1e-3 < scores["nme"]["refined"]["balanced"]
    shifted = truth.landmarks["raw"].copy()
    shifted[:, 0] += 0.05 * metrics.box_size(aflw.landmarks)[:, None]
    found = evaluation.aflw21_scores(aflw, replace(truth, landmarks={"raw": shifted}))
    assert found["nme"]["raw"]["mean"] == pytest.approx(5, abs=0.01)

    points = np.load(aflw_folder / aflw2000.AFLW_LANDMARKS)
    for bad, message in (
        (points[:-1], "AFLW_crop.list names 30"),
        (np.full_like(points, -1), "row 0 .*visible"),
    ):
        np.save(aflw_folder / aflw2000.AFLW_LANDMARKS, bad)
        with pytest.raises(ValueError, match=message):
            open_aflw21(aflw_folder)
    (aflw_folder / aflw2000.AFLW_YAW).unlink()
    with pytest.raises(FileNotFoundError, match="AFLW.pose.npy: .*docs/benchmark.md"):
        open_aflw21(aflw_folder)


# ------------------------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def command(folder, face_folder, face_model, tmp_path_factory):
    """Arguments that run the script with made-up weights of the tiny face model."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "<weights>&.pth"
    write_checkpoint(path, SynergyNet(face_model).checkpoint())
    arguments = ["-w", path, "--face-model", face_folder, "--device", "cpu", "--data"]
    return [str(argument) for argument in arguments]


@pytest.fixture(scope="module")
def done(command, folder, tmp_path_factory):
    """A finished run with a face whose name is not to be trusted; its output folder."""
    data = shutil.copytree(folder, tmp_path_factory.mktemp("named") / "set")
    names = (data / aflw2000.LIST).read_text().split()
    names[0] = "=<script>&'x.jpg"
    for part in (aflw2000.CROPS, aflw2000.PHOTOS):
        (data / part / "render_000000.jpg").rename(data / part / names[0])
    (data / aflw2000.LIST).write_text("\n".join(names))
    out = data.parent / "out"
    assert benchmark.main([*command, str(data), "-o", str(out), "--boxes", "jitter"]) == 0
    return data, out


def test_faces_that_other_boxes_miss_count_as_failures(done):
    scores = json.loads((done[1] / "results.json").read_text())["scores"]
    scores["boxes"]["jitter"]["found"] = 60
    for labels in scores["boxes"]["jitter"]["nme"].values():
        for numbers in labels.values():
            numbers["failure_rate"] = 25
    (table,) = (t for t in benchmark_report.own_tables(scores) if "boxes" in t.title)
    assert [row[-2:] for row in table.rows] == [(60, 45)] * len(table.rows) and table.rows


def test_what_a_run_writes(done):
    data, out = done
    run = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert run["scores"]["dense"]["vertices"] == 150 and len(run["missing"]) == 1
    assert run["samples"]["yaw_exact"].count(None) == 1  # past the profile
    assert run["scores"]["counts"] == {"0_30": 10, "30_60": 10, "60_90": 10}
    assert run["scores"]["boxes"]["jitter"]["found"] == 100
    with open(out / "samples.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first, *others = run["names"]
    assert [row["name"] for row in rows] == [f"./{first}", *others]  # no spreadsheet's formula
    for name, column in run["samples"].items():
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, np.array(column, float), atol=1e-6, err_msg=name)
    assert len(list(out.glob("*.jpg"))) == COUNT < benchmark_report.PICTURES == 50  # as published
    assert cv2.imread(str(out / "render_000001.jpg")).shape == (120, 120, 3)
    height, width = cv2.imread(str(out / "plots.png")).shape[:2]
    assert height > 500 and width > 1000
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 20
    for told in ("68 landmarks", "part of the face", "Dense mesh", "Head pose", "Other boxes"):
        assert told in page
    shown = [float(error) for error in re.findall(r": NME ([\d.]+) %, yaw", page)]
    worst = sorted(run["samples"]["nme_original_raw"], reverse=True)[:20]
    np.testing.assert_allclose(shown, worst, atol=0.0051)
    assert "<script" not in page and "<weights>" not in page
    assert "&lt;weights&gt;&amp;" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)  # needs no other file
    assert "cannot be compared" in page  # these are not the published faces
    assert "SADRNet" in page and "RankPose" in page and "Dense mesh" in page
    assert "Left out: no AFLW_crop.list" in page


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing them takes longer than all the rest."""
    monkeypatch.setattr(benchmark_report, "draw_plots", lambda run: b"")


def test_published_form_and_repeatable(command, done, no_plots, tmp_path, capsys):
    data, out = done
    assert benchmark.main([*command, str(data), "-o", str(tmp_path), "--boxes", "jitter"]) == 0
    printed = capsys.readouterr().out
    number = r"\d+\.\d{3}"
    expected = [
        r"weights .*<weights>&\.pth, face model .*, engine torch on cpu",
        r"Facial Alignment on AFLW2000-3D \(NME\):",
        *(rf"\[{b}\]   Mean: {number}, Std: {number}" for b in (" 0, 30", "30, 60", "60, 90")),
        rf"\[ 0, 90\]   Mean: {number}, Std: {number}",
        "Face orientation estimation:",
        rf"Mean MAE = {number} \(in deg\), "
        rf"\[yaw,pitch,roll\] = \[{number}, {number}, {number}\]",
    ]
    assert re.match("\n".join(expected), printed)
    scores = json.loads((out / "results.json").read_text())["scores"]
    nme, pose = scores["nme"]["original"]["raw"], scores["pose"]["published"]
    bins = [nme[name] for name in ("0_30", "30_60", "60_90", "balanced")]
    means = re.findall(r"\]   Mean: (\d+\.\d{3})", printed)
    np.testing.assert_allclose(np.array(means, float), bins, atol=6e-4)
    angles = re.search(r"\[yaw,pitch,roll\] = \[(.*)\]", printed)[1].split(", ")
    expected = [pose[name] for name in ("yaw", "pitch", "roll")]
    np.testing.assert_allclose(np.array(angles, float), expected, atol=6e-4)
    row = re.search(r"^  original labels, raw (.*)$", printed, re.MULTILINE)[1].split()
    np.testing.assert_allclose(np.array(row[:4], float), bins, atol=6e-3)
    assert "images/s" in printed and "border 5" in printed
    for name in ("results.json", "samples.csv"):
        first, second = (path / name for path in (out, tmp_path))
        assert first.read_bytes() == second.read_bytes()


def test_compare(command, done, no_plots, tmp_path, capsys, call):
    data, out = done
    other = tmp_path / "other"
    assert benchmark.main([*command, str(data), "-o", str(other), "--border", "0"]) == 0
    capsys.readouterr()
    results = [str(path / "results.json") for path in (out, out)]
    assert benchmark.main(["--compare", *results]) == 0
    same = capsys.readouterr().out
    assert same.count("not certain") == 16 and "nme_original_raw_jitter" in same  # one run twice
    assert benchmark.main(["--compare", str(out), str(out)]) == 0
    assert capsys.readouterr().out == same.replace(f"{os.sep}results.json", "")
    results[1] = str(other / "results.json")
    assert benchmark.main(["--compare", *results]) == 0
    assert "border 0" in capsys.readouterr().out
    code, printed = call(benchmark.main, "--compare", results[0], tmp_path)  # a folder of no run
    assert code == 2 and "results.json: no such file; benchmark.py writes it" in printed
    (tmp_path / "x.json").write_text("[]")
    code, printed = call(benchmark.main, "--compare", results[0], tmp_path / "x.json")
    assert code == 2 and "x.json: not a results.json" in printed
    foreign = json.loads((out / "results.json").read_text())
    foreign["labels"] |= {"angles": "another"}
    (tmp_path / "x.json").write_text(json.dumps(foreign))
    capsys.readouterr()
    assert benchmark.main(["--compare", results[0], str(tmp_path / "x.json")]) == 0
    printed = capsys.readouterr().out
    assert "because the labels are not the same: angles" in printed
    assert "geodesic" not in printed and "yaw_exact" not in printed and "nme_dense" in printed
    assert "only one of the runs" not in printed
    del foreign["samples"]["nme_dense"]
    (tmp_path / "x.json").write_text(json.dumps(foreign))
    assert benchmark.main(["--compare", results[0], str(tmp_path / "x.json")]) == 0
    assert "because only one of the runs has them: nme_dense\n" in capsys.readouterr().out
    foreign["settings"]["labels"] = "another"
    (tmp_path / "x.json").write_text(json.dumps(foreign))
    assert call(benchmark.main, "--compare", results[0], tmp_path / "x.json")[0] == 2


def test_runs_that_cannot_be_compared_are_refused(done, tmp_path, capsys):
    _, out = done
    run = json.loads((out / "results.json").read_text())
    settings, path = run["settings"], tmp_path / "x.json"

    def compare():
        code = exit_code(benchmark.main, "--compare", out, path)
        return code, capsys.readouterr().err

    without = {name: value for name, value in settings.items() if name != "border"}
    for spoilt in (
        {"settings": {"labels": settings["labels"]}},
        {"settings": without},
        {"settings": {**settings, "weights": 3}},
        {"labels": None},
        {"labels": ["angles"]},
        {"labels": {"angles": {}}},
        {"samples": {name: [[value] for value in run["samples"][name]] for name in ("yaw",)}},
    ):
        path.write_text(json.dumps({**run, **spoilt}))
        code, error = compare()
        assert code == 2 and error.endswith(f": {path}: not a results.json of benchmark.py\n")
    del run["labels"]
    path.write_text(json.dumps(run))
    assert compare()[0] == 2
    run["labels"] = {}
    fewer = {name: column[:-1] for name, column in run["samples"].items()}
    path.write_text(json.dumps({**run, "samples": fewer}))
    code, error = compare()
    assert code == 2 and "runs on different faces" in error


@pytest.mark.parametrize("closed", ["at once", "after the report"])
def test_a_closed_pipe_loses_no_report(
    closed, command, folder, no_plots, tmp_path, capfd, monkeypatch
):
    """`python benchmark.py | head -1`: nothing can be printed from some moment on."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(1)

    def close(*arguments):
        os.dup2(writer, 1)
        return write(*arguments) if arguments else None

    write = benchmark_report.write_results
    try:
        with open(1, "w", closefd=False, errors="backslashreplace") as stdout:
            monkeypatch.setattr("sys.stdout", stdout)
            if closed == "at once":
                close()
            else:
                monkeypatch.setattr(benchmark_report, "write_results", close)
            assert benchmark.main([*command, str(folder), "-o", str(tmp_path)]) == 0
    finally:
        os.dup2(kept, 1)
        for descriptor in (kept, writer):
            os.close(descriptor)
    assert (tmp_path / "report.html").exists() and (tmp_path / "results.json").exists()
    printed, error = capfd.readouterr()
    assert "benchmark.py:" not in error
    assert ("Facial Alignment" in printed) == (closed != "at once")


def test_labels_of_another_face_model_are_not_scored(command, copy, no_plots, tmp_path, capsys):
    arrays = dict(np.load(copy / aflw2000.DENSE))
    np.savez(copy / aflw2000.DENSE, **{**arrays, "num_vertices": 9999})
    assert benchmark.main([*command, str(copy), "-o", str(tmp_path)]) == 0
    said = "the dense labels are of a face model with 9999 vertices, not 150: the dense mesh is not"
    assert said in capsys.readouterr().out
    assert "dense" not in json.loads((tmp_path / "results.json").read_text())["scores"]


def test_labels_are_drawn_where_the_crop_shows_them(data, truth, monkeypatch):
    """Small boxes tell: half a pixel of theirs is a pixel and a half of the picture."""
    boxes = np.array([[31.0, 41.0, 80.0, 90.0]])  # 50 x 50 pixels
    at = truth.crop_landmarks[:1].astype(np.float64)
    labels = crop_to_label_frame(at, boxes, True)
    small = replace(data, roi_boxes=boxes, landmarks={"original": labels})
    drawn = []
    monkeypatch.setattr(
        benchmark_report, "draw_landmarks", lambda crop, at: drawn.append(at) or crop
    )
    answer = Prediction(at, {"raw": labels + 1}, truth.rotation[:1], 1.0)
    benchmark_report.worst_picture(small, answer, 0)
    shown = (at[0, :2] + 0.5) * 2 - 0.5  # twice as large as the crop
    np.testing.assert_allclose(drawn, [shown, shown + 2 * 120 / 50], atol=1e-3)


@pytest.mark.parametrize("rows", [benchmark_report.PUBLISHED_NME, benchmark_report.PUBLISHED_POSE])
def test_the_plots_show_synergynet_as_its_paper_has_it(rows):
    found = benchmark_report._synergynet(rows)
    assert np.isfinite(found).all()
    assert ("SynergyNet", *found, benchmark_report.PAPER) in rows


@pytest.mark.parametrize("rows", [benchmark_report.PUBLISHED_NME, benchmark_report.PUBLISHED_POSE])
def test_published_means_are_those_of_their_parts(rows):
    """A number that was mistyped shows, but where only the mean is known."""
    for name, *parts, mean, source in rows:
        if np.isfinite(parts).all() and "its angles average" not in source:
            assert abs(np.mean(parts) - mean) < 0.0101, name


def test_a_run_with_an_empty_bin_is_not_ranked_best(data, truth):
    scores, _ = evaluation.score(data, truth)
    scores["nme"]["original"]["raw"]["balanced"] = float("nan")
    run = {"scores": scores, "settings": {"weights": "w", "labels": ""}}
    nme, pose = benchmark_report.published_tables(run)
    assert nme.rows[0][0] == "→ w" and nme.rows[-1][0] == "SynergyNet"
    assert pose.rows[-1][0] == "→ w"


def test_each_set_of_labels_has_a_fingerprint_of_its_own(data):
    before = evaluation.labels_fingerprints(data)
    assert set(before) == {"original", "reannotated", "angles", "dense"}
    changed = replace(data, angles=data.angles + 1)
    after = evaluation.labels_fingerprints(changed)
    assert {name for name in before if before[name] != after[name]} == {"angles"}
    changed = replace(data, landmarks={**data.landmarks, "reannotated": data.roi_boxes})
    after = evaluation.labels_fingerprints(changed)
    assert {name for name in before if before[name] != after[name]} == {"reannotated"}


def test_compare_tells_gain_from_noise():
    rng = np.random.default_rng(0)
    yaw = np.repeat([0, 45, 80], 300)
    a = {"nme": rng.gamma(9, 0.4, 900), "yaw": yaw}
    found = {
        gain: evaluation.compare(a, {"nme": a["nme"] - gain + rng.normal(0, 0.5, 900)}, yaw)["nme"]
        for gain in (0.0, 0.15)
    }
    assert found[0.0]["low"] < 0 < found[0.0]["high"]
    assert found[0.15]["high"] < 0
    assert found[0.15]["difference"] == pytest.approx(-0.15, abs=0.05)
    table = benchmark_report.comparison_table({"x": found[0.0], "y": found[0.15]}, "a", "b")
    assert [row[-1] for row in table.rows] == ["not certain", "B is better"]
    for one in found.values():  # of 900 differences with a deviation of 0.5
        assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(900), rel=0.1)
        assert one["low"] < one["difference"] < one["high"]
        assert one["difference"] == pytest.approx(one["b"] - one["a"])


def test_exit_codes(command, copy, tmp_path, call):
    def run(*arguments):
        code, output = call(benchmark.main, *command, copy, "-o", tmp_path, *arguments)
        assert "Traceback" not in output
        return code, output

    assert run("--data", tmp_path / "nothing")[0] == 2
    assert run("-w", tmp_path / "nothing.pth")[0] == 2
    assert run("--border", "3")[0] == 2
    crop = next(iter(sorted((copy / aflw2000.CROPS).iterdir())))
    crop.write_bytes(b"no picture")
    code, error = run()
    assert code == 1 and f"benchmark.py: {crop}: not a picture" in error
    cv2.imwrite(str(crop), np.zeros((60, 70, 3), np.uint8))
    code, error = run()
    assert code == 1 and "70x60 pixels, expected a crop of 120x120" in error
    shutil.rmtree(copy / aflw2000.PHOTOS)
    code, error = run("--boxes", "jitter")
    assert code == 2 and "not there, nor any other whole picture, which --boxes needs" in error


def test_other_boxes_are_tried_on_the_faces_that_have_a_picture(
    command, copy, no_plots, tmp_path, capsys
):
    names = open_benchmark(copy).names
    (copy / aflw2000.PHOTOS / names[2]).unlink()
    arguments = [*command, str(copy), "-o", str(tmp_path), "--boxes", "jitter"]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"1 of {COUNT} pictures (first {names[2]}) not in AFLW2000-3D/: other boxes" in printed
    boxes = json.loads((tmp_path / "results.json").read_text())["scores"]["boxes"]
    assert boxes["jitter"]["found"] == 100


def test_pictures_of_crops_that_differ_in_their_suffix_alone(command, copy, no_plots, tmp_path):
    names = (copy / aflw2000.LIST).read_text().split()
    twin = Path(names[0]).with_suffix(".png").name
    os.rename(copy / aflw2000.CROPS / names[1], copy / aflw2000.CROPS / twin)
    (copy / aflw2000.LIST).write_text("\n".join([names[0], twin, *names[2:]]))
    assert benchmark.main([*command, str(copy), "-o", str(tmp_path)]) == 0
    assert {f"{names[0]}.jpg", f"{twin}.jpg"} <= {path.name for path in tmp_path.iterdir()}


def test_detector_boxes_and_aflw(
    command, folder, data, face_model, aflw_folder, no_plots, monkeypatch, capsys
):
    engine = {"torch": lambda *_: perfect(folder, face_model)}
    monkeypatch.setattr(evaluation, "NETWORKS", engine)
    out = aflw_folder / "out"
    points = data.landmarks["original"][:, :2]
    boxes = np.concatenate([points.min(2) - 1, points.max(2) - 1, np.ones((COUNT, 1))], 1)
    calls = iter(boxes)
    monkeypatch.setattr(
        benchmark_script, "FaceBoxes", lambda *_, **__: lambda image: next(calls)[None]
    )
    arguments = [*command, str(folder), "-o", str(out), "--boxes", "detector"]
    assert benchmark.main([*arguments, "--aflw", str(aflw_folder)]) == 0
    printed = capsys.readouterr().out
    assert "detector, re-annotated labels, refined" in printed and "Left out" not in printed
    run = json.loads((out / "results.json").read_text())
    assert run["scores"]["boxes"]["detector"]["found"] == 100 and run["missing"] == []
    assert run["scores"]["aflw21"]["nme"]["raw"]["balanced"] < 1e-3
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "AFLW, NME" in page and "no ear lobes" in page

    monkeypatch.setattr(
        benchmark_script, "FaceBoxes", lambda *_, **__: lambda image: np.zeros((0, 5))
    )
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "the detector found none of the faces" in printed and "AFLW's 21 points are" in printed
    assert "boxes" not in json.loads((out / "results.json").read_text())["scores"]


def test_a_small_set_with_empty_bins(command, copy, no_plots, capsys):
    """Seven frontal faces, no optional part, and a name that is no text."""
    names = (copy / aflw2000.LIST).read_bytes().split()
    keep = np.flatnonzero(np.abs(np.load(copy / aflw2000.YAW)) < 30)[:7]
    for name in (aflw2000.ORIGINAL, aflw2000.YAW, aflw2000.ROI_BOXES):
        np.save(copy / name, np.load(copy / name)[keep])
    for name in (aflw2000.REANNOTATED, aflw2000.POSE, aflw2000.POSE_SKIPPED, aflw2000.DENSE):
        (copy / name).unlink()
    shutil.rmtree(copy / aflw2000.PHOTOS)
    kept = [names[i] for i in keep]
    odd = b"\xff.jpg"
    os.rename(*(os.path.join(os.fsencode(copy / aflw2000.CROPS), name) for name in (kept[0], odd)))
    mark = b"\xef\xbb\xbf"  # as editors put it before UTF-8
    (copy / aflw2000.LIST).write_bytes(mark + b"\n".join([odd, *kept[1:]]))
    out = copy / "out"
    assert benchmark.main([*command, str(copy), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "[ 0, 90]   Mean: nan" in printed and "Face orientation" not in printed
    for said in (
        "re-annotated",
        "head pose",
        "dense mesh",
        "--boxes",
        "30-60°",
        "60-90°",
        "AFLW's",
    ):
        assert said in printed[printed.index("Left out") :]
    text = (out / "results.json").read_text()
    run = json.loads(text, parse_constant=pytest.fail)
    assert (
        run["scores"]["nme"]["original"]["raw"]["balanced"] is None and run["names"][0] == "?.jpg"
    )
    assert run["scores"]["nme"]["original"]["raw"]["mean"] > 0
    assert "\\ud" not in text  # half a surrogate pair, which strict readers refuse
    results = str(out / "results.json")
    assert benchmark.main(["--compare", results, results]) == 0
    assert "nan" not in capsys.readouterr().out


def test_tables_and_page_without_optional_parts(copy, truth, face_model):
    for name in (aflw2000.REANNOTATED, aflw2000.POSE):
        (copy / name).unlink()
    data = open_benchmark(copy)
    scores, samples = evaluation.score(data, truth)
    run = {"scores": scores, "samples": samples, "missing": data.missing}
    run["settings"] = {"weights": "w", "labels": evaluation.labels_fingerprints(data)["original"]}
    page = html_report(run, data, truth, plots=None)
    assert "matplotlib is not installed" in page and "re-annotated labels" in page
    assert "Head pose" not in page
    table = Table("title", ("", "a"), [("x", 1.0), ("longer", float("nan"))])
    assert table_text(table) == "title\n             a\n  x       1.00\n  longer     -"


@pytest.mark.parametrize("name", [aflw2000.CROPS, aflw2000.PHOTOS])
def test_the_sets_own_pictures_are_not_drawn_over(command, folder, name):
    before = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
    with pytest.raises(ValueError, match=f"{name}: the pictures of the set lie there"):
        benchmark.main([*command, str(folder), "-o", str(folder / name)])
    assert {path.name: path.read_bytes() for path in (folder / name).iterdir()} == before
