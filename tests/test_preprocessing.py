"""Roi boxes, crops and frames, against the formulas and a slow twin."""

import cv2
import numpy as np
import pytest

from utils.preprocessing import (
    MAX_ROI_SIDE,
    boxes_to_roi_boxes,
    crop_faces,
    crop_to_image,
    normalize_crops,
)


def noise(height: int = 90, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3)).astype(np.uint8)


# --------------------------------------------------------------------------------------- roi boxes


@pytest.mark.parametrize(
    ("box", "roi_box"),
    [
        ([10, 20, 30, 60], [-4, 16, 44, 64]),  # half side floor(1.2 * 40 / 2) = 24
        ([10, 20, 30, 61], [-4, 16.5, 44, 64.5]),  # floor(24.6) = 24
        ([10, 20, 30, 62], [-5, 16, 45, 66]),  # floor(25.2) = 25
        ([0, 0, 500, 10], [244, -1, 256, 11]),  # the width does not count
        ([-30.5, -7, -20.5, -5], [-26.5, -7, -24.5, -5]),  # half side 1
    ],
)
def test_roi_box_formula(box, roi_box):
    found = boxes_to_roi_boxes(np.float32([[*box, 0.9]]))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [roi_box])


def test_no_boxes():
    assert boxes_to_roi_boxes(np.zeros((0, 5))).shape == (0, 4)
    assert crop_faces(noise(), np.zeros((0, 4))).shape == (0, 120, 120, 3)


@pytest.mark.parametrize(
    "bad",
    [
        [0, 0, 10, np.nan],
        [np.nan, 0, 10, 10],
        [-np.inf, 0, np.inf, 10],
        [0, -np.inf, 10, np.inf],
        [0, np.inf, 10, np.inf],
        [0, 0, 10, 0],  # empty
        [0, 0, 10, 1.5],  # half side 0
        [0, 10, 10, 0],  # upside down
        [5, 0, 5, 10],
        [9, 0, 5, 10],
        [0, 0, 10, MAX_ROI_SIDE],  # 1.2 times as high
        [0, 0, 1e30, 100],
        [1e18, 0, 2e18, 100],
    ],
)
def test_boxes_that_cannot_be_cropped_are_named(bad):
    with pytest.raises(ValueError, match="cannot be cropped") as caught:
        boxes_to_roi_boxes(np.array([[0, 0, 10, 10], bad], dtype=np.float64))
    assert str(float(bad[0])) in str(caught.value)


@pytest.mark.parametrize("shape", [(4,), (3, 3), (1, 2, 4)])
def test_boxes_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        boxes_to_roi_boxes(np.ones(shape))


# ------------------------------------------------------------------------------------------- crops


def crop_slowly(image: np.ndarray, roi_box) -> np.ndarray:
    """Every pixel of the rounded roi by itself, zero outside, then the bilinear resize."""
    x1, y1, x2, y2 = (round(float(v)) for v in roi_box)  # Python rounds half to even
    window = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    for row in range(y2 - y1):
        for column in range(x2 - x1):
            y, x = y1 + row, x1 + column
            if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                window[row, column] = image[y, x]
    return cv2.resize(window, (120, 120), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    "roi_box",
    [
        [10, 20, 50, 60],  # inside
        [-10, 20, 30, 60],  # over each border
        [50, 20, 90, 60],
        [10, -15, 50, 25],
        [10, 70, 50, 110],
        [-30, -20, 100, 110],  # over all of them
        [0, 0, 70, 90],  # exactly the picture
        [10.5, 11.5, 40.5, 41.5],  # half to even: 10, 12, 40, 42
        [-0.5, -1.5, 20.5, 19.5],
        [69, 89, 79, 99],  # one pixel of the picture
        [3, 4, 5, 6],
    ],
)
def test_crops_against_the_slow_twin(roi_box):
    image = noise()
    crop = crop_faces(image, np.array([roi_box]))[0]
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, crop_slowly(image, roi_box))


def test_a_roi_of_the_crops_size_is_copied():
    image = noise(200, 300)
    np.testing.assert_array_equal(
        crop_faces(image, np.array([[100, 50, 220, 170]]))[0], image[50:170, 100:220]
    )


@pytest.mark.parametrize(
    "roi_box",
    [[-50, 10, -10, 50], [70, 10, 110, 50], [10, -60, 40, -30], [10, 90, 40, 120], [5, 5, 5, 5]],
)
def test_a_roi_outside_the_picture_is_black(roi_box):
    assert not crop_faces(noise(), np.array([roi_box])).any()


