"""FaceBoxes: anchors, coding, suppression, and the detector on made-up network output."""

import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_python
from reference import deterministic_state_dict

import FaceBoxes.nms as door
from FaceBoxes import FaceBoxes
from FaceBoxes.anchors import anchors, decode, encode
from FaceBoxes.network import FaceBoxesNet, Inception, load_weights
from FaceBoxes.nms import nms, soft_nms
from starter_kit.detector_losses import targets
from starter_kit.detector_pictures import paste
from tools import evaluate_detector
from tools.evaluate_detector import copies, judge, read_pictures

# ------------------------------------------------------------------------------ slow, plain twins


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = max(width, 0) * max(height, 0)
    area = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return common / (sum(area) - common) if common else 0.0


def plain_nms(rows, threshold):
    order = sorted(range(len(rows)), key=lambda i: -rows[i][4])
    kept = []
    for i in order:
        if all(iou(rows[i], rows[k]) < threshold for k in kept):
            kept.append(i)
    return kept


def plain_soft_nms(rows, sigma, overlap_threshold, score_threshold, method):
    rest, chosen = [list(row) for row in rows], []
    while rest:
        best = rest.pop(max(range(len(rest)), key=lambda i: rest[i][4]))
        chosen.append(best)
        for row in rest:
            value = iou(best, row)
            if method == "gaussian":
                row[4] *= np.exp(-(value**2) / sigma)
            elif value > overlap_threshold:
                row[4] *= 1 - value if method == "linear" else 0
        rest = [row for row in rest if row[4] >= score_threshold]
    return np.array(chosen).reshape(-1, 5)


def plain_anchors(height, width):
    """Cell by cell, from the description in the paper and nothing vectorised."""
    rows = []
    for stride, sizes in ((32, (32, 64, 128)), (64, (256,)), (128, (512,))):
        for i in range(int(np.ceil(height / stride))):
            for j in range(int(np.ceil(width / stride))):
                for size in sizes:
                    steps = {32: (0, 0.25, 0.5, 0.75), 64: (0, 0.5)}.get(size, (0.5,))
                    rows += [
                        [(j + x) * stride / width, (i + y) * stride / height, size / width,
                         size / height]
                        for y in steps
                        for x in steps
                    ]  # fmt: skip
    return np.array(rows, dtype=np.float32)


def random_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(4, 40, (count, 2))
    return np.column_stack([corner, corner + size, rng.permutation(count) + 1.0]) / [
        1, 1, 1, 1, count,
    ]  # fmt: skip


# ----------------------------------------------------------------------------- anchors and coding


@pytest.mark.parametrize("size", [(1, 1), (32, 65), (97, 211), (130, 20)])
def test_anchors_equal_the_plain_loop(size):
    np.testing.assert_array_equal(anchors(*size), plain_anchors(*size))


def test_anchors_are_shared_and_read_only():
    first = anchors(64, 64)
    assert anchors(64, 64) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_coding_round_trip():
    priors = anchors(96, 128)
    rng = np.random.default_rng(1)
    corner = rng.uniform(-0.2, 0.8, (len(priors), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.02, 0.5, corner.shape)], 1)
    np.testing.assert_allclose(decode(encode(boxes, priors), priors), boxes, atol=1e-6)


def test_offsets_are_tenths_and_fifths():
    """As published: of the centre in tenths of the anchor's sides, of their logarithm in fifths."""
    anchor = np.float32([[0.5, 0.4, 0.2, 0.1]])
    box = decode(np.float32([[1, -2, 0, 3]]), anchor)[0]
    centre, size = np.array([0.52, 0.38]), np.array([0.2, 0.1 * np.exp(0.6)])
    np.testing.assert_allclose(box, [*(centre - size / 2), *(centre + size / 2)], atol=1e-6)


# ------------------------------------------------------------------------------------ suppression


@pytest.fixture(params=["compiled", "python"])
def kernel(request, monkeypatch):
    """Runs a test with the compiled kernel and with the Python version."""
    if request.param == "python":
        monkeypatch.setattr(door, "kernel", None)
    elif door.kernel is None:
        pytest.skip("FaceBoxes.nms_cython is not compiled")


