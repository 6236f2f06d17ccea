"""What faults from outside do: kills, full disks, unwritable places, too little memory.

In training: test_training.py.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_python
from torch import nn

import artistic
import singleImage
from tools.check_faults import Folder, Kind, check_kind, is_equal, read_whole, run
from utils import assets
from utils.checkpoint import write_checkpoint
from utils.errors import UnavailableError
from utils.files import atomic_write, remove_partials, write_npz
from utils.memory import is_out_of_memory
from utils.onnx_engine import cache_folders
from utils.photo_script import run_on_photos
from utils.pictures import read_image, write_image
from utils.results import PhotoWriter
from utils.runtime import TorchRegressor

# ------------------------------------------------------------------------------------- killed


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize(("kind", "rounds"), [("folder", 1), ("export", 2)])
def test_killed_runs_leave_whole_files_and_can_be_repeated(tmp_path, monkeypatch, kind, rounds):
    monkeypatch.setattr(Folder, "PHOTOS", 2)
    tally = check_kind(kind, rounds, 0, tmp_path)
    assert tally.faults == []
    assert tally.rounds == rounds and tally.files > 0


def test_a_run_is_killed_in_time(tmp_path):
    ended = run(time.sleep, (60,), tmp_path / "log", 0.3)
    assert ended.killed and ended.seconds < 30


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("none", []),
        ("changed", ["a.json: differs"]),
        ("cut", ["a.json: not whole"]),
        ("missing", ["a.json: missing"]),
        ("more", ["c.json: no file of the undisturbed run"]),
    ],
)
def test_the_check_of_a_killed_run_sees(tmp_path, damage, said):
    kind = object.__new__(Kind)  # without its process
    kind.expected = {"a.json": {"x": [1, 2]}, "deep/b.npy": np.arange(3)}
    (tmp_path / "out" / "deep").mkdir(parents=True)
    np.save(tmp_path / "out/deep/b.npy", np.arange(3))
    text = json.dumps({"x": [1, 3 if damage == "changed" else 2]})
    if damage != "missing":
        (tmp_path / "out/a.json").write_text(text[:-1] if damage == "cut" else text)
    if damage == "more":
        (tmp_path / "out/c.json").write_text("{}")
    (tmp_path / "out/.d.json.x.partial").write_text("{")  # not a final name
    count, faults = kind.check(tmp_path, complete=True)
    assert count == 2 - (damage == "missing") + (damage == "more")
    assert len(faults) == len(said)
    assert all(fault.startswith(start) for fault, start in zip(faults, said, strict=True))


def test_damage_is_seen(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    write_image(tmp_path / "a.jpg", noise)
    write_image(tmp_path / "a.png", noise)
    write_npz(tmp_path / "a.npz", {"noise": noise})
    write_checkpoint(tmp_path / "a.pth.tar", {"state_dict": {"noise": torch.from_numpy(noise)}})
    (tmp_path / "a.json").write_text('{"noise": [1, 2]}')
    np.save(tmp_path / "a.npy", noise)
    for path in tmp_path.iterdir():
        read_whole(path)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises((OSError, ValueError)):
            read_whole(path)


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    for name in (".last.pth.tar.x1y2.partial", "last.pth.tar", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / ".set.abc.partial").mkdir()
    remove_partials(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"last.pth.tar", ".hidden", ".set.abc.partial"}


def test_checkpoints_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(list(tmp_path.iterdir())))
    write_checkpoint(tmp_path / "a.pth.tar", {"epoch": 1})
    ((partial,),) = flushed
    assert partial.suffix == ".partial" and [p.name for p in tmp_path.iterdir()] == ["a.pth.tar"]
    write_npz(tmp_path / "a.npz", {"a": np.zeros(3)})  # one of thousands, easily made again
    assert len(flushed) == 1


# ------------------------------------------------------------------------- a folder that goes on


class Seen:
    """A model that finds no face and counts the pictures."""

    description, face_model = "made up", None

    def __init__(self, weights: Path | None) -> None:
        self.files = [weights] if weights else []
        self.widths: list[int] = []

    def __call__(self, image: np.ndarray, dense: bool = True) -> list:
        self.widths.append(image.shape[1])
        return []


@pytest.fixture
def run_folder(tmp_path, monkeypatch, call):
    """Runs singleImage.py on three photos, 60, 70 and 80 pixels wide; the widths that it saw."""
    write_photos(tmp_path / "photos", [60, 70, 80])

    def run_folder(*arguments: str) -> tuple[list[int], str]:
        model = None

        def open_model(options, threads: int) -> Seen:
            nonlocal model
            model = Seen(options.weights)
            return model

        monkeypatch.setattr("utils.photo_script.open_model", open_model)
        common = ["-f", tmp_path / "photos", "-o", tmp_path / "out", "--save", "json"]
        code, output = call(singleImage.main, *common, *arguments)
        assert code == 0, output
        return sorted(model.widths), output

    return run_folder


def test_a_folder_goes_on_where_it_was_stopped(run_folder, tmp_path):
    listed = tmp_path / "out" / "finished.jsonl"
    assert run_folder("--resume")[0] == [60, 70, 80]  # nothing to go on from
    whole = listed.read_text()
    seen, output = run_folder("--resume", "--jobs", "1")
    assert seen == [] and "3 photos finished before" in output
    # killed in the middle of a line
    lines = whole.splitlines(keepends=True)
    (cut,) = [line for line in lines if "70.png" in line]
    listed.write_text("".join(line for line in lines if line != cut) + cut[:-9])
    assert run_folder("--resume")[0] == [70]
    assert run_folder("--resume")[0] == []
    # a photo that changed, other settings, no --resume: done again
    write_photos(tmp_path / "photos", [80])
    assert run_folder("--resume")[0] == [80]
    assert run_folder("--resume", "--draw", "pose")[0] == [60, 70, 80]
    assert run_folder("--resume", "--draw", "pose")[0] == []
    assert run_folder("--resume")[0] == [60, 70, 80]  # other settings' numbers lay there
    (tmp_path / "model").mkdir()
    new = [60, 70, 80]
    for read in ("weights.pth", "model/u_shp.npy"):
        path, at = tmp_path / read, str(tmp_path / read.split("/")[0])
        for age, (content, seen) in enumerate([(b"a", new), (b"a", []), (b"b", new)]):
            path.write_bytes(content)
            for changed in (path, at):  # another time each, as of a new checkout
                os.utime(changed, ns=(0, age))
            assert run_folder("--resume", "-w", at)[0] == seen
    (tmp_path / "photos" / "70.jpg").write_bytes((tmp_path / "photos" / "80.png").read_bytes())
    assert run_folder("--resume")[0] == [60, 70, 80, 80]
    assert run_folder("--resume")[0] == []
    for name in ("70.jpg", "70.png"):  # results of that name, that is
        lines = listed.read_text().splitlines()
        assert any(json.loads(line)[0] == name for line in lines)
    (tmp_path / "photos" / "70.jpg").unlink()
    assert run_folder()[0] == [60, 70, 80]
    assert run_folder("--resume")[0] == []
    lines = listed.read_text().splitlines()
    assert sorted(json.loads(line)[0] for line in lines) == ["60", "70", "70.jpg", "70.png", "80"]


def test_another_versions_tables_are_made_anew(run_folder, monkeypatch):
    """Their columns are others: in one faces.csv with ours, landmarks would stand for others."""
    table = ("--save", "csv")
    run_folder(*table)
    with monkeypatch.context() as patch:
        patch.setattr("utils.photo_numbers.CSV_COLUMNS", ["photo", "face", "score"])
        assert run_folder("--resume", *table)[0] == [60, 70, 80]
        run_folder()
    assert run_folder("--resume")[0] == []  # of a run without a table nothing is


def test_another_folder_takes_over_only_the_names_that_it_writes(run_folder, tmp_path):
    run_folder()
    write_photos(tmp_path / "other", [70, 90])
    other = ("-f", str(tmp_path / "other"))
    assert run_folder(*other)[0] == [70, 90]
    assert run_folder("--resume")[0] == [70]  # its numbers were the other folder's
    assert run_folder("--resume", *other)[0] == [70]
    assert run_folder("--resume", *other)[0] == []


def test_a_single_photo_takes_over_its_name_too(run_folder, tmp_path):
    run_folder()
    write_photos(tmp_path / "other", [70])
    assert run_folder("-f", str(tmp_path / "other" / "70.png"))[0] == [70]
    assert run_folder("--resume")[0] == [70]
    assert run_folder("--resume")[0] == []


def test_a_result_that_is_gone_is_made_again(tmp_path, call):
    write_photos(tmp_path / "photos", [150, 160])
    common = ["-f", tmp_path / "photos", "-o", tmp_path / "out", "--draw", "box"]
    common += ["--device", "cpu"]
    code, output = call(singleImage.main, *common)
    assert code == 0 and "2 photos with faces written" in output
    gone = tmp_path / "out" / "drawn" / "160.jpg"
    gone.unlink()
    for before, made in ((1, 1), (2, 0)):
        code, output = call(singleImage.main, *common, "--resume")
        assert code == 0 and gone.exists()
        assert f"{made} photo" in output and f"{before} photo" in output


def test_photos_that_failed_are_tried_again(run_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("utils.results.save_numbers", lambda out, name, *rest: 1 / (name != "70"))
        with pytest.raises(ZeroDivisionError):
            run_folder("--jobs", "1")
    assert run_folder("--resume")[0] == [70, 80]


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is read cannot be replaced there")
def test_two_runs_at_once_into_one_folder_with_one_cache(tmp_path, call, caplog):
    write_photos(tmp_path / "photos", [150, 160, 170])
    weights, detector = tmp_path / "w.pth.tar", tmp_path / "d.pth"
    weights.write_bytes(assets.STARTER_WEIGHTS.read_bytes())
    detector.write_bytes(assets.STARTER_DETECTOR_WEIGHTS.read_bytes())

    common = ["-f", tmp_path / "photos", "-w", weights, "--detector-weights", detector]
    common += ["--face-model", assets.STARTER_FACE_MODEL]
    common += "--save npz,json,obj --engine onnx --jobs 2".split()
    command = [sys.executable, "singleImage.py", *common, "-o", tmp_path / "out"]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    code, output = call(singleImage.main, *common, "-o", tmp_path / "alone")
    assert code == 0 and "exporting" not in caplog.text, output
    caches = [path.name for path in cache_folders(weights)[0].iterdir()]
    assert len(caches) == 2 and all(name.endswith(".onnx") for name in caches)
    files = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
    expected = sorted(p for p in (tmp_path / "alone").rglob("*") if p.is_file())
    assert [p.relative_to(tmp_path / "out") for p in files] == [
        p.relative_to(tmp_path / "alone") for p in expected
    ]
    for a, b in zip(files, expected, strict=True):
        assert a.name == "finished.jsonl" or is_equal(read_whole(a), read_whole(b))


# ---------------------------------------------------------------------------------- a full disk

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
import {0}
sys.exit({0}.main(sys.argv[2:]))
"""


