"""video.py: what it writes, and what it makes of damaged, odd and interrupted videos."""

import csv
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections import namedtuple
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest.mock import Mock, patch

import cv2
import numpy as np
import pytest
from conftest import on_disk, run_python
from moving_pictures import GREY, SIZE, film, pause_film, read_film, scene, write_film

import synergy3DMM
import video
from synergy3DMM import SynergyNet
from utils import files, model_options, video_io, video_numbers, video_script
from utils.overlays import DRAWINGS, Overlays, nearest_last
from utils.render import normalized_coordinate_code, render_depth, render_pncc
from utils.tracking import FaceTracker
from utils.video_io import CODECS, H264Writer, VideoReader, VideoWriter
from utils.video_numbers import ROW, VideoNumbers, file_of

COUNT = 12
FFMPEG_FOUND = shutil.which("ffmpeg")
WRITES_H264 = bool(FFMPEG_FOUND and shutil.which("ffprobe")) and video_io.encodes_h264(FFMPEG_FOUND)


@pytest.fixture(scope="module")
def model() -> SynergyNet:
    return SynergyNet(device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Two faces that move apart."""
    return film(lambda t: [(20 - t, 30), (200 + t, 40)], COUNT)


@pytest.fixture
def run(call, monkeypatch, tmp_path, model):
    """Runs the script in ``tmp_path``, where ffmpeg is not installed: exit code and output."""

    def run(*arguments) -> tuple[int, str]:
        return call(video.main, *arguments)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "open_model", lambda options: model)
    monkeypatch.setattr(video_io.shutil, "which", lambda name: None)
    return run


class Capture:
    """OpenCV's ``VideoCapture``, of frames that are given; None: one that cannot be decoded."""

    def __init__(self, frames, fps=25.0, count=None, times=None) -> None:
        self.frames, self.times, self.at, self.released = list(frames), times, -1, False
        self.known = {
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_FRAME_COUNT: len(self.frames) if count is None else count,
        }

    def isOpened(self):
        return True

    def read(self):
        self.at += 1
        frame = self.frames[self.at] if self.at < len(self.frames) else None
        return frame is not None, frame

    def grab(self):
        return False  # nothing to be learnt of the rate

    def get(self, key):
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self.times[self.at] if self.times else 0.0
        return self.known.get(key, 0.0)

    def release(self):
        self.released = True


def reader_of(frames, said=None, **known) -> VideoReader:
    say = (lambda line: None) if said is None else said.append
    with patch.object(video_io, "_open_capture", lambda source: Capture(frames, **known)):
        return VideoReader(Path(__file__), say)


@pytest.fixture
def feed(monkeypatch):
    """Puts a ``Capture`` into the place of in.mp4, or of a camera, for ``run``."""

    def feed(capture: Capture) -> Capture:
        monkeypatch.setattr(video_io, "_open_capture", lambda source: capture)
        Path("in.mp4").touch()
        return capture

    return feed


def written(path: Path, count: int) -> VideoWriter:
    """A writer that has been given grey frames."""
    writer = VideoWriter(path, (64, 48), 25)
    for i in range(count):
        writer.write(np.full((48, 64, 3), 90, np.uint8), i / 25)
    return writer


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if ".partial" in path.name]


# ----------------------------------------------------------------------------------- a good video


def test_a_video_with_two_faces(run, frames, tmp_path, model):
    write_film(tmp_path / "in.mp4", frames)
    numbers = ["--save", "csv,jsonl,npz", "--smooth", "off"]
    code, output = run("-f", "in.mp4", "-o", "out/o.mp4", *numbers)
    assert code == 0, output
    assert "2 faces in 12 of 12 frames" in output and "sound" in output
    assert {path.name for path in Path("out").iterdir()} == {"o.csv", "o.jsonl", "o.mp4", "o.npz"}
    drawn = read_film(Path("out/o.mp4"))
    assert len(drawn) == COUNT and drawn[0].shape == frames[0].shape
    assert np.abs(drawn[5].astype(int) - read_film(Path("in.mp4"))[5]).mean() > 3

    lines = lines_of(Path("out/o.jsonl"))
    assert [line["frame"] for line in lines] == list(range(COUNT))
    np.testing.assert_allclose([line["time"] for line in lines], np.arange(COUNT) / 25, atol=1e-3)
    assert all([face["id"] for face in line["faces"]] == [1, 2] for line in lines)
    assert np.shape(lines[3]["faces"][1]["landmarks"]) == (3, 68)

    table = np.load("out/o.npz", allow_pickle=False)
    assert set(table.files) == {*ROW.names, "frame_time"}
    np.testing.assert_array_equal(table["frame"], np.repeat(np.arange(COUNT), 2))
    np.testing.assert_array_equal(table["id"], COUNT * [1, 2])
    for row, face in enumerate(face for line in lines for face in line["faces"]):
        for name in ("landmarks", "box", "yaw", "rotation", "scale", "parameters"):
            np.testing.assert_allclose(table[name][row], face[name], rtol=1e-5, atol=1e-5)
    with open("out/o.csv", newline="") as file:
        sheet = list(csv.DictReader(file))
    for key, column in (("frame", "frame"), ("time", "time"), ("id", "id"), ("score", "score")):
        np.testing.assert_allclose([float(row[column]) for row in sheet], table[key], atol=1e-6)
    np.testing.assert_allclose([float(row["y30"]) for row in sheet], table["landmarks"][:, 1, 30],
                               atol=1e-3)  # fmt: skip
    expected = np.array([face.landmarks for face in model(frames[-1], dense=False)])
    moved = table["landmarks"][-2:, None, :2] - expected[:, :2]  # (2, 2, 2, 68)
    distance = np.linalg.norm(moved, axis=2).mean(axis=2)  # pixels; the faces are 60 high
    assert distance.min(axis=0).max() < 2
    assert nothing_half_written(tmp_path)