@pytest.mark.usefixtures("kernel")
class TestSuppression:
    def test_drawn_boxes(self):
        rows = np.array(
            [
                [0, 0, 9, 9, 0.8],  # 100 pixels
                [0, 0, 9, 4, 0.9],  # its upper half: IoU 0.5
                [5, 5, 14, 14, 0.7],  # 25 pixels in common with the first, none with the second
                [20, 20, 20, 20, 0.1],  # one pixel
            ]
        )
        assert nms(rows, 0.5).tolist() == [1, 2, 3]  # reaching the threshold is enough
        assert nms(rows, 0.51).tolist() == [1, 0, 2, 3]
        assert nms(rows, 0.1).tolist() == [1, 2, 3]

    @pytest.mark.parametrize("tenths", range(1, 10))
    def test_an_overlap_of_tenths_reaches_the_threshold_and_is_not_above_it(self, tenths):
        rows = np.array([[0, 0, 9, 9, 0.9], [0, 0, 9, tenths - 1, 0.8]])
        assert nms(rows, tenths / 10).tolist() == [0]
        assert len(soft_nms(rows, overlap_threshold=tenths / 10, method="hard")) == 2

    @pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 1.0])
    def test_greedy_equals_the_plain_loop(self, threshold):
        rows = random_rows(150).astype(np.float32)
        assert nms(rows, threshold).tolist() == plain_nms(rows, threshold)

    @pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
    def test_soft_equals_the_plain_loop(self, method):
        rows = random_rows(120, seed=2)
        given = rows.copy()
        result = soft_nms(rows, 0.5, 0.3, 0.05, method)
        np.testing.assert_array_equal(rows, given)
        np.testing.assert_allclose(
            result, plain_soft_nms(rows, 0.5, 0.3, 0.05, method), rtol=1e-5, atol=1e-5
        )

    def test_no_detections(self):
        assert nms(np.empty((0, 5))).shape == (0,)
        assert soft_nms(np.empty((0, 5))).shape == (0, 5)

    def test_equal_scores_keep_their_order(self):
        rows = np.array([[0, 0, 5, 5, 0.5], [50, 0, 55, 5, 0.5], [0, 50, 5, 55, 0.5]])
        assert nms(rows, 0.3).tolist() == [0, 1, 2]

    def test_integers_slices_and_inverted_boxes(self):
        rows = random_rows(20)
        wide = np.zeros((20, 10))
        wide[:, ::2] = rows
        assert nms(wide[:, ::2], 0.3).tolist() == nms(rows, 0.3).tolist()
        assert nms(np.array([[0, 0, 4, 4, 1], [0, 0, 4, 4, 1]]), 0.3).tolist() == [0]
        assert nms(np.array([[9, 9, 0, 0, 1.0], [9, 9, 0, 0, 0.5]]), 0.3).tolist() == [0, 1]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
    def test_values_that_are_no_coordinates(self, bad):
        rows = random_rows(4)
        rows[2, 1] = bad
        for function in (nms, soft_nms):
            with pytest.raises(ValueError, match="row 2"):
                function(rows)

    @pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 5, 1), (0,)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"\(n, 5\)"):
            nms(np.zeros(shape))

    def test_wrong_type_and_options(self):
        with pytest.raises(TypeError, match="real numbers"):
            nms(np.zeros((1, 5), complex))
        for threshold in (0, -1, 1.1, np.nan):
            with pytest.raises(ValueError, match="threshold"):
                nms(random_rows(2), threshold)
        with pytest.raises(ValueError, match="method"):
            soft_nms(random_rows(2), method="softest")
        with pytest.raises(ValueError, match="sigma"):
            soft_nms(random_rows(2), sigma=0)


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
def test_soft_of_equal_scores_is_the_same_with_and_without_the_kernel(method, monkeypatch):
    for seed in range(40):
        rows = random_rows(40, seed)
        rows[:, 4] = np.random.default_rng(seed).integers(1, 5, 40) / 4
        with monkeypatch.context() as patch:
            ours = soft_nms(rows, 0.5, 0.3, 0.2, method)
            patch.setattr(door, "kernel", None)
            # C's exp and numpy's may differ in the last bit
            rtol = 1e-6 if method == "gaussian" else 0
            np.testing.assert_allclose(ours, soft_nms(rows, 0.5, 0.3, 0.2, method), rtol=rtol)


