"""Whatever is put in at the doors to native code: a named error, or what a slow twin says.

The examples are the same in every run; ``FUZZ=10000`` tries that many of each kind, at random.
"""

import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import Sim3DR
from FaceBoxes.nms import nms
from Sim3DR import fallback
from utils.preprocessing import CROP_SIZE, boxes_to_roi_boxes, crop_faces

EXAMPLES = int(os.environ.get("FUZZ", "60"))
settings.register_profile(
    "here",
    max_examples=EXAMPLES,
    derandomize="FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("here")

# the odd numbers that break things, beside any others
SMALL, LARGE = map(float, np.float32([1e-40, 3e38]))  # older hypothesis wants what the type has
odd = st.sampled_from([0.0, -0.0, 0.5, 1.0, SMALL, 1e7, -1e7, LARGE, np.inf, -np.inf, np.nan])
numbers = st.one_of(st.floats(-20, 40, width=32), odd)
tame = st.floats(-20, 40, width=32)


def attempt(function, *arguments, **options) -> tuple[object, str]:
    """What a function returns and "", or None and how it refuses; no other error is expected."""
    try:
        return function(*arguments, **options), ""
    except (ValueError, IndexError) as error:
        return None, str(error)


@st.composite
def meshes(draw, coordinates=numbers, wild_indices=True):
    """Vertices (n, 3), triangles (t, 3) of which some may name no vertex, height and width."""
    n, t = draw(st.integers(0, 8)), draw(st.integers(0, 12))
    vertices = draw(arrays(np.float32, (n, 3), elements=coordinates))
    highest = n - 1 + (3 if wild_indices else 0)
    lowest = -2 if wild_indices else 0
    if highest < lowest:
        t, highest = 0, lowest
    triangles = draw(arrays(np.int32, (t, 3), elements=st.integers(lowest, highest)))
    return vertices, triangles, draw(st.integers(0, 40)), draw(st.integers(0, 40))


@given(meshes(), st.integers(1, 3))
def test_meshes_are_refused_by_name_or_painted(mesh, threads):
    vertices, triangles, height, width = mesh
    result, reason = attempt(Sim3DR.zbuffer, vertices, triangles, height, width, threads=threads)
    if reason:
        assert re.search("finite|index|vert|height|width|pixel|beyond|must", reason), reason
        return
    assert np.isfinite(vertices).all()
    assert result.depth.shape == result.triangle.shape == (height, width)
    shown = result.triangle[result.triangle >= 0]
    assert (shown < len(triangles)).all()
    assert np.isfinite(Sim3DR.vertex_normals(vertices, triangles)).all()


# found by 20,000 random ones: opposite infinities as weights of a corner
THIN = np.array([[0, 1, 0], [4e-45, 0, 0], [0, 0, 0]], np.float32), np.array([[0, 1, 2]], np.int32)


@example((*THIN, 0, 1), 1)
@given(meshes(coordinates=tame, wild_indices=False), st.integers(1, 3))
def test_the_kernel_is_its_numpy_twin(mesh, threads):
    vertices, triangles, height, width = mesh
    height, width = height + 1, width + 1
    colors = np.random.default_rng(0).random((len(vertices), 3), np.float32)

    def pictures():
        z = Sim3DR.zbuffer(vertices, triangles, height, width, threads=threads)
        painted = Sim3DR.rasterize(
            vertices, triangles, colors, height=height, width=width, threads=threads
        )
        return z.depth, z.triangle, painted

    ours = pictures()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sim3DR, "_kernel", fallback)
        for mine, twin in zip(ours, pictures(), strict=True):
            np.testing.assert_array_equal(mine, twin)


def slow_nms(detections: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-detections[:, 4], kind="stable"):
        a = detections[i].astype(np.float64)
        for j in kept:
            b = detections[j].astype(np.float64)
            # as published, a box covers the pixels of both its corners
            sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2]) + 1
            common = np.clip(sides, 0, None).prod()
            area = sum((box[2:4] - box[:2] + 1).prod() for box in (a, b))
            if common and common / (area - common) >= threshold:
                break
        else:
            kept.append(int(i))
    return kept


whole = st.integers(0, 30).map(float)  # overlaps without rounding, ties among them


@given(arrays(np.float32, st.tuples(st.integers(0, 12), st.just(5)), elements=whole))
def test_nms_is_its_slow_twin(rows):
    rows[:, 2:4] += rows[:, :2]
    assert nms(rows, 0.3).tolist() == slow_nms(rows, 0.3)


@given(
    arrays(np.float32, st.tuples(st.integers(0, 6), st.just(5)), elements=numbers),
    st.one_of(st.floats(0, 1), odd),
)
def test_nms_of_anything(rows, threshold):
    kept, reason = attempt(nms, rows, threshold)
    if reason:
        assert re.search("finite|threshold", reason), reason
        return
    assert len(set(kept.tolist())) == len(kept) <= len(rows)
    assert (np.diff(rows[kept, 4]) <= 0).all()


@given(
    arrays(np.float64, st.tuples(st.integers(0, 4), st.just(4)), elements=numbers),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_boxes_are_refused_by_name_or_cropped(boxes, height, width):
    image = np.full((height, width, 3), 7, np.uint8)
    roi_boxes, reason = attempt(boxes_to_roi_boxes, boxes)
    if reason:
        assert "box" in reason
        return
    crops = crop_faces(image, roi_boxes)
    assert crops.shape == (len(boxes), CROP_SIZE, CROP_SIZE, 3)
    assert crops.max(initial=0) <= 7
