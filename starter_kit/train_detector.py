"""Trains the starter kit's own FaceBoxes weights, from random initialisation.

First from labels alone, then against the outputs of the detector that made the labels.

    python -m tools.evaluate_detector FaceBoxes/weights/FaceBoxesProd.pth \\
        --data PHOTOS/detector/train --write-labels runs/detector/labels.json
    python -m starter_kit.train_detector --photos PHOTOS \\
        --labels runs/detector/labels.json --views runs/starter/packed_rotated --minutes 90
    python -m starter_kit.train_detector --photos PHOTOS --labels runs/detector/labels.json \\
        --init runs/detector/average.pth --teacher FaceBoxes/weights/FaceBoxesProd.pth \\
        --lr 1e-3 --minutes 75 --out runs/distilled
    python -m starter_kit.train_detector --out runs/distilled \\
        --export FaceBoxes/weights/starter_faceboxes.pth

PHOTOS holds `detector/train.zip` and `.json` (pictures; boxes `x1 y1 x2 y2 score`, where a score
below 0.5 means "don't know"; where the json leaves those out, the first example supplies them) and
`faces_train_*.zip` with `faces_train_labels.npz` (face crops with 68 landmarks); `--views` is a
packed set of faces turned in 3D (`rotate_views.py`); `--unlabelled` is a folder of any other
pictures. What is made of them: `detector_pictures.py`. From labels, the loss is SSD's multibox loss
(Liu et al., ECCV 2016) with hard negative mining. With `--teacher` it is the distance to another
detector's scores, boxes and feature maps on the same pictures, so that doubt is learnt as well
(`detector_losses.py`). Three things change with it: pictures are made up that no one could label,
of several beside and over each other and of people in rows; scenes in which the weights of
`--init` take something for a face are shown more often; labels count only for portraits in which
the teacher misses the face. `--frozen-norm` keeps the batch norm statistics of `--init`: the
student is compared with its teacher as it will be used, without the noise of a batch's statistics.
AdamW, cosine decay, averaged weights. Runs on one CPU core; `--resume` goes on where a run was
stopped.
"""

import argparse
import csv
import itertools
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from FaceBoxes.detector import MEAN_BGR
from FaceBoxes.network import FaceBoxesNet, load_network, load_weights
from starter_kit.detector_losses import Hints, distillation_loss, multibox_loss
from starter_kit.detector_pictures import TrainingPictures, mixed
from utils.assets import ROOT
from utils.checkpoint import mixed_state, require_in_half, write_checkpoint
from utils.cli import at_least, run_script, script_parser, within
from utils.files import atomic_write
from utils.runtime import choose_device, on_device
from utils.training import make_optimizer

HINT = 2.0  # weight of the distance of the feature maps
# From this share of the training on no pictures are mixed, so that batch-norm statistics settle on
# plain ones.
PLAIN_FROM = 0.85
# Files of --out: everything to go on from, and the averaged weights alone.
LAST, AVERAGE = "last.pth", "average.pth"
STATEFUL, COUNTS = ("network", "hints", "optimiser"), ("step", "elapsed")  # of a student, in LAST


class Student:
    """The network in training, with everything that is saved to resume it.

    Attributes:
        network: in training.
        hints: what reads its feature maps; trained with it, not exported.
        trained: both, as the optimiser has them.
        average: the network's state, averaged over the steps; this is what is exported.
        step: number of steps so far.
        elapsed: seconds that they took, in all runs.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.network = on_device(untrained(), args.device)
        self.hints = on_device(Hints(), args.device)
        self.trained = torch.nn.ModuleList([self.network, self.hints])
        self.optimiser = make_optimizer(self.trained, "adamw", args.lr, args.weight_decay)
        if args.init:
            self.network.load_state_dict(load_weights(args.init))
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.step, self.elapsed = 0, 0.0
        if args.resume:
            state = torch.load(args.out / LAST, map_location=args.device, weights_only=True)
            for name in STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            self.average, self.step, self.elapsed = (state[k] for k in ("average", *COUNTS))

    def learn(self, loss: Tensor, lr: float) -> None:
        """One step down the loss of a batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 20.0)
        self.optimiser.step()
        self.step += 1
        keep = min(0.999, (1 + self.step) / (10 + self.step))
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - keep)

    def save(self, folder: Path) -> None:
        """Everything to go on from, and beside it the average alone, as the detector reads it."""
        state: dict[str, object] = {name: getattr(self, name).state_dict() for name in STATEFUL}
        state |= {name: getattr(self, name) for name in ("average", *COUNTS)}
        write_checkpoint(folder / LAST, state)
        plain = {key: value.cpu().contiguous() for key, value in self.average.items()}
        write_checkpoint(folder / AVERAGE, plain)


