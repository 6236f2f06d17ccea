"""The FaceBoxes network and its PyTorch engine.

Zhang et al., "FaceBoxes: A CPU Real-time Face Detector with High Accuracy", IJCB 2017, section 3.
Layer names follow the published weights, so that those load as they are. This is the only module
of the package that imports torch.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.checkpoint import new_network, read_checkpoint, require_finite
from utils.onnx_engine import export_onnx, random_pictures
from utils.precision import full_precision
from utils.runtime import alone_on, on_device, picture_layout

MAP_CHANNELS = (128, 128, 128, 128, 256, 256)  # of the feature maps; the heads read the last three
ANCHORS_PER_CELL = (21, 1, 1)


class ConvBNReLU(nn.Module):
    """Convolution (no bias), batch norm, ReLU; padding keeps the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class ConvCReLU(ConvBNReLU):
    """Convolution, batch norm and ReLU of both signs: twice as many channels for one product."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(torch.cat([x, -x], dim=1), inplace=True)  # (B, 2 * outputs, h, w)


class Inception(nn.Module):
    """Four branches of 32 channels with receptive fields from 1x1 to 5x5; 128 in, 128 out."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1x1 = ConvBNReLU(128, 32, 1)
        self.branch1x1_2 = ConvBNReLU(128, 32, 1)
        self.branch3x3_reduce = ConvBNReLU(128, 24, 1)
        self.branch3x3 = ConvBNReLU(24, 32, 3)
        self.branch3x3_reduce_2 = ConvBNReLU(128, 24, 1)
        self.branch3x3_2 = ConvBNReLU(24, 32, 3)
        self.branch3x3_3 = ConvBNReLU(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch1x1_2(F.avg_pool2d(x, 3, stride=1, padding=1)),
                self.branch3x3(self.branch3x3_reduce(x)),
                self.branch3x3_3(self.branch3x3_2(self.branch3x3_reduce_2(x))),
            ],
            dim=1,
        )


class FaceBoxesNet(nn.Module):
    """Image to one box offset and two logits (background, face) per anchor.

    The anchors, their order and the coding of the offsets are those of ``FaceBoxes.anchors``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvCReLU(3, 24, 7, stride=4)
        self.conv2 = ConvCReLU(48, 64, 5, stride=2)
        self.inception1 = Inception()
        self.inception2 = Inception()
        self.inception3 = Inception()
        self.conv3_1 = ConvBNReLU(128, 128, 1)
        self.conv3_2 = ConvBNReLU(128, 256, 3, stride=2)
        self.conv4_1 = ConvBNReLU(256, 128, 1)
        self.conv4_2 = ConvBNReLU(128, 256, 3, stride=2)
        cells = list(zip(MAP_CHANNELS[-3:], ANCHORS_PER_CELL, strict=True))
        self.loc = nn.ModuleList([nn.Conv2d(c, 4 * n, 3, padding=1) for c, n in cells])
        self.conf = nn.ModuleList([nn.Conv2d(c, 2 * n, 3, padding=1) for c, n in cells])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw predictions for a batch of images of any one size.

        Args:
            images: (B, 3, H, W) float, BGR minus ``FaceBoxes.detector.MEAN_BGR``.

        Returns:
            Offsets (B, A, 4) and logits (B, A, 2), class 1 is face.
        """
        return self.predict(self.maps(images))

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Six feature maps in the order they arise; the heads read the last three."""
        x = F.max_pool2d(self.conv1(images), 3, stride=2, padding=1)  # (B, 48, H/8, W/8)
        stem = F.max_pool2d(self.conv2(x), 3, stride=2, padding=1)  # (B, 128, H/32, W/32)
        inner1 = self.inception1(stem)
        inner2 = self.inception2(inner1)
        first = self.inception3(inner2)
        second = self.conv3_2(self.conv3_1(first))  # (B, 256, H/64, W/64)
        third = self.conv4_2(self.conv4_1(second))  # (B, 256, H/128, W/128)
        return stem, inner1, inner2, first, second, third

    def predict(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The rest of ``forward``, from the maps on."""
        maps = maps[-len(self.loc) :]
        batch = maps[0].shape[0]

        def rows_of(heads: nn.ModuleList, values: int) -> Tensor:
            rows = [
                head(x).permute(0, 2, 3, 1).reshape(batch, -1, values)
                for head, x in zip(heads, maps, strict=True)
            ]
            return torch.cat(rows, dim=1)

        return rows_of(self.loc, 4), rows_of(self.conf, 2)