def limited(script: str, size: int, *arguments: object) -> subprocess.CompletedProcess:
    """A script in a process that can write files of ``size`` bytes at most, like a full disk."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return run_python("-c", LIMITED.format(script), size, *arguments, env=environment)


def write_photos(folder: Path, sides: list[int]) -> None:
    photo = read_image(ROOT / "img" / "astronaut.jpg")[:300, 60:360]
    for side in sides:
        write_image(folder / f"{side}.png", cv2.resize(photo, (side, side)))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
def test_a_full_disk_costs_what_does_not_fit_and_names_it(tmp_path):
    write_photos(tmp_path / "photos", [140, 150, 700])
    out = tmp_path / "out"
    done = limited(
        "singleImage", 60_000, "-f", tmp_path / "photos", "-o", out, "--save", "json",
        "--device", "cpu", "--jobs", "1", "--draw", "landmarks", *assets.STARTER_OPTIONS,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1 and "too large" in failed[0] and "700.jpg" in failed[0]
    assert "2 photos with faces written" in done.stdout and "1 photo failed" in done.stdout
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    drawn = {"drawn/140.jpg", "drawn/150.jpg"}
    numbers = {f"numbers/{side}.json" for side in (140, 150, 700)}
    assert files.keys() == drawn | numbers | {"contact_sheet.jpg", "finished.jsonl"}  # nothing half
    for path in files.values():
        read_whole(path)
    assert "700.png" not in files["finished.jsonl"].read_text()


def test_a_page_that_cannot_be_written_costs_no_photo(tmp_path, monkeypatch, call):
    write_photos(tmp_path / "photos", [150, 160])

    def write(path, image):
        if path.name == "contact_sheet.jpg":
            raise OSError(28, "No space left on device", path.name)
        write_image(path, image)

    monkeypatch.setattr("utils.results.write_image", write)
    arguments = ["-f", tmp_path / "photos", "-o", tmp_path / "out", "--save", "json"]
    arguments += ["--device", "cpu"]
    code, output = call(singleImage.main, *arguments)
    assert code == 1 and "2 photos with faces written" in output
    assert "failed: [Errno 28] No space left on device: 'contact_sheet.jpg'" in output
    for side in (150, 160):
        assert json.loads((tmp_path / "out" / "numbers" / f"{side}.json").read_text())["photo"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_the_systems_no_space_left_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*numbers\.npz'"):
        with atomic_write(tmp_path / "numbers.npz"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"content")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [singleImage, artistic])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, call, script):
    write_photos(tmp_path, [60])
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "out"  # permissions would not stop an administrator
    code, output = call(script.main, "-f", tmp_path / "60.png", "-o", out, "--device", "cpu")
    assert code == 2 and f"{out}: " in output


# ----------------------------------------------------------------------------- too little memory


class SmallMemory(nn.Module):
    """The mean of each crop, 62 times; more than ``most`` crops at once do not fit."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return images.mean((1, 2, 3))[:, None].expand(-1, 62), None


