import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from conftest import asset, exit_code
from scipy.spatial.transform import Rotation

from tools import prepare_aflw2000
from tools.prepare_aflw2000 import landmarks_to_roi_box, read_labels
from utils.aflw2000 import crop_published, open_benchmark
from utils.pictures import read_image

ANGLES = np.float32([[-23, 1, 5], [3, 70, -8], [100, -40, 0], [0, 0, -98], [-4, -120, 9]])
NAMES = [f"image{number:05d}" for number in (2, 4, 6, 8, 10)]


def labels(index: int) -> dict[str, np.ndarray]:
    """What a .mat file of the download holds, 300W-LP's documentation says."""
    rng = np.random.default_rng(index)
    points = rng.uniform([[60], [80], [-50]], [[140], [150], [50]], (3, 68))
    pose = np.concatenate([np.radians(ANGLES[index]), [100, 90, -66, 1e-3]])
    return {
        "pt3d_68": points.astype(np.float32),
        "Pose_Para": pose[None].astype(np.float32),
        "pt2d": np.where(rng.random((2, 21)) < 0.3, -1, rng.uniform(0, 200, (2, 21))),
        "roi": np.int16([[60, 80, 140, 150]]),
        "Shape_Para": rng.normal(size=(199, 1)),
        "Exp_Para": rng.normal(size=(29, 1)),
        "Color_Para": rng.normal(size=(1, 7)),
        "Illum_Para": rng.normal(size=(1, 10)),
        "Tex_Para": rng.normal(size=(199, 1)),
    }


