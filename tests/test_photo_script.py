"""What the scripts that go through photos share."""

import errno
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_python
from tqdm import tqdm

from utils.cli import (
    STOPPED,
    at_least,
    comma_list,
    counted,
    run_script,
    script_parser,
    within,
)
from utils.errors import UnavailableError
from utils.finished import FinishedPhotos
from utils.photo_script import (
    add_photo_options,
    parse_photo_options,
    run_on_photos,
    small_faces_note,
    would_overwrite,
)
from utils.photos import find_photos
from utils.pictures import write_image
from utils.results import PhotoWriter


def test_comma_list():
    parse = comma_list(("npz", "json", "obj"))
    assert parse("npz, JSON,") == ("npz", "json")
    assert parse("obj,npz,obj") == ("obj", "npz")
    for bad in ("", ",", "xml", "npz,csv"):
        with pytest.raises(ArgumentTypeError, match="comma-separated list of npz, json, obj"):
            parse(bad)


def test_numbers_on_the_command_line():
    assert at_least(2)("3") == 3 and at_least(0, float)("0.5") == 0.5
    assert within(2, 4)("4") == 4 and within(0, 1, float)("0") == 0
    for bad in ("1.5", "1", "5", "nan", "inf", "x"):
        with pytest.raises(ArgumentTypeError, match=f"a whole number, 2 to 4, not '{bad}'"):
            within(2, 4)(bad)
    for kind, bad in ((int, "1.5"), (int, "-1"), (float, "nan"), (float, "inf"), (float, "x")):
        with pytest.raises(ArgumentTypeError, match=f"0 or more, not '{bad}'"):
            at_least(0, kind)(bad)


@pytest.mark.parametrize("arguments", [["-o", ""], ["-o="], ["--out="], [""]])
def test_empty_arguments_are_refused(arguments, capsys):
    parser = script_parser("What it does.")
    parser.add_argument("-o", "--out", type=Path)  # "" would be the current folder
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments)
    assert "a variable that is not set?" in capsys.readouterr().err
    assert parser.parse_args(["-o", "a="]).out == Path("a=")


def test_a_python_that_leaves_docstrings_out_has_a_help():
    assert "--largest" in run_python("-OO", "singleImage.py", "--help").stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_under_the_log_ends_no_run(tmp_path, stream):
    command = ["-f", "img/astronaut.jpg", "-o", tmp_path, "-j", "1", "--device", "cpu"]
    with open("/dev/full", "w") as full:
        streams = {"capture_output": False, "stderr": subprocess.PIPE, stream: full}
        done = run_python("singleImage.py", *command, **streams)
    assert done.returncode == 0
    assert stream == "stderr" or done.stderr.count("no space left for what is printed") == 1
    assert [path.name for path in (tmp_path / "landmarks").iterdir()] == ["astronaut.jpg"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("x.npz: no"), 2, "x.npz: no\n"),
        (OSError(2, "no such file", "x"), 2, "x: no such file\n"),
        (OSError(28, "disk full", "x"), 1, "x: disk full\n"),
        (OSError(errno.EDQUOT, "quota", "x"), 1, "x: quota\n"),
        (UnavailableError("no such device"), 2, "no such device\n"),
        (KeyboardInterrupt(), STOPPED, "stopped\n"),
    ],
)
def test_scripts_end_with_one_line_and_their_code(capsys, error, code, said):
    with pytest.raises(SystemExit) as ended:
        run_script(Mock(side_effect=error))
    assert ended.value.code == code
    err = capsys.readouterr().err
    assert err.endswith(f": {said}") and err.count("\n") == 1


def test_a_closed_stderr_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as where it was closed before Python began
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: sum(tqdm([0, 0])))
    sys.stderr.close()
    assert ended.value.code == 0