def small_regressor(most: int) -> tuple[TorchRegressor, SmallMemory]:
    network = SmallMemory(most)
    model = nn.Module()
    model.I2P = network
    return TorchRegressor(model, "cpu"), network


CROPS = np.random.default_rng(0).normal(size=(21, 3, 8, 8)).astype(np.float32)


def test_too_many_crops_for_the_memory_go_through_in_parts(caplog):
    regressor, network = small_regressor(most=5)
    means = np.repeat(CROPS.mean((1, 2, 3))[:, None], 62, 1)
    np.testing.assert_allclose(regressor(CROPS), means, atol=1e-6)
    assert network.sizes == [21, 10, *[5] * 4, 1]
    np.testing.assert_allclose(regressor(CROPS[:7]), means[:7], atol=1e-6)
    assert network.sizes[7:] == [5, 2]
    assert regressor(CROPS[:0]).shape == (0, 62)
    assert [record.getMessage() for record in caplog.records] == [
        "cpu: out of memory with 21 crops at once; going on with fewer"
    ]


def test_a_crop_that_does_not_fit_ends_with_a_message(tmp_path, capsys):
    regressor, network = small_regressor(most=0)
    with pytest.raises(MemoryError, match="out of memory with a single crop .*--device"):
        regressor(CROPS[:4])
    assert network.sizes == [4, 2, 1]
    # of a folder, it fails the photo
    write_photos(tmp_path, [60])
    options = singleImage.parse_options(["-f", str(tmp_path), "-o", str(tmp_path / "out")])
    code = run_on_photos(options, lambda image: regressor(CROPS), PhotoWriter(options))
    assert code == 1
    assert "60.png: cpu: out of memory with a single crop" in capsys.readouterr().err


