"""All backbones of the registry: key names as published, sizes as in the papers, the contract."""

import ast
import copy
import functools
import warnings

import pytest
import torch
from conftest import GOLDEN_DIR
from torch import nn

from backbone_nets import _BUILDERS, BACKBONES, Backbone, create_backbone

LISTINGS = GOLDEN_DIR.parent / "spec" / "state_dicts"
# the first of each class
FAMILIES = {getattr(b, "func", b): name for name, b in reversed(_BUILDERS.items())}.values()
HEADS = {"classifier_ori": 12, "classifier_shape": 40, "classifier_exp": 10}

# D, and the well-known parameter count of the ImageNet model, whose 1000-way classifier ours lacks.
SIZES = {
    "mobilenet_v2": (1280, 3_504_872),
    "mobilenet_1": (1024, 4_231_976),
    "mobilenet_075": (768, 2_585_560),
    "mobilenet_05": (512, 1_331_592),
    "mobilenet_025": (256, 470_072),
    "resnet18": (512, 11_689_512),
    "resnet34": (512, 21_797_672),
    "resnet50": (2048, 25_557_032),
    "resnet101": (2048, 44_549_160),
    "resnet152": (2048, 60_192_808),
    "resnest50": (2048, 27_483_240),
}


def images(batch: int, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-3 of the largest magnitude: random weights magnify float32 rounding."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()


@functools.cache
def trained(name: str) -> Backbone:
    """A backbone in evaluation mode whose batch norms know the statistics of `images`."""
    torch.manual_seed(0)
    backbone = create_backbone(name)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone(images(4))
    return backbone.eval()


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    if not LISTINGS.is_dir():
        pytest.skip(f"published key listings not present: {LISTINGS}")
    rows = [line.split("\t") for line in (LISTINGS / f"{name}.tsv").read_text().splitlines()]
    prefix = "I2P.backbone."
    return {
        key.removeprefix(prefix): ast.literal_eval(shape)
        for key, shape, _ in rows
        if key.startswith(prefix)
    }


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_1", "resnet50", "resnet101", "ghostnet", "resnest50"]
)
def test_keys_and_shapes_are_the_published_ones(name):
    expected = published_shapes(name)
    if name != "mobilenet_v2":  # the others never ran: only their convolutional body is kept
        expected = {k: v for k, v in expected.items() if not k.startswith(("fc_", "classifier_"))}
    actual = {k: tuple(v.shape) for k, v in create_backbone(name).state_dict().items()}
    if name != "mobilenet_v2":
        actual = {k: v for k, v in actual.items() if not k.startswith("classifier_")}
    assert actual == expected
    assert list(actual) == list(expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_and_sizes(name):
    backbone = create_backbone(name).eval()
    with torch.no_grad():
        parameters, features = backbone(images(2, size=64))
    assert parameters.shape == (2, 62)
    assert features.shape == (2, backbone.num_features)
    assert torch.isfinite(parameters).all()

    for head, outputs in HEADS.items():
        dropout, linear = getattr(backbone, head)
        assert dropout.p == 0.2
        assert linear.weight.shape == (outputs, backbone.num_features)

    body = sum(p.numel() for k, p in backbone.named_parameters() if not k.startswith("classifier_"))
    if name in SIZES:
        num_features, with_classifier = SIZES[name]
        assert backbone.num_features == num_features
        assert body == with_classifier - 1000 * (num_features + 1)
    elif name == "ghostnet":  # the paper gives 5.2 M with the classifier
        assert (backbone.num_features, round((body + 1_281_000) / 1e6, 1)) == (1280, 5.2)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_equals_its_images_one_by_one(name):
    backbone, x = trained(name), images(2)
    with torch.no_grad():
        together = backbone(x)
        single = [backbone(x[i : i + 1]) for i in range(2)]
    for k in range(2):
        assert_same(together[k], torch.cat([s[k] for s in single]))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_reaches_every_parameter(name):
    backbone = trained(name)
    backbone.zero_grad()
    parameters, features = backbone(images(2))
    (parameters.square().sum() + features.sum()).backward()
    dead = [k for k, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_need_not_be_square_or_even(name):
    with torch.no_grad():
        parameters, _ = create_backbone(name).eval()(torch.zeros(1, 3, 33, 47))
    assert parameters.shape == (1, 62)


@pytest.mark.parametrize("name", FAMILIES)
def test_memory_layout_does_not_matter(name):
    backbone, x = trained(name), images(2)
    with torch.no_grad():
        expected = backbone(x)[0]
        channels_last = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
        actual = channels_last(x.contiguous(memory_format=torch.channels_last))[0]
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnest50"])
def test_an_exported_graph_takes_any_batch(name):
    backbone = trained(name)
    batch = {"x": {0: torch.export.Dim("batch")}}
    graph = torch.export.export(backbone, (images(2),), dynamic_shapes=batch).module()
    with torch.no_grad():
        expected, actual = backbone(images(3))[0], graph(images(3))[0]
    assert_same(actual, expected)


def test_input_is_left_alone_and_traces_in_silence():
    backbone, x = trained("mobilenet_v2"), images(2)
    before = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit")
        traced = torch.jit.trace(backbone, (x,), check_trace=False)
    assert torch.equal(x, before)
    assert_same(traced(images(3))[0], backbone(images(3))[0])


def test_initial_weights():
    torch.manual_seed(0)
    first = create_backbone("mobilenet_v2").state_dict()
    torch.manual_seed(0)
    again = create_backbone("mobilenet_v2").state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    stem, head = first["features.0.0.weight"], first["classifier_shape.1.weight"]
    assert stem.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.1)
    assert head.std().item() == pytest.approx(0.01, rel=0.05)
    assert not first["classifier_shape.1.bias"].any()


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="vgg16.*mobilenet_v2.*resnest50"):
        create_backbone("vgg16")


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 31, 64)])
def test_wrong_input_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\).*>= 32"):
        create_backbone("mobilenet_025")(torch.zeros(shape))
