"""The registry of image encoders: ``create_backbone(name)`` gives a ``Backbone``."""

from collections.abc import Callable
from functools import partial

from backbone_nets.ghostnet import GhostNet
from backbone_nets.heads import Backbone
from backbone_nets.mobilenet_v1 import MobileNetV1
from backbone_nets.mobilenet_v2 import MobileNetV2
from backbone_nets.resnest import ResNeSt50
from backbone_nets.resnet import ResNet

__all__ = ["BACKBONES", "Backbone", "create_backbone"]

_BUILDERS: dict[str, Callable[[], Backbone]] = {
    "mobilenet_v2": MobileNetV2,
    "mobilenet_1": MobileNetV1,
    "mobilenet_025": partial(MobileNetV1, width=0.25),
    "mobilenet_05": partial(MobileNetV1, width=0.5),
    "mobilenet_075": partial(MobileNetV1, width=0.75),
    "mobilenet_2": partial(MobileNetV1, width=2.0),
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "resnet101": partial(ResNet, depth=101),
    "resnet152": partial(ResNet, depth=152),
    "ghostnet": GhostNet,
    "resnest50": ResNeSt50,
}

BACKBONES: tuple[str, ...] = tuple(_BUILDERS)


def create_backbone(name: str) -> Backbone:
    """A randomly initialised backbone in training mode (seed torch for repeatable weights).

    Args:
        name: one of ``BACKBONES``.

    Returns:
        A module with ``num_features`` (D) and ``forward``: (B, 3, H, W) -> (B, 62), (B, D).

    Raises:
        ValueError: the name is not in the registry.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown backbone {name!r}; expected one of: {', '.join(BACKBONES)}")
    return _BUILDERS[name]()