def test_where_it_goes_when_nothing_is_said(run, frames):
    write_film(Path("in.avi"), frames[:2])
    assert run("-f", "in.avi")[0] == 0
    assert len(read_film(Path("inference_output/in.mp4"))) == 2
    assert run("-f", "in.avi", "--no-video", "--save", "jsonl")[0] == 0
    assert sorted(p.name for p in Path("inference_output").iterdir()) == ["in.jsonl", "in.mp4"]


def test_nobody(run):
    write_film(Path("in.avi"), 3 * [np.full((*SIZE, 3), GREY, np.uint8)])
    code, output = run("-f", "in.avi", "-o", "o.avi", "--save", "npz,jsonl,csv")
    assert code == 0
    assert len(Path("o.csv").read_text().splitlines()) == 1  # the titles
    assert "0 faces in 0 of 3 frames" in output
    assert [line["faces"] for line in lines_of(Path("o.jsonl"))] == 3 * [[]]
    table = np.load("o.npz")
    assert table["landmarks"].shape == (0, 3, 68) and table["frame_time"].shape == (3,)
    assert len(read_film(Path("o.avi"))) == 3


@pytest.mark.parametrize("suffix", video_io.CODECS)
@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_every_format_can_be_read_again(tmp_path, suffix, size):
    pictures = [np.full((*size, 3), 60 + 20 * i, np.uint8) for i in range(6)]
    writer = VideoWriter(tmp_path / f"o{suffix}", size[::-1], 30)
    for i, picture in enumerate(pictures):
        writer.write(picture, i / 30)
    writer.close()
    found = read_film(tmp_path / f"o{suffix}")
    assert len(found) == 6
    assert found[0].shape == (size[0] // 2 * 2, size[1] // 2 * 2, 3)
    np.testing.assert_allclose([f.mean() for f in found], 60 + 20 * np.arange(6), atol=6)
    assert [path.name for path in tmp_path.iterdir()] == [f"o{suffix}"]


@pytest.mark.skipif(not WRITES_H264, reason="no ffmpeg that encodes H.264")
@pytest.mark.parametrize("suffix", video_io.H264_SUFFIXES)
def test_with_ffmpeg_videos_are_what_browsers_play(tmp_path, suffix):
    writer = VideoWriter(tmp_path / f"o{suffix}", (64, 48), 29.97)
    for i in range(9):
        writer.write(np.full((48, 64, 3), (20 * i, 90, 200), np.uint8), i / 29.97)
    assert writer.close() is None
    command = "ffprobe -v error -show_entries stream=codec_name,pix_fmt,nb_frames,color_space"
    done = subprocess.run([*command.split(), tmp_path / f"o{suffix}"], capture_output=True)
    told = done.stdout.decode()
    for expected in ("codec_name=h264", "pix_fmt=yuv420p", "nb_frames=9", "color_space=smpte170m"):
        assert expected in told
    content = (tmp_path / f"o{suffix}").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    for i, frame in enumerate(read_film(tmp_path / f"o{suffix}")):
        np.testing.assert_allclose(frame.mean((0, 1)), (20 * i, 90, 200), atol=4)


@pytest.mark.skipif(not WRITES_H264, reason="no ffmpeg that encodes H.264")
def test_what_ffmpeg_says_is_passed_on(tmp_path):
    writer = H264Writer(shutil.which("ffmpeg"), tmp_path / "none" / "o.mp4", 25, (640, 480))
    frames = [np.zeros((480, 640, 3), np.uint8)] * 1000  # it takes some before it opens the file
    with pytest.raises(OSError, match="ffmpeg ended: .*No such file or directory"):
        list(map(writer.write, frames))
    writer.release()


@pytest.mark.skipif(not WRITES_H264, reason="no ffmpeg that encodes H.264")
def test_ctrl_c_while_ffmpeg_ends_costs_no_video(tmp_path, monkeypatch):
    writer = written(tmp_path / "o.mp4", 9)
    wait, calls = writer.writer.process.wait, []

    def interrupted() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait()

    monkeypatch.setattr(writer.writer.process, "wait", interrupted)
    writer.close()
    assert writer.was_stopped
    assert len(read_film(tmp_path / "o.mp4")) == 9 and nothing_half_written(tmp_path)


def test_an_ffmpeg_that_does_not_run_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr(video_io.shutil, "which", lambda name: str(tmp_path / "no" / name))
    assert not video_io.encodes_h264(str(tmp_path / "no" / "ffmpeg"))
    writer = written(tmp_path / "o.mp4", 1)
    writer.close()
    assert len(read_film(tmp_path / "o.mp4")) == 1


@pytest.mark.skipif(sys.platform == "win32" or not WRITES_H264, reason="no ffmpeg with H.264")
def test_ctrl_c_in_a_terminal_does_not_reach_ffmpeg(tmp_path):
    script = (
        "import os, signal, sys, time, numpy as np; from pathlib import Path\n"
        "from utils.video_io import VideoWriter\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        f"writer = VideoWriter(Path({str(tmp_path / 'o.mp4')!r}), (64, 48), 25)\n"
        "for i in range(9):\n"
        "    writer.write(np.zeros((48, 64, 3), np.uint8), i / 25)\n"
        "os.killpg(0, signal.SIGINT)\n"
        "time.sleep(0.2)\n"
        "writer.close()\n"
    )
    run_python("-c", script, check=True, start_new_session=True)
    assert len(read_film(tmp_path / "o.mp4")) == 9


@pytest.mark.parametrize("name", ["Zoë's “film” 名 %d 50%.mp4", "-o.mp4"])
def test_names(run, frames, tmp_path, name):
    if name != on_disk(name):
        pytest.skip("a name that is no text here: such a video is not written")
    write_film(tmp_path / "plain.mp4", frames[:2]).rename(tmp_path / name)
    code, output = run("--files=" + name, "--save", "jsonl")
    assert code == 0, output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["inference_output", name])
    assert len(read_film(Path("inference_output", name))) == 2
    assert len(lines_of(Path("inference_output", name).with_suffix(".jsonl"))) == 2


