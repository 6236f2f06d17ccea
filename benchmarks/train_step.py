"""Time of one training step of the whole SynergyNet: as published and as trained here.

    python -m benchmarks.train_step --sizes 120 --plain-depthwise

A step is forward, the five losses, backward and Nesterov SGD, on random images. Both networks start
from the same weights and take turns, so that other jobs on the machine slow both alike.

- published: float32, images (B, 3, H, W) packed by channel, PyTorch's own batch norm, and the
  refiner's conv6 over 68 copies of the pooled feature.
- ours: channels last, fused batch norm, point networks on rows, conv6 without the copies; where the
  processor multiplies bfloat16, the backbone under bfloat16 autocast instead, which is said, with
  the fast gradient of strided depthwise convolutions (--plain-depthwise: without).

Prints the median of the repeats with their quartiles, in milliseconds a sample (CPU time; with more
threads the time that passes), and stops where the two losses of the first step disagree.
"""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbone_nets.fused_norm import fuse_batch_norm
from backbone_nets.point_networks import LandmarkRefiner, LandmarksTo3DMM
from backbone_nets.strided_depthwise import speed_up_strided_depthwise
from benchmarks.tables import median_and_quartiles
from loss_definition import SynergyLoss, total
from model_building import SynergyNet
from utils.assets import find_face_model
from utils.cli import at_least, run_script, script_parser
from utils.memory import keep_freed_memory
from utils.morphable_model import load_morphable_model
from utils.training import supports_bf16


def layer_as_published(self: nn.Module, name: str, x: Tensor) -> Tensor:
    """(B, C, 68) -> (B, D, 68)."""
    x = getattr(self, f"conv{name}")(x)
    norm = getattr(self, f"bn{name}", None)
    return x if norm is None else torch.relu(norm(x))


class PublishedRefiner(LandmarkRefiner):
    """The refiner with the shared features copied to every landmark."""

    _layer = layer_as_published

    def forward(self, landmarks: Tensor, features: Tensor, coefficients: Tensor) -> Tensor:
        points = self._layer("2", self._layer("1", landmarks))  # (B, 64, 68)
        x = self._layer("5", self._layer("4", self._layer("3", points))).amax(dim=2)  # (B, 1024)
        shared = torch.cat([x, features, coefficients], dim=1)[:, :, None].expand(-1, -1, 68)
        x = torch.cat([points, shared], dim=1)  # (B, 64 + 1024 + D + 50, 68)
        for name in "6789":
            x = self._layer(name, x)
        return x


class PublishedRegressor(LandmarksTo3DMM):
    """The regressor with 1x1 convolutions over points."""

    _layer = layer_as_published

    def forward(self, landmarks: Tensor) -> Tensor:
        x = landmarks
        for name in "12345":
            x = self._layer(name, x)
        x = x.amax(dim=2, keepdim=True)  # (B, 1024, 1)
        return torch.cat([self._layer(name, x) for name in self.HEADS], dim=1)[:, :, 0]


def training_step(
    model: SynergyNet, images: Tensor, target: Tensor, bf16: bool
) -> Callable[[], float]:
    """A function that does one step and returns its loss."""
    criterion = SynergyLoss()
    optimizer = torch.optim.SGD(
        model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True, foreach=True
    )

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = total(model.loss(images, target, criterion))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def milliseconds(step: Callable[[], float]) -> float:
    """CPU time of one thread, so that what other jobs take is left out; of more, time passed."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    step()
    return 1e3 * (clock() - start)


def main() -> None:
    parser = script_parser(__doc__, module="benchmarks.train_step")
    add = parser.add_argument
    add("--repeats", type=at_least(1), default=7, help="default: 7")
    add("--batch-size", type=at_least(1), default=64, dest="batch", help="default: 64")
    add("--sizes", type=at_least(32), nargs="+", default=[80, 96, 120], metavar="N",
        help="sides of the images (default: 80 96 120)")  # fmt: skip
    add("--face-model", type=Path, help="3DMM folder or .npz (default: published, or starter)")
    add("--keep-memory", action="store_true", help="both with utils.memory.keep_freed_memory()")
    add("--threads", type=at_least(1), default=1, help="default: 1")
    add("--float32", action="store_true", help="ours in float32 wherever it runs")
    add("--plain-depthwise", action="store_true", help="ours with PyTorch's depthwise gradient")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.keep_memory and not keep_freed_memory():
        parser.error("--keep-memory needs glibc")
    face_model = load_morphable_model(args.face_model or find_face_model())

    bf16 = supports_bf16(torch.device("cpu")) and not args.float32
    print(f"batch {args.batch}, ours in {'bfloat16 autocast' if bf16 else 'float32'}")
    print("| side | published ms a sample | quartiles | ours | quartiles | ratio |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        torch.manual_seed(0)
        ours = SynergyNet(face_model)
        for module in ours.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the two draw their random numbers in turns
        published = copy.deepcopy(ours)
        published.forwardDirection.__class__ = PublishedRefiner
        published.reverseDirection.__class__ = PublishedRegressor
        fuse_batch_norm(ours.to(memory_format=torch.channels_last))
        if not args.plain_depthwise:
            speed_up_strided_depthwise(ours)

        images = torch.randn(args.batch, 3, size, size)
        target = 0.5 * torch.randn(args.batch, 62)
        packed = images.contiguous(memory_format=torch.channels_last)
        steps = (
            training_step(published, images, target, bf16=False),
            training_step(ours, packed, target, bf16),
        )
        losses = [step() for step in steps]  # warm
        if not math.isclose(*losses, rel_tol=1e-2 if bf16 else 1e-4):
            raise SystemExit(
                f"the losses of the first step disagree: {losses}; batch norm over few pixels "
                "makes much of rounding: try a larger --batch-size or --sizes, or --float32"
            )
        times = np.array([[milliseconds(step) for step in steps] for _ in range(args.repeats)])
        times /= args.batch
        cells = [median_and_quartiles(column, ".1f") for column in times.T]
        ratio = np.median(times[:, 0]) / np.median(times[:, 1])
        print(f"| {size} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    run_script(main)
