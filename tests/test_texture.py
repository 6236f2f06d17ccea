"""Textures: published UV maps, and unwrapping on meshes and photos whose answer is known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import ROOT, asset

import Sim3DR
from synergy3DMM import SynergyNet
from utils.assets import STARTER_FACE_MODEL
from utils.inference import Face, faces_from_parameters, frontal, with_expression
from utils.morphable_model import load_morphable_model
from utils.pictures import read_image
from utils.render import render_textured
from utils.texture import (
    boundary_loops,
    extend,
    face_mesh,
    fill_smoothly,
    kept_part,
    mouth_lid,
    read_uv_map,
    sample_uv_map,
    textured_face,
    unwrap_photo,
    uv_map_path,
    uv_mapped_face,
    uv_to_texture,
    with_geometry,
)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def face_of(face_model, scale: float = 1.0) -> Face:
    """The mean face, frontal, in an image of 160 x 160 times ``scale`` pixels."""
    span = np.ptp(face_model.mean[1])
    camera = np.zeros((3, 4), np.float32)
    camera[:, :3] = np.eye(3) * 100 * scale / span
    camera[:2, 3] = 80 * scale
    camera[1, 3] = 121 - 80 * scale
    middle = (face_model.mean.min(1) + face_model.mean.max(1)) / 2
    camera[:, 3] -= camera[:, :3] @ middle
    parameters = np.concatenate([camera.ravel(), np.zeros(50, np.float32)])[None]
    box = np.array([[0, 0, 120, 120, 1.0]])
    return faces_from_parameters(face_model, parameters, box[:, :4], box, dense=True)[0]


# ----------------------------------------------------------------------------- published UV maps


@pytest.mark.parametrize(
    ("photo", "expected"),
    [("art-all/122.png", "122_fake_B.png"), ("real/7_real_A.png", "7_fake_B.png")],
)
def test_names_of_uv_maps(tmp_path, photo, expected):
    assert uv_map_path(photo, tmp_path) == tmp_path / expected


@pytest.mark.parametrize("size", [256, 100])
def test_uv_maps_are_sampled_as_published(size):
    rng = np.random.default_rng(0)
    uv_map = rng.integers(0, 256, (size, size, 3), np.uint8)
    uv = np.concatenate([rng.random((50, 2)), [[0, 0], [1, 1], [0, 1]]]).astype(np.float32)
    flipped = np.flipud(uv_map)
    for (u, v), color in zip(uv, sample_uv_map(uv_map, uv), strict=True):
        np.testing.assert_array_equal(
            color * 255, flipped[int(v * np.float32(size - 1)), int(u * np.float32(size - 1))]
        )


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (None, "missing"),
        (b"text", "not a picture"),
        (np.zeros((256, 200, 3), np.uint8), "has 200x256 pixels"),
    ],
)
def test_wrong_uv_maps_are_named_with_what_helps(tmp_path, picture, reason):
    path = tmp_path / "122_fake_B.png"
    if isinstance(picture, np.ndarray):
        cv2.imwrite(str(path), picture)
    elif picture is not None:
        path.write_bytes(picture)
    with pytest.raises((FileNotFoundError, ValueError), match=reason) as caught:
        read_uv_map(path)
    assert str(path) in str(caught.value)
    assert "--texture photo" in str(caught.value)


def test_known_colours_come_to_known_vertices(face_model, tmp_path):
    """A UV map with a spot of its own colour around each of ten vertices."""
    kept, triangles = kept_part(face_model)
    uv_map = np.full((256, 256, 3), 9, np.uint8)
    chosen = np.arange(0, len(kept), len(kept) // 10)[:10]
    colors = np.random.default_rng(3).integers(50, 256, (10, 3), np.uint8)
    for vertex, color in zip(kept[chosen], colors, strict=True):
        u, v = face_model.uv[vertex]
        x, y = int(u * 255), 255 - int(v * 255)
        uv_map[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = color
    cv2.imwrite(str(tmp_path / "a_fake_B.png"), uv_map)
    face = face_of(face_model)
    mesh = uv_mapped_face(face, read_uv_map(tmp_path / "a_fake_B.png"))
    np.testing.assert_array_equal(mesh.vertices, face.vertices.T[kept])
    np.testing.assert_array_equal(mesh.triangles, triangles)
    np.testing.assert_array_equal(np.round(mesh.colors[chosen] * 255), colors)
    # and through the texture, at the place that a viewer looks up
    x, y = np.round(uv_to_texture(mesh.uv[chosen], 256)).astype(int).clip(0, 255).T
    np.testing.assert_array_equal(mesh.texture[y, x], colors)


# -------------------------------------------------------------------------------------- the mouth


def grid_with_a_hole() -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates (n, 2) and triangles of a 12 x 12 grid without its middle 4 x 2 cells."""
    x, y = np.meshgrid(np.arange(13), np.arange(13))
    corner = np.array([r * 13 + c for r in range(12) for c in range(12)])
    row, column = corner // 13, corner % 13
    corner = corner[~((row >= 5) & (row < 7) & (column >= 4) & (column < 8))]
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + 13], 1),
            np.stack([corner + 1, corner + 14, corner + 13], 1),
        ]
    )
    return np.stack([x.ravel(), y.ravel()], 1) / 12.0, triangles.astype(np.int32)