def test_options_of_a_video_arrive(monkeypatch):
    class Heard(Exception):
        pass

    heard = []

    def overlays(face_model, drawings):
        heard.append(drawings)
        raise Heard

    monkeypatch.setattr(video_script, "Overlays", overlays)
    arguments = ["-f", video.__file__, "-o", "o.mp4", "--smooth", "strong", "--detect-every", "4"]
    chosen = video.parse_options([*arguments, "--draw", "pose,mesh"])
    with pytest.raises(Heard):
        video_script.run_on_video(chosen, Mock(tracker=lambda *given: heard.append(given)))
    assert heard == [("strong", 4), ("pose", "mesh")]


def test_options_of_the_model_arrive(monkeypatch):
    made = []
    monkeypatch.setattr(synergy3DMM, "FaceBoxes", lambda *_, **options: made.append(options))
    arguments = ["--detect-size", "3000", "--threshold", "0.7", "--device", "cpu"]
    arguments += ["--engine", "torch"]
    model_options.open_model(video.parse_options(["-f", video.__file__, *arguments]))
    (found,) = made
    assert (found["detect_size"], found["score_threshold"]) == (3000, 0.7)


def test_a_name_that_is_no_text(frames, tmp_path):
    """OpenCV would crash: such a video is read all the same, and another name asked for."""
    path = tmp_path / os.fsdecode(b"caf\xe9.avi")
    try:
        write_film(tmp_path / "plain.avi", frames[:2]).rename(path)
    except OSError:
        pytest.skip("this system admits no file names that are no text")
    assert VideoReader(path, print).count == 2
    for out in (path, path.with_suffix("") / "o.avi"):
        with pytest.raises(ValueError, match="the name of a video to write must be text"):
            VideoWriter(out, (64, 48), 25)


# -------------------------------------------------------------------------------- damaged and odd


def test_a_damaged_tail(run, frames):
    whole = write_film(Path("in.avi"), frames).read_bytes()
    Path("in.avi").write_bytes(whole[: len(whole) * 2 // 3])
    code, output = run("-f", "in.avi", "-o", "o.avi", "--save", "jsonl")
    count = len(read_film(Path("o.avi")))
    assert 5 <= count < COUNT and len(lines_of(Path("o.jsonl"))) == count
    # without ffprobe, 1 where this OpenCV believes the file's own count of frames
    assert code == 1 if shutil.which("ffprobe") else code in (0, 1)


@pytest.mark.parametrize("content", [b"", b"no video\n", "cut"])
def test_what_is_no_video(run, frames, content):
    whole = write_film(Path("in.mp4"), frames[:4]).read_bytes()
    Path("in.mp4").write_bytes(whole[:2000] if content == "cut" else content)
    code, output = run("-f", "in.mp4", "-o", "o.mp4", "--save", "jsonl")
    assert code == 1
    assert "failed: in.mp4: no frame can be read" in output
    assert [path.name for path in Path().iterdir()] == ["in.mp4"]


def test_fewer_frames_than_claimed_are_told():
    said = []
    reader = reader_of([scene()] * 7, said, count=10)
    assert len(list(reader)) == 7 and reader.is_damaged
    assert said == [f"{__file__}: damaged, 7 of 10 frames could be read"]
    reader = reader_of([scene()] * 99, said := [], count=100)  # an estimate, as most are
    assert len(list(reader)) == 99 and not reader.is_damaged and not said
    assert not list(reader) and not reader.is_damaged and not said  # a second time


def test_frames_that_cannot_be_decoded_are_left_out():
    frames = [scene(), None, None, scene(), np.zeros((0, 0, 3), np.uint8), scene()]
    assert len(list(reader_of(frames))) == 3


def test_frames_of_another_size_are_fitted_into_the_first():
    white = np.full((40, 80, 3), 255, np.uint8)
    tall = np.full((60, 20, 3), 255, np.uint8)
    said = []
    frames = [frame for _, frame in reader_of([white, white[:20, :40], tall, white], said)]
    assert all(frame.shape == (40, 80, 3) for frame in frames)
    assert (frames[1] == 255).all() and (frames[3] == 255).all()
    columns = (frames[2] == 255).all(axis=(0, 2))
    assert columns.sum() == 13 and columns[34:46].all()  # 20 / 60 * 40, in the middle
    assert len(said) == 1 and "80x40 to 40x20" in said[0]


def test_times():
    """Of the container where it has any; else, and where they run backwards, by the rate."""
    count = 4
    known = [t for t, _ in reader_of([scene()] * count, times=[2.0, 2.1, 2.4, 2.5])]
    np.testing.assert_allclose(known, [0, 0.1, 0.4, 0.5])
    unknown = [t for t, _ in reader_of([scene()] * count, fps=10)]
    np.testing.assert_allclose(unknown, [0, 0.1, 0.2, 0.3])
    backwards = [t for t, _ in reader_of([scene()] * count, fps=10, times=[1, 1.1, 0.2, np.nan])]
    np.testing.assert_allclose(backwards, [0, 0.1, 0.2, 0.3])
    for odd in (0.0, -1.0, 90_000.0, np.nan):
        assert reader_of([scene()], fps=odd).fps == video_io.DEFAULT_FPS


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.arange(50) / 25, 50),
        (np.arange(50) / 24.99, 50),
        (np.arange(20) / 10, 48),  # a slow camera: repeated
        (np.arange(100) / 50, 50),  # a fast one: left out
        (np.array([0, 0.04, 0.08, 99.0, 99.04]), 5),  # a gap is not filled for minutes
        (1 + np.arange(25) / 25, 50),  # the first one late
    ],
    ids=["steady", "rounded", "slow", "fast", "gap", "late"],
)
def test_a_written_video_lasts_as_long_as_it_should(tmp_path, times, expected):
    writer = VideoWriter(tmp_path / "o.avi", (32, 32), 25)
    for seconds in times:
        writer.write(np.zeros((32, 32, 3), np.uint8), float(seconds))
    writer.close()
    assert abs(writer.written - expected) <= 2
    assert len(read_film(tmp_path / "o.avi")) == writer.written


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize(
    "frame",
    [np.zeros((48, 64, 3)), np.zeros((48, 64), np.uint8), np.zeros((40, 60, 3), np.uint8)],
    ids=["floating point", "grey", "smaller"],
)
def test_frames_that_do_not_fit_are_refused(tmp_path, suffix, frame):
    """ffmpeg made noise of one in floating point; the disk was blamed for the others."""
    writer = written(tmp_path / f"o{suffix}", 2)
    with pytest.raises(ValueError, match=r"expected a frame of shape \(48, 64, 3\) uint8, got"):
        writer.write(frame, 2 / 25)
    writer.close()
    assert len(read_film(tmp_path / f"o{suffix}")) == 2