@pytest.mark.skipif(door.kernel is None, reason="FaceBoxes.nms_cython is not compiled")
def test_an_overlap_of_just_the_threshold_is_one_with_and_without_the_kernel(monkeypatch):
    for seed in range(200):
        rows = random_rows(2, seed).astype(np.float32)
        rows[1, :4] = rows[0, :4] + np.float32([1.7, -0.9, 2.3, 0.4])
        threshold = float(door._overlaps(rows[0], rows[1:])[0])
        with monkeypatch.context() as patch:
            ours = nms(rows, threshold).tolist()
            patch.setattr(door, "kernel", None)
            assert len(ours) == 1 and ours == nms(rows, threshold).tolist()


@pytest.mark.skipif(door.kernel is None, reason="FaceBoxes.nms_cython is not compiled")
def test_kernel_refuses_indices_out_of_range():
    rows = random_rows(3).astype(np.float32)
    for bad in (3, -1):
        with pytest.raises(ValueError, match="out of range"):
            door.kernel.greedy(rows, np.array([0, 1, bad]), 0.3, np.empty(3, np.uint8))
    with pytest.raises(ValueError, match="agree"):
        door.kernel.greedy(rows, np.arange(2), 0.3, np.empty(3, np.uint8))
    with pytest.raises(ValueError, match="agree"):
        door.kernel.greedy(rows, np.arange(3), 0.3, np.empty(2, np.uint8))
    narrow = np.ascontiguousarray(rows[:, :4])  # the kernel reads x1 y1 x2 y2 score
    with pytest.raises(ValueError, match="agree"):
        door.kernel.greedy(narrow, np.arange(3), 0.3, np.empty(3, np.uint8))
    with pytest.raises(ValueError, match=r"\(n, 5\)"):
        door.kernel.soft(narrow, 0.5, 0.3, 0.001, 1)


@pytest.mark.skipif(door.kernel is None, reason="FaceBoxes.nms_cython is not compiled")
def test_kernel_refuses_none():
    given = random_rows(3).astype(np.float32), np.arange(3), 0.3, np.empty(3, np.uint8)
    for k in range(len(given)):
        with pytest.raises(TypeError):
            door.kernel.greedy(*given[:k], None, *given[k + 1 :])
    with pytest.raises(TypeError):
        door.kernel.soft(None, 0.5, 0.3, 0.001, 1)


# --------------------------------------------------------------------------------------- detector


def engine_that_sees(boxes):
    """An engine whose answer is the given relative boxes (m, 4) with scores 0.9, 0.8, …"""

    def engine(batch):
        assert batch.dtype == np.float32 and batch.shape[1] == 3
        priors = anchors(*batch.shape[2:])
        offsets = np.zeros((len(batch), len(priors), 4), np.float32)
        scores = np.zeros((len(batch), len(priors), 2), np.float32)
        for i, box in enumerate(boxes):
            offsets[:, i] = encode(np.array([box], np.float32), priors[i : i + 1])
            scores[:, i, 1] = 0.9 - 0.1 * i
        return offsets, scores

    return engine


def test_boxes_are_in_pixels_of_the_image():
    detector = FaceBoxes(engine=engine_that_sees([(0.25, 0.5, 0.75, 1.0)]))
    for height, width in ((100, 200), (1440, 720), (80, 4320)):
        box = detector(np.zeros((height, width, 3), np.uint8))
        expected = [0.25 * width, 0.5 * height, 0.75 * width, height, 0.9]
        np.testing.assert_allclose(box, [expected], rtol=1e-5)
        assert box.dtype == np.float32


def test_thresholds():
    boxes = [(0.1, 0.1, 0.2, 0.2), (0.5, 0.5, 0.6, 0.6), (0.5, 0.5, 0.61, 0.61)]  # 0.9, 0.8, 0.7
    image = np.zeros((64, 64, 3), np.uint8)

    def scores(**options):
        return FaceBoxes(engine=engine_that_sees(boxes), **options)(image)[:, 4].tolist()

    near = pytest.approx
    assert scores() == near([0.9, 0.8])
    assert scores(nms_threshold=1.0) == near([0.9, 0.8, 0.7])
    assert scores(nms_threshold=1.0, top_k=2) == near([0.9, 0.8])
    assert scores(nms_threshold=1.0, keep_top_k=1) == near([0.9])
    assert scores(score_threshold=0.85) == near([0.9])
    assert scores(score_threshold=0, candidate_threshold=0.75, nms_threshold=1.0) == near(
        [0.9, 0.8]
    )


