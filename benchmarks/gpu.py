"""Crops and faces a second on a GPU against batch size, and how far that is from the floor.

    python -m benchmarks.gpu --device cuda --batches 1 64 4096

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

Each number is the median of the repeats with their quartiles. Every call is waited for, and a
second of calls goes before the first that counts, so that the clocks have risen. Each way must find
the landmarks that fp32 finds in the same crops of a photo (other crops than those it was timed on);
how far off it is stands in the last column.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model_building import load_synergynet
from utils import assets
from utils.cli import at_least, run_script, script_parser
from utils.memory import is_out_of_memory
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.pictures import read_image
from utils.preprocessing import (
    CROP_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    boxes_to_roi_boxes,
    crop_faces,
    normalize_crops,
)
from utils.runtime import choose_device, on_device, picture_layout

FRAME, FACES = (720, 1280), 8  # pixels; faces in each frame
DIFFERENT = 64  # crops, before they repeat; a multiple of FACES
CHECKED = 1  # seed of the crops whose landmarks are compared; those of 0 are timed
WARM_UP = 1.0  # seconds of calls before the first that counts
# Pixels of the crop, mean of all landmarks: more than a way's rounding can do to them.
ALLOWED = {torch.float32: 0.1, torch.bfloat16: 0.3}


def folded(module: nn.Module) -> nn.Module:
    """A copy with each batch norm merged into the convolution before it."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for first, second in pairwise(list(parent._modules)):
            pair = parent._modules[first], parent._modules[second]
            if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(*pair)
                parent._modules[second] = nn.Identity()
    return module


def cost_of_a_crop(module: nn.Module) -> tuple[int, int]:
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


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> np.ndarray:
    """(repeats,) times of a call, the device's work included."""

    finish_all = {"cuda": torch.cuda.synchronize, "mps": lambda _: torch.mps.synchronize()}

    def finish() -> float:
        if device.type in finish_all:
            finish_all[device.type](device)
        return time.perf_counter()

    for _ in range(3):  # compiles, allocates, captures
        call()
    warm = finish() + WARM_UP
    while device.type != "cpu" and finish() < warm:
        call()
    times = []
    for _ in range(repeats):
        start = finish()
        call()
        times.append(finish() - start)
    return np.array(times)


