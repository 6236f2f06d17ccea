"""The synergy module's two PointNets: landmark refiner and inverse regressor.

Inside, every point of every face is a row, (B * 68, C): a 1x1 convolution is then one matrix
product, and a batch norm works on contiguous channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from backbone_nets.fused_norm import norm_relu
from utils.morphable_model import CAMERA, EXPRESSION, SHAPE

POINT_FEATURES = 64
GLOBAL_FEATURES = 1024


class _PointNetwork(nn.Module):
    """Shared 1x1 convolutions with batch norm, named ``conv{i}`` and ``bn{i}`` as published."""

    def _add_layers(self, first: int, widths: tuple[int, ...]) -> None:
        """One layer between each width and the next, numbered from ``first``."""
        for index, (inputs, outputs) in enumerate(pairwise(widths), first):
            self._add_layer(str(index), inputs, outputs)

    def _add_layer(self, name: str, inputs: int, outputs: int, linear: bool = False) -> None:
        self.add_module(f"conv{name}", nn.Conv1d(inputs, outputs, 1))
        if not linear:
            self.add_module(f"bn{name}", nn.BatchNorm1d(outputs))

    def _layer(self, name: str, x: Tensor) -> Tensor:
        """(rows, inputs) -> (rows, outputs)."""
        conv = getattr(self, f"conv{name}")
        x = nn.functional.linear(x, conv.weight[:, :, 0], conv.bias)
        norm = getattr(self, f"bn{name}", None)
        # A signed head has neither ReLU nor batch norm: its outputs are whitened values or
        # pixels, whose sign and scale they would take away.
        return x if norm is None else norm_relu(norm, x)


def _point_rows(points: Tensor) -> Tensor:
    """(B, C, 68) -> (B * 68, C)."""
    return points.transpose(1, 2).reshape(-1, points.shape[1])


def _over_points(rows: Tensor, batch: int) -> Tensor:
    """(B * 68, C) -> (B, C), the maximum; its gradient goes to one point, which is cheap."""
    return rows.view(batch, -1, rows.shape[1]).max(dim=1).values


class LandmarkRefiner(_PointNetwork):
    """3DMM landmarks -> residual that corrects them (SynergyNet, section 3.2).

    Args:
        num_features: D, width of the backbone's pooled feature.
        signed: leave the last layer linear. As published it ends in ReLU, so the residual is
            never negative; published weights need ``signed=False``.
    """

    def __init__(self, num_features: int, signed: bool = False) -> None:
        super().__init__()
        self._add_layers(1, (3, 64, POINT_FEATURES, 64, 128, GLOBAL_FEATURES))
        joint = POINT_FEATURES + GLOBAL_FEATURES + num_features + SHAPE + EXPRESSION
        self._add_layers(6, (joint, 512, 256, 128))
        self._add_layer("9", 128, 3, linear=signed)

    def forward(self, landmarks: Tensor, features: Tensor, coefficients: Tensor) -> Tensor:
        """Regresses the residual of each landmark.

        Args:
            landmarks: (B, 3, 68) crop frame, pixels.
            features: (B, D) pooled image feature.
            coefficients: (B, 50) whitened shape and expression, as the backbone gives them.

        Returns:
            (B, 3, 68) residual; refined landmarks are ``landmarks + 0.05 * residual``.
        """
        batch = len(landmarks)
        points = self._layer("2", self._layer("1", _point_rows(landmarks)))  # (B * 68, 64)
        x = self._layer("5", self._layer("4", self._layer("3", points)))  # (B * 68, 1024)
        # (B, 1024 + D + 50)
        shared = torch.cat([_over_points(x, batch), features, coefficients], dim=1)
        # concat[points, shared repeated 68 times] through conv6, without the 68 copies
        weight = self.conv6.weight[:, :, 0]
        own = nn.functional.linear(points, weight[:, :POINT_FEATURES], self.conv6.bias)
        common = nn.functional.linear(shared, weight[:, POINT_FEATURES:])  # (B, 512)
        x = (own.view(batch, -1, own.shape[1]) + common[:, None]).flatten(0, 1)  # (B * 68, 512)
        x = norm_relu(self.bn6, x)
        x = self._layer("9", self._layer("8", self._layer("7", x)))  # (B * 68, 3)
        return x.view(batch, -1, 3).transpose(1, 2)  # (B, 3, 68)


class LandmarksTo3DMM(_PointNetwork):
    """The inverse regressor: landmarks -> whitened 3DMM coefficients (SynergyNet, section 3.3).

    Args:
        signed: leave the heads linear. As published they end in ReLU, so no output is negative.
    """

    HEADS = {"6_1": CAMERA, "6_2": SHAPE, "6_3": EXPRESSION}

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self._add_layers(1, (3, 64, 64, 64, 128, GLOBAL_FEATURES))
        for name, outputs in self.HEADS.items():
            self._add_layer(name, GLOBAL_FEATURES, outputs, linear=signed)

    def forward(self, landmarks: Tensor) -> Tensor:
        """(B, 3, 68) landmarks, crop frame, pixels -> (B, 62), of which 50 are trained.

        They are whitened shape and expression: outputs 0 to 49 as published, 12 to 61 with
        ``heads="signed"`` (``loss_definition.coefficient_loss``); the others mean nothing.
        """
        x = _point_rows(landmarks)
        for index in range(1, 6):
            x = self._layer(str(index), x)
        x = _over_points(x, len(landmarks))  # (B, 1024)
        return torch.cat([self._layer(name, x) for name in self.HEADS], dim=1)  # (B, 62)