def test_a_threshold_below_that_of_the_candidates_lowers_it():
    certain = engine_that_sees([(0.1, 0.1, 0.2, 0.2), (0.5, 0.5, 0.6, 0.6)])

    def doubtful(batch):
        offsets, scores = certain(batch)
        return offsets, scores / 30  # 0.03, 0.0267

    image = np.zeros((64, 64, 3), np.uint8)
    for threshold, count in ((0.05, 0), (0.028, 1), (0.01, 2)):
        assert len(FaceBoxes(engine=doubtful, score_threshold=threshold)(image)) == count


def engine_by_size(small, large):
    """Sees some boxes in pictures up to 256 pixels wide, others in larger ones."""

    def engine(batch):
        is_small = batch.shape[3] == 256
        return engine_that_sees(small if is_small else large)(batch)

    return engine


def test_small_photos_get_a_second_look():
    image = np.zeros((20, 40, 3), np.uint8)
    face, other = (0.25, 0.25, 0.75, 0.75), (0.5, 0.5, 0.6, 0.6)
    engine = engine_by_size([face], [])
    assert len(FaceBoxes(engine=engine)(image)) == 0  # as published
    (box,) = FaceBoxes(engine=engine, second_look=True)(image)
    np.testing.assert_allclose(box, [10, 5, 30, 15, 0.9], rtol=1e-5)
    engine = engine_by_size([face], [other])  # not where the first has found something
    first = FaceBoxes(engine=engine)(image)
    np.testing.assert_array_equal(FaceBoxes(engine=engine, second_look=True)(image), first)


def test_options_out_of_range_are_named():
    for options in ({"nms_threshold": 0}, {"score_threshold": 2}, {"top_k": 0}, {"detect_size": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            FaceBoxes(engine=engine_that_sees([]), **options)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    state = deterministic_state_dict(FaceBoxesNet().state_dict(), 5)
    for i in range(3):  # offsets as mild as a trained network's
        state[f"loc.{i}.weight"] *= 0.02
    torch.save(state, path)
    return path


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (20000, 20), (20, 20000)])
def test_extreme_sizes(random_weights, size):
    detector = FaceBoxes(random_weights, top_k=50)
    boxes = detector(np.zeros((*size, 3), np.uint8))
    assert boxes.shape[1] == 5


def test_what_is_no_image():
    detector = FaceBoxes(engine=engine_that_sees([]))
    for bad in (np.zeros((5, 5, 3)), [[0]], None):
        with pytest.raises(TypeError, match="uint8"):
            detector(bad)
    for shape in ((5, 5), (5, 5, 4), (0, 5, 3), (1, 5, 5, 3)):
        with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
            detector(np.zeros(shape, np.uint8))


