"""The overlay: what is blended, what stays, and what it costs; depth, PNCC, textures."""

import numpy as np
import pytest

import Sim3DR
from utils.render import (
    normalized_coordinate_code,
    render_depth,
    render_mesh_overlay,
    render_pncc,
    render_textured,
)

SQUARE = np.float32([[0, 10, 10, 0], [0, 0, 10, 10], [0, 1, 2, 1]])  # (3, 4)
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])
WHITE = Sim3DR.Lighting(ambient=1, directional=0, specular=0)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def at(x: float, y: float, size: float = 1) -> np.ndarray:
    return SQUARE * np.float32(size) + np.float32([[x], [y], [0]])


def test_overlay_is_six_tenths_render_and_four_tenths_photo():
    image = photo()
    texture = np.random.default_rng(1).random((4, 3))
    overlay = render_mesh_overlay(image, [at(20, 15)], TRIANGLES, texture=texture)
    vertices = at(20, 15).T
    colors = Sim3DR.shade(vertices, Sim3DR.vertex_normals(vertices, TRIANGLES), texture=texture)
    covered = Sim3DR.zbuffer(vertices, TRIANGLES, 40, 60).covered
    render = Sim3DR.rasterize(vertices, TRIANGLES, colors, image)
    assert 90 <= covered.sum() <= 121
    np.testing.assert_array_equal(overlay[~covered], image[~covered])
    expected = 0.6 * render[covered] + 0.4 * image[covered]
    assert np.abs(overlay[covered] - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("alpha", [0, 1])
def test_alpha_limits(alpha):
    image = photo()
    overlay = render_mesh_overlay(image, [at(20, 15)], TRIANGLES, WHITE, alpha)
    if alpha == 0:
        np.testing.assert_array_equal(overlay, image)
    else:
        assert (overlay[16:24, 21:29] >= 254).all()  # the weights add to one but for rounding


def test_a_later_face_is_painted_over_an_earlier_one():
    image, black = photo(), np.zeros((4, 3))
    first, second = at(10, 10), at(15, 12) - np.float32([[0], [0], [99]])  # the second far behind
    both = render_mesh_overlay(image, [first, second], TRIANGLES, texture=black)
    alone = [
        render_mesh_overlay(image, [face], TRIANGLES, texture=black) for face in (first, second)
    ]
    covered = Sim3DR.zbuffer(second.T, TRIANGLES, 40, 60).covered
    np.testing.assert_array_equal(both, np.where(covered[..., None], alone[1], alone[0]))


def test_no_face_and_faces_outside_leave_the_photo():
    image = photo()
    outside = [at(-30, 5), at(70, 5), at(5, -30), at(5, 50), at(1e6, 1e6)]
    for faces in ([], outside):
        overlay = render_mesh_overlay(image, faces, TRIANGLES)
        np.testing.assert_array_equal(overlay, image)
        assert not np.shares_memory(overlay, image)


def test_face_cut_by_the_border_equals_the_middle_of_a_larger_photo():
    large = photo(80, 100)
    face = at(-7, -6, 6)
    small = render_mesh_overlay(large[20:60, 20:80], [face], TRIANGLES)
    whole = render_mesh_overlay(large, [face + np.float32([[20], [20], [0]])], TRIANGLES)
    np.testing.assert_array_equal(small, whole[20:60, 20:80])


@pytest.mark.parametrize("layout", ["flipped", "strided", "read-only"])
def test_photo_of_any_layout_stays_as_it_is(layout):
    image = photo()
    expected = render_mesh_overlay(image, [at(20, 15)], TRIANGLES)
    given = {"flipped": image[::-1].copy()[::-1], "strided": np.repeat(image, 2, 1)[:, ::2]}
    view = given.get(layout, image)
    view.setflags(write=False)
    np.testing.assert_array_equal(render_mesh_overlay(view, [at(20, 15)], TRIANGLES), expected)


def test_only_the_region_of_the_face_is_rasterised(monkeypatch):
    sizes = []
    rasterize = Sim3DR._kernel.rasterize

    def recorded(*arguments):
        sizes.extend(picture.shape[:2] for picture in arguments if np.ndim(picture) == 3)
        return rasterize(*arguments)

    monkeypatch.setattr(Sim3DR._kernel, "rasterize", recorded)
    render_mesh_overlay(np.zeros((2160, 3840, 3), np.uint8), [at(1000, 900)], TRIANGLES)
    assert sizes == [(11, 11)] * 2  # of the photo and of the overlay


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((9, 9), np.uint8)}, "image must be"),
        ({"image": np.zeros((9, 9, 4), np.uint8)}, "image must be"),
        ({"image": np.zeros((9, 9, 3))}, "image must be"),
        ({"image": None}, "image must be"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": np.nan}, "alpha"),
        ({"faces_vertices": [SQUARE.T]}, "must be .3, N."),
        ({"faces_vertices": [SQUARE * np.nan]}, "finite"),
        ({"triangles": TRIANGLES + 9}, "index the 4 vertices"),
        ({"texture": np.ones((3, 3))}, "texture must be"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {"image": photo(), "faces_vertices": [at(5, 5)], "triangles": TRIANGLES}
    with pytest.raises(ValueError, match=message):
        render_mesh_overlay(**(arguments | changes))


# ------------------------------------------------------------------------------- depth and PNCC


def test_depth_is_linear_and_bright_where_near():
    """A plane, z from 0 to 2; a later face is painted over it on its own scale, though behind."""
    y, x = np.mgrid[0:40, 0:60]
    z = (x - 20 + y - 15) / 10
    covered = Sim3DR.zbuffer(at(20, 15).T, TRIANGLES, 40, 60).covered
    expected = np.where(covered, np.round(1 + 254 * z / 2), 0)
    depth = render_depth([at(20, 15)], TRIANGLES, 40, 60)
    assert depth.dtype == np.uint8 and depth.max() >= 230 and depth[covered].min() == 1
    assert np.abs(depth - expected).max() <= 1
    behind = at(25, 18) * np.float32([[1], [1], [7]]) - np.float32([[0], [0], [500]])
    both = render_depth([at(20, 15), behind], TRIANGLES, 40, 60)
    own = render_depth([at(25, 18)], TRIANGLES, 40, 60)
    assert np.abs(both - np.where(own > 0, own, depth).astype(int)).max() <= 1


def test_flat_absent_and_outside_faces_in_depth_and_pncc():
    flat = at(20, 15) * np.float32([[1], [1], [0]])
    assert set(np.unique(render_depth([flat], TRIANGLES, 40, 60))) == {0, 255}
    codes = np.ones((4, 3))
    for faces in ([], [at(-30, 5), at(70, 5)]):
        assert not render_depth(faces, TRIANGLES, 40, 60).any()
        assert not render_pncc(faces, TRIANGLES, codes, 40, 60).any()


def test_normalized_coordinate_code():
    code = normalized_coordinate_code(np.float32([[-2, 0, 2], [10, 30, 20], [5, 4, 3]]))
    np.testing.assert_array_equal(code, [[0, 0, 1], [0.5, 1, 0.5], [1, 0.5, 0]])


def test_pncc_says_where_on_the_mean_face_a_pixel_lies():
    codes = np.array([[0, 1, 0.2], [1, 1, 0.2], [1, 0, 0.2], [0, 0, 0.2]])  # of SQUARE's corners
    picture = render_pncc([at(20, 15)], TRIANGLES, codes, 40, 60).astype(int)
    covered = Sim3DR.zbuffer(at(20, 15).T, TRIANGLES, 40, 60).covered
    y, x = np.mgrid[0:40, 0:60]
    red, green = 255 * (x - 20) / 10, 255 * (25 - y) / 10
    expected = np.stack([np.full(x.shape, 51.0), green, red], 2)  # BGR
    assert np.abs(picture - expected)[covered].max() <= 1
    assert not picture[~covered].any()
    nearer = at(22, 15) + np.float32([[0], [0], [50]])
    both = render_pncc([nearer, at(20, 15)], TRIANGLES, codes, 40, 60)
    np.testing.assert_array_equal(both[covered], picture[covered])  # later over earlier


def test_pncc_of_the_mean_face_decodes_to_each_pixels_own_place(face_model):
    scale, origin = 40 / 70_000, np.array([[60.0], [70.0], [0.0]])
    vertices = face_model.mean * scale * np.float32([[1], [-1], [1]]) + origin
    codes = normalized_coordinate_code(face_model.mean)
    picture = render_pncc([vertices], face_model.triangles, codes, 140, 120)[..., ::-1] / 255
    y, x = np.nonzero(picture.any(2))
    low, span = face_model.mean.min(1), np.ptp(face_model.mean, axis=1)
    place = (picture[y, x] * span + low) * scale  # model frame, in pixels
    assert len(y) > 3000
    assert np.abs(place[:, 0] + 60 - x).max() < 0.5 and np.abs(70 - place[:, 1] - y).max() < 0.5


# ------------------------------------------------------------------------------------- textures


@pytest.mark.parametrize("supersampling", [1, 2])
def test_a_texture_as_large_as_its_square_is_copied(supersampling):
    texture = photo(10, 10)
    vertices = SQUARE.T + np.float32([19.5, 14.5, 0])  # outer edges of pixels 20..29, 15..24
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
    image = photo()
    painted = render_textured(vertices, TRIANGLES, uv, texture, image, supersampling)
    expected = image.copy()
    expected[15:25, 20:30] = texture
    outside = np.ones(image.shape[:2], bool)
    outside[15:25, 20:30] = False
    np.testing.assert_array_equal(painted[outside], image[outside])
    if supersampling == 1:  # more samples blur the texture
        inner = np.s_[15:25, 20:30]
        diagonal = np.eye(10, dtype=bool)  # on the edge of both triangles: left out by the rule
        difference = np.abs(painted[inner].astype(int) - expected[inner])
        assert difference[~diagonal].max() <= 1
