"""MobileNetV1 (Howard et al., 2017, table 1) with its width multiplier."""

import torch.nn.functional as F
from torch import Tensor, nn

from backbone_nets.heads import Backbone, pool

# name, output channels at width 1, stride
STAGES = (
    ("dw2_1", 64, 1),
    ("dw2_2", 128, 2),
    ("dw3_1", 128, 1),
    ("dw3_2", 256, 2),
    ("dw4_1", 256, 1),
    ("dw4_2", 512, 2),
    ("dw5_1", 512, 1),
    ("dw5_2", 512, 1),
    ("dw5_3", 512, 1),
    ("dw5_4", 512, 1),
    ("dw5_5", 512, 1),
    ("dw5_6", 1024, 2),
    ("dw6", 1024, 1),
)


class DepthwiseSeparable(nn.Module):
    """3x3 depthwise then 1x1 convolution, batch norm and ReLU after each."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False)
        self.bn_dw = nn.BatchNorm2d(c_in)
        self.conv_sep = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn_sep = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_dw(self.conv_dw(x)))
        return F.relu(self.bn_sep(self.conv_sep(x)))


class MobileNetV1(Backbone):
    """MobileNetV1 at any width, D = 1024 * width."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        c_in = int(32 * width)
        self.conv1 = nn.Conv2d(3, c_in, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        for name, channels, stride in STAGES:
            c_out = int(channels * width)
            self.add_module(name, DepthwiseSeparable(c_in, c_out, stride))
            c_in = c_out
        self.add_heads(num_features=c_in)

    def extract(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name, _, _ in STAGES:
            x = getattr(self, name)(x)
        return pool(x)  # (B, D, H/32, W/32) -> (B, D)