def test_views_and_single_pixels_can_be_cropped():
    image, roi_boxes = noise(), np.array([[-5, -5, 35, 35]])
    mirrored = image[:, ::-1]
    expected = crop_faces(np.ascontiguousarray(mirrored), roi_boxes)
    np.testing.assert_array_equal(crop_faces(mirrored, roi_boxes), expected)
    assert crop_faces(np.full((1, 1, 3), 255, np.uint8), np.array([[0, 0, 2, 2]])).max() == 255


def test_many_crops_are_the_single_ones_and_the_photo_stays():
    image, roi_boxes = noise(), np.array([[0, 0, 20, 20], [-9, 5, 31, 45], [200, 0, 220, 20]])
    before = image.copy()
    crops = crop_faces(image, roi_boxes)
    for crop, roi_box in zip(crops, roi_boxes, strict=True):
        np.testing.assert_array_equal(crop, crop_faces(image, roi_box[None])[0])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3), (9, 9, 4)])
def test_other_pictures_give_no_black_crops(shape, dtype):
    picture = np.full(shape, 200, dtype)
    if (shape, dtype) == ((9, 9, 3), np.uint8):
        assert crop_faces(picture, np.array([[1, 1, 7, 7]])).min() == 200
    else:
        with pytest.raises(ValueError, match="uint8 BGR, got"):
            crop_faces(picture, np.array([[1, 1, 7, 7]]))


def test_network_input():
    crops = np.zeros((2, 120, 120, 3), np.uint8)
    crops[1, 3, 5] = (0, 128, 255)
    images = normalize_crops(crops)
    for wrong in (crops / 255, crops[:, :100], crops.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match="expected uint8 crops of shape"):
            normalize_crops(wrong)
    assert images.shape == (2, 3, 120, 120) and images.dtype == np.float32
    assert images.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(images[1, :, 3, 5], (np.float32([0, 128, 255]) - 127.5) / 128)


# ------------------------------------------------------------------------------------------ frames


def test_crop_to_image():
    points = np.float32([[[0, 120, 60], [0, 120, 30], [0, 1, -2]]])  # (1, 3, 3)
    found = crop_to_image(points, np.array([[10.25, -20, 250.25, 40]]))  # scales 2 and 0.5
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, [[[10.25, 250.25, 130.25], [-20, 40, -5], [0, 1.25, -2.5]]], atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16])
def test_crop_to_image_of_whole_and_half_numbers(dtype):
    points = np.array([[[0, 60, 119], [3, 60, 119], [0, 1, 2]]])
    boxes = np.array([[2001.25, -20, 2181.25, 160]])  # scale 1.5
    found = crop_to_image(points.astype(dtype), boxes)
    np.testing.assert_allclose(found, crop_to_image(points.astype(np.float64), boxes))


def test_crop_to_image_in_two_dimensions_and_with_scores():
    points = np.random.default_rng(0).uniform(0, 120, (4, 3, 7))
    boxes = np.random.default_rng(1).uniform(0, 90, (4, 5)) + [0, 0, 100, 100, 0]
    found = crop_to_image(points, boxes)
    np.testing.assert_array_equal(crop_to_image(points[:, :2], boxes), found[:, :2])
    back = (found - np.pad(boxes[:, :2], ((0, 0), (0, 1)))[..., None]) * 120
    sides = boxes[:, 2:4] - boxes[:, :2]
    back /= np.column_stack([sides, sides.mean(1)])[..., None]
    np.testing.assert_allclose(back, points, atol=1e-9)


@pytest.mark.parametrize("side", [60, 120, 240, 301])
def test_a_landmark_on_a_pixel_stays_on_it(side):
    """What is drawn at a point is found at its image."""
    image = np.zeros((400, 400, 3), np.uint8)
    cv2.circle(image, (130, 150), side // 20, (255, 255, 255), -1)
    roi_boxes = np.array([[80.0, 125, 80 + side, 125 + side]])
    crop = crop_faces(image, roi_boxes)[0, :, :, 0].astype(float)
    y, x = np.mgrid[:120, :120]
    centre = [(crop * grid).sum() / crop.sum() for grid in (x, y)]
    centre = np.array(centre).reshape(1, 2, 1)
    exact = crop_to_image(centre, roi_boxes, pixel_centres=True)[0, :, 0]
    np.testing.assert_allclose(exact, [130, 150], atol=0.12)
    # the published mapping ignores that pixel centres lie half a pixel in
    ignored = (side / 120 - 1) / 2
    np.testing.assert_allclose(crop_to_image(centre, roi_boxes)[0, :, 0], exact - ignored)