def test_a_pause_in_a_file_is_shown_for_as_long_as_it_lasts(run, tmp_path):
    frames = [np.full((32, 32, 3), 12 * i + 16, np.uint8) for i in range(20)]
    path = write_film(tmp_path / "in.mp4", frames)
    pause_film(path, frame=9, seconds=5)
    reader = VideoReader(path, print)
    if reader.capture.get(cv2.CAP_PROP_FPS) > 5:
        pytest.skip("this OpenCV does not tell how long the file lasts with its pause")
    assert reader.fps == pytest.approx(25) and reader.duration == pytest.approx(5.8, abs=0.1)
    times = [seconds for seconds, _ in reader]
    reader.close()
    code, output = run("-f", "in.mp4", "-o", "o.avi")
    assert code == 0, output
    np.testing.assert_allclose(np.diff(times), [0.04] * 9 + [5.04] + [0.04] * 9, atol=2e-3)
    shown = [frame.mean() for frame in read_film(tmp_path / "o.avi")]
    assert abs(len(shown) - 5.8 * 25) <= 2
    np.testing.assert_allclose(shown[:10], 12 * np.arange(10) + 16, atol=5)
    np.testing.assert_allclose(shown[10:-11], 124, atol=5)  # the one before, while nothing comes
    np.testing.assert_allclose(shown[-10:], 12 * np.arange(10) + 136, atol=5)


def test_frames_that_come_in_one_array_are_repeated_as_they_were(tmp_path):
    writer = VideoWriter(tmp_path / "o.avi", (32, 32), 25)
    frame = np.zeros((32, 32, 3), np.uint8)
    for i in range(2):
        frame[:] = 100 * i
        writer.write(frame, 4 * i / 25)
    writer.close()
    assert [round(f.mean(), -1) for f in read_film(tmp_path / "o.avi")] == [0, 0, 0, 0, 100]


def test_no_pause_is_shown_for_hours(run, tmp_path, monkeypatch):
    """As after a wrong clock: 30 frames would become millions."""
    path = write_film(tmp_path / "in.mp4", [np.full((32, 32, 3), 90, np.uint8)] * 20)
    pause_film(path, frame=9, seconds=5)
    monkeypatch.setattr(video_script, "LONGEST_PAUSE", 1.0)
    assert run("-f", "in.mp4", "-o", "o.avi")[0] == 0
    assert 20 <= len(read_film(tmp_path / "o.avi")) <= 22


def test_a_pause_is_filled_no_further_when_the_run_is_to_end(tmp_path, monkeypatch):
    writer = VideoWriter(tmp_path / "o.avi", (32, 32), 25, longest_gap=1000)
    frame = np.zeros((32, 32, 3), np.uint8)
    writer.write(frame, 0.0)
    has_room = writer._has_room

    def stopped_after_a_while():
        writer.is_ending = writer.written >= 9
        return has_room()

    monkeypatch.setattr(writer, "_has_room", stopped_after_a_while)
    writer.write(frame, 900.0)
    writer.close()
    assert len(read_film(tmp_path / "o.avi")) == 11  # the frame after the pause too


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:5.0,\nb.mp4\n", b"ffconcat version 1.0\n"])
def test_a_list_of_other_files_is_no_video(run, content):
    Path("in.mp4").write_bytes(content)
    code, output = run("-f", "in.mp4", "-o", "o.avi")
    assert code == 1 and "in.mp4: a playlist, which names other files" in output


def test_a_path_as_text_is_a_file_all_the_same(tmp_path):
    path = write_film(tmp_path / "in.avi", [np.zeros((32, 32, 3), np.uint8)] * 3)
    assert VideoReader(str(path), print).name == str(path)
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile in.avi\n")
    with pytest.raises(ValueError, match="a playlist"):
        VideoReader(str(playlist), print)
    with pytest.raises(FileNotFoundError):
        VideoReader(str(tmp_path / "absent.mp4"), print)


def test_numbers_lie_beside_their_video_and_nothing_else_is_taken_for_a_suffix():
    files = {"o.mp4": "o.npz", "o.AVI": "o.npz", "o.npz": "o.npz", "o.jsonl": "o.npz"}
    files |= {"run.1": "run.1.npz", "run.2": "run.2.npz", "o": "o.npz"}
    for name, expected in files.items():
        assert file_of(Path("a") / name, "npz") == Path("a") / expected


# -------------------------------------------------------------------------------------- the end


class Interrupting(Capture):
    """Ctrl-C while frame ``end`` is worked on."""

    def __init__(self, frames, monkeypatch, end, error=KeyboardInterrupt) -> None:
        super().__init__(frames)
        calls = []

        def track(tracker, *arguments):
            calls.append(None)
            if len(calls) > end:
                raise error
            return original(tracker, *arguments)

        original = FaceTracker.__call__
        monkeypatch.setattr(FaceTracker, "__call__", track)


