"""Mesh files: what trimesh reads back, frames, the published OBJ, the page that shows a mesh."""

import os
import sys
import time

import numpy as np
import pytest
import trimesh
from browser import chromium_page
from conftest import on_disk

from utils.draw import printable
from utils.mesh_io import TexturedMesh, save_mesh

SIZE = 8  # texels of the made-up texture


def dome(rows: int = 9) -> TexturedMesh:
    """A dome over a grid in the image frame, bulging towards the viewer, a texture on it."""
    y, x = np.mgrid[0:rows, 0:rows].reshape(2, -1) / (rows - 1)
    z = 30 * np.sin(np.pi * x) * np.sin(np.pi * y)
    vertices = np.stack([100 + 60 * x, 40 + 80 * y, z], 1).astype(np.float32)
    corner = (np.arange(rows - 1)[:, None] * rows + np.arange(rows - 1)).ravel()
    # right, then down: outward where y goes down and z comes towards the viewer
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + rows], 1),
            np.stack([corner + 1, corner + rows + 1, corner + rows], 1),
        ]
    ).astype(np.int32)
    uv = np.stack([x, 1 - y], 1).astype(np.float32)
    texture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    column, row = np.clip(uv * (SIZE, -SIZE) + (0, SIZE), 0, SIZE - 1).astype(int).T
    return TexturedMesh(
        vertices=vertices,
        triangles=triangles,
        uv=uv,
        texture=texture,
        colors=texture[row, column].astype(np.float32) / 255,
        origin=np.array([130.0, 80.0, 0.0]),
        pixels_per_metre=500.0,
    )


def outward(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(T,) z of each triangle's normal by the right-hand rule."""
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    return np.cross(b - a, c - a)[:, 2]


def read(path) -> trimesh.Trimesh:
    scene = trimesh.load_scene(path, process=False, maintain_order=True)
    (mesh,) = scene.geometry.values()
    return mesh


# ------------------------------------------------------------------------------------------ frames


def test_frames_are_inverse_metric_and_outward():
    mesh = dome()
    model = mesh.to_frame("model")
    assert model.to_frame("model") is model
    np.testing.assert_allclose(
        model.vertices, (mesh.vertices - (130, 80, 0)) * (1, -1, 1) / 500, atol=1e-6
    )
    for one in (mesh, model):
        assert (outward(one.vertices, one.triangles) > 0).all()
        assert (one.normals[:, 2] > 0).all()
    back = model.to_frame("image")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-4)
    np.testing.assert_array_equal(back.triangles, mesh.triangles)


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("frame", ["image", "model"])
@pytest.mark.parametrize("suffix", [".obj", ".glb", ".ply"])
@pytest.mark.parametrize("textured", [True, False])
def test_read_back_equal(tmp_path, suffix, frame, textured):
    if textured and suffix == ".obj" and sys.getfilesystemencoding() != "utf-8":
        pytest.skip("trimesh looks for the texture under a name in UTF-8")
    mesh = dome() if textured else dome().replace(texture=None)
    folder = tmp_path / on_disk("a face “1”")
    written = save_mesh(folder / on_disk(f"Zoë's face{suffix}"), mesh, frame)
    assert sorted(written) == sorted(folder.iterdir())  # and nothing partial
    expected, found = mesh.to_frame(frame), read(written[0])
    np.testing.assert_allclose(found.vertices, expected.vertices, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.faces, expected.triangles)
    assert (outward(found.vertices, found.faces) > 0).all()
    if textured or suffix != ".obj":  # the published OBJ has no normals
        np.testing.assert_allclose(found.vertex_normals, expected.normals, atol=2e-4)
    if textured and suffix != ".ply":
        np.testing.assert_allclose(found.visual.uv, mesh.uv, atol=1e-6)
        material = found.visual.material
        picture = material.image if suffix == ".obj" else material.baseColorTexture
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[..., ::-1], mesh.texture)
    else:
        rgb = found.visual.vertex_colors[:, 2::-1]
        np.testing.assert_allclose(rgb, mesh.colors * 255, atol=0.51)


def test_known_colours_on_known_vertices_through_the_texture(tmp_path):
    """trimesh's own look-up, of vertices in the middle of texels."""
    mesh = dome()
    centre = (np.floor(mesh.uv * (SIZE - 1)) + 0.5) / SIZE  # exact for any bilinear reader
    column, row = (centre * (SIZE, -SIZE) + (0, SIZE)).astype(int).T
    mesh = mesh.replace(uv=centre.astype(np.float32))
    for suffix in (".obj", ".glb"):
        found = read(save_mesh(tmp_path / f"mesh{suffix}", mesh)[0])
        looked_up = found.visual.to_color().vertex_colors[:, 2::-1]
        # trimesh places texel centres at k / (size - 1): the nearest is the same one
        np.testing.assert_array_equal(looked_up, mesh.texture[row, column])


