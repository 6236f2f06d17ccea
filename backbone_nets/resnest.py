"""ResNeSt-50 (Zhang et al., "Split-Attention Networks", 2020): radix 2, one cardinal group.

The deep stem, average-pooled shortcuts and an average pool after the 3x3 convolution of a strided
block are the paper's section 4 ("network tweaks").
"""

import torch.nn.functional as F
from torch import Tensor, nn

from backbone_nets.heads import Backbone, pool
from backbone_nets.resnet import make_stages

RADIX = 2


class SplitAttention(nn.Module):
    """Two 3x3 branches, mixed per channel by weights computed from their pooled sum."""

    def __init__(self, width: int):
        super().__init__()
        hidden = max(width * RADIX // 4, 32)
        self.width = width
        self.conv = nn.Conv2d(width, width * RADIX, 3, padding=1, groups=RADIX, bias=False)
        self.bn0 = nn.BatchNorm2d(width * RADIX)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, width * RADIX, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv(x)))
        branches = x.unflatten(1, (RADIX, self.width))  # (B, 2, C, H, W)
        pooled = branches.sum(dim=1).mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        logits = self.fc2(F.relu(self.bn1(self.fc1(pooled))))
        weights = logits.unflatten(1, (RADIX, self.width)).softmax(dim=1)  # (B, 2, C, 1, 1)
        return (weights * branches).sum(dim=1)


class SplitAttentionBottleneck(nn.Module):
    """ResNet's bottleneck with split attention as its 3x3 convolution."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        c_out = width * self.expansion
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width)
        self.shrink = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.shrink(self.conv2(x))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _pooled_projection(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
    )


class ResNeSt50(Backbone):
    """ResNeSt-50, D = 2048. Its attention has a batch norm: training needs batches of two or more.

    Named as the published listing names it: ``conv1`` is the three-convolution stem.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = make_stages(
            SplitAttentionBottleneck, (3, 4, 6, 3), _pooled_projection
        )
        self.add_heads(num_features=2048)

    def extract(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 64, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 2048, H/32, W/32)
        return pool(x)