def test_threads_equal_single_calls(random_weights):
    rng = np.random.default_rng(3)
    sizes = [(40, 60), (70, 50), (40, 60), (40, 60), (33, 33)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    detector = FaceBoxes(random_weights, top_k=200)
    single = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for ours, alone in zip(pool.map(detector, images * 3), single * 3, strict=True):
            np.testing.assert_array_equal(ours, alone)


# ---------------------------------------------------------------------------------------- weights


def test_prefix_and_half_precision_load(random_weights, tmp_path):
    state = torch.load(random_weights, weights_only=True)
    path = tmp_path / "half.pth"
    torch.save({f"module.{key}": value.half() for key, value in state.items()}, path)
    loaded = load_weights(path)
    assert loaded.keys() == state.keys()
    assert loaded["conv1.conv.weight"].dtype == torch.float32
    torch.testing.assert_close(
        loaded["conv1.conv.weight"], state["conv1.conv.weight"], rtol=1e-3, atol=1e-4
    )


def test_weights_without_counters_load(random_weights, tmp_path):
    """Files of old PyTorch have none."""
    state = torch.load(random_weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    assert load_weights(tmp_path / "old.pth").keys() == state.keys()


def test_unfit_weights_are_refused_by_name(random_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        load_weights(tmp_path / "nothing.pth")
    state = torch.load(random_weights, weights_only=True)
    wrong_shape = {**state, "loc.0.bias": torch.zeros(3)}
    nan = {**state, "loc.0.bias": torch.full((84,), torch.nan)}
    missing = {key: value for key, value in state.items() if key != "conf.2.bias"}
    for content, message in (
        ([1, 2], "list"),
        (missing, r"conf\.2\.bias"),
        (wrong_shape, r"loc\.0\.bias has shape \(3,\), expected \(84,\)"),
        (nan, "NaN"),
        (FaceBoxesNet(), "plain tensors"),
    ):
        path = tmp_path / "bad.pth"
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_weights(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"bad\.pth"):
        load_weights(path)


def test_starter_weights_find_the_astronaut():
    boxes = FaceBoxes()(cv2.imread(str(ROOT / "img" / "astronaut.jpg")))
    assert len(boxes) == 1 and boxes[0, 4] > 0.9
    eyes, chin = np.array([[205, 115], [245, 115]]), np.array([225, 165])  # read off the photo
    for point in (*eyes, chin):
        assert (boxes[0, :2] < point).all() and (point < boxes[0, 2:4]).all()
    assert boxes[0, 3] - boxes[0, 1] < 160


def test_the_average_pool_counts_its_padding():
    """As published; it is the second branch of an Inception block."""
    block = Inception().eval()
    torch.nn.init.constant_(block.branch1x1_2.conv.weight, 1 / 128)
    with torch.inference_mode():
        pooled = block(torch.full((1, 128, 3, 3), 9.0))[0, 32:64].numpy()
    expected = np.broadcast_to([[4, 6, 4], [6, 9, 6], [4, 6, 4]], pooled.shape)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4)


def test_what_the_network_sees():
    """The published mean (BGR 104, 117, 123) off, and the photo shrunk to fit 1080x720."""
    seen = []

    def engine(batch):
        seen.append(batch)
        count = len(anchors(*batch.shape[2:]))
        return np.zeros((len(batch), count, 4), np.float32), np.zeros((len(batch), count, 2), "f4")

    detector = FaceBoxes(engine=engine)
    detector(np.full((40, 60, 3), (104, 118, 125), np.uint8))
    for channel, expected in enumerate((0, 1, 2)):
        assert (seen[-1][0, channel] == expected).all()
    for size, shrunk in {
        (720, 1080): (720, 1080),
        (1440, 1080): (720, 540),
        (300, 2160): (150, 1080),
    }.items():
        detector(np.zeros((*size, 3), np.uint8))
        assert seen[-1].shape[2:] == shrunk


def test_import_needs_no_torch():
    code = "import sys, FaceBoxes; sys.exit('torch' in sys.modules)"
    run_python("-c", code, check=True)


# ------------------------------------------------------------------------- training and evaluation


def test_training_targets_say_where_the_face_is():
    faces = np.array([[10, 20, 50, 70, 1], [90, 90, 111, 114, 1]], np.float32)
    labels, offsets = targets(faces, 128)
    priors = anchors(128, 128)
    assert set(labels.tolist()) == {0, 1}
    boxes = decode(offsets[labels == 1], priors[labels == 1]) * 128
    distance = np.abs(boxes[:, None] - faces[None, :, :4]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-3  # each is one of the faces
    assert set(distance.argmin(axis=1)) == {0, 1}  # and each face has an anchor


def test_training_targets_of_what_does_not_count():
    assert not targets(np.empty((0, 5), np.float32), 128)[0].any()
    for box in (
        [40, 40, 46, 48, 1],  # too small
        [40, 40, 70, 80, 0.3],  # "don't know"
        [-60, 20, 40, 120, 1],  # its centre is outside
    ):
        labels, _ = targets(np.array([box], np.float32), 128)
        assert (labels <= 0).all() and (labels < 0).any()


def test_pasted_pictures_take_their_boxes_along():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    boxes = np.array([[30, 10, 50, 20, 1]], np.float32)
    canvas = np.full((100, 100, 3), 7, np.uint8)
    moved = paste(canvas, image, boxes, 2, 3, np.array([-40.0, 10.0]))
    np.testing.assert_allclose(moved, [[20, 40, 60, 70, 1]])
    white = np.argwhere(canvas[:, :, 0] > 200)
    assert np.abs(white.min(axis=0) - [40, 20]).max() <= 1
    assert np.abs(white.max(axis=0) - [69, 59]).max() <= 1
    assert (canvas[:10] == 7).all() and (canvas[20:90, :79] != 7).all()


def test_evaluation_counts_each_face_once():
    labels = np.array([[0, 0, 10, 10, 0.9], [50, 0, 60, 10, 0.7], [0, 50, 10, 60, 0.2]])
    detections = np.array(
        [
            [0, 0, 10, 10, 0.95],  # right
            [0, 0, 10, 11, 0.9],  # the same face again: wrong
            [0, 50, 10, 60, 0.8],  # on "don't know": not counted
            [80, 80, 90, 90, 0.6],  # nothing there: wrong
            [50, 0, 60, 10, 0.3],  # right, below 0.5
        ]
    )
    outcome = judge(detections, labels)
    assert outcome.at(0.5) == (1 / 2, 1 / 3)
    assert outcome.at(0.0) == (1, 2 / 4)
    assert outcome.recall_at_precision(1.0) == 1 / 2
    assert outcome.recall_at_precision(0.5) == 1
    empty = judge(np.empty((0, 5)), labels)
    assert empty.at(0.5)[0] == 0 and empty.recall_at_precision(0.9) == 0


@pytest.mark.parametrize("right", [(True, False), (False, True)])
def test_no_threshold_parts_detections_of_one_score(right):
    """Whichever is listed first: at any threshold both count, or neither does."""
    outcome = evaluate_detector.Outcome(np.array([0.9, 0.9]), np.array(right), faces=1)
    assert outcome.recall_at_precision(0.9) == 0
    assert outcome.recall_at_precision(0.5) == 1


def test_evaluation_on_copies_mirrors_resizes_and_labels_anew():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :10] = 255  # at the left, so in a copy at the right

    def labeller(copy):
        assert copy.shape in ((20, 40, 3), (10, 20, 3))
        white = np.flatnonzero(copy[0, :, 0] > 127)
        return np.array([[white.min(), 0, white.max(), 5, 0.9]])

    made = copies({"scene_1.jpg": (image, np.empty((0, 5)))}, [1, 0.5], labeller)
    assert list(made) == ["scene_1.jpg x1", "scene_1.jpg x0.5"]
    assert made["scene_1.jpg x1"][1][0, [0, 2]].tolist() == [30, 39]
    assert made["scene_1.jpg x0.5"][1][0, [0, 2]].tolist() == [15, 19]


def test_faces_that_are_found_are_told_by_source_and_so_are_other_boxes(tmp_path):
    points = np.zeros((2, 3, 68))
    points[:, :2] = np.linspace(10, 30, 68)
    np.savez(
        tmp_path / "val_labels.npz",
        landmarks=np.round(32 * points).astype(np.int16),
        name=["a.png", "b.png"],
        source=["one", "two"],
    )
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as file:
        for name in ("a.png", "b.png"):
            file.writestr(name, cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes())

    def detector(image):
        scale = len(image) / 40
        beside = (0, 0, 8 * scale, 8 * scale, 0.6)
        return np.array([(8 * scale, 8 * scale, 31 * scale, 32 * scale, 0.9), beside])

    def doubtful(image):
        return np.array([(8, 8, 31, 32, 0.5)])

    for height in (None, 80):
        told = evaluate_detector.faces_found([detector, doubtful], tmp_path / "val", height)
        line = ["100.0 (+1 boxes)", "0.0"]
        assert told == {"one (1)": line, "two (1)": line}


def test_pictures_and_boxes_are_read_and_what_is_wrong_is_named(tmp_path):
    data = tmp_path / "val"
    data.with_suffix(".json").write_text('{"a.png": [[1, 2, 3, 4, 0.9]], "b.png": []}')
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    content = cv2.imencode(".png", image)[1].tobytes()
    for second, message in ((content, None), (b"no picture", r"val\.zip: b\.png: not a picture")):
        with zipfile.ZipFile(data.with_suffix(".zip"), "w") as file:
            file.writestr("a.png", content)
            file.writestr("b.png", second)
        if message:
            with pytest.raises(ValueError, match=message):
                read_pictures(data)
        else:
            pictures = read_pictures(data)
    assert np.array_equal(pictures["a.png"][0], image)
    assert pictures["a.png"][1].tolist() == [pytest.approx([1, 2, 3, 4, 0.9])]
    assert pictures["b.png"][1].shape == (0, 5)