def test_the_published_obj(tmp_path):
    mesh = dome().replace(texture=None)
    (path,) = save_mesh(tmp_path / "face.obj", mesh, "image")
    lines = [line.split() for line in path.read_text().splitlines()]
    assert {line[0] for line in lines} == {"v", "f"}
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], float)
    np.testing.assert_allclose(vertices[:, :3], mesh.vertices, rtol=1e-6)
    np.testing.assert_allclose(vertices[:, 3:], mesh.colors[:, ::-1], atol=1e-6)  # RGB in [0, 1]
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int)
    np.testing.assert_array_equal(faces, mesh.triangles + 1)


def test_a_suffix_in_capitals_and_a_mesh_without_colours(tmp_path):
    bare = dome().replace(texture=None, colors=None)
    for name in ("a.OBJ", "a.glb", "a.ply"):
        assert len(read(save_mesh(tmp_path / name, bare)[0]).vertices) == len(bare.vertices)


def test_a_ply_needs_no_texture_coordinates(tmp_path):
    """Its colours are the vertices'; the texture is left out as ever."""
    (path,) = save_mesh(tmp_path / "a.ply", dome().replace(uv=None))
    assert len(read(path).vertices) == len(dome().vertices)


@pytest.mark.parametrize(
    ("name", "changes", "frame", "message"),
    [
        ("face.clay", {}, "model", r"face\.clay: .*\.obj, \.glb, \.ply, \.html"),
        ("face", {}, "model", r"\.obj, \.glb, \.ply"),
        ("face.obj", {}, "camera", "model or image, not 'camera'"),
        ("face.obj", {"uv": None}, "model", "no texture coordinates"),
        ("face.glb", {"uv": None}, "model", "no texture coordinates"),
    ],
)
def test_refused(tmp_path, name, changes, frame, message):
    with pytest.raises(ValueError, match=message):
        save_mesh(tmp_path / name, dome().replace(**changes), frame)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------- the page


def test_a_page_is_one_file_with_an_escaped_title(tmp_path):
    # markup, a group of re.sub, a byte that is no text
    name = on_disk("<b>O'Neil & \\1 “Zoë” caf") + os.fsdecode(b"\xe9")
    (path,) = save_mesh(tmp_path / f"{name}.html", dome())
    page = path.read_bytes().decode("utf-8")
    zoe = printable(on_disk("“Zoë”"))
    title = f"<title>&lt;b&gt;O&#x27;Neil &amp; \\1 {zoe} caf?</title>"
    assert page.count("<title>") == 1 and title in page
    head = page[: page.index("<body>")]
    assert "default-src 'none'" in head and "script" not in head.replace("script-src", "")
    assert not any(word in page for word in ("<script src", "<link", "<img", "import("))
    before = path.read_bytes()
    save_mesh(path, dome())
    assert path.read_bytes() == before  # the same mesh, the same file


def test_another_viewer_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(trimesh.viewer.notebook, "scene_to_html", lambda scene: "<html></html>")
    with pytest.raises(ValueError, match=f"trimesh {trimesh.__version__} writes another"):
        save_mesh(tmp_path / "a.html", dome())
    assert not list(tmp_path.iterdir())


def test_the_page_shows_the_mesh_turning_until_it_is_held(tmp_path):
    red, green, blue = (0, 0, 255), (0, 255, 0), (255, 0, 0)
    texture = np.array([[red, green], [blue, blue]], np.uint8).repeat(SIZE // 2, 0)
    mesh = dome().replace(texture=texture.repeat(SIZE // 2, 1))
    name = on_disk("a face & “1”")
    (path,) = save_mesh(tmp_path / f"{name}.html", mesh, "image")  # upright all the same
    angle = "Math.atan2(camera.position.x - controls.target.x, camera.position.z)"
    with chromium_page(tmp_path / "profile") as page:
        page.open(path)
        # held as soon as it has turned so far: slow machines may see no more of it
        page.wait_for(f"!!window.controls && {angle} > 0.4 && dispatchEvent(new Event('wheel'))")
        held = page.evaluate(angle)
        assert page.evaluate("document.title") == printable(name)
        time.sleep(0.3)
        assert page.evaluate(angle) == held
        picture = page.screenshot().astype(int)
        page.mouse("Pressed", 100, 75)
        page.mouse("Moved", 60, 75)
        page.wait_for(f"Math.abs({angle} - {held}) > 0.1")  # it follows the hand
        assert page.errors == []
        assert {url.split(":")[0] for url in page.requests} <= {"file", "data", "blob"}
        assert sum(url.startswith("file:") for url in page.requests) == 1
    drawn = (picture < 200).any(2)
    assert 0.1 < drawn.mean() < 0.9  # on white
    places = {}
    for name, channel in (("red", 2), ("green", 1), ("blue", 0)):
        others = np.delete(picture, channel, 2).max(2)
        places[name] = np.argwhere((picture[..., channel] > 150) & (others < 60))  # (n, 2) rows
    assert sum(map(len, places.values())) > 0.7 * drawn.sum()  # not the seams'
    assert places["red"][:, 1].mean() < places["green"][:, 1].mean()
    assert places["red"][:, 0].mean() < places["blue"][:, 0].mean()
    assert len(places["red"]) < 0.9 * len(places["green"])  # turned: its side is farther away