def test_a_notebooks_backend_is_not_asked_for():
    """What Jupyter and Colab set for the programs that a cell starts."""
    script = (
        "from utils.cli import run_script\n"
        "def main():\n    from matplotlib.figure import Figure\n    print(Figure().axes)\n"
        "run_script(main)"
    )
    done = run_python("-c", script, env=os.environ | {"MPLBACKEND": "not_installed"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def grey_photos(folder: Path, count: int) -> list[tuple[str, Path]]:
    photos = [(f"p{i}", folder / f"p{i}.png") for i in range(count)]
    for i, (_, path) in enumerate(photos):
        write_image(path, np.full((9, 8, 3), i, np.uint8))
    return photos


class Saver(PhotoWriter):
    """Of photos without faces; a function writes."""

    def __init__(self, save) -> None:
        self.save = save


def run_on(photos, save=lambda *photo: None, finished=None, find=lambda image: [], **given) -> int:
    """``run_on_photos`` into the photos' folder; nobody is found in them."""
    options = {"out": photos[0][1].parent, "jobs": 1, "largest": None, "detect_size": 1080}
    return run_on_photos(Namespace(photos=photos, **options | given), find, Saver(save), finished)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_bad_photo_costs_nothing_but_itself(tmp_path, capsys, jobs):
    photos = grey_photos(tmp_path, 7)
    photos[2][1].write_bytes(b"no picture")
    saved = []

    def save(name: str, path: Path, image: np.ndarray, faces: list) -> None:
        if name == "p5":
            raise OSError("disk full")
        if name == "p3":  # OpenCV refuses it
            cv2.remap(np.zeros((1, 40_000), np.uint8), *np.zeros((2, 1, 1), np.float32), 1)
        saved.append((name, int(image[0, 0, 0])))

    assert run_on(photos, save, jobs=jobs) == 1
    assert sorted(saved) == [("p0", 0), ("p1", 1), ("p4", 4), ("p6", 6)]
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if "no face found" in line]
    assert [Path(line.split(":")[0]).stem for line in lines] == ["p0", "p1", "p4", "p6"]
    assert all("--threshold 0.2" in line for line in lines)
    failed = err.split("\n")  # whole lines, as a log is searched: no progress bar before them
    assert failed[0].startswith(f"failed: {photos[2][1]}: not a picture")
    assert failed[1].startswith(f"failed: {photos[3][1]}: OpenCV")
    assert failed[2:] == [f"failed: {photos[5][1]}: disk full", ""]
    assert "4 photos without a face, 3 photos failed" in out


def test_only_the_largest_faces(tmp_path):
    (photo,) = grey_photos(tmp_path, 1)
    faces, kept = [SimpleNamespace(scale=scale) for scale in (2, 9, 1, 5)], []

    def save(name: str, path: Path, image: np.ndarray, found: list) -> None:
        kept.extend(face.scale for face in found)
        raise OSError("enough")  # a summary of them would need real ones

    assert run_on([photo], save, find=lambda image: faces, largest=2) == 1
    assert kept == [9, 5]  # in the order of score, as they came


def test_a_photo_that_is_replaced_while_it_is_worked_on_is_not_done(tmp_path):
    (photo,) = grey_photos(tmp_path, 1)
    finished = FinishedPhotos(tmp_path, {}, resume=False)

    def replace(*saved: object) -> None:
        write_image(photo[1], np.zeros((30, 40, 3), np.uint8))

    assert run_on([photo], replace, finished) == 0
    assert photo not in FinishedPhotos(tmp_path, {}, resume=True)
    assert run_on([photo], finished=finished) == 0
    assert photo in FinishedPhotos(tmp_path, {}, resume=True)


def test_a_photo_is_done_again_where_the_file_beside_it_has_changed(tmp_path):
    photo, later = grey_photos(tmp_path, 2)
    settings, companions = {"x": 1}, {photo[1]: tmp_path / "map", later[1]: tmp_path / "none yet"}
    (tmp_path / "map").write_text("eins")
    finished = FinishedPhotos(tmp_path, settings, False, companions.get)
    for each in (photo, later):
        finished.add(finished.state(each), None)
    again = FinishedPhotos(tmp_path, settings, True, companions.get)
    assert photo in again and later in again
    (tmp_path / "map").write_text("zwei!")
    (tmp_path / "none yet").write_text("now there")
    again = FinishedPhotos(tmp_path, settings, True, companions.get)
    assert photo not in again and later not in again


def test_no_more_photos_are_worked_on_at_once_than_there_are(tmp_path):
    """The cores that a job leaves are the network's."""
    grey_photos(tmp_path, 3)
    parser = ArgumentParser()
    add_photo_options(parser)
    for photos, jobs in ((".", 3), ("p1.png", 1)):
        files = ["-f", str(tmp_path / photos), "-o", str(tmp_path / "out")]
        assert parse_photo_options(parser, [*files, "-j", "8"]).jobs == jobs
        assert 1 <= parse_photo_options(parser, files).jobs <= jobs
    assert parse_photo_options(parser, ["-f", str(tmp_path), "-o", "out", "-j", "2"]).jobs == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_a_folder_and_says_how_to_go_on(tmp_path, capsys, jobs):
    photos = grey_photos(tmp_path, 9)

    def find_faces(image: np.ndarray) -> list:
        if image[0, 0, 0] == 3:
            raise KeyboardInterrupt
        return []

    finished = FinishedPhotos(tmp_path, {}, False)
    assert run_on(photos, finished=finished, find=find_faces, jobs=jobs) == STOPPED
    out, _ = capsys.readouterr()
    listed = len((tmp_path / "finished.jsonl").read_text().splitlines())  # those under way, too
    assert listed == 3 if jobs == 1 else 3 <= listed < 9
    left = counted(9 - listed, "photo")
    assert f"{listed} photos without a face, stopped with {left} left (--resume goes on)" in out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_in_a_folder_are_not_waited_for(tmp_path):
    grey_photos(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere")
    assert [name for name, _ in find_photos([tmp_path])] == ["link", "p0"]


def test_a_reader_that_has_enough_does_not_stop_the_work(tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from utils.cli import say\n"
        "say('first')\n"
        "sys.stdin.read()\n"  # until the reader is gone
        "for i in range(2000):\n"
        "    say(f'line {i}')\n"
        f"Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    command = [sys.executable, "-c", program]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").exists()


def test_results_do_not_fall_on_the_photos(tmp_path):
    out = tmp_path / "out"
    for photos, with_sheet, expected in (
        (out, True, True),  # contact_sheet.jpg would be a photo of the next run
        (out, False, False),
        (out / "landmarks", False, True),
        (out / "glb", False, True),
        (out / "holiday", True, False),
        (tmp_path / "landmarks", True, False),
        (out / "landmarks" / "mine", True, False),
    ):
        assert would_overwrite(out, photos, with_sheet) == expected, photos
    if os.name == "nt":  # links need a right of their own there
        return
    (tmp_path / "link").symlink_to(out)
    assert would_overwrite(tmp_path / "link", out / "uv", False)


def test_a_photo_that_is_shrunk_much_says_so():
    assert small_faces_note((720, 1080, 3), 1080) == small_faces_note((1440, 2160), 1080) == ""
    assert "24% of its size; --detect-size" in small_faces_note((3000, 4000, 3), 1080)
    assert small_faces_note((3000, 4000, 3), 4000) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("number", "before", "code"),
    [("SIGTERM", "DFL", 143), ("SIGHUP", "DFL", 129), ("SIGHUP", "IGN", 7)],
)  # fmt: skip
def test_who_asks_a_script_to_end_is_heard_as_ctrl_c(number, before, code):
    script = f"""
import signal, sys, time
from utils.cli import run_script
signal.signal(signal.{number}, signal.SIG_{before})  # tests themselves may run under nohup

def main():
    print("begun", flush=True)
    sys.stdin.readline()
    return 7

run_script(main)
"""
    command = [sys.executable, "-c", script]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(getattr(signal, number))
        out, err = process.communicate("\n" if before == "IGN" else None, timeout=60)
    assert process.returncode == code
    assert err == ("" if before == "IGN" else "-c: stopped\n")