def train(args: argparse.Namespace) -> None:
    """Trains to the end of the schedule, or of ``--minutes``, and saves on the way.

    Raises:
        RuntimeError: the loss is not finite.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(0)
    device = args.device
    student, teacher = Student(args), None
    args.out.mkdir(parents=True, exist_ok=True)
    if args.teacher:
        teacher = on_device(load_network(args.teacher), device).eval()
    loader = DataLoader(
        training_pictures(args),
        batch_size=None,
        sampler=itertools.count(student.step),
        num_workers=args.workers,
    )
    mean = torch.tensor(MEAN_BGR, device=device)  # of images (B, S, S, 3)
    half = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    started = time.monotonic() - student.elapsed
    with Log(args, student.step, has_hints=teacher is not None) as log:
        for images, *labels in loader:
            student.elapsed = time.monotonic() - started
            progress = student.step / args.steps
            if args.minutes:
                progress = max(progress, student.elapsed / 60 / args.minutes)
            if progress >= 1:
                break
            lr = args.lr * min((student.step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * progress))
            student.network.train(not args.frozen_norm)
            images = images.to(device).to(torch.float32).sub_(mean).permute(0, 3, 1, 2)
            labels = [x.to(device) for x in labels]
            if teacher is None:
                with half:
                    predicted = student.network.predict(student.network.maps(images))
                terms = multibox_loss(*(rows.float() for rows in predicted), *labels[:2])
            else:
                rng = np.random.default_rng((args.seed, student.step, 1))
                if progress < PLAIN_FROM:
                    images, labels = with_mixed(rng, images, *labels)
                terms = taught_terms(student, teacher, images, labels, half)
            loss = 2 * terms["box"] + terms["score"] + HINT * terms.get("hint", 0)
            if not math.isfinite(loss.item()):
                raise RuntimeError(
                    f"the loss is {loss.item()} at step {student.step}: try a smaller --lr"
                )
            student.learn(loss, lr)
            log.add(student, lr, terms)
            if student.step % args.save_every == 0:
                student.save(args.out)
    student.save(args.out)


def training_pictures(args: argparse.Namespace) -> TrainingPictures:
    """All that the options name: labelled, unlabelled and doubtful pictures, crops and views."""
    is_taught = args.teacher is not None
    pictures = TrainingPictures(
        args.photos, args.seed, args.labels, args.views, is_taught, args.repeats
    )
    if args.unlabelled:
        pictures.add_unlabelled(args.unlabelled, args.teacher)
    if is_taught and args.init:
        pictures.add_doubtful(args.init)
    return pictures


class Log:
    """``log.csv`` in ``--out`` and the progress bar: means of the terms over ``EVERY`` steps."""

    EVERY = 50

    def __init__(self, args: argparse.Namespace, step: int, has_hints: bool) -> None:
        names = ["box", "score", "hint"] if has_hints else ["box", "score"]
        path, kept = args.out / "log.csv", [["step", "seconds", "lr", *names]]
        if args.resume and path.exists():  # what came after the last save is done again
            rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
            kept += [row for row in rows if len(row) == len(kept[0]) and int(row[0]) <= step]
        with atomic_write(path, "w") as file:
            csv.writer(file, lineterminator="\n").writerows(kept)
        self.file = open(path, "a", newline="")
        self.rows = csv.writer(self.file, lineterminator="\n")
        self.bar = tqdm(total=args.steps, initial=step, desc="train")
        self.sums, self.counted = dict.fromkeys(names, 0.0), 0

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.file.close()

    def add(self, student: Student, lr: float, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] += value.item()
        self.counted += 1
        self.bar.update()
        if student.step % self.EVERY == 0:
            means = {name: value / self.counted for name, value in self.sums.items()}
            written = (f"{value:.4f}" for value in means.values())
            self.rows.writerow([student.step, f"{student.elapsed:.0f}", f"{lr:.2e}", *written])
            self.file.flush()
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            self.sums, self.counted = dict.fromkeys(self.sums, 0.0), 0


def untrained() -> FaceBoxesNet:
    """Random weights; the heads' are small, so that every anchor begins at its own box, unsure."""
    network = FaceBoxesNet()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    for head in (*network.loc, *network.conf):
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.zeros_(head.bias)
    return network


