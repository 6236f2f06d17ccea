"""starter_kit/train_detector.py: its pictures, and that a resumed training is the same one."""

import argparse
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from FaceBoxes.network import ANCHORS_PER_CELL, MAP_CHANNELS, load_weights
from starter_kit import detector_pictures, train_detector
from starter_kit.detector_losses import Hints
from starter_kit.detector_pictures import TrainingPictures, mixed, paste, person, turned
from utils.pictures import read_image

BOX = [183.0, 59.0, 271.0, 180.0, 0.99]  # of the astronaut's face


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder in the form of the training photos: one face, and a scene with a doubtful box."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "detector").mkdir()
    photo = read_image(ROOT / "img" / "astronaut.jpg")
    rows = {f"{kind}_0.jpg": [BOX] for kind in ("frame", "photo", "crowd")}
    rows |= {"scene_0.jpg": [], "scene_1.jpg": [[20, 300, 80, 400, 0.3]]}
    (folder / "detector" / "train.json").write_text(json.dumps(rows))
    with zipfile.ZipFile(folder / "detector" / "train.zip", "w") as file:
        for name in rows:
            image = photo[:, 300:] if name.startswith("scene") else photo
            file.writestr(name, cv2.imencode(".jpg", image)[1].tobytes())
    crop = cv2.imencode(".jpg", cv2.resize(photo[40:200, 150:310], (128, 128)))[1].tobytes()
    names = [f"{i}.jpg" for i in range(4)]
    for i in range(4):
        with zipfile.ZipFile(folder / f"faces_train_{i}.zip", "w") as file:
            file.writestr(names[i], crop)
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    circle = 64 + 40 * np.stack([np.cos(angles), np.sin(angles), 0 * angles])  # (3, 68)
    np.savez(
        folder / "faces_train_labels.npz",
        name=np.array(names),
        shard=np.arange(4),
        landmarks=np.round(np.tile(circle, (4, 1, 1)) * 32).astype(np.int16),
        valid=np.tile([0, 0, 128, 128], (4, 1)),
    )
    return folder


def test_batches_come_again_in_blocks(photos, monkeypatch):
    monkeypatch.setattr(detector_pictures, "BLOCK", 2)
    monkeypatch.setattr(detector_pictures, "PIXELS_PER_BATCH", 2 * 256 * 256)
    monkeypatch.setattr(detector_pictures, "SIDES", {128: 0.5, 192: 0.5})
    once = TrainingPictures(photos, seed=3, taught=True)
    expected = [once[i] for i in range(4)]
    twice = TrainingPictures(photos, seed=3, taught=True, repeats=2)
    order = [0, 1, 0, 1, 2, 3, 2, 3]
    later = TrainingPictures(photos, seed=3, taught=True, repeats=2)  # resumed at step 3
    for pictures, first in ((twice, 0), (later, 3)):
        for i in range(first, len(order)):
            for a, b in zip(pictures[i], expected[order[i]], strict=True):
                assert torch.equal(a, b)
            assert len(pictures.made) <= 2


def test_tiles_are_views_beside_each_other(photos):
    pictures = TrainingPictures(photos, seed=0, taught=True)
    rng = np.random.default_rng(0)
    faces = 0
    for side in (128, 256, 416):
        image, boxes = pictures.tiles(rng, side)
        assert image.shape == (side, side, 3) and image.dtype == np.uint8
        assert (boxes[:, :4] >= 0).all() and (boxes[:, :4] <= side + 1).all()
        assert (boxes[:, 2:4] >= boxes[:, :2]).all()
        faces += len(boxes)
    assert faces > 3
    assert turned(rng, image).shape == image.shape


def test_rows_are_people_over_each_other_for_the_teacher_to_judge(photos):
    pictures = TrainingPictures(photos, seed=0, taught=True)
    rng = np.random.default_rng(0)
    for side in (128, 320):
        image, boxes = pictures.rows(rng, side)
        assert image.shape == (side, side, 3) and image.dtype == np.uint8
        assert boxes.shape == (0, 5)
        below = image[side // 2 :].reshape(-1, 3)
        assert len(np.unique(below, axis=0)) > 1000  # no plain background: people are there


def test_a_person_is_cut_out_of_a_picture():
    box = np.array([30, 20, 60, 60], np.float32)
    mask = person((100, 90), box)
    assert mask.shape == (100, 90, 1) and mask.dtype == np.float32
    assert mask.min() == 0 and mask.max() == 1
    assert mask[25:55, 35:55].min() > 0.99  # the face
    assert mask[95, 15:75].min() > 0.99 and mask[:30, :10].max() == 0  # shoulders, background
    canvas = np.zeros((128, 128, 3), np.uint8)
    moved = paste(canvas, np.full((100, 90, 3), 200, np.uint8), np.array([[*box, 1]]),
                  0.5, 0.5, np.array([10, 20]), mask=mask)  # fmt: skip
    assert moved.tolist() == [[25, 30, 40, 50, 1]]
    assert (canvas[32:48, 28:37] == 200).all()
    assert (canvas[20:35, 10:15] == 0).all() and (canvas[75:] == 0).all()


def test_the_log_of_a_resumed_training_has_each_step_once(tmp_path):
    class Student:
        step, elapsed = 0, 0.0

    def train(first: int, last: int, resume: bool) -> None:
        student, args = Student(), argparse.Namespace(out=tmp_path, resume=resume, steps=500)
        student.step = first
        with train_detector.Log(args, first, has_hints=False) as log:
            while student.step < last:
                student.step += 1
                log.add(student, 1e-3, {name: torch.tensor(1.0) for name in ("box", "score")})

    train(0, 470, resume=False)  # killed there; the last save was at 250
    with (tmp_path / "log.csv").open("a") as file:
        file.write("470,1")  # as a kill may leave a line
    train(250, 500, resume=True)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(50, 501, 50))]


