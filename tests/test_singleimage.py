"""singleImage.py --save: which files it writes for which faces, and what is in them."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from conftest import run_python
from test_artistic import Model, write_picture, written
from test_inference import photo

import singleImage
from utils import results
from utils.texture import kept_part, textured_face

PUBLISHED = ("rendering_overlay", "landmarks", "poses")


@pytest.fixture
def run(call, monkeypatch, face_model, tmp_path):
    """Runs the script with a made-up model in ``tmp_path``: exit code and all that was printed."""

    def run(*arguments, model=face_model) -> tuple[int, str]:
        monkeypatch.setattr(singleImage, "load_model", lambda options: Model(model))
        monkeypatch.setattr(singleImage, "finished_photos", lambda *_: None)
        return call(singleImage.main, *arguments)

    monkeypatch.setattr(  # a smaller texture
        "utils.texture.textured_face", lambda *arguments: textured_face(*arguments, size=64)
    )
    monkeypatch.chdir(tmp_path)
    return run


def test_everything_that_can_be_saved(run, face_model):
    image = photo((20, 30, 40), (150, 120, 31))
    write_picture(Path("in/a.png"), image)
    write_picture(Path("in/a_1.png"), photo())
    code, output = run("-f", "in", "--save", ",".join(singleImage.FORMATS))
    assert code == 0, output
    for_faces = {"obj": ".obj .mtl _texture.png", "uv": ".png", "confidence": ".png"}
    for_faces |= {form: f".{form}" for form in ("glb", "ply", "html")}
    assert written() == (
        {f"{folder}/a.jpg" for folder in PUBLISHED}
        | {f"numbers/{name}.{form}" for name in ("a", "a_1") for form in ("npz", "json", "csv")}
        | {"depth/a.png", "pncc/a.png", "contact_sheet.jpg", "faces.csv"}
        | {
            f"{folder}/{name}{suffix}"
            for name in ("a", "a_1_")  # a_1 is the other photo
            for folder, suffixes in for_faces.items()
            for suffix in suffixes.split()
        }
    )
    folders = {name.split("/")[0] for name in written() if "/" in name}
    assert folders == results.FOLDERS - {"drawn", "turntable"}
    out = Path("inference_output")
    faces = Model(face_model)(image)
    for face, name in zip(faces, ("a", "a_1_"), strict=True):
        expected = textured_face(face, image, 64)
        texture = cv2.imread(str(out / "uv" / f"{name}.png"))
        np.testing.assert_array_equal(texture, expected.texture)
        (mesh,) = trimesh.load_scene(out / f"glb/{name}.glb", process=False).geometry.values()
        assert len(mesh.vertices) == len(kept_part(face_model)[0])
        in_mesh = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))[..., ::-1]
        np.testing.assert_array_equal(in_mesh, texture)
    depth = cv2.imread(str(out / "depth/a.png"), cv2.IMREAD_UNCHANGED)
    pncc = cv2.imread(str(out / "pncc/a.png"), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint8 and depth.shape == image.shape[:2]
    assert pncc.shape == image.shape
    assert 0 < (depth > 0).mean() < 1 and not pncc[depth == 0].any()


def test_one_picture_of_what_is_to_be_drawn(run):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    code, output = run("-f", "a.png", "--draw", "mesh,landmarks,pose")
    assert code == 0, output
    assert written() == {"drawn/a.jpg"}
    for wrong in (["moustache"], ["none"], ["none,pose", "--save", "csv"]):
        code, output = run("-f", "a.png", "--draw", *wrong)
        assert code == 2 and wrong[0].split(",")[0] in output


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("csv", "faces.csv numbers/a.csv numbers/b.csv"),
        ("json,csv", "faces.csv numbers/a.csv numbers/a.json numbers/b.csv numbers/b.json"),
        ("depth", "depth/a.png depth/b.png"),
        ("uv", "uv/a.png uv/b.png confidence/a.png confidence/b.png"),
        ("ply", "ply/a.ply ply/b.ply"),
    ],
)
def test_no_pictures_but_what_is_saved(call, monkeypatch, tmp_path, face_model, form, expected):
    model = Model(face_model)
    model.files, model.description = [], "made up"
    monkeypatch.setattr("utils.photo_script.open_model", lambda options, threads: model)
    monkeypatch.setattr("utils.texture.textured_face", lambda *a: textured_face(*a, size=64))
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_picture(Path(f"in/{name}.png"), photo((20, 30, 40)))
    for said in ("2 photos with faces", "2 photos finished before", "1 photo finished before"):
        command = ["-f", "in", "--draw", "none", "--save", form, "--resume"]
        code, output = call(singleImage.main, *command)
        assert code == 0 and said in output, output
        assert written() == {"finished.jsonl", *expected.split()}
        if "2 photos finished" in said:
            Path("inference_output", expected.split()[-1].replace("confidence", "uv")).unlink()


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        ([], True),
        (["--draw", "box,landmarks,pose", "--save", "json,csv"], False),
        (["--draw", "box,depth"], True),
        (["--draw", "pose", "--save", "npz"], True),
        (["--draw", "pose", "--save", "uv"], True),
        (["--draw", "none", "--save", "json,csv"], False),
    ],
    ids=str,
)
def test_the_dense_mesh_is_made_where_something_needs_it(run, monkeypatch, options, dense):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    asked = []
    find_faces = Model.__call__

    def watched(model, image, dense=True):
        asked.append(dense)
        return find_faces(model, image, dense)

    monkeypatch.setattr(Model, "__call__", watched)
    code, output = run("-f", "a.png", *options)
    assert code == 0, output
    assert asked == [dense]


def test_contact_sheets_show_every_photo_with_a_face_in_order(tmp_path):
    sheets = results.ContactSheets(tmp_path)
    full = sheets.COLUMNS * sheets.ROWS
    for i in range(full + 2):
        picture = np.full((50 + i, 80, 3), 3 * i, np.uint8)
        sheets.add(f"photo {i}", None if i == 1 else sheets.cell(picture))
    assert [path.name for path in tmp_path.iterdir()] == ["contact_sheet.jpg"]  # full, so written
    sheets.write()
    sheets.write()  # nothing is left
    assert written(tmp_path) == {"contact_sheet.jpg", "contact_sheet_2.jpg"}
    page = cv2.imread(str(tmp_path / "contact_sheet.jpg"))
    pitch = page.shape[1] // sheets.COLUMNS
    middles = page[sheets.CELL // 2, pitch // 2 :: pitch, 0].astype(int)
    np.testing.assert_allclose(middles, [0, 6, 9, 12, 15, 18], atol=2)


def test_a_resumed_run_shows_no_old_picture_of_a_photo_without_a_face(
    call, monkeypatch, face_model, tmp_path
):
    model = Model(face_model)
    model.files, model.description = [], "made up"
    monkeypatch.setattr("utils.photo_script.open_model", lambda options, threads: model)
    monkeypatch.chdir(tmp_path)

    def captions(*arguments: str) -> list[str]:
        """Of the contact sheet that a run writes."""
        shown = []
        monkeypatch.setattr(
            results, "contact_sheet", lambda cells, *rest: shown.extend(rest[-1]) or cells[0]
        )
        code, output = call(singleImage.main, "-f", "in", *arguments)
        assert code == 0, output
        return shown

    for name in ("a", "b"):
        write_picture(Path(f"in/{name}.png"), photo((20, 30, 40)))
    assert captions() == ["a", "b"]
    write_picture(Path("in/a.png"), photo())  # nobody there any more
    assert captions() == ["b"]
    assert Path("inference_output/rendering_overlay/a.jpg").exists()
    assert captions("--resume") == ["b"]


def test_only_what_is_asked_for(run):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    published = {f"{folder}/a.jpg" for folder in PUBLISHED}
    assert run("-f", "a.png")[0] == 0
    assert written() == published
    assert run("-f", "a.png", "--save", "pncc")[0] == 0
    assert written() == published | {"pncc/a.png"}


@pytest.mark.parametrize("form", results.TEXTURED_FORMATS)
def test_a_face_model_without_texture_coordinates(run, face_model, form):
    write_picture(Path("a.png"), photo((20, 30, 40)))
    bare = replace(face_model, uv=None)
    code, output = run("-f", "a.png", "--save", form, model=bare)
    assert code == 2
    assert "no texture coordinates" in output and face_model.source in output
    assert not Path("inference_output").exists()
    if form == "obj":  # what needs none is written
        assert run("-f", "a.png", "--save", "depth,pncc,json", model=bare)[0] == 0


def test_what_starting_the_script_does_not_load():
    """Wrong usage is said at once, and most runs write no mesh."""
    code = (
        "import sys, singleImage; singleImage.parse_options(sys.argv[1:]);"
        "print({'torch', 'trimesh', 'PIL', 'scipy', 'html', 'utils.texture'} & set(sys.modules))"
    )
    arguments = ["-f", "img", "--save", "obj,html,uv"]
    done = run_python("-c", code, *arguments)
    assert done.stdout == "set()\n", done.stderr
