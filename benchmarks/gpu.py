"""Crops and faces a second on a GPU against batch size, and how far that is from the floor.

    python -m benchmarks.gpu [--device cuda] [--batches 1 8 64 256 1024 4096] [--repeats 20]

Ways to run the backbone (crop to 62 parameters), each from the one before:

- fp32: as ``SynergyNet(device="cuda")`` runs it.
- folded: batch norm in the convolutions, cuDNN's fastest kernel of each, TF32 in products too.
- bf16: weights and activations in half the bytes.
- compiled: ``torch.compile``, elementwise work fused; on CUDA replayed as one graph of kernels.

"frames to landmarks" cuts the crops out of decoded frames on the device as well, and decodes the
68 landmarks. The floor is the larger of two times: bytes that the layers read and write over the
copying speed of this device, and their multiplications over its matrix speed, both measured first.
Fused layers can pass the floor of bytes: it counts every layer's input and output once. On a CPU
the script runs too (small batches), to check that it works; its numbers mean little there.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model_building import load_synergynet
from utils import assets
from utils.cli import at_least, run_script
from utils.memory import is_out_of_memory
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.preprocessing import CROP_SIZE, PIXEL_MEAN, PIXEL_STD
from utils.runtime import choose_device, on_device, picture_layout

FRAME, FACES = (720, 1280), 8  # pixels; faces in each frame


def folded(module: nn.Module) -> nn.Module:
    """A copy with each batch norm merged into the convolution before it."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        names = list(parent._modules)
        for first, second in zip(names, names[1:], strict=False):
            pair = parent._modules[first], parent._modules[second]
            if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(*pair)
                parent._modules[second] = nn.Identity()
    return module


def work(module: nn.Module) -> tuple[int, int]:
    """Values read and written, and multiplications, of one crop through the layers."""
    moved, products = 0, 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved, products
        moved += inputs[0].numel() + output.numel()
        products += output.numel() * layer.weight[0].numel()

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    parameter = next(module.parameters())
    with torch.inference_mode():
        module(torch.zeros(1, 3, CROP_SIZE, CROP_SIZE).to(parameter))
    for hook in hooks:
        hook.remove()
    return moved, products


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, the device's work included."""

    finish_all = {"cuda": torch.cuda.synchronize, "mps": lambda _: torch.mps.synchronize()}

    def finish() -> float:
        if device.type in finish_all:
            finish_all[device.type](device)
        return time.perf_counter()

    for _ in range(3):  # compiles, allocates, captures
        call()
    times = []
    for _ in range(repeats):
        start = finish()
        call()
        times.append(finish() - start)
    return float(np.median(times))