def test_unlabelled_pictures_are_sorted_by_what_the_teacher_sees(photos, tmp_path, monkeypatch):
    pictures = TrainingPictures(photos, seed=0, taught=True)
    before = {kind: len(pool) for kind, pool in pictures.pictures.items()}
    doubtful, empty = len(pictures.doubtful), len(pictures.empty)
    scores = {10: [], 20: [0.3], 30: [0.9, 0.2], 40: [0.9] * 5}  # by the pictures' brightness
    for value in scores:
        cv2.imwrite(str(tmp_path / f"{value}.png"), np.full((40, 50, 3), value, np.uint8))

    class Teacher:
        def __init__(self, *_, **__):
            pass

        def __call__(self, image):
            rows = [[5, 5, 25, 30, score] for score in scores[int(image[0, 0, 0])]]
            return np.array(rows, np.float64).reshape(-1, 5)

    monkeypatch.setattr(detector_pictures, "FaceBoxes", Teacher)
    pictures.add_unlabelled(tmp_path, Path("any.pth"))
    added = {kind: len(pool) - before[kind] for kind, pool in pictures.pictures.items()}
    assert {kind: n for kind, n in added.items() if n} == {"scene": 2, "photo": 1, "crowd": 1}
    assert (len(pictures.doubtful), len(pictures.empty)) == (doubtful + 1, empty + 1)
    assert pictures.pictures["crowd"][-1][1].dtype == np.float32
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="notes.txt: not a picture"):
        pictures.add_unlabelled(tmp_path, Path("any.pth"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: empty"):
        pictures.add_unlabelled(tmp_path / "none", Path("any.pth"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unlabelled", "no"], "--unlabelled needs --teacher"),
        (["--frozen-norm"], "--frozen-norm needs --init"),
        (["--init", "w.pth", "--init-share", "0.5"], "of --init in an --export: it needs both"),
        (["--export", "w.pth", "--init-share", "0.5"], "of --init in an --export: it needs both"),
        (["--export", "w.pth", "--init", "v.pth", "--init-share", "1.5"], "a number, 0 to 1"),
    ],
)
def test_options_that_need_another_say_so(
    photos, tmp_path, monkeypatch, capsys, arguments, message
):
    argv = ["train_detector", "--photos", str(photos), "--out", str(tmp_path), *arguments]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit):
        train_detector.main()
    assert message in capsys.readouterr().err


def test_doubtful_scenes_are_those_with_nothing_but_doubt(photos):
    pictures = TrainingPictures(photos, seed=0, taught=True)
    ((_, boxes),) = pictures.doubtful
    assert boxes[:, 4] == np.float32(0.3)
    ((_, none),) = pictures.empty
    assert len(none) == 0


def test_scenes_that_fool_other_weights_are_doubtful_too(photos, monkeypatch):
    class Fooled:
        def __init__(self, weights, device, score_threshold):
            assert (weights, device, score_threshold) == (Path("w.pth"), "cpu", 0.15)

        def __call__(self, image):
            return np.array([[10, 20, 60, 90, 0.99]], np.float64)

    pictures = TrainingPictures(photos, seed=0, taught=True)
    monkeypatch.setattr(detector_pictures, "FaceBoxes", Fooled)
    pictures.add_doubtful(Path("w.pth"))
    assert len(pictures.doubtful) == 2 and len(pictures.empty) == 1  # each scene once
    boxes = pictures.doubtful[1][1]
    assert boxes.dtype == np.float32 and boxes.tolist() == [[10, 20, 60, 90, np.float32(0.15)]]


def test_mixed_pictures_are_two_and_certain_ones_stay():
    images = torch.arange(40.0)[:, None, None, None].expand(-1, 3, 4, 4) * 100
    certain = np.arange(40) % 4 == 0
    result, is_mixed = mixed(np.random.default_rng(0), images, certain)
    assert result.shape == images.shape
    assert torch.equal(result[~is_mixed], images[~is_mixed])
    assert not is_mixed[torch.from_numpy(certain)].any() and 8 < is_mixed.sum() < 22
    assert (result[is_mixed] != images[is_mixed]).all()
    (alone,), is_mixed = mixed(np.random.default_rng(0), images[5:6], certain[5:6])
    assert torch.equal(alone, images[5])  # with itself


@pytest.mark.parametrize("inner", [0, 3])
def test_hints_measure_what_cannot_be_read_off_the_students_maps(inner):
    torch.manual_seed(0)
    sizes = ((4, 6), (4, 6), (4, 6), (4, 6), (2, 3), (1, 2))
    taught = tuple(torch.rand(3, c, *s) for c, s in zip(MAP_CHANNELS, sizes, strict=True))
    count = sum(h * w * n for (h, w), n in zip(sizes[-3:], ANCHORS_PER_CELL, strict=True))
    logits = torch.zeros(3, count, 2)
    logits[..., 0] = 20.0  # no face
    used = torch.tensor([True, True, False])
    hints = Hints()
    for reader in hints.readers:
        torch.nn.init.eye_(reader.weight[:, :, 0, 0].detach())
        torch.nn.init.constant_(reader.bias, 0.5)
    maps = tuple(x - 0.5 for x in taught)
    assert hints(maps, taught, logits, used).item() < 1e-10
    unused = tuple(torch.cat([x[:2], 7 * x[2:]]) for x in maps)
    assert hints(unused, taught, logits, used).item() < 1e-10
    constant = tuple(x[:2].mean((0, 2, 3), keepdim=True).expand_as(x) - 0.5 for x in taught)
    assert hints(constant, taught, logits, used).item() == pytest.approx(1, abs=1e-4)
    # Where the teacher sees a face, a fault costs eleven times as much.
    wrong = [x.clone() for x in maps]
    wrong[inner][0, :, 1, 2] += 1
    elsewhere = hints(wrong, taught, logits, used)
    logits[0, (1 * 6 + 2) * 21 + 5, 1] = 40.0
    assert 8 < hints(wrong, taught, logits, used) / elsewhere < 11


@pytest.mark.parametrize("options", [[], ["--bf16"], ["--frozen-norm"]])
def test_a_resumed_training_is_the_same(photos, tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr(detector_pictures, "BLOCK", 2)
    monkeypatch.setattr(detector_pictures, "PIXELS_PER_BATCH", 2 * 128 * 128)
    monkeypatch.setattr(detector_pictures, "SIDES", {128: 1.0})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # other tests' too
    monkeypatch.setattr(cv2, "setNumThreads", lambda count: None)
    starter = str(ROOT / "FaceBoxes" / "weights" / "starter_faceboxes.pth")

    def run(out: str, *arguments: str) -> dict[str, torch.Tensor]:
        command = ["train_detector", "--photos", str(photos), "--out", str(tmp_path / out)]
        command += ["--init", starter, "--teacher", starter, "--repeats", "2", "--steps", "6"]
        monkeypatch.setattr("sys.argv", [*command, *arguments, *options])
        train_detector.main()
        return torch.load(tmp_path / out / "last.pth", weights_only=True)

    whole = run("whole")

    class Stopped(Exception):
        pass

    real = train_detector.Student.save

    def stop(*arguments):
        real(*arguments)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(train_detector.Student, "save", stop)
        with pytest.raises(Stopped):
            run("parts", "--save-every", "3")
    assert torch.load(tmp_path / "parts" / "last.pth", weights_only=True)["step"] == 3
    resumed = run("parts", "--resume")
    assert whole["step"] == resumed["step"] == 6
    for key, value in whole["hints"].items():
        assert torch.equal(value, resumed["hints"][key]), key
    before = load_weights(starter)
    for key, value in whole["network"].items():
        assert torch.equal(value, resumed["network"][key]), key
        if key.endswith("conv.weight"):
            assert not torch.equal(value, before[key]), key
        elif key.endswith("running_mean"):
            assert torch.equal(value, before[key]) == ("--frozen-norm" in options), key
    monkeypatch.chdir(tmp_path)
    command = ["train_detector", "--out", "parts", "--export", "e.pth"]
    monkeypatch.setattr("sys.argv", [*command, "--init", starter, "--init-share", "0.25"])
    train_detector.main()
    exported = load_weights(tmp_path / "e.pth")
    for key, value in resumed["average"].items():
        value = 0.75 * value + 0.25 * before[key] if value.is_floating_point() else value
        torch.testing.assert_close(exported[key], value.float(), rtol=1e-3, atol=1e-6,
                                   check_dtype=False)  # fmt: skip
