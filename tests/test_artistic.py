"""artistic.py: which files it writes, where colours come from, messages and exit codes."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from test_inference import BrightSquares, MeanColours, photo

import artistic
from utils import artistic_script, assets
from utils.inference import Face, FacePipeline, expression_of, frontal, with_expression
from utils.texture import kept_part, sample_uv_map
from utils.turntable import turntable_frames


class Model:
    """``SynergyNet``'s surface, with a detector of white squares and a made-up network."""

    def __init__(self, face_model) -> None:
        self.face_model = face_model
        self.pipeline = FacePipeline(BrightSquares(), MeanColours(), face_model)

    def __call__(self, image: np.ndarray, dense: bool = True) -> list:
        return self.pipeline([image], dense=dense)[0]


@pytest.fixture
def run(call, monkeypatch, face_model, tmp_path):
    """Runs the script with a made-up model in ``tmp_path``: exit code and all that was printed."""

    def run(*arguments) -> tuple[int, str]:
        return call(artistic.main, *arguments)

    monkeypatch.chdir(tmp_path)
    for name in ("UV_FOLDER", "PRECROPPED_UV_FOLDER"):  # as if tmp_path were the repository
        folder = getattr(artistic_script, name).relative_to(assets.ROOT)
        monkeypatch.setattr(artistic_script, name, folder)
    monkeypatch.setattr(artistic, "load_model", lambda options: Model(face_model))
    monkeypatch.setattr(artistic_script, "finished_photos", lambda *_: None)
    return run