def crops_through(
    module: nn.Module, batch: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    """A call that takes as many crops through the backbone."""
    crops = torch.randn(batch, 3, CROP_SIZE, CROP_SIZE, dtype=dtype, device=device)
    crops = crops.to(memory_format=picture_layout(device))
    return lambda: module(crops)


def frames_through(
    pipeline: nn.Module, count: int, faces: int, device: torch.device
) -> Callable[[], object]:
    """A call that takes as many frames, of some faces each, through ``FramesToLandmarks``."""
    frames = torch.randint(256, (count, *FRAME, 3), dtype=torch.uint8, device=device)
    box = torch.tensor([500.0, 200.0, 780.0, 480.0], device=device)
    boxes = box.expand(count, faces, 4)
    return lambda: pipeline(frames, boxes)


def speed(
    make: Callable[[], Callable[[], object]], count: int, device: torch.device, repeats: int
) -> float:
    """How many of ``count`` a second the made call does; NaN where the memory is too small."""
    try:
        with torch.inference_mode():
            return count / seconds(make(), device, repeats)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return float("nan")


def speeds(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a copy (read and written), multiplications a second of a matrix product."""
    large = device.type != "cpu"
    # numbers, not zeros: those cost less power, and so the clock is higher
    source = torch.randint(256, (2**29 if large else 2**24,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / seconds(lambda: target.copy_(source), device, 10)
    side = 8192 if large else 512
    a = torch.randn(side, side, dtype=dtype, device=device)
    return copied, side**3 / seconds(lambda: a @ a, device, 10)


class FramesToLandmarks(nn.Module):
    """Frames (K, H, W, 3) uint8 and roi boxes (K, n, 4) of n faces each -> (K * n, 3, 68)."""

    def __init__(self, encoder: nn.Module, face_model: MorphableModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.face_model, self.dtype = encoder, face_model, dtype

    def forward(self, frames: Tensor, boxes: Tensor) -> Tensor:
        count, height, width = frames.shape[:3]
        faces = boxes.shape[1]
        steps = (torch.arange(CROP_SIZE, device=boxes.device) + 0.5) / CROP_SIZE
        low, extent = boxes[..., :2, None], (boxes[..., 2:] - boxes[..., :2])[..., None]
        size = torch.tensor([[width], [height]], device=boxes.device)
        x, y = (2 * (low + extent * steps) / size - 1).unbind(2)  # (K, n, 120) in [-1, 1]
        square = (count, faces, CROP_SIZE, CROP_SIZE)
        grid = torch.stack([x[..., None, :].expand(square), y[..., None].expand(square)], -1)
        # float32 so far: bfloat16 knows places in a frame of 1280 only to some pixels
        planes = frames.permute(0, 3, 1, 2).float()  # (K, 3, H, W)
        grid = grid.reshape(count, faces * CROP_SIZE, CROP_SIZE, 2)
        crops = F.grid_sample(planes, grid, align_corners=False)  # (K, 3, n * 120, 120)
        crops = crops.reshape(count, 3, *square[1:]).transpose(1, 2).flatten(0, 1)
        crops = ((crops - PIXEL_MEAN) / PIXEL_STD).to(self.dtype, memory_format=torch.channels_last)
        whitened = self.encoder(crops)[0].float()
        return self.face_model.landmarks(self.face_model.dewhiten(whitened))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    batches = [1, 8, 64, 256, 1024, 4096]
    parser.add_argument("--batches", type=at_least(1), nargs="+", default=batches)
    parser.add_argument("--repeats", type=at_least(1), default=20)
    parser.add_argument("--skip-compiled", action="store_true")
    args = parser.parse_args()
    device = choose_device(args.device)

    face_model = load_morphable_model(assets.find_face_model())
    plain = on_device(load_synergynet(assets.find_weights(), face_model).I2P, device).eval()
    merged = folded(plain)
    half = copy.deepcopy(merged).to(torch.bfloat16)
    ways: dict[str, tuple[nn.Module, torch.dtype]] = {
        "fp32": (plain, torch.float32),
        "folded": (merged, torch.float32),
        "bf16": (half, torch.bfloat16),
    }
    if not args.skip_compiled:
        mode = "max-autotune" if device.type == "cuda" else "default"
        # each size by itself, as a user of one size would have it
        compiled = torch.compile(half, mode=mode, dynamic=False)
        ways["bf16, compiled"] = (compiled, torch.bfloat16)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    moved, products = work(plain)
    print(f"{name}, torch {torch.__version__}")
    print(
        f"a crop: {moved / 1e6:.1f} M values read and written, {products / 1e6:.0f} M "
        "multiplications"
    )
    floors = {}
    for dtype in (torch.float32, torch.bfloat16):
        copied, multiplied = speeds(device, dtype)
        floors[dtype] = max(moved * dtype.itemsize / copied, products / multiplied)
        print(
            f"{dtype}: copies {copied / 1e9:.0f} GB/s, {multiplied / 1e12:.2f} T multiplications/s,"
            f" floor {1 / floors[dtype]:,.0f} crops/s"
        )
    print(
        "\n| way | " + " | ".join(f"{batch} crops" for batch in args.batches) + " | of the floor |"
    )
    print("|---" * (len(args.batches) + 2) + "|")
    for title, (module, dtype) in ways.items():
        torch.backends.cudnn.benchmark = title != "fp32"
        torch.set_float32_matmul_precision("highest" if title == "fp32" else "high")
        rates = []
        for batch in args.batches:
            make = partial(crops_through, module, batch, dtype, device)
            rates.append(speed(make, batch, device, args.repeats))
        share = np.nanmax(rates) * floors[dtype]
        print(
            f"| {title} | {' | '.join(f'{rate:,.0f}' for rate in rates)} | {share:.0%} |",
            flush=True,
        )

    module, dtype = list(ways.values())[-1]
    pipeline = FramesToLandmarks(module, face_model.to_torch(device), dtype)
    rates = []
    for batch in args.batches:
        faces = min(batch, FACES)
        make = partial(frames_through, pipeline, batch // faces, faces, device)
        rates.append(speed(make, batch // faces * faces, device, args.repeats))
    print(f"| frames to landmarks | {' | '.join(f'{rate:,.0f}' for rate in rates)} | |")


if __name__ == "__main__":
    run_script(main)
