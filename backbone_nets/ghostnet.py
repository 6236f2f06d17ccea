"""GhostNet (Han et al., "More Features from Cheap Operations", CVPR 2020, table 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone_nets.heads import Backbone, pool

# one list a stage; a block is (kernel, expanded channels, output channels, attention, stride)
STAGES = (
    ((3, 16, 16, False, 1),),
    ((3, 48, 24, False, 2),),
    ((3, 72, 24, False, 1),),
    ((5, 72, 40, True, 2),),
    ((5, 120, 40, True, 1),),
    ((3, 240, 80, False, 2),),
    (
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
    ),
    ((5, 672, 160, True, 2),),
    (
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
    ),
)


def _conv(c_in: int, c_out: int, kernel: int, groups: int, relu: bool) -> nn.Sequential:
    layers = [
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class GhostModule(nn.Module):
    """Half of the channels from a 1x1 convolution, the other half from a 3x3 depthwise of those."""

    def __init__(self, c_in: int, c_out: int, relu: bool):
        super().__init__()
        half = c_out // 2
        self.primary_conv = _conv(c_in, half, 1, groups=1, relu=relu)
        self.cheap_operation = _conv(half, half, 3, groups=half, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)


class SqueezeExcite(nn.Module):
    """Channel attention at a quarter of the width, rounded to a multiple of four (hard sigmoid)."""

    def __init__(self, channels: int):
        super().__init__()
        reduced = (channels // 4 + 2) // 4 * 4
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * F.hardsigmoid(self.conv_expand(F.relu(self.conv_reduce(pooled))))


class GhostBottleneck(nn.Module):
    """Ghost expansion, strided depthwise where needed, attention, ghost projection, shortcut."""

    def __init__(
        self, c_in: int, hidden: int, c_out: int, kernel: int, attention: bool, stride: int
    ):
        super().__init__()
        padding = kernel // 2
        self.stride = stride
        self.ghost1 = GhostModule(c_in, hidden, relu=True)
        if stride > 1:
            self.conv_dw = nn.Conv2d(
                hidden, hidden, kernel, stride, padding, groups=hidden, bias=False
            )
            self.bn_dw = nn.BatchNorm2d(hidden)
        self.se = SqueezeExcite(hidden) if attention else nn.Identity()
        self.ghost2 = GhostModule(hidden, c_out, relu=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_in, kernel, stride, padding, groups=c_in, bias=False),
                nn.BatchNorm2d(c_in),
                nn.Conv2d(c_in, c_out, 1, bias=False),
                nn.BatchNorm2d(c_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost1(x)
        if self.stride > 1:
            y = self.bn_dw(self.conv_dw(y))
        return self.ghost2(self.se(y)) + self.shortcut(x)


class ConvNormReLU(nn.Module):
    """1x1 convolution, batch norm, ReLU, under the names of the published listing."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(x)))


class GhostNet(Backbone):
    """GhostNet at width 1.0, D = 1280."""

    def __init__(self):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        c_in, stages = 16, []
        for stage in STAGES:
            blocks = []
            for kernel, hidden, c_out, attention, stride in stage:
                blocks.append(GhostBottleneck(c_in, hidden, c_out, kernel, attention, stride))
                c_in = c_out
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(ConvNormReLU(c_in, 960)))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(960, 1280, 1)
        self.add_heads(num_features=1280)

    def extract(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv_stem(x)))
        x = pool(self.blocks(x))  # (B, 960, H/32, W/32) -> (B, 960)
        return F.relu(self.conv_head(x[:, :, None, None])).flatten(1)  # (B, 1280)
