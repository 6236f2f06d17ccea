"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2)."""

from torch import Tensor, nn

from backbone_nets.heads import Backbone, pool

# expansion factor, output channels, repeats, stride of the first repeat
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(inplace=True),  # safe: batch norm keeps its input, not its output
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where shapes agree."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = c_in * expansion
        expand = [_conv(c_in, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.has_shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(Backbone):
    """MobileNetV2 at width 1.0, D = 1280: the published SynergyNet backbone."""

    def __init__(self):
        super().__init__()
        c_in = 32
        layers: list[nn.Module] = [_conv(3, c_in, 3, stride=2)]
        for expansion, c_out, repeats, first_stride in STAGES:
            for i in range(repeats):
                stride = first_stride if i == 0 else 1
                layers.append(InvertedResidual(c_in, c_out, stride, expansion))
                c_in = c_out
        layers.append(_conv(c_in, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.add_heads(num_features=1280)

    def extract(self, x: Tensor) -> Tensor:
        return pool(self.features(x))  # (B, 1280, H/32, W/32) -> (B, 1280)
