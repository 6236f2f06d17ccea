"""singleImage.py on bad input: each its own clear message, the right exit code, no traceback."""

import importlib
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, Evil, on_disk, run_python

import benchmark
import main_train
import singleImage
from utils import artistic_script, assets
from utils.cli import lasting

ASTRONAUT = ROOT / "img" / "astronaut.jpg"


@pytest.fixture
def run(call):
    """Exit code and all that was printed."""
    return partial(call, singleImage.main)


# ------------------------------------------------------------------------------------- bad photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with everything that people and broken disks put into folders of photos."""
    folder = tmp_path_factory.mktemp("photos")
    jpeg = ASTRONAUT.read_bytes()
    photo = cv2.imread(str(ASTRONAUT))
    contents = {
        "good.jpg": jpeg,
        "empty.jpg": b"",
        "text.jpg": b"this is not a picture\n",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": cv2.imencode(".png", photo)[1].tobytes()[:50_000],
        "one_pixel.png": cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes(),
        "wide.png": cv2.imencode(".png", np.full((20, 20_000, 3), 128, np.uint8))[1].tobytes(),
        "nobody.png": cv2.imencode(".png", np.full((300, 400, 3), 90, np.uint8))[1].tobytes(),
        "grey.png": cv2.imencode(".png", cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))[1].tobytes(),
        "deep.png": cv2.imencode(".png", photo.astype(np.uint16) * 257)[1].tobytes(),
        "alpha.png": cv2.imencode(".png", cv2.cvtColor(photo, cv2.COLOR_BGR2BGRA))[1].tobytes(),
        "Zoë's “face” 名.jpg": jpeg,
        "-f.jpg": jpeg,
        "notes.txt": b"not looked at",
    }
    for name, content in contents.items():
        (folder / on_disk(name)).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    if sys.platform == "linux":  # other systems admit no names that are no text
        (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg)
    return folder


@pytest.fixture(scope="module")
def folder_run(photos, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """One run over that folder, in a process of its own as a user would start it."""
    out = tmp_path_factory.mktemp("out")
    command = [ROOT / "singleImage.py", "-f", photos, "-o", out, "--device", "cpu"]
    command += [*assets.STARTER_OPTIONS, "--save", "json"]
    encoded = {"encoding": "utf-8", "errors": "surrogateescape"}
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # as on most people's machines
    return run_python(*command, cwd=out, env=strict, **encoded), out


def test_bad_photos_do_not_stop_the_run(folder_run):
    done, _ = folder_run
    assert done.returncode == 1  # some failed, the others are done
    assert "Traceback" not in done.stdout + done.stderr
    assert f"{7 if sys.platform == 'linux' else 6} photos with faces" in done.stdout
    assert "3 photos without a face" in done.stdout
    assert "5 photos failed" in done.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.jpg", "empty"),
        ("text.jpg", "not a picture"),
        ("cut.jpg", "cut short"),
        ("cut.png", "cut short|damaged"),
        ("folder.jpg", "a folder"),
    ],
)
def test_every_bad_photo_has_its_own_message(folder_run, photos, name, reason):
    done, out = folder_run
    lines = [line for line in done.stderr.splitlines() if str(photos / name) in line]
    assert len(lines) == 1
    assert re.search(reason, lines[0])
    assert not list(out.rglob(f"{Path(name).stem}.*"))


@pytest.mark.parametrize("name", ["one_pixel", "wide", "nobody"])
def test_photos_without_a_face_are_said_and_not_failures(folder_run, photos, name):
    done, out = folder_run
    assert f"{photos / name}.png: no face found" in done.stdout
    assert not list(out.rglob(f"{name}.jpg"))


@pytest.mark.parametrize(
    "name",
    ["good", "grey", "deep", "alpha", on_disk("Zoë's “face” 名"), "-f", os.fsdecode(b"caf\xe9")],
)
def test_good_photos_of_every_kind_are_done(folder_run, photos, name):
    _, out = folder_run
    if not list(photos.glob(f"{name}.*")):
        pytest.skip("this system admits no file names that are no text")
    for folder in ("rendering_overlay", "landmarks", "poses"):
        assert cv2.imdecode(np.fromfile(out / folder / f"{name}.jpg", np.uint8), 1) is not None
    assert (out / "numbers" / f"{name}.json").is_file()


def test_nothing_half_written_stays(folder_run):
    assert not list(folder_run[1].rglob("*.partial"))


def test_a_single_bad_photo_is_a_failure(run, tmp_path, photos):
    code, output = run("-f", photos / "empty.jpg", "-o", tmp_path)
    assert code == 1 and f"{photos / 'empty.jpg'}: the file is empty" in output


# -------------------------------------------------------------------------------------- bad usage


