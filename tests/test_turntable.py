"""Turntables: what turns, how far, that it repeats, and that the files read back."""

from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image
from test_texture import TEXTURE, dome, psnr, true_texture

from utils.mesh_io import TexturedMesh
from utils.turntable import BACKGROUND, save_turntable, turntable_frames
from utils.video_io import VideoWriter

SIDE, COUNT = 96, 12


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    """The painted dome, the same on both sides, with a white upright line in its middle."""
    vertices, triangles, uv = dome(0)
    texture = true_texture().round().astype(np.uint8)
    texture[:, TEXTURE // 2 - 3 : TEXTURE // 2 + 3] = 255
    return TexturedMesh(vertices, triangles, uv, texture)


@pytest.fixture(scope="module")
def frames(mesh) -> list[np.ndarray]:
    return turntable_frames(mesh, SIDE, COUNT)


def columns(picture: np.ndarray) -> np.ndarray:
    """First and last column that is not background in a middle row, and the white line's."""
    row = picture[SIDE // 2].astype(int)
    drawn = np.flatnonzero(np.abs(row - BACKGROUND).max(1) > 8)
    return np.array([drawn[0], drawn[-1], np.flatnonzero(row.min(1) > 235).mean()])


def test_it_goes_to_the_left_and_to_the_right_and_repeats(frames):
    assert len(frames) == COUNT and {frame.shape for frame in frames} == {(SIDE, SIDE, 3)}
    line = np.array([columns(frame)[2] for frame in frames])
    assert line[0] == pytest.approx(line[6], abs=1e-9) and line[0] == pytest.approx(47.5, abs=1)
    assert (np.diff(line[:4]) < 0).all() and (np.diff(line[3:10]) > 0).all()
    assert (np.diff(line[9:]) < 0).all() and line[-1] > line[0]
    for i in range(7):  # there and back
        np.testing.assert_array_equal(frames[i], frames[(6 - i) % COUNT])
    steps = np.abs(np.diff(np.append(line, line[0])))
    assert steps[-1] == pytest.approx(steps[0], abs=0.6)  # no jerk where it begins again


def test_both_sides_are_mirrored_and_within_the_picture(frames):
    for i in range(1, 4):
        difference = np.abs(frames[i].astype(int) - frames[-i][:, ::-1])
        assert (difference.max(2) > 40).mean() < 0.02  # of the contours' pixels
    for frame in frames:
        edge = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert (edge == BACKGROUND).all()
        first, last, _ = columns(frame)
        assert (first + last) / 2 == pytest.approx(47.5, abs=2)


def test_the_turn_has_the_stated_angle(mesh):
    """A quarter turn's sine of the radius: where the white line comes to."""
    frames = turntable_frames(mesh, SIDE, 4, sway=30)
    radius = np.ptp(columns(frames[0])[:2]) / 2 / np.sin(np.radians(75))
    # about the dome's own axis it would go r sin 30; its middle is kept instead
    middle = (np.sin(np.radians(75 - 30)) + np.sin(np.radians(-75 - 30))) / 2 * radius
    moved = columns(frames[1])[2] - columns(frames[0])[2]
    assert moved == pytest.approx(-radius * np.sin(np.radians(30)) - middle, abs=1.5)


def test_it_may_sway_to_the_other_side_first(mesh):
    there, back = (turntable_frames(mesh, SIDE, 4, sway=sway) for sway in (30, -30))
    for i in range(4):
        np.testing.assert_array_equal(there[i], back[-i])


def test_a_mesh_in_the_model_frame_looks_the_same(mesh, frames):
    for a, b in zip(frames, turntable_frames(mesh.to_frame("model"), SIDE, COUNT), strict=True):
        assert (np.abs(a.astype(int) - b).max(2) > 2).mean() < 0.01


def test_the_gif_reads_back_and_repeats(frames, tmp_path):
    paths = [tmp_path / "new" / "a.gif", tmp_path / "b.GIF"]
    for path in paths:
        save_turntable(path, frames)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as clip:
        assert clip.n_frames == COUNT
        assert clip.info["loop"] == 0  # forever
        for i, frame in enumerate(frames):
            clip.seek(i)
            assert clip.info["duration"] == 40
            assert psnr(np.asarray(clip.convert("RGB"))[..., ::-1], frame) > 30
    assert [path.name for path in paths[0].parent.iterdir()] == ["a.gif"]


def test_the_mp4_reads_back(frames, tmp_path):
    path = tmp_path / "a.mp4"
    try:
        save_turntable(path, frames)
    except ValueError as error:
        pytest.skip(str(error))
    clip = cv2.VideoCapture(str(path))
    assert clip.isOpened() and clip.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    for frame in frames:
        done, picture = clip.read()
        assert done and psnr(picture, frame) > 25
    assert not clip.read()[0]
    clip.release()
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt])
def test_an_mp4_that_is_not_finished_leaves_nothing(frames, tmp_path, monkeypatch, error):
    monkeypatch.setattr(VideoWriter, "write", Mock(side_effect=error))
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        save_turntable(tmp_path / "a.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_an_mp4_is_closed_ends_the_program(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(VideoWriter, "_check", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_turntable(tmp_path / "a.mp4", frames)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_an_opencv_without_the_codec_says_so(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.video_io.shutil.which", lambda name: None)

    class Writer:
        def __init__(self, *_) -> None: ...

        def isOpened(self) -> bool:
            return False

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    with pytest.raises(ValueError, match="--turntable gif"):
        save_turntable(tmp_path / "a.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(mesh, frames, tmp_path):
    with pytest.raises(ValueError, match="without a texture"):
        turntable_frames(mesh.replace(texture=None))
    with pytest.raises(ValueError, match="at least 2 pixels and 2 frames, not 96 and 1"):
        turntable_frames(mesh, SIDE, 1)
    with pytest.raises(ValueError, match=r"a\.avi: a turntable is written as \.gif or \.mp4"):
        save_turntable(tmp_path / "a.avi", frames)
    with pytest.raises(ValueError, match="without frames"):
        save_turntable(tmp_path / "a.gif", [])
    assert not list(tmp_path.iterdir())
