"""ResNet (He et al., CVPR 2016, table 1), with the stride in the 3x3 convolution ("v1.5")."""

import torch.nn.functional as F
from torch import Tensor, nn

from backbone_nets.heads import Backbone, pool

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output is 4 times as wide as the middle."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        c_out = width * self.expansion
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def make_stages(block: type[nn.Module], repeats: tuple[int, ...], projection=_projection) -> list:
    """The four residual stages (64, 128, 256, 512 wide), the later three halving the resolution.

    ``projection(c_in, c_out, stride)`` builds the shortcut of blocks that change the shape.
    """
    stages, c_in = [], 64
    for stage, count in enumerate(repeats):
        width, blocks = 64 * 2**stage, []
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            c_out = width * block.expansion
            changes_shape = stride != 1 or c_in != c_out
            downsample = projection(c_in, c_out, stride) if changes_shape else None
            blocks.append(block(c_in, width, stride, downsample))
            c_in = c_out
        stages.append(nn.Sequential(*blocks))
    return stages


class ResNet(Backbone):
    """ResNet of depth 18 or 34 (D = 512), 50, 101 or 152 (D = 2048)."""

    def __init__(self, depth: int):
        super().__init__()
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = make_stages(block, DEPTHS[depth])
        self.add_heads(num_features=512 * block.expansion)

    def extract(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 64, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, D, H/32, W/32)
        return pool(x)