def write_picture(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    return path


def uv_map(seed: int = 0, size: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def written(folder: Path = Path("inference_output")) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_obj(name: str, folder: str = "inference_output/obj") -> tuple[np.ndarray, np.ndarray]:
    lines = [line.split() for line in Path(folder, name).read_text().splitlines()]
    assert {line[0] for line in lines} == {"v", "f"}
    vertices, faces = ([line[1:] for line in lines if line[0] == kind] for kind in "vf")
    return np.array(vertices, float), np.array(faces, int) - 1


# ------------------------------------------------------------------------------ the published jobs


def test_the_published_job(run, face_model):
    """The README's folders: two faces in one picture, one in the next, none in the third."""
    write_picture(Path("art-all/122.png"), photo((20, 30, 40), (150, 120, 31)))
    write_picture(Path("art-all/7.png"), photo((5, 5, 60)))
    write_picture(Path("art-all/nobody.png"), photo())
    for i, name in enumerate(("122", "7")):
        write_picture(Path(f"uv_art/{name}_fake_B.png"), uv_map(i))
    code, output = run("-f", "art-all", "--png")
    assert code == 0
    assert f"{Path('art-all/nobody.png')}: no face found" in output
    assert "2 photos with faces written to inference_output, 1 photo without a face" in output
    assert written() == {"obj/122.obj", "obj/122_1.obj", "obj/7.obj"}
    kept, triangles = kept_part(face_model)
    for name, seed in (("122", 0), ("122_1", 0), ("7", 1)):
        vertices, faces = read_obj(f"{name}.obj")
        expected = sample_uv_map(uv_map(seed), face_model.uv[kept])[:, ::-1]  # RGB
        np.testing.assert_allclose(vertices[:, 3:], expected, atol=1e-6)
        np.testing.assert_array_equal(faces, triangles[:, ::-1])
    assert not np.allclose(read_obj("122.obj")[0], read_obj("122_1.obj")[0])


def test_the_image_frame_is_the_photo(run, face_model):
    image = photo((20, 30, 40))
    write_picture(Path("a.png"), image)
    write_picture(Path("uv_art/a_fake_B.png"), uv_map())
    assert run("-f", "a.png", "--frame", "image")[0] == 0
    vertices, faces = read_obj("a.obj")
    (face,) = Model(face_model)(image)
    kept, triangles = kept_part(face_model)
    np.testing.assert_allclose(vertices[:, :3], face.vertices.T[kept], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(faces, triangles)


def test_the_precropped_job(run, face_model):
    image = photo((20, 30, 40), size=(256, 256))
    write_picture(Path("texture_data/real/3_real_A.png"), image)
    write_picture(Path("texture_data/uv_real/3_fake_B.png"), uv_map())
    arguments = ("-f", "texture_data/real", "--precropped", "--uv-dir", "texture_data/uv_real")
    code, _ = run(*arguments, "--frame", "image")
    assert code == 0
    assert written() == {"obj/3_real_A.obj", "rendering_overlay/3_real_A.jpg"}
    face = artistic_script.face_of_crop(Model(face_model).pipeline, image)
    np.testing.assert_array_equal(face.roi_box, [0, 0, 256, 256])
    kept, _ = kept_part(face_model)
    vertices = read_obj("3_real_A.obj")[0]
    np.testing.assert_allclose(vertices[:, :3], face.vertices.T[kept], rtol=1e-5, atol=1e-4)
    overlay = cv2.imread("inference_output/rendering_overlay/3_real_A.jpg")
    assert overlay.shape == image.shape and np.abs(overlay.astype(int) - image).mean() > 5


def test_a_precropped_photo_must_be_square(run):
    write_picture(Path("wide.png"), photo(size=(200, 256)))
    code, output = run("-f", "wide.png", "--precropped")
    assert code == 1
    assert "failed: wide.png: a pre-cropped photo is square" in output and "256x200" in output
    assert not written()


# ----------------------------------------------------------------------- the photo's own texture


def test_photo_texture_in_every_format(run, face_model):
    write_picture(Path("a.png"), photo((20, 30, 40), (150, 120, 31)))
    options = ("--texture", "photo", "--format", "obj,glb,ply", "--texture-size", "64")
    code, output = run("-f", "a.png", *options)
    assert code == 0, output
    assert written() == {
        f"{place}{suffix}"
        for name in ("a", "a_1")
        for place, suffix in (
            (f"obj/{name}", ".obj"),
            (f"obj/{name}", ".mtl"),
            (f"obj/{name}", "_texture.png"),
            (f"glb/{name}", ".glb"),
            (f"ply/{name}", ".ply"),
            (f"confidence/{name}", ".png"),
        )
    }
    kept, _ = kept_part(face_model)
    for form in ("obj", "glb", "ply"):
        path = f"inference_output/{form}/a.{form}"
        (mesh,) = trimesh.load_scene(path, process=False, maintain_order=True).geometry.values()
        assert len(mesh.vertices) == len(kept)
    assert cv2.imread("inference_output/confidence/a.png", cv2.IMREAD_UNCHANGED).shape == (64, 64)


def test_a_uv_map_is_the_texture_of_a_glb(run):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    write_picture(Path("uv_art/a_fake_B.png"), uv_map())
    assert run("-f", "a.png", "--format", "glb,obj")[0] == 0
    assert written() == {"obj/a.obj", "glb/a.glb"}
    (mesh,) = trimesh.load_scene("inference_output/glb/a.glb", process=False).geometry.values()
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_array_equal(texture[..., ::-1], uv_map())


# ------------------------------------------------------------------------ expression and pose


@pytest.fixture
def write(run, face_model):
    """Runs the script on a photo of one face: its OBJ's vertices with colours, and the face."""
    image = photo((20, 30, 40))
    write_picture(Path("a.png"), image)
    write_picture(Path("uv_art/a_fake_B.png"), uv_map())
    write_picture(Path("other.png"), photo((150, 120, 31), (30, 10, 50)))

    def write(*arguments) -> tuple[np.ndarray, Face]:
        code, output = run("-f", "a.png", "--frame", "image", *arguments)
        assert code == 0, output
        lines = Path("inference_output/obj/a.obj").read_text().splitlines()
        vertices = [line.split()[1:] for line in lines if line.startswith("v ")]
        return np.array(vertices, float), Model(face_model)(image)[0]

    return write


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        (["--expression", "1"], lambda face: face),
        (["--neutral"], lambda face: with_expression(face, 0)),
        (["--expression", "0"], lambda face: with_expression(face, 0)),
        (["--expression", "1.5"], lambda face: with_expression(face, 1.5)),
        (["--frontal"], frontal),
        (
            ["--frontal", "--neutral"],
            lambda face: frontal(with_expression(face, 0)),
        ),
    ],
)
@pytest.mark.parametrize("source", ["uv", "photo"])
def test_changed_geometry_carries_the_photos_colours(write, face_model, arguments, change, source):
    texture = ("--texture", source, "--texture-size", "64")
    plain, face = write(*texture)
    changed, _ = write(*texture, *arguments)
    kept, _ = kept_part(face_model)
    expected = change(face).vertices.T[kept]
    np.testing.assert_allclose(changed[:, :3], expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(changed[:, 3:], plain[:, 3:])


@pytest.mark.parametrize("factor", [1, 2])
def test_the_best_face_of_another_photo_gives_its_expression(write, face_model, factor):
    changed, face = write("--expression-from", "other.png", "--expression", str(factor))
    best = Model(face_model)(cv2.imread("other.png"))[0]
    expected = with_expression(face, factor, expression_of(best))
    kept, _ = kept_part(face_model)
    np.testing.assert_allclose(changed[:, :3], expected.vertices.T[kept], rtol=1e-5, atol=1e-3)
    assert np.abs(expected.vertices - face.vertices).max() > 0.1


def test_a_photo_without_a_face_gives_no_expression(run):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    write_picture(Path("nobody.png"), photo())
    Path("text.png").write_text("no picture")
    for name, reason in (("nobody.png", "no face found"), ("text.png", "not a picture")):
        code, output = run("-f", "a.png", "--texture", "photo", "--expression-from", name)
        assert code == 2
        (line,) = output.strip().splitlines()
        assert name in line and reason in line
        assert not written()


def test_turntables_are_upright_whatever_the_mesh(run, monkeypatch):
    def small(mesh):
        meshes.append(mesh)
        return turntable_frames(mesh, 32, 4)

    meshes = []
    monkeypatch.setattr(artistic_script, "turntable_frames", small)
    write_picture(Path("a.png"), photo((20, 30, 40), (150, 120, 31)))
    write_picture(Path("uv_art/a_fake_B.png"), uv_map())
    assert run("-f", "a.png", "--turntable", "gif")[0] == 0
    assert written() == {"obj/a.obj", "obj/a_1.obj", "turntable/a.gif", "turntable/a_1.gif"}
    assert run("-f", "a.png", "--turntable", "gif", "--frontal")[0] == 0
    for turned, upright in zip(meshes[:2], meshes[2:], strict=True):
        np.testing.assert_allclose(turned.vertices, upright.vertices, atol=1e-3)


# ---------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(("picture", "reason"), [(None, "missing"), (uv_map()[:, :99], "99x256")])
def test_a_wrong_uv_map_is_this_photos_failure(run, picture, reason):
    for name in ("a", "b"):
        write_picture(Path(f"in/{name}.png"), photo((20, 30, 40)))
    write_picture(Path("uv_art/b_fake_B.png"), uv_map())
    if picture is not None:
        write_picture(Path("uv_art/a_fake_B.png"), picture)
    code, output = run("-f", "in")
    assert code == 1
    assert f"{Path('uv_art/a_fake_B.png')}: " in output and reason in output
    assert "--texture photo" in output and "Traceback" not in output
    assert written() == {"obj/b.obj"}


def test_a_second_face_does_not_overwrite_another_photo(run):
    write_picture(Path("in/a.png"), photo((20, 30, 40), (150, 120, 31)))
    write_picture(Path("in/a_1.png"), photo((20, 30, 40)))
    for name in ("a", "a_1"):
        write_picture(Path(f"uv_art/{name}_fake_B.png"), uv_map())
    assert run("-f", "in")[0] == 0
    assert written() == {"obj/a.obj", "obj/a_1.obj", "obj/a_1_.obj"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "-f"),
        (["-f", "nothing.png"], "nothing.png: no such file or folder"),
        (["-f", ".", "--format", "clay"], "clay"),
        (["-f", ".", "--texture", "paint"], "paint"),
        (["-f", ".", "--frame", "camera"], "camera"),
        (["-f", ".", "--texture", "photo", "--uv-dir", "x"], "--uv-dir is for --texture uv"),
        (
            ["-f", ".", "--texture-size", "4"],
            "a whole number, 16 to 8192, not '4'",
        ),
        (["-f", ".", "--expression", "2.5"], "--expression: expected a number, 0 to 2, not '2.5'"),
        (["-f", ".", "--expression", "nan"], "--expression: expected a number, 0 to 2, not 'nan'"),
        (["-f", ".", "--neutral", "--expression", "2"], "not allowed with argument --neutral"),
        (["-f", ".", "--expression-from", "b.jpg"], "--expression-from: b.jpg: no such file"),
        (["-f", ".", "--expression-from", "a.png", "--neutral"], "no effect on a neutral face"),
        (["-f", ".", "--turntable", "webm"], "webm"),
    ],
)
def test_wrong_options(run, arguments, named):
    write_picture(Path("a.png"), photo())
    code, output = run(*arguments)
    assert code == 2
    assert named in output
    assert not written()