@pytest.mark.parametrize("end", [0, 1, 5])
def test_ctrl_c_keeps_what_is_finished(run, feed, frames, monkeypatch, tmp_path, end):
    capture = feed(Interrupting(frames, monkeypatch, end))
    code, output = run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl,npz")
    assert code == 130 and "stopped" in output and f"of {end} frame" in output
    assert capture.released
    assert nothing_half_written(tmp_path)
    if not end:  # what an earlier run may have left is worth more than nothing
        assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"] and "written" not in output
        return
    assert [line["frame"] for line in lines_of(Path("o.jsonl"))] == list(range(end))
    assert len(np.load("o.npz")["frame_time"]) == end
    assert len(read_film(Path("o.avi"))) == end


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (MemoryError(), "failed: in.mp4: not enough memory"),
        (RuntimeError("CUDA out of memory"), "failed: in.mp4: CUDA out of memory"),
    ],
)
def test_full_disk_and_memory_keep_what_is_finished(run, feed, frames, monkeypatch, error, said):
    feed(Interrupting(frames, monkeypatch, 4, error))
    code, output = run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl")
    assert code == 1 and said in output
    assert len(lines_of(Path("o.jsonl"))) == len(read_film(Path("o.avi"))) == 4


def test_lines_that_cannot_be_begun_end_the_video(run, feed, frames, monkeypatch, tmp_path):
    monkeypatch.setattr(video_numbers, "atomic_write", Mock(side_effect=OSError(13, "not yours")))
    capture = feed(Capture(frames))
    code, output = run("-f", "in.mp4", "--no-video", "-o", "o.mp4", "--save", "jsonl,npz")
    assert code == 1 and "failed: in.mp4: [Errno 13] not yours" in output
    assert capture.released
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_arrays_that_cannot_be_written_do_not_cost_the_lines(
    run, feed, frames, monkeypatch, tmp_path
):
    monkeypatch.setattr(video_numbers, "write_npz", Mock(side_effect=OSError(28, "No space left")))
    feed(Capture(frames))
    code, output = run("-f", "in.mp4", "--no-video", "-o", "o.mp4", "--save", "npz,jsonl")
    assert code == 1 and "No space left" in output
    assert len(lines_of(Path("o.jsonl"))) == COUNT
    assert nothing_half_written(tmp_path) and not Path("o.npz").exists()


def test_a_fault_of_ours_leaves_nothing_behind(run, feed, frames, monkeypatch, tmp_path):
    feed(Interrupting(frames, monkeypatch, 2, ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl,npz")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_video_that_cannot_be_begun_frees_what_was_opened(
    run, feed, frames, monkeypatch, tmp_path
):
    monkeypatch.setattr(video_io, "partial_beside", Mock(side_effect=OSError(13, "not yours")))
    capture = feed(Capture(frames))
    code, output = run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl,npz")
    assert code == 1 and "failed: [Errno 13] not yours" in output
    assert "frame/s" not in output  # no progress bar was left standing
    assert capture.released
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("end", [1, COUNT - 1])
def test_a_fault_of_ours_in_the_thread_that_writes(run, feed, frames, monkeypatch, tmp_path, end):
    """Told by the next frame, or, of the last one, when the video is closed."""
    write, written = VideoWriter.write, []

    def fails(writer, frame, seconds):
        written.append(seconds)
        if len(written) > end:
            raise ZeroDivisionError
        write(writer, frame, seconds)

    monkeypatch.setattr(VideoWriter, "write", fails)
    feed(Capture(frames))
    with pytest.raises(ZeroDivisionError):
        run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl,npz")
    assert len(written) == end + 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize(
    ("is_stopped", "code", "said"), [(False, 1, "not enough memory"), (True, 130, "stopped")]
)
def test_the_last_frame_finds_no_memory(run, frames, monkeypatch, is_stopped, code, said):
    """As it is written, which is told when the video is closed; Ctrl-C came before."""
    capture = Interrupting(frames, monkeypatch, COUNT - is_stopped)
    write, last = VideoWriter.write, (COUNT - 1 - is_stopped) / 25

    def fails(writer, frame, seconds):
        if seconds > last - 0.01:
            raise MemoryError
        write(writer, frame, seconds)

    monkeypatch.setattr(VideoWriter, "write", fails)
    monkeypatch.setattr(video_io, "_open_capture", lambda source: capture)
    Path("in.mp4").touch()
    found, output = run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl")
    assert found == code and f"failed: in.mp4: {said}" in output
    assert len(read_film(Path("o.avi"))) == len(lines_of(Path("o.jsonl"))) - 1


def test_a_stopped_video_that_cannot_be_closed_is_told(run, feed, frames, monkeypatch, tmp_path):
    monkeypatch.setattr(VideoWriter, "_check", Mock(side_effect=OSError("is the disk full?")))
    feed(Interrupting(frames, monkeypatch, 5))
    code, output = run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl")
    assert code == 1 and "failed: in.mp4: is the disk full?" in output
    assert "written: o.jsonl" in output and len(lines_of(Path("o.jsonl"))) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "o.jsonl"]


def test_ctrl_c_while_the_sound_is_copied_costs_the_sound_alone(
    run, feed, frames, monkeypatch, tmp_path
):
    monkeypatch.setattr(VideoWriter, "_add_sound", Mock(side_effect=KeyboardInterrupt))
    feed(Capture(frames))
    code, output = run("-f", "in.mp4", "-o", "o.avi", "--save", "jsonl")
    assert code == 130 and "the sound is not copied: stopped" in output
    assert len(read_film(Path("o.avi"))) == len(lines_of(Path("o.jsonl"))) == COUNT
    assert nothing_half_written(tmp_path)


def test_ctrl_c_while_a_video_without_sound_is_closed(tmp_path, monkeypatch):
    writer = written(tmp_path / "o.avi", 2)

    monkeypatch.setattr(writer, "_check", Mock(side_effect=KeyboardInterrupt))
    assert writer.close() is None and writer.was_stopped
    assert len(read_film(tmp_path / "o.avi")) == 2


