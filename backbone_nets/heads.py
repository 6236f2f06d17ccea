"""What every backbone shares: the three linear heads and the contract of ``forward``."""

import torch
from torch import Tensor, nn

from utils.morphable_model import CAMERA, EXPRESSION, SHAPE
from utils.precision import full_precision

MIN_INPUT_SIZE = 32  # every family halves its input five times


class Backbone(nn.Module):
    """An image encoder with linear heads for the 62 whitened 3DMM parameters.

    A family builds its layers, calls ``add_heads`` last and implements ``extract``. The heads are
    named as in the published checkpoints: ``classifier_ori`` (12 camera values),
    ``classifier_shape`` (40), ``classifier_exp`` (10).
    """

    num_features: int  # D, width of the pooled feature

    def add_heads(self, num_features: int, dropout: float = 0.2) -> None:
        """Adds the three heads on D features and gives every layer its initial weights.

        The initialisation is the customary one: He-normal (fan-out) convolutions, batch norm 1 / 0,
        linear layers N(0, 0.01²), biases 0. ``dropout`` acts in training mode only.
        """
        self.num_features = num_features
        self.classifier_ori = _head(num_features, CAMERA, dropout)
        self.classifier_shape = _head(num_features, SHAPE, dropout)
        self.classifier_exp = _head(num_features, EXPRESSION, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def extract(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, D) globally average-pooled features."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts whitened 3DMM parameters (SynergyNet, section 3.1: the image-to-3DMM step).

        Args:
            x: (B, 3, H, W) float, BGR crops normalised to about [-1, 1]; H, W >= 32.

        Returns:
            parameters: (B, 62) whitened: 12 camera, 40 shape, 10 expression.
            features: (B, D) the pooled feature, before dropout.

        Raises:
            ValueError: x is not (B, 3, H, W) with H and W of at least 32.
        """
        if not torch.jit.is_tracing():  # a trace would record the shapes as constants
            _check_images(x)
        features = self.extract(x)  # (B, D)
        heads = (self.classifier_ori, self.classifier_shape, self.classifier_exp)
        with full_precision(x.device):  # whitened values need more than bfloat16's three digits
            features = features.to(self.classifier_ori[1].weight.dtype)
            parameters = torch.cat([head(features) for head in heads], dim=1)  # (B, 62)
        return parameters, features


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < MIN_INPUT_SIZE:
        raise ValueError(
            f"a backbone takes images of shape (B, 3, H, W) with H, W >= {MIN_INPUT_SIZE}, "
            f"got {tuple(x.shape)}"
        )


def _head(num_features: int, num_outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_outputs))


def pool(x: Tensor) -> Tensor:
    """Global average pooling, (B, C, H, W) -> (B, C)."""
    return x.mean(dim=(2, 3))