def test_a_face_model_without_texture_coordinates(run, face_model, monkeypatch):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    monkeypatch.setattr(artistic, "load_model", lambda options: Model(replace(face_model, uv=None)))
    code, output = run("-f", "a.png", "--texture", "photo")
    assert code == 2
    assert "no texture coordinates" in output and face_model.source in output


def test_without_the_bundled_face_model_another_one_serves(run, monkeypatch, face_model):
    monkeypatch.setattr(assets, "STARTER_FACE_MODEL", Path(face_model.source) / "face.npz")
    write_picture(Path("a.png"), photo((20, 30, 40)))
    write_picture(Path("uv_art/a_fake_B.png"), uv_map())
    code, output = run("-f", "a.png")
    assert code == 0, output
    assert "UV maps" not in output and written() == {"obj/a.obj"}


def test_published_uv_maps_are_not_for_the_bundled_face_model(run, monkeypatch, face_npz):
    monkeypatch.setattr(assets, "STARTER_FACE_MODEL", face_npz)
    write_picture(Path("a.png"), photo((20, 30, 40)))
    write_picture(Path("uv_art/a_fake_B.png"), uv_map())
    write_picture(Path("mine/a_fake_B.png"), uv_map())
    for arguments in (("--texture", "uv"), ("--uv-dir", str(Path("uv_art").absolute()))):
        code, output = run("-f", "a.png", *arguments)
        assert code == 2 and not written()
        assert "uv_art: published UV maps belong to the published face model" in output
    code, output = run("-f", "a.png", "--uv-dir", "mine")
    assert code == 0 and written() == {"obj/a.obj"}
    assert "mine: its UV maps are read as made for the bundled face model" in output
    code, output = run("-f", "a.png", "--texture", "photo")
    assert code == 0 and "UV maps" not in output
    by_photo = written()
    shutil.rmtree("inference_output")
    code, output = run("-f", "a.png")  # what works on a fresh machine
    assert code == 0 and "the photo's own (--texture photo)" in output and written() == by_photo