@pytest.mark.parametrize(
    ("aspect", "turned", "wider"),
    [((16, 9), 0, 16 / 9), ((16, 9), 90, 9 / 16), ((0, 1), 0, 1), ((9000, 1), 0, 1)],
)
def test_pixels_that_are_no_squares(frames, monkeypatch, aspect, turned, wider):
    capture = Capture(frames)
    capture.known |= {cv2.CAP_PROP_SAR_NUM: aspect[0], cv2.CAP_PROP_SAR_DEN: aspect[1]}
    capture.known[cv2.CAP_PROP_ORIENTATION_META] = turned
    monkeypatch.setattr(video_io, "_open_capture", lambda source: capture)
    reader = VideoReader(Path(__file__), print)
    height, width = frames[0].shape[:2]
    assert reader.size == (round(width * wider), height)
    assert {frame.shape for _, frame in reader} == {(height, round(width * wider), 3)}


@pytest.mark.parametrize(
    ("packets", "is_fine", "is_damaged"),
    [(["K__"] * 12 + ["_D_"] * 8, True, False), (["___"] * 20, True, True),
     (["___"] * 12, False, True), (["___"] * 12 + ["20"], True, True)],
)  # fmt: skip
def test_what_an_edit_list_hides_is_no_damage(frames, monkeypatch, packets, is_fine, is_damaged):
    monkeypatch.setattr(video_io, "_probe", lambda *arguments: (packets, is_fine))
    said = []
    reader = reader_of(frames, said, count=20)
    assert len(list(reader)) == 12
    assert reader.is_damaged == is_damaged and len(said) == is_damaged


def test_a_copy_with_sound_that_was_cut_short_does_not_replace_the_video(tmp_path, monkeypatch):
    def no_room(command, **_):  # ffmpeg does not always tell
        if command[-1].startswith("file:") and "-show_entries" not in command:
            Path(command[-1].removeprefix("file:")).write_bytes(b"cut short")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(video_io.shutil, "which", lambda name: name)
    monkeypatch.setattr(video_io.subprocess, "run", no_room)
    writer = written(tmp_path / "o.mp4", 9)
    assert "no room for it on the disk" in writer.close(sound_from=Path("in.mp4"))
    assert len(read_film(tmp_path / "o.mp4")) == 9


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("delay", ["0", "0.7"])
def test_sound_stays_where_it_was_beside_the_picture(tmp_path, delay):
    """A beep of 0.1 s at 1 s; the picture begins later than it by ``delay``."""
    write_film(tmp_path / "film.avi", 50 * [np.full((48, 64, 3), 90, np.uint8)])
    source, out = tmp_path / "in.mkv", tmp_path / "o.mp4"
    beep = "aevalsrc='if(between(t,1,1.1),sin(2000*t),0)':d=2:s=48000"
    make = f"ffmpeg -v error -itsoffset {delay} -i {tmp_path / 'film.avi'} -f lavfi -i {beep}"
    subprocess.run([*make.split(), "-c:v", "copy", "-c:a", "aac", source], check=True)
    writer = written(out, 50)
    assert writer.close(sound_from=source) is None
    read = f"ffmpeg -v error -i {out} -f s16le -ar 48000 -ac 1 -"
    sound = subprocess.run(read.split(), capture_output=True, check=True).stdout
    loud = np.abs(np.frombuffer(sound, np.int16).astype(int)) > 3000
    assert loud.argmax() / 48000 == pytest.approx(1 - float(delay), abs=0.04)


@pytest.mark.skipif(not FFMPEG_FOUND, reason="ffmpeg is not installed")
def test_a_film_of_plain_jpeg_pictures_brings_no_complaint(tmp_path):
    source = tmp_path / "in.mjpeg"
    make = "ffmpeg -v error -f lavfi -i testsrc=d=0.6:s=176x144 -c:v mjpeg"
    subprocess.run([*make.split(), source], check=True)
    writer = VideoWriter(tmp_path / "o.avi", (64, 48), 25)
    for i in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8), i / 25)
    assert writer.close(sound_from=source) is None


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_no_other_files_sound_is_copied(tmp_path):
    """ffmpeg takes a file for a playlist, whatever its name, if it begins like one."""
    other, source = tmp_path / "other.ts", tmp_path / "in.mp4"
    make = "ffmpeg -v error -f lavfi -i testsrc=d=2 -f lavfi -i sine=d=2 -c:v mpeg2video -c:a aac"
    subprocess.run([*make.split(), other], check=True)
    source.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{other}\n#EXT-X-ENDLIST\n")
    for sound_from, is_copied in ((other, True), (source, False)):
        writer = VideoWriter(tmp_path / "o.mp4", (64, 48), 25)
        for i in range(50):
            writer.write(np.full((48, 64, 3), 90, np.uint8), i / 25)
        said = writer.close(sound_from=sound_from)
        assert said is None if is_copied else "the sound is not copied" in said
        probe = f"ffprobe -v error -show_entries stream=codec_type -of csv=p=0 {writer.path}"
        kinds = subprocess.run(probe.split(), capture_output=True, text=True, check=True).stdout
        assert kinds.split() == ["video", *["audio"] * is_copied]