def with_mixed(
    rng: np.random.Generator, images: Tensor, labels: Tensor, offsets: Tensor, certain: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """A batch in which some of the pictures have another one shining through, and its labels."""
    images, is_mixed = mixed(rng, images, certain.cpu().numpy())
    labels = labels.masked_fill(is_mixed[:, None], 0)  # a copy: the batch comes again
    return images, [labels, offsets, certain]


def taught_terms(
    student: Student,
    teacher: FaceBoxesNet,
    images: Tensor,
    labels: list[Tensor],
    half: torch.autocast,
) -> dict[str, Tensor]:
    """How far student and teacher are apart on a batch: ``box``, ``score`` and ``hint``.

    Args:
        images: (B, 3, S, S) float32, means subtracted.
        labels: labels, offsets and certain of ``TrainingPictures``.
    """
    with half:
        maps = student.network.maps(images)
        predicted = [rows.float() for rows in student.network.predict(maps)]
        with torch.no_grad():
            taught_maps = teacher.maps(images)
            taught = [rows.float() for rows in teacher.predict(taught_maps)]
        hint = student.hints(maps, taught_maps, taught[1], ~labels[-1])
    return distillation_loss(*predicted, *taught, *labels) | {"hint": hint}


def export(source: Path, target: Path, other: Path | None = None, share: float = 0.0) -> None:
    """Kernels in half precision; batch-norm statistics and biases, a few kB, stay in float32.

    Args:
        other: weights from which the training began, of which ``share`` is mixed in.

    Raises:
        ValueError: a kernel is beyond half precision.
    """
    state = load_weights(source)
    if other:
        state = mixed_state(state, load_weights(other), share, other)
    small = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}
    require_in_half(small, source)
    write_checkpoint(target, small)


def main() -> None:
    parser = script_parser(
        __doc__, usage="--photos DIR [options]", module="starter_kit.train_detector"
    )
    add = parser.add_argument
    add("--photos", type=Path, help="folder of detector/ and the zips of faces")
    add("-o", "--out", type=Path, default=ROOT / "runs" / "detector",
        help="folder of the training (default: runs/detector)")  # fmt: skip
    add("--labels", type=Path, help="in place of PHOTOS/detector/train.json")
    add("--views", type=Path, help="packed set of faces turned in 3D")
    add("--init", type=Path, help="weights to begin with")
    add("--teacher", type=Path, help="weights of the detector whose outputs are to be learnt")
    add("--unlabelled", type=Path,
        help="folder of more pictures, for what the teacher says of them")  # fmt: skip
    add("--steps", type=at_least(1), default=16000, help="in all (default: 16000)")
    add("--minutes", type=at_least(0, float), help="finish by then, the schedule included")
    add(
        "--lr", type=at_least(0, float), default=1.5e-3, help="peak learning rate (default: 0.0015)"
    )
    add("--weight-decay", type=at_least(0, float), default=1e-2, help="AdamW's (default: 0.01)")
    add("--seed", type=at_least(0), default=20211, help="of everything random (default: 20211)")
    add("--device", default="cpu", help="auto, cpu, cuda or mps (default: cpu)")
    add("--threads", type=at_least(1), default=1, help="CPU threads of the networks (default: 1)")
    add("--workers", type=at_least(0), default=0,
        help="processes that make pictures (default: 0, this one)")  # fmt: skip
    add("--repeats", type=at_least(1), default=1, help="times each batch is used (default: 1)")
    add("--bf16", action="store_true", help="half precision in the networks")
    add("--frozen-norm", action="store_true", help="batch norm with the statistics of --init")
    add("--save-every", type=at_least(1), default=250, metavar="STEPS",
        help="save OUT/last.pth, average.pth (default: 250)")  # fmt: skip
    add("--resume", action="store_true", help="go on from OUT/last.pth")
    add("--export", type=Path, help="write the averaged weights there and stop")
    add("--init-share", type=within(0, 1, float), default=0.0,
        help="of the weights of --init in the export (default: 0)")  # fmt: skip
    args = parser.parse_args()
    if not (args.export or args.photos):
        parser.error("training needs --photos")
    if args.unlabelled and not args.teacher:
        parser.error("--unlabelled needs --teacher: someone has to say where faces are")
    if args.init_share and not (args.export and args.init):
        parser.error("--init-share is the share of --init in an --export: it needs both")
    if args.frozen_norm and not args.init:
        parser.error("--frozen-norm needs --init: untrained weights have no statistics")
    last = args.out / LAST
    if last.exists() and not (args.resume or args.export):
        parser.error(
            f"{last}: a training is there already: go on with it (--resume), or write elsewhere "
            "(--out)"
        )
    try:
        args.device = choose_device(args.device)
    except RuntimeError as error:
        parser.error(str(error))
    if args.export:
        export(args.out / AVERAGE, args.export, args.init, args.init_share)
    else:
        train(args)


if __name__ == "__main__":
    run_script(main)