def frame_and_boxes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame (H, W, 3) uint8 with a face, and (count, 4) float32 roi boxes about the face."""
    rng = np.random.default_rng(seed)
    photo = read_image(assets.ROOT / "img" / "astronaut.jpg")
    frame = rng.integers(0, 256, (*FRAME, 3), dtype=np.uint8)
    frame[: photo.shape[0], : photo.shape[1]] = photo
    box = boxes_to_roi_boxes(np.array([[183.0, 59.0, 271.0, 180.0]]))
    shift = np.tile(rng.uniform(-8, 8, (min(count, DIFFERENT), 2)), 2)
    return frame, np.resize(box + shift, (count, 4)).astype(np.float32)


def some_crops(batch: int, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor]:
    """As many crops of a face, as the backbone takes them."""
    frame, boxes = frame_and_boxes(batch, seed)
    crops = normalize_crops(crop_faces(frame, boxes[:DIFFERENT]))
    crops = torch.from_numpy(np.resize(crops, (batch, *crops.shape[1:])))
    return (crops.to(device, dtype).contiguous(memory_format=picture_layout(device)),)


def some_frames(count: int, faces: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """As many frames, and boxes of some faces in each, as ``FramesToLandmarks`` takes them."""
    frame, boxes = frame_and_boxes(count * faces, seed)
    frames = torch.from_numpy(frame).to(device).expand(count, *FRAME, 3).contiguous()
    return frames, torch.from_numpy(boxes).to(device).reshape(count, faces, 4)


def measured(
    work: Callable[..., object],
    landmarks: Callable[..., Tensor],
    inputs: Callable[[int], tuple[Tensor, ...]],
    expected: Tensor,
    count: int,
    device: torch.device,
    repeats: int,
) -> tuple[np.ndarray, float]:
    """How fast a way is, and how far its landmarks are from the plain way's.

    Args:
        work: the way; does ``count`` faces a call.
        landmarks: inputs -> (n, 3, 68) by this way.
        inputs: a seed -> what both are called with.
        expected: (``DIFFERENT``, 3, 68) on the CPU, by the plain way, for the seed ``CHECKED``.

    Returns:
        faces a second (repeats,); mean distance, pixels of the crop. NaN where the memory is too
        small.
    """
    try:
        with torch.inference_mode():
            timed = inputs(0)
            rates = count / seconds(lambda: work(*timed), device, repeats)
            found = landmarks(*inputs(CHECKED)).cpu()
            apart = found - expected[torch.arange(len(found)) % DIFFERENT]
            return rates, float(apart[:, :2].norm(dim=1).mean())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return np.full(repeats, np.nan), float("nan")


def row(title: str, results: list[tuple[np.ndarray, float]], floor: float, allowed: float) -> None:
    """Prints a line of the table.

    Raises:
        SystemExit: the landmarks are not those of the plain way.
    """
    cells = []
    for rates, _ in results:
        low, median, high = np.percentile(rates, [25, 50, 75])
        cells.append(f"{median:,.0f} ({low:,.0f}–{high:,.0f})")
    medians = np.array([np.median(rates) for rates, _ in results])
    distances = np.array([far for _, far in results])
    ran = ~np.isnan(medians)
    if not ran.any():
        print(f"| {title} | {' | '.join(cells)} | | no memory |", flush=True)
        return
    share = f"{medians[ran].max() * floor:.0%}" if floor else ""
    worst = distances[ran].max()
    print(f"| {title} | {' | '.join(cells)} | {share} | {worst:.3f} px |", flush=True)
    if not worst <= allowed:  # NaN is not
        far = distances.tolist()
        raise SystemExit(f"{title}: landmarks {far} pixels from fp32's, at most {allowed}")


def speeds(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a copy (read and written), multiplications a second of a matrix product."""
    large = device.type != "cpu"
    # numbers, not zeros: those cost less power, and so the clock is higher
    source = torch.randint(256, (2**29 if large else 2**24,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / np.median(seconds(lambda: target.copy_(source), device, 10))
    side = 8192 if large else 512
    a = torch.randn(side, side, dtype=dtype, device=device)
    return copied, side**3 / np.median(seconds(lambda: a @ a, device, 10))


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
    parser = script_parser(__doc__, module="benchmarks.gpu")
    add, batches = parser.add_argument, [1, 8, 64, 256, 1024, 4096]
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--batches", type=at_least(1), nargs="+", default=batches, metavar="N",
        help=f"crops at once (default: {' '.join(map(str, batches))})")  # fmt: skip
    add("--repeats", type=at_least(1), default=20, help="default: 20")
    add("--skip-compiled", action="store_true", help="leave out torch.compile, which takes minutes")
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
        # each size by itself, as a user of one size would have it; of more sizes than its limit (8)
        # torch would run the others plainly
        torch._dynamo.config.cache_size_limit = 8 + 2 * len(args.batches)
        compiled = torch.compile(half, mode=mode, dynamic=False)
        ways["bf16, compiled"] = (compiled, torch.bfloat16)

    points = face_model.to_torch(device)

    def decoded(module: nn.Module, crops: Tensor) -> Tensor:
        return points.landmarks(points.dewhiten(module(crops)[0].float()))

    with torch.inference_mode():  # the plain way, before any setting is changed
        in_crops = decoded(plain, *some_crops(DIFFERENT, torch.float32, device, CHECKED)).cpu()
        frames = some_frames(DIFFERENT // FACES, FACES, device, CHECKED)
        in_frames = FramesToLandmarks(plain, points, torch.float32)(*frames).cpu()

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    moved, products = cost_of_a_crop(plain)
    print(f"{name}, torch {torch.__version__}")
    print(
        f"a crop: {moved / 1e6:.1f} M values read and written, {products / 1e6:.0f} M "
        "multiplications"
    )
    torch.set_float32_matmul_precision("high")  # as cuDNN's convolutions multiply float32
    floors = {}
    for dtype in (torch.float32, torch.bfloat16):
        copied, multiplied = speeds(device, dtype)
        floors[dtype] = max(moved * dtype.itemsize / copied, products / multiplied)
        print(
            f"{dtype}: copies {copied / 1e9:.0f} GB/s, {multiplied / 1e12:.2f} T multiplications/s,"
            f" floor {1 / floors[dtype]:,.0f} crops/s"
        )
    print(
        "\n| way | "
        + " | ".join(f"{batch} crops" for batch in args.batches)
        + " | of the floor | from fp32 |"
    )
    print("|---" * (len(args.batches) + 3) + "|")
    for title, (module, dtype) in ways.items():
        torch.backends.cudnn.benchmark = title != "fp32"
        torch.set_float32_matmul_precision("highest" if title == "fp32" else "high")
        results = [
            measured(
                module,
                partial(decoded, module),
                partial(some_crops, batch, dtype, device),
                in_crops,
                batch,
                device,
                args.repeats,
            )
            for batch in args.batches
        ]
        row(title, results, floors[dtype], ALLOWED[dtype])

    module, dtype = list(ways.values())[-1]
    pipeline, results = FramesToLandmarks(module, points, dtype), []
    for batch in args.batches:
        faces = min(batch, FACES)
        inputs = partial(some_frames, batch // faces, faces, device)
        count = batch // faces * faces
        results.append(measured(pipeline, pipeline, inputs, in_frames, count, device, args.repeats))
    row("frames to landmarks", results, 0.0, ALLOWED[dtype])


if __name__ == "__main__":
    run_script(main)