def test_missing_path_and_empty_folder(run, tmp_path):
    for path, reason in (
        (tmp_path / "nothing.jpg", "no such file or folder"),
        (tmp_path, "the folder has no picture"),
    ):
        code, output = run("-f", path)
        assert code == 2
        assert f"{path}: {reason}" in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "-f"),
        (["-f", ASTRONAUT, "--save", "xml"], "xml"),
        (["-f", ASTRONAUT, "--device", "toaster"], "toaster"),
        (["-f", ASTRONAUT, "--threshold", "nan"], "threshold"),
        (["-f", ASTRONAUT, "--threshold", "2"], "threshold"),
        (["-f", ASTRONAUT, "--threshold", "high"], "high"),
        (["-f", ASTRONAUT, "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_options(run, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, output = run(*arguments)
    assert code == 2
    assert named in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_missing_device_is_an_error_not_another_device(run, tmp_path):
    code, output = run("-f", ASTRONAUT, "-o", tmp_path, "--device", "cuda")
    assert code == 2
    assert "device 'cuda' does not work here" in output


# ----------------------------------------------------------------- bad weights and face models


@pytest.fixture
def refused(run, tmp_path):
    """What a run that must not start says; nothing may be written."""

    def refused(*arguments) -> str:
        out = tmp_path / "out"
        code, output = run("-f", ASTRONAUT, "-o", out, "--device", "cpu", *arguments)
        assert code == 2
        assert "Traceback" not in output
        assert not out.exists()
        return output

    return refused


@pytest.mark.parametrize("option", ["-w", "--face-model", "--detector-weights"])
def test_missing_model_files(refused, tmp_path, option):
    output = refused(option, tmp_path / "nothing.pth")
    assert str(tmp_path / "nothing.pth") in output


@pytest.mark.parametrize("option", ["-w", "--face-model", "--detector-weights"])
def test_wrong_model_files(refused, tmp_path, option):
    """More of them: test_checkpoint.py, test_morphable_model.py, test_faceboxes.py."""
    path = tmp_path / "wrong.npz"
    path.write_text("weights\n")
    assert str(path) in refused(option, path)


@pytest.mark.parametrize("option", ["-w", "--detector-weights"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["torch.save", "bare pickle"])
def test_malicious_checkpoints_do_not_run(refused, tmp_path, option, wrapped):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"state_dict": {"a": Evil(trace)}}
    if wrapped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert str(path) in refused(option, path)
    assert not trace.exists()


@pytest.mark.parametrize(("photos", "out"), [("out/landmarks", "out"), ("in", "in")])
def test_results_would_fall_on_the_photos(run, tmp_path, photos, out):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / photos).mkdir(parents=True, exist_ok=True)
        (tmp_path / photos / name).write_bytes(ASTRONAUT.read_bytes())
    code, output = run("-f", tmp_path / photos, "-o", tmp_path / out)
    assert code == 2 and "give another folder with -o" in output
    assert len([path for path in (tmp_path / out).rglob("*") if path.is_file()]) == 2


SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for pattern in ("*.py", "tools/*.py", "starter_kit/*.py")
    for path in ROOT.glob(pattern)
    if "script_parser(" in path.read_text(encoding="utf-8")
)
# The exit codes of the others are those of every program.
EXPLAINED = {"singleImage", "artistic", "video", "benchmark", "main_train", "tools.export_onnx"}
EXPLAINED |= {"tools.prepare_data", "tools.prepare_aflw2000", "tools.mutation_check"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_short_and_ends_with_examples_and_exit_codes(monkeypatch, call, script):
    module = importlib.import_module(script)
    assert Path(module.__file__).read_text(encoding="utf-8").endswith("    run_script(main)\n")
    monkeypatch.setattr("sys.argv", [f"{script}.py", "-h"])
    code, output = call(lambda _: module.main())
    lines = output.splitlines()
    assert code == 0 and len(lines) <= 75 and max(map(len, lines)) <= 100
    start = f"python -m {script}" if "." in script else f"{script}.py"
    assert re.match(rf"usage: {start}( |$)", lines[0]) and lines[1] == ""
    at = lines.index("examples:")
    assert script not in EXPLAINED or lines[at - 2].startswith("exit code: 0 ")
    examples = "\n".join(lines[at + 1 :]).replace("\\\n", "").splitlines()
    assert examples and all(re.match("  (python|bash|torchrun) ", line) for line in examples)


def test_every_script_is_one_of_them():
    assert len(SCRIPTS) > 20 and set(SCRIPTS) > EXPLAINED


def test_what_has_a_short_name_has_it_everywhere():
    for path in ROOT.glob("*/*.py"):
        if path.parent.name in ("utils", "tools", "starter_kit", "benchmarks"):
            text = path.read_text(encoding="utf-8")
            for short, long in (("-o", "--out"), ("-w", "--weights"), ("-j", "--jobs")):
                before = re.findall(rf'add(?:_argument)?\(\s*("-\w", )?"{long}"', text)
                assert set(before) <= {f'"{short}", '}, f"{path.name}: {long}"
    assert main_train.parse_options(["-o", "there"]).out == Path("there")


def test_published_folders_are_the_repositorys_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_train.parse_options([]).data == ROOT
    assert benchmark.parse_options([]).data == ROOT / "aflw2000_data"
    assert artistic_script.UV_FOLDER == ROOT / "uv_art"
    assert artistic_script.PRECROPPED_UV_FOLDER == ROOT / "texture_data" / "uv_real"


def test_durations_have_a_unit_of_their_size():
    assert [lasting(s) for s in (0.04, 59, 60, 3599, 5400)] == [
        *("0.0 s", "59.0 s", "1.0 minutes", "60.0 minutes", "1.5 hours")
    ]