def test_half_a_video_is_told(tmp_path):
    writer = VideoWriter(tmp_path / "o.avi", (64, 48), 25)
    rng = np.random.default_rng(0)
    for i in range(40):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8), i / 25)
    writer.writer.release()
    content = writer.partial.read_bytes()
    frames = content.index(b"movi")  # as a full disk leaves it: the header was never completed
    begun = content[:frames].replace((40).to_bytes(4, "little"), bytes(4))
    writer.partial.write_bytes(begun + content[frames : len(content) // 2])
    with pytest.raises(OSError, match=r"completely \(\d+ of 40 frames can be read\)"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", CODECS)
def test_a_disk_that_fills_up_ends_a_video_while_it_can_be_closed(
    run, feed, frames, monkeypatch, tmp_path, suffix
):
    checks = iter([2**30] * 3 + [2**19])  # bytes free
    usage = namedtuple("usage", "total free")
    monkeypatch.setattr(video_io.shutil, "disk_usage", lambda folder: usage(2**40, next(checks)))
    feed(Capture(frames))
    code, output = run("-f", "in.mp4", "-o", f"o{suffix}", "--save", "jsonl")
    assert code == 1 and "no space left for more of the video" in output
    assert f"written: o{suffix}, o.jsonl" in output
    assert len(read_film(Path(f"o{suffix}"))) == 3
    assert nothing_half_written(tmp_path)


def test_a_camera_ends_by_ctrl_c(run, feed, frames, monkeypatch):
    feed(Interrupting(frames, monkeypatch, 3))
    code, output = run("-f", "0", "--save", "jsonl")
    assert code == 0, output
    assert "camera 0: 2 faces in 3 of 3 frames" in output
    assert len(lines_of(Path("inference_output/camera_0.jsonl"))) == 3


class QuietServer(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_a_stream_is_read_by_its_address(run, frames, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_film(tmp_path / "film.avi", frames)
    folder = partial(QuietServer, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        at = f"127.0.0.1:{server.server_port}/film.avi"
        code, output = run("-f", f"http://me:secret@{at}?key=1", "-o", "o.mp4", "--save", "jsonl")
        server.shutdown()
    assert code == 0, output
    assert f"http://{at}: 2 faces in {COUNT} of {COUNT} frames" in output
    assert "secret" not in output and "key" not in output
    assert len(read_film(Path("o.mp4"))) == len(lines_of(Path("o.jsonl"))) == COUNT


def test_a_stream_that_is_not_there(run):
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    code, output = run("-f", f"rtsp://me:secret@127.0.0.1:{port}/camera")
    assert code == 1 and "is it connected, free and permitted?" in output
    assert f"rtsp://127.0.0.1:{port}/camera: no frame can be read" in output
    assert "secret" not in output


@pytest.mark.parametrize(
    ("source", "name", "video"),
    [(3, "camera 3", "camera_3.mp4"), (Path("a/b.mov"), str(Path("a/b.mov")), "b.mp4"),
     ("rtsp://u:p@host:554/x?y=z", "rtsp://host:554/x", "stream.mp4"),
     ("rtsp://u:p/ss@host/x?y=z", "rtsp://host/x", "stream.mp4")],
)  # fmt: skip
def test_what_sources_are_called(source, name, video):
    assert video_io.name_of(source) == name
    assert video_io.default_video(source) == Path("inference_output") / video


# --------------------------------------------------------------------------------------- sound


FFMPEG = """#!{python}
import pathlib, sys
pathlib.Path("calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if "copy" in sys.argv[sys.argv.index("-c:a"):] and {refuses}:
    sys.exit("line one\\ncodec not supported in container")
if {fails}:
    sys.exit("nothing works")
inputs = [b for a, b in zip(sys.argv, sys.argv[1:]) if a == "-i"]
content = pathlib.Path(inputs[0].removeprefix("file:")).read_bytes()
pathlib.Path(sys.argv[-1].removeprefix("file:")).write_bytes(content)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a program that is a script")
@pytest.mark.parametrize("case", ["copies", "refuses", "fails"])
def test_sound_is_copied_by_ffmpeg(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "ffmpeg"
    program.write_text(
        FFMPEG.format(python=sys.executable, refuses=case != "copies", fails=case == "fails")
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert shutil.which("ffmpeg") == str(program)
    writer = written(tmp_path / "o.avi", 5)
    message = writer.close(Path("-in.mp4"))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == (1 if case == "copies" else 2)
    assert all("-i file:-in.mp4" in call and "-t 0.200" in call for call in calls)
    assert (message is None) == (case != "fails")
    assert len(read_film(tmp_path / "o.avi")) == 5  # with or without sound
    assert nothing_half_written(tmp_path)


# -------------------------------------------------------------------------------------- drawing


def test_every_drawing(model, frames):
    tracked = model(frames[0])
    for name in DRAWINGS:
        overlays = Overlays(model.face_model, (name,))
        before = frames[0].copy()
        picture = overlays(frames[0], tracked)  # without ids: they would be drawn too
        np.testing.assert_array_equal(frames[0], before)
        changed = (picture != before).any(2)
        inside = np.zeros_like(changed)
        for face in tracked:
            x1, y1, x2, y2 = face.roi_box.astype(int)
            inside[max(y1 - 40, 0) : y2 + 60, max(x1 - 40, 0) : x2 + 60] = True  # with text
        assert 100 < changed.sum() and not (changed & ~inside).any(), name
    assert not Overlays(model.face_model, ("landmarks", "box", "pose")).dense
    hidden = [
        Overlays(model.face_model, names)(frames[0], tracked)
        for names in (("pncc", "depth", "mesh"), ("pncc",), ("depth", "mesh"), ("depth",))
    ]
    assert (hidden[0] == hidden[1]).all() and (hidden[2] == hidden[3]).all()
    meshes = [face.vertices for face in nearest_last(tracked)], model.face_model.triangles
    size, codes = frames[0].shape[:2], normalized_coordinate_code(model.face_model.mean)
    layers = render_pncc(*meshes, codes, *size), render_depth(*meshes, *size)[..., None]
    for picture, layer in zip(hidden[1::2], layers, strict=True):  # the photo where it is black
        expected = np.where(layer.any(2, keepdims=True), layer, frames[0])
        np.testing.assert_array_equal(picture, expected)
    everything = Overlays(model.face_model, DRAWINGS)(frames[0], tracked, [1, 2])
    assert everything.shape == frames[0].shape


def test_ids_are_drawn_where_there_are_several_faces(model, frames):
    faces = model(frames[0])
    overlays = Overlays(model.face_model, ("landmarks",))
    both = overlays(frames[0], faces, [1, 2])
    assert (overlays(frames[0], faces) != both).any()
    for ids, face in (([7, 2], faces[0]), ([1, 7], faces[1])):  # each its own, beside its box
        _, x = np.nonzero((overlays(frames[0], faces, ids) != both).any(2))
        assert len(x) and np.abs(x - face.box[0]).max() < 30
    np.testing.assert_array_equal(
        overlays(frames[0], faces[:1]), overlays(frames[0], faces[:1], [7])
    )
    with pytest.raises(ValueError, match="moustache"):
        Overlays(model.face_model, ("moustache",))


def test_numbers_are_streamed(tmp_path, model, frames):
    """Each line can be read by others as soon as it is there."""
    tracked = [(1, face) for face in model(frames[0], dense=False)[:1]]
    with VideoNumbers(tmp_path / "o.mp4", ("jsonl",)) as numbers:
        for t in range(3):
            numbers.add(t, t / 25, tracked)
            (partial,) = tmp_path.iterdir()
            assert len(lines_of(partial)) == t + 1
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
@pytest.mark.parametrize("form", ["jsonl", "csv", "npz"])
def test_a_full_disk_leaves_no_half_line(tmp_path, model, frames, form):
    import resource

    tracked = [(1, model(frames[0], dense=False)[0])]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with VideoNumbers(tmp_path / "o.mp4", (form,)) as numbers:
            numbers.add(0, 0, tracked)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
            with pytest.raises(OSError, match="too large"):
                [numbers.add(t, t / 25, tracked) for t in range(1, 100)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    path = tmp_path / f"o.{form}"
    if form == "npz":
        table = np.load(path)
        found = table["frame"].tolist()
        assert len(table["frame_time"]) == len(found)
    elif form == "csv":
        with path.open(encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        assert len({len(row) for row in table}) == 1 and None not in table[-1].values()
        found = [int(row["frame"]) for row in table]
    else:
        found = [line["frame"] for line in lines_of(path)]
    assert found == list(range(len(found))) and len(found) > 1


@pytest.mark.parametrize("room", [0, 2])
def test_a_full_disk_leaves_no_row_without_time_and_no_empty_file(
    tmp_path, model, frames, monkeypatch, room
):
    append, written = video_numbers._append, []

    def limited(file, content: bytes) -> None:
        if content.startswith(b"{"):
            if len(written) == room:
                raise OSError("full")
            written.append(content)
        append(file, content)

    monkeypatch.setattr(video_numbers, "_append", limited)
    (tmp_path / "o.jsonl").write_text("an earlier run's")
    tracked = [(1, model(frames[0], dense=False)[0])]
    with VideoNumbers(tmp_path / "o.mp4", ("jsonl", "npz")) as numbers:
        with pytest.raises(OSError, match="full"):
            [numbers.add(t, t / 25, tracked) for t in range(9)]
    if room:
        table = np.load(tmp_path / "o.npz")
        assert (
            len(table["frame"])
            == len(table["frame_time"])
            == len(lines_of(numbers.files[0]))
            == room
        )
    else:
        assert (tmp_path / "o.jsonl").read_text() == "an earlier run's"
        assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"] and not numbers.files


# ------------------------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "-f"),
        (["-f", "nothing.mp4"], "nothing.mp4: no such file"),
        (["-f", "."], "not a video file"),
        (["-f", "in.mp4", "-o", "in.mp4"], "is the video to read"),
        (["-f", "in.mp4", "-o", "o.gif"], ".mp4, .mov"),
        (["-f", "in.mp4", "-o", "folder.mp4"], "is a folder"),
        (["-f", "in.mp4", "-o", "in.mp4/o.mp4"], "in.mp4"),
        (["-f", "in.mp4", "--draw", "moustache"], "moustache"),
        (["-f", "in.mp4", "--save", "xml"], "jsonl, csv, npz"),
        (["-f", "in.mp4", "--smooth", "much"], "much"),
        (["-f", "in.mp4", "--detect-every", "0"], "1 or more, not '0'"),
        (["-f", "in.mp4", "--no-video"], "nothing to do"),
    ],
)
def test_wrong_usage(run, arguments, named):
    Path("in.mp4").touch()
    Path("folder.mp4").mkdir()
    code, output = run(*arguments)
    assert code == 2
    assert named in output
    assert sorted(path.name for path in Path().iterdir()) == ["folder.mp4", "in.mp4"]


@pytest.mark.parametrize("display", ["", ":0"])
def test_a_window_that_cannot_be_opened(run, monkeypatch, display):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    fault = cv2.error("The function is not implemented")
    monkeypatch.setattr(cv2, "namedWindow", Mock(side_effect=fault))
    code, output = run("-f", "0", "--show")
    assert code == 2
    assert "`make gui`" in output and "`gui` extra" in output
    assert ("this session has no display" in output) == (not display)


def test_the_window(run, frames, monkeypatch):
    """Shown without -o nothing is written; q ends."""
    write_film(Path("in.avi"), frames)
    shown = []
    monkeypatch.setattr(video, "check_window", lambda: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: ord("q") if len(shown) == 3 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *arguments: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append(None))
    code, output = run("-f", "in.avi", "--show")
    assert code == 0 and "3 of 3 frames" in output
    assert len(shown) == 4 and shown[-1] is None
    assert [path.name for path in Path().iterdir()] == ["in.avi"]


def test_help_imports_no_network():
    done = run_python("-X", "importtime", "video.py", "-h")
    assert done.returncode == 0
    assert "exit code: 0 all done" in done.stdout and "--draw" in done.stdout
    loaded = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "onnxruntime", "matplotlib", "trimesh"}


def test_a_video_that_cannot_be_replaced_is_kept_beside_the_old_one(tmp_path, monkeypatch):
    path, replace = tmp_path / "o.avi", os.replace
    path.write_bytes(b"open in a player")
    (tmp_path / "o_1.avi").touch()

    def refuse(source, target):
        if Path(target) == path:
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    writer = written(path, 5)
    message = writer.close()
    kept = tmp_path / "o_2.avi"
    assert message == f"{path}: cannot be replaced (Access is denied); the new video is {kept}"
    assert writer.path == kept and path.read_bytes() == b"open in a player"
    assert len(read_film(kept)) == 5
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "o_1.avi", kept]