def photo(index: int) -> np.ndarray:
    rng = np.random.default_rng(100 + index)
    small = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return cv2.resize(small, (200, 190), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "AFLW2000"
    (folder / "Code").mkdir(parents=True)  # the download has more than the samples
    (folder / "Code" / "Model.mat").write_bytes(b"")
    for index, name in enumerate(NAMES):
        scipy.io.savemat(folder / f"{name}.mat", labels(index), do_compression=index % 2 == 0)
        cv2.imwrite(str(folder / f"{name}.jpg"), photo(index), [cv2.IMWRITE_JPEG_QUALITY, 98])
    return folder


def run(raw: Path, *arguments: object) -> int:
    out = raw.parent / "out"
    return exit_code(prepare_aflw2000.main, "--raw", raw, "--out", out, *arguments)


# ------------------------------------------------------------------ the rules


def test_published_boxes_come_out_of_the_published_landmarks():
    folder = asset("aflw2000_eval")
    points = np.load(folder / "AFLW2000-3D.pts68.npy")
    boxes = np.load(folder / "AFLW2000-3D_crop.roi_box.npy")
    found = np.stack([landmarks_to_roi_box(face, 450, 450) for face in points])
    assert found.dtype == boxes.dtype
    np.testing.assert_array_equal(found, boxes)


def test_box_by_hand():
    points = np.full((3, 68), 50.0)
    points[0, 0], points[0, 1], points[1, 2] = 40, 80, 60  # 40 by 10 around (60, 55)
    np.testing.assert_array_equal(landmarks_to_roi_box(points, 200, 200), [32, 27, 89, 84])
    np.testing.assert_array_equal(landmarks_to_roi_box(points, 80, 70), [32, 27, 70, 80])
    np.testing.assert_array_equal(landmarks_to_roi_box(points - 40, 200, 200), [1, 1, 49, 44])
    for outside in (points - 200, points + 200, np.full((3, 68), 5.0)):
        with pytest.raises(ValueError, match="landmarks in the picture of 200x200"):
            landmarks_to_roi_box(outside, 200, 200)


def test_labels_are_read_in_degrees(raw):
    points, angles = read_labels(raw / f"{NAMES[0]}.mat")
    assert points.dtype == angles.dtype == np.float32
    np.testing.assert_array_equal(points, labels(0)["pt3d_68"])
    np.testing.assert_allclose(angles, ANGLES[0], rtol=1e-6)


# ------------------------------------------------------------------ the set


def test_the_published_layout(raw, capsys):
    again = np.random.default_rng(0).normal(size=(5, 2, 68))
    np.save(raw.parent / "again.npy", again)
    assert run(raw, "--reannotated", raw.parent / "again.npy", "--photos") == 0
    said = capsys.readouterr().out
    assert "5 samples, 2 / 1 / 2 by yaw, 2 beyond 99 degrees" in said
    assert "2,000" in said and "re-annotated" not in said

    out = raw.parent / "out"
    kept, skipped = (np.load(out / f"eval/ALFW2000-3D_pose_3ANG_{s}.npy") for s in ("excl", "skip"))
    np.testing.assert_array_equal(skipped, [2, 4])
    np.testing.assert_allclose(kept, ANGLES[[0, 1, 3]], rtol=1e-5, atol=1e-5)
    found = open_benchmark(out)  # what benchmark.py reads: every shape is checked there
    assert found.names == [f"{name}.jpg" for name in NAMES] and len(found.missing) == 1
    np.testing.assert_allclose(found.yaw, ANGLES[:, 1], atol=1e-5)
    expected = np.stack([labels(index)["pt3d_68"] for index in range(5)])
    np.testing.assert_array_equal(found.landmarks["original"], expected)
    np.testing.assert_array_equal(found.landmarks["reannotated"], again.astype(np.float32))
    np.testing.assert_allclose(found.angles[0], ANGLES[0, [1, 0, 2]], rtol=1e-5)  # yaw first
    for name in ("AFLW2000-3D.pts68", "AFLW2000-3D.pose", "AFLW2000-3D_crop.roi_box"):
        assert np.load(out / "eval" / f"{name}.npy").dtype == np.float32
    for index, crop in enumerate(found.crops(np.arange(5)).astype(int)):
        box = landmarks_to_roi_box(expected[index], 190, 200)
        np.testing.assert_array_equal(found.roi_boxes[index], box)
        assert np.abs(crop - crop_published(photo(index), box)).mean() < 3  # JPEG twice
        np.testing.assert_array_equal(found.photo(index), read_image(raw / f"{NAMES[index]}.jpg"))
    assert {path.name for path in raw.parent.iterdir()} == {"AFLW2000", "again.npy", "out"}


def test_optional_parts_are_left_out(raw, capsys):
    assert run(raw) == 0
    said = capsys.readouterr().out
    assert "no re-annotated labels" in said and "no dense labels" in said
    found = open_benchmark(raw.parent / "out")
    assert list(found.landmarks) == ["original"] and found.dense is None and not len(found.pictured)
    assert run(raw) == 2  # never over something
    assert "exists" in capsys.readouterr().err


# ------------------------------------------------------------------ dense labels


def test_dense_labels_from_the_coefficients(raw, capsys):
    rng = np.random.default_rng(7)
    bases = {
        "mean": rng.normal(scale=60, size=270),
        "shape": rng.normal(scale=0.5, size=(270, 199)),
        "expression": rng.normal(scale=0.5, size=(270, 29)),
        "landmarks": rng.permutation(90)[:68],
    }
    np.savez(raw.parent / "bases.npz", **bases)
    meshes = []
    for index, name in enumerate(NAMES):  # a slow twin of the camera: one turn after the other
        content = labels(index)
        pitch, yaw, roll, *shift, scale = content["Pose_Para"][0].astype(np.float64)
        scale *= 500
        offsets = [
            bases["shape"] @ content["Shape_Para"],
            bases["expression"] @ content["Exp_Para"],
        ]
        points = (bases["mean"] + sum(offsets).ravel()).reshape(90, 3)
        turned = Rotation.from_euler("zyx", [-roll, -yaw, -pitch]).apply(points)
        mesh = scale * turned.T + np.array(shift)[:, None]
        mesh[1] = 191 - mesh[1]  # pictures are 190 pixels high, rows count from 1
        content["Pose_Para"][0, 6] = scale
        content["pt3d_68"] = mesh[:, bases["landmarks"]].astype(np.float32)
        scipy.io.savemat(raw / f"{name}.mat", content)
        meshes.append(mesh)
    assert run(raw, "--bases", raw.parent / "bases.npz") == 0
    dense = open_benchmark(raw.parent / "out").dense
    assert dense.num_vertices == 90 and dense.indices.tolist() == list(range(90))
    np.testing.assert_allclose(dense.points, meshes, atol=1e-3)

    shutil.rmtree(raw.parent / "out")
    np.savez(raw.parent / "other.npz", **{**bases, "mean": np.roll(bases["mean"], 3)})
    assert run(raw, "--bases", raw.parent / "other.npz") == 1
    assert "5 bad of 5" in (said := capsys.readouterr().err) and "not their face model" in said
    np.savez(raw.parent / "other.npz", **{**bases, "shape": bases["shape"][:, :40]})
    assert run(raw, "--bases", raw.parent / "other.npz") == 2
    assert "expected shape of shape (270, 199)" in capsys.readouterr().err


# ------------------------------------------------------------------ bad samples


def put(path: Path, **changed: object) -> None:
    content = {name: value for name, value in {**labels(1), **changed}.items() if value is not None}
    scipy.io.savemat(path, content)


BAD = {
    "missing": lambda path: path.unlink(),
    "not a MATLAB file": lambda path: path.write_bytes(b"no MATLAB file, surely; text" * 9),
    "save it with -v7": lambda path: path.write_bytes(
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(400)
    ),
    "pt3d_68 is missing, found .*pt2d": lambda path: put(path, pt3d_68=None),
    "Pose_Para is missing": lambda path: put(path, Pose_Para=None),
    r"pt3d_68 of shape \(3, 68\).*found \(2, 68\)": lambda path: put(
        path, pt3d_68=np.ones((2, 68))
    ),
    r"Pose_Para of shape \(1, 7\).*\(7, 1\)": lambda path: put(path, Pose_Para=np.ones((7, 1))),
    "pt3d_68 holds": lambda path: put(path, pt3d_68=np.full((3, 68), np.nan)),
    "landmarks in the picture": lambda path: put(path, pt3d_68=labels(1)["pt3d_68"] + 300),
    "image00004.jpg: missing": lambda path: path.with_suffix(".jpg").unlink(),
    "image00004.jpg: .*cut short": lambda path: path.with_suffix(".jpg").write_bytes(
        path.with_suffix(".jpg").read_bytes()[:999]
    ),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_sample_stops_or_is_left_out(raw, reason, capsys):
    BAD[reason](raw / "image00004.mat")
    np.save(raw.parent / "again.npy", np.arange(5 * 2 * 68.0).reshape(5, 2, 68))
    before = set(raw.parent.iterdir())
    assert run(raw) == 1
    said = capsys.readouterr().err
    assert "1 bad of 5" in said and "--skip-bad" in said and "image00004" in said
    assert re.search(reason, said), said
    assert set(raw.parent.iterdir()) == before

    assert run(raw, "--skip-bad", "--reannotated", raw.parent / "again.npy") == 1
    assert "left out 1" in capsys.readouterr().out
    out = raw.parent / "out"
    assert "image00004" in (out / "left_out.txt").read_text()
    found = open_benchmark(out)
    assert found.names == [f"{name}.jpg" for name in NAMES if name != "image00004"]
    np.testing.assert_array_equal(found.landmarks["reannotated"][:, 0, 0], 136 * np.r_[0, 2:5])
    assert np.load(out / "eval" / "ALFW2000-3D_pose_3ANG_skip.npy").tolist() == [1, 3]


# ------------------------------------------------------------------ usage


def test_wrong_usage(raw, capsys):
    for arguments in ([], ["--raw", raw / "none"], ["--raw", raw, "--other"]):
        assert exit_code(prepare_aflw2000.main, *arguments) == 2
    assert run(raw.parent) == 2
    assert f"there are some in {raw}" in capsys.readouterr().err
    np.save(raw.parent / "few.npy", np.ones((4, 2, 68)))
    assert run(raw, "--reannotated", raw.parent / "few.npy") == 2
    said = capsys.readouterr().err
    assert "few.npy" in said and "(5, 2, 68)" in said
    assert not (raw.parent / "out").exists()


def test_no_good_sample(raw, capsys):
    for path in raw.glob("*.mat"):
        path.unlink()
    assert run(raw, "--skip-bad") == 1
    said = capsys.readouterr().err
    assert "5 bad of 5" in said and not (raw.parent / "out").exists()