class WithProbabilities(nn.Module):
    """The network with the softmax, as ``FaceBoxes.detector.Engine`` has it."""

    def __init__(self, network: FaceBoxesNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        offsets, logits = self.network(images)
        return offsets, logits.softmax(dim=-1)


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a bare state dict for ``FaceBoxesNet``, on the CPU and in float32.

    A ``module.`` prefix is removed and half-precision tensors are widened, so the published file,
    copies of it saved under DataParallel, and the starter weights all load.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint of plain tensors, or not one of this network.
    """
    state = read_checkpoint(path)["state_dict"]
    expected = new_network(FaceBoxesNet).state_dict()
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    state = counters | state  # files of old PyTorch have none, and nothing reads them
    missing, unknown = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"{path} is not a FaceBoxes checkpoint: {len(missing)} of {len(expected)} keys missing"
            f" {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
        )
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
            )
    require_finite(state, path)
    return state


def load_network(weights: Path | str) -> FaceBoxesNet:
    """The network with the weights of a file, on the CPU; raises what ``load_weights`` does."""
    network = new_network(FaceBoxesNet)
    network.load_state_dict(load_weights(weights))
    return network


class TorchEngine:
    """The network as a function from numpy to numpy; safe to call from several threads.

    Raises:
        FileNotFoundError, ValueError: see ``load_weights``.
        UnavailableError: the device has no memory for it.
    """

    def __init__(self, weights: Path | str, device: str = "cpu") -> None:
        self.device = torch.device(device)
        network = on_device(load_network(weights), self.device)
        self.network = WithProbabilities(network).eval()

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 3, H, W) float32 to offsets (B, A, 4) and probabilities (B, A, 2), float32."""
        with alone_on(self.device), full_precision(self.device), torch.inference_mode():
            layout = picture_layout(self.device)
            batch = torch.from_numpy(images).to(self.device, memory_format=layout)
            offsets, probabilities = self.network(batch)
            return offsets.cpu().numpy(), probabilities.cpu().numpy()


# ------------------------------------------------------------------------------------- ONNX export


def export_detector(weights: Path | str) -> bytes:
    """The network as an ONNX graph: ``images`` (B, 3, H, W) to ``offsets`` and ``probabilities``.

    Raises:
        FileNotFoundError, ValueError: see ``load_weights``.
        ExportError, UnavailableError: see ``export_onnx``.
    """
    network = load_network(weights)
    reference = WithProbabilities(copy.deepcopy(network))
    network.eval()
    # The first CReLU as one convolution with both signs of the weights: its larger product takes
    # less time than copying the largest map of all three times does (a fifth of the whole).
    half = fuse_conv_bn_eval(network.conv1.conv, network.conv1.bn)
    whole = copy.deepcopy(half)
    whole.out_channels *= 2
    whole.weight = nn.Parameter(torch.cat([half.weight, -half.weight]))
    whole.bias = nn.Parameter(torch.cat([half.bias, -half.bias]))
    network.conv1 = nn.Sequential(whole, nn.ReLU())

    samples = random_pictures(((1, 96, 160), (2, 33, 190), (1, 1, 1)), 255, -115)
    rows = {0: "batch", 1: "anchors"}
    return export_onnx(
        WithProbabilities(network),
        samples,
        ("offsets", "probabilities"),
        {"images": {0: "batch", 2: "height", 3: "width"}, "offsets": rows, "probabilities": rows},
        {"network": "FaceBoxes"},
        reference,
    )