def areas(uv: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = uv[triangles].transpose(1, 0, 2)
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


def test_the_lid_closes_the_mouth_and_nothing_else():
    uv, triangles = grid_with_a_hole()
    assert sorted(len(loop) for loop in boundary_loops(triangles)) == [12, 48]
    lips = np.array([[4, 6], [5, 5], [6, 5], [7, 5], [8, 6], [7, 7], [6, 7], [5, 7]]) / 12
    lid = mouth_lid(triangles, uv, lips)
    assert [len(loop) for loop in boundary_loops(np.concatenate([triangles, lid]))] == [48]
    assert areas(uv, lid).sum() == pytest.approx(8 / 144)
    assert np.sign(areas(uv, lid)).min() >= 0  # wound as the grid
    closed = np.concatenate([triangles, lid])
    assert len(mouth_lid(closed, uv, lips)) == 0


# ----------------------------------------------------------------------------------------- filling


def test_filling_keeps_what_is_known_and_stays_in_its_range():
    rng = np.random.default_rng(0)
    values = rng.random((37, 50, 2)).astype(np.float32) + 3
    known = np.zeros((37, 50), bool)
    known[10:20, 5:30] = True
    for filled in (fill_smoothly(values, known.astype(np.float32)), extend(values, known)):
        assert filled.shape == values.shape and filled.dtype == np.float32
        np.testing.assert_allclose(filled[known], values[known], atol=1e-5)
        assert values.min() - 1e-4 <= filled.min() and filled.max() <= values.max() + 1e-4
    assert np.isfinite(fill_smoothly(values, np.zeros((37, 50), np.float32))).all()
    picture = rng.integers(0, 256, (37, 50, 3), np.uint8)
    np.testing.assert_array_equal(fill_smoothly(picture, known)[known], picture[known])
    with np.errstate(all="raise"):  # as a program may have it; share * mean is below float32
        assert np.isfinite(fill_smoothly(1e-20 * values, np.full((37, 50), 1e-20))).all()


def test_extending_goes_on_with_what_lies_at_the_edge():
    values = np.zeros((64, 64, 1), np.float32)
    values[:32] = 1
    known = np.zeros((64, 64), bool)
    known[:, :20] = True
    filled = extend(values, known)[..., 0]
    assert (filled[:20, 20:] > 0.9).all() and (filled[-20:, 20:] < 0.1).all()


# -------------------------------------------------------------------- unwrapping: a known answer


SIDE, TEXTURE = 240, 128
BACKGROUND = (200, 90, 40)  # no colour of the paint


def dome(yaw: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half of an upright cylinder with round ends, turned: vertices (n, 3), triangles, uv."""
    u, v = np.meshgrid(np.linspace(0, 1, 61), np.linspace(0, 1, 61))
    angle = (u - 0.5) * np.radians(150)
    radius = 80 * np.sqrt(1 - (0.7 * (2 * v - 1)) ** 2)
    x, z = radius * np.sin(angle), radius * np.cos(angle)
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    # no vertex on a pixel's centre: the published rule leaves such pixels out
    points = [
        SIDE / 2 + 0.37 + cos * x - sin * z,
        SIDE / 2 + 1 / 6 - 160 * (v - 0.5),
        sin * x + cos * z,
    ]
    vertices = np.stack(points, -1).reshape(-1, 3).astype(np.float32)
    a = (np.arange(60)[:, None] * 61 + np.arange(60)).ravel()
    triangles = np.concatenate(
        [np.stack([a, a + 61, a + 1], 1), np.stack([a + 1, a + 61, a + 62], 1)]
    )
    return vertices, triangles.astype(np.int32), np.stack([u, v], -1).reshape(-1, 2)


def paint_dome(uv: np.ndarray) -> np.ndarray:
    """(n, 3) colours in [0, 1], the same on both sides."""
    u, v = np.abs(uv[:, 0] - 0.5), uv[:, 1]
    waves = [np.cos(9 * u + 4 * v), np.sin(17 * u - 9 * v), np.cos(14 * v) * np.cos(11 * u)]
    return 0.5 + 0.22 * np.stack(waves, 1)


def dome_photo(yaw: float, light: float = 0.0) -> tuple[np.ndarray, ...]:
    """A photo of the painted dome and the dome; ``light``: how much brighter its right side is."""
    vertices, triangles, uv = dome(yaw)
    colors = paint_dome(uv) * (1 + light * (uv[:, :1] - 0.5))
    background = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    return Sim3DR.rasterize(vertices, triangles, colors, background), vertices, triangles, uv


def true_texture(light: float = 0.0) -> np.ndarray:
    column, row = np.meshgrid(np.arange(TEXTURE), np.arange(TEXTURE))
    uv = np.stack([(column + 0.5) / TEXTURE, 1 - (row + 0.5) / TEXTURE], -1).reshape(-1, 2)
    colors = paint_dome(uv) * (1 + light * (uv[:, :1] - 0.5))
    return 255 * colors.reshape(TEXTURE, TEXTURE, 3)


def test_a_frontal_photo_gives_back_the_paint_and_the_photo():
    photo, *mesh = dome_photo(0)
    texture, confidence = unwrap_photo(photo, *mesh, TEXTURE)
    seen = confidence > 0.5
    assert 0.5 < seen.mean() < 0.8
    assert psnr(texture[seen], true_texture()[seen]) > 38
    assert confidence[64, 64] > 0.95 and 0 <= confidence.min() and confidence.max() <= 1
    again = render_textured(*mesh, texture, np.zeros_like(photo))
    covered = Sim3DR.zbuffer(mesh[0], mesh[1], SIDE, SIDE).covered
    assert psnr(again[covered], photo[covered]) > 28


def test_a_mesh_of_no_size_has_no_texture_and_doubles_are_taken():
    photo, vertices, triangles, uv = dome_photo(0)
    texture, confidence = unwrap_photo(photo, np.full_like(vertices, 100), triangles, uv, TEXTURE)
    assert not confidence.any() and texture.shape == (TEXTURE, TEXTURE, 3)
    expected = unwrap_photo(photo, vertices, triangles, uv, TEXTURE, (vertices, triangles))
    doubles = (vertices.astype(np.float64), triangles)
    found = unwrap_photo(photo, vertices, triangles, uv, TEXTURE, doubles)
    for array, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize("yaw", [-45, 45])
@pytest.mark.parametrize("light", [0, 0.4])
def test_the_hidden_side_is_the_visible_one_mirrored_in_its_own_light(yaw, light):
    photo, *mesh = dome_photo(yaw, light)
    texture, confidence = unwrap_photo(photo, *mesh, TEXTURE)
    hidden = slice(8, 40) if yaw > 0 else slice(-40, -8)  # more than 90 degrees off the camera
    rows = slice(20, -20)
    assert (confidence[rows, hidden] <= 0.5).all()
    assert (confidence[rows, 44:84] > 0.3).all()
    truth = true_texture(light)
    assert psnr(texture[rows, 44:84], truth[rows, 44:84]) > 34
    assert psnr(texture[rows, hidden], truth[rows, hidden]) > (32 if light == 0 else 20)
    # no seam: nowhere a step that the paint itself does not have
    step = np.abs(np.diff(texture[rows, 4:-4].astype(float), axis=1)).max()
    assert step <= np.abs(np.diff(truth[rows], axis=1)).max() + 8


def test_what_stands_in_front_does_not_get_into_the_texture():
    photo, vertices, triangles, uv = dome_photo(0)
    pole = np.array([[150, 90, 200], [150, 150, 200], [170, 90, 200], [170, 150, 200]], np.float32)
    photo = Sim3DR.rasterize(pole, [[0, 1, 2], [2, 1, 3]], np.tile([[0, 0, 1.0]], (4, 1)), photo)
    both = np.concatenate([vertices, pole])
    scene = both, np.concatenate([triangles, np.array([[0, 1, 2], [2, 1, 3]]) + len(vertices)])
    texture, confidence = unwrap_photo(photo, vertices, triangles, uv, TEXTURE, scene)
    inside = slice(30, -30), slice(30, -30)
    assert psnr(texture[inside], true_texture()[inside]) > 30
    careless, _ = unwrap_photo(photo, vertices, triangles, uv, TEXTURE)
    assert psnr(careless[inside], true_texture()[inside]) < 20


@pytest.mark.parametrize("zoom", [1, 4])
def test_a_panorama_gives_the_texture_of_its_part(zoom):
    """OpenCV's ``remap`` takes no picture as wide as this one."""
    photo, vertices, triangles, uv = dome_photo(25)
    photo = cv2.resize(photo, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    vertices = vertices * np.float32(zoom)
    expected, _ = unwrap_photo(photo, vertices, triangles, uv, 128)
    wide = np.zeros((len(photo), 33_000, 3), np.uint8)
    wide[:, 20_000 : 20_000 + photo.shape[1]] = photo
    found, _ = unwrap_photo(wide, vertices + np.float32([20_000, 0, 0]), triangles, uv, 128)
    assert psnr(found, expected) > 45


@pytest.mark.parametrize("yaw", [-25, 25])
def test_a_fit_that_reaches_beyond_the_face_takes_no_background(yaw):
    """By six pixels, on the side that is turned away."""
    photo, vertices, triangles, uv = dome_photo(yaw)
    beyond = vertices - np.float32([np.copysign(6, yaw), 0, 0])
    texture, _ = unwrap_photo(photo, beyond, triangles, uv, TEXTURE)
    away = np.abs(texture.astype(int) - BACKGROUND).max(axis=2)
    assert away[20:-20].min() > 25


def test_parts_outside_the_photo_are_mirrored():
    photo, vertices, triangles, uv = dome_photo(0)
    cut = photo[:, : SIDE // 2 + 20]
    texture, confidence = unwrap_photo(cut, vertices, triangles, uv, TEXTURE)
    missing = slice(30, -30), slice(80, 100)
    assert (confidence[missing] <= 0.5).all()
    assert psnr(texture[missing], true_texture()[missing]) > 30


# ----------------------------------------------------------------------------------- face models


@pytest.fixture(params=["published", "starter"])
def real_face_model(request):
    starter = request.param == "starter"
    return load_morphable_model(STARTER_FACE_MODEL if starter else asset("3dmm_data"))


def test_published_and_starter_face_models(real_face_model):
    """Both go through the same code: kept part, lid, unwrapping, outward triangles."""
    face = face_of(real_face_model)
    y, x = np.mgrid[0:160, 0:160]
    photo = np.stack([40 + x, 60 + y, 128 + 60 * np.sin((x - 80) ** 2 / 400)], -1).astype(np.uint8)
    mesh = textured_face(face, photo, 256)
    kept, triangles = kept_part(real_face_model)
    np.testing.assert_array_equal(mesh.vertices, face.vertices.T[kept])
    np.testing.assert_array_equal(mesh.uv, real_face_model.uv[kept])
    lid = mesh.triangles[len(triangles) :]
    np.testing.assert_array_equal(mesh.triangles[: len(triangles)], triangles)
    assert len(boundary_loops(mesh.triangles)) == len(boundary_loops(triangles)) - 1
    assert 50 < len(lid) < 200
    assert mesh.normals[:, 2].mean() > 0.3  # outward, towards the viewer
    again = render_textured(mesh.vertices, mesh.triangles, mesh.uv, mesh.texture, photo)
    covered = Sim3DR.zbuffer(mesh.vertices, mesh.triangles, 160, 160).covered
    assert covered.sum() > 4000
    assert psnr(again[covered], photo[covered]) > 30
    model = mesh.to_frame("model")  # metres
    expected = real_face_model.mean.T[kept] / 1e6
    np.testing.assert_allclose(model.vertices, expected, atol=1e-6)
    assert model.normals[:, 2].mean() > 0.3


def test_changed_faces_of_published_and_starter_face_models(real_face_model):
    """The fitted face's colours on its frontal, neutral face, which is the model's mean here."""
    model, face = real_face_model, face_of(real_face_model)
    kept, _ = kept_part(model)
    expression = with_expression(face, 1.0, np.full(10, 0.3 * model.param_std[-10:].mean()))
    uv_map = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mesh = uv_mapped_face(expression, uv_map)
    assert np.abs(mesh.vertices - face.vertices.T[kept]).max() > 0.1
    changed = with_geometry(mesh, frontal(with_expression(expression, 0)))
    np.testing.assert_allclose(changed.vertices, face.vertices.T[kept], atol=1e-3)
    metres = changed.to_frame("model").vertices
    np.testing.assert_allclose(metres, model.mean.T[kept] / 1e6, atol=1e-6)
    for name in ("triangles", "uv", "colors", "texture"):
        assert getattr(changed, name) is getattr(mesh, name)


def test_the_astronaut_reproduced():
    """Photo to texture to render in the same pose."""
    photo = read_image(ROOT / "img" / "astronaut.jpg")
    model = SynergyNet(device="cpu")
    (face,) = model(photo)
    mesh = textured_face(face, photo, 512)
    again = render_textured(mesh.vertices, mesh.triangles, mesh.uv, mesh.texture, 0 * photo)
    covered = Sim3DR.zbuffer(mesh.vertices, mesh.triangles, *photo.shape[:2]).covered
    assert covered.sum() > 8000
    assert psnr(again[covered], photo[covered]) >= 28
    assert mesh.confidence.shape == (512, 512)
    np.testing.assert_array_equal(mesh.texture.shape, (512, 512, 3))


def test_another_geometry_in_either_frame(face_model):
    face = face_of(face_model)
    larger = face_of(face_model, 2.0)
    mesh = uv_mapped_face(face, np.zeros((16, 16, 3), np.uint8))
    image = with_geometry(mesh, larger)
    metres = with_geometry(mesh.to_frame("model"), larger)
    assert image.frame == "image" and metres.frame == "model"
    np.testing.assert_allclose(image.vertices, face_mesh(larger).vertices)
    np.testing.assert_allclose(metres.vertices, image.to_frame("model").vertices, atol=1e-7)
    np.testing.assert_array_equal(metres.triangles, mesh.to_frame("model").triangles)
    with pytest.raises(ValueError, match="not of the same face model"):
        with_geometry(mesh.replace(vertices=mesh.vertices[1:]), larger)


def test_faces_that_cannot_be_textured(face_model):
    face, photo = face_of(face_model), np.zeros((160, 160, 3), np.uint8)
    with pytest.raises(ValueError, match="dense=True"):
        face_mesh(replace(face, vertices=None))
    with pytest.raises(ValueError, match="no texture coordinates"):
        textured_face(replace(face, face_model=replace(face_model, uv=None)), photo)
    with pytest.raises(ValueError, match="not symmetric"):
        textured_face(replace(face, face_model=replace(face_model, uv=face_model.uv**2)), photo)
    with pytest.raises(ValueError, match="16 to 8192 texels a side, not 8"):
        textured_face(face, photo, 8)


@pytest.mark.parametrize("suffix", [".obj", ".glb", ".html"])
def test_a_mesh_without_a_photo_needs_no_texture_coordinates(face_model, tmp_path, suffix):
    face = face_of(replace(face_model, uv=None))
    (path, *_) = face.save(tmp_path / f"face{suffix}")
    assert path.stat().st_size > 1000
    if suffix == ".obj":
        assert path.read_text().count("v ") == len(kept_part(face_model)[0])


def test_a_mesh_of_more_vertices_than_a_picture_has_columns(face_model):
    many = replace(face_model, kept_vertices=np.tile(face_model.kept_vertices, 300))  # 36,000
    photo = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    expected = textured_face(face_of(face_model), photo, 64).colors
    colors = textured_face(face_of(many), photo, 64).colors
    np.testing.assert_array_equal(colors, np.tile(expected, (300, 1)))


def test_a_model_without_a_kept_part_is_kept_whole(face_model):
    whole = replace(face_model, kept_vertices=None, kept_triangles=None)
    mesh = face_mesh(face_of(whole))
    assert len(mesh.vertices) == whole.num_vertices
    np.testing.assert_array_equal(mesh.triangles, whole.triangles)