def test_a_network_that_does_not_fit_ends_with_a_message(monkeypatch):
    def fail(self, *_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 MiB\nand more")

    monkeypatch.setattr(SmallMemory, "to", fail)
    with pytest.raises(UnavailableError, match=r"^cpu: no memory for the network .*MiB\); end"):
        small_regressor(most=5)


def test_other_errors_of_the_network_are_not_taken_for_it(monkeypatch):
    regressor, network = small_regressor(most=0)
    monkeypatch.setattr(network, "forward", lambda images: images @ images[:, :, :2])
    with pytest.raises(RuntimeError, match=r"mat|size"):
        regressor(CROPS[:4])
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(cv2.error) as caught:
        cv2.resize(CROPS[0, 0], (2**24, 2**24))  # 1 PB: more than some systems would promise
    assert is_out_of_memory(caught.value)
    with pytest.raises(cv2.error) as caught:
        cv2.resize(CROPS[0, 0], (0, 0))
    assert not is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    cudnn = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_{}_ALLOCATION_FAILED"
    assert all(is_out_of_memory(RuntimeError(cudnn.format(who))) for who in ("HOST", "DEVICE"))


def test_too_little_memory_in_onnx_runtime_is_told_from_other_faults():
    """Its errors are of no class that others have."""
    kind = type("Fail", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
    message = "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:376 Failed to allocate memory for"
    assert is_out_of_memory(kind(message))
    assert not is_out_of_memory(kind("INVALID_ARGUMENT : Got invalid dimensions for input"))
    assert not is_out_of_memory(Exception(message))
