"""The training loop: batches -> augmentation -> the synergy loop -> one optimiser step.

Every step draws its samples, augmentation and dropout from (seed, epoch, step, process), so there
is no random state to lose: a run that was killed and resumed goes on as if it had not been.
Checkpoints are complete or not there; a step with a non-finite loss or gradient is skipped whole.
"""

import argparse
import gc
import hashlib
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from backbone_nets.fused_norm import fuse_batch_norm
from backbone_nets.strided_depthwise import speed_up_strided_depthwise
from loss_definition import LOOPS, LOSS_WEIGHTS, SynergyLoss, runs_inverse, runs_refiner, total
from model_building import SynergyNet, evaluation_mode, load_learnable
from utils.aflw2000 import DEFAULT_FOLDER, open_benchmark
from utils.augmentation import AUGMENTATIONS, Augment, Batch
from utils.checkpoint import check_face_model, read_checkpoint, write_checkpoint
from utils.cli import lasting, say
from utils.datasets import (
    Faces,
    Subset,
    batches,
    count_shared_faces,
    open_training_set,
    pose_balanced_probabilities,
    split_held_out,
)
from utils.distributed import World
from utils.evaluation import by_bin, score_aflw2000
from utils.files import check_writable, remove_partials
from utils.geometry import angle_differences, camera_angles
from utils.memory import keep_freed_memory
from utils.metrics import bin_means, nme
from utils.morphable_model import MorphableModel, split_camera
from utils.parallel import in_order
from utils.preprocessing import CROP_SIZE, PROTOCOL_BORDER
from utils.runtime import picture_layout
from utils.training_log import TrainingLog

# The published schedule: epochs of 80 at which a new factor of the peak rate begins.
PUBLISHED_EPOCHS = 80
PUBLISHED_SCHEDULE = ((0, 0.2), (5, 1.0), (48, 0.2), (64, 0.04))
EPOCH_NAME = "SynergyNet_checkpoint_epoch_{}.pth.tar"  # of an epoch's weights, as published


class NonFiniteError(RuntimeError):
    """A training has diverged: its losses, gradients or answers are no numbers any more."""


@dataclass
class Progress:
    """How far a run is, and what it must not forget; saved with every ``last.pth.tar``."""

    epoch: int = 0  # complete ones
    step: int = 0  # of the epoch under way
    best_score: float = math.inf
    best_epoch: int = 0
    skipped: int = 0  # steps whose loss or gradient was not finite
    counted: int = 0  # steps of this epoch that were not skipped
    sums: dict[str, float] = field(default_factory=dict)  # of their loss terms

    def count(self, terms: dict[str, float]) -> None:
        """Adds the loss terms of a step."""
        self.counted += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The epoch's loss terms so far; empty where every step was skipped."""
        return {name: value / self.counted for name, value in self.sums.items()}


# ------------------------------------------------------------------------------------- the pieces


class TrainingStep(nn.Module):
    """Network and losses as one module, so that one ``forward`` is what DDP and compilers see.

    Args:
        model: trained in place.
        criterion: which terms, and their weights.
        amp: run the image encoder in bfloat16.
    """

    def __init__(self, model: SynergyNet, criterion: SynergyLoss, amp: bool = False) -> None:
        super().__init__()
        self.model, self.criterion, self.amp = model, criterion, amp
        # what the loop leaves out takes no part in training (DDP would wait for its gradients)
        model.forwardDirection.requires_grad_(runs_refiner(criterion.loop))
        model.reverseDirection.requires_grad_(runs_inverse(criterion.loop))

    def forward(self, images: Tensor, target: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """Loss terms, each a scalar; ``images`` (B, 3, H, W), else as ``SynergyNet.loss``."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            terms = self.model.loss(images, target, self.criterion, target_landmarks=landmarks)
        return {name: term.mean() for name, term in terms.items()}


def published_rate(epoch: int, epochs: int, peak: float) -> float:
    """Learning rate of an epoch, counted from 0: of 80 the first 5 at 0.2 times the peak, 43 at the
    peak, 16 at 0.2 and the last 16 at 0.04 times. Other numbers of epochs are cut in proportion."""
    scale = epochs / PUBLISHED_EPOCHS
    return peak * [factor for start, factor in PUBLISHED_SCHEDULE if epoch >= start * scale][-1]


def linear_rate(step: int, steps: int, peak: float, warmup: int, cooldown: int) -> float:
    """Learning rate of a step of a run, counted from 0: a trapezoid that rises to the peak over
    ``warmup`` steps, stays there, and falls to peak / cooldown over the last ``cooldown``."""
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, cooldown))


def make_optimizer(
    model: nn.Module, name: str, rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``sgd``: Nesterov's, as published; ``adamw``: weights decay, biases and norms do not."""
    parameters = list(model.parameters())
    if name == "sgd":
        return torch.optim.SGD(parameters, rate, 0.9, weight_decay=weight_decay, nesterov=True)
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    # not on Apple's GPU: nobody has tried it there
    is_fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, rate, weight_decay=weight_decay, fused=is_fused)


def check_batch_size(batch_size: int, samples: int, world: World, norm: str) -> None:
    """Refuses batches that an epoch of ``samples``, batch norm or the processes cannot work with.

    ``norm`` is ``all``, or ``own`` where each GPU has its own batch norm.

    Raises:
        ValueError: what is wrong with it, and what to give.
    """
    if batch_size > samples:
        raise ValueError(
            f"an epoch of {samples} samples has no full batch of {batch_size}; "
            "give a smaller --batch-size"
        )
    is_own = norm == "own" or world.device.type == "cpu"  # a process's own batch norm
    least = world.size if is_own else 1
    if batch_size < 2 * least:
        raise ValueError(
            f"--batch-size {batch_size} leaves batch norm a single sample; give {2 * least} or more"
        )
    if batch_size % world.size:
        raise ValueError(
            f"--batch-size {batch_size} cannot be shared out among {world.size} "
            "processes; give a multiple"
        )


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in hardware, and not emulated slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capability = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(capability())


class Snapshot:
    """The buffers of a module (batch-norm statistics), to take a forward pass back."""

    def __init__(self, module: nn.Module) -> None:
        buffers: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            buffers.setdefault(buffer.dtype, []).append(buffer)
        # one kind of number at a time: of several at once each tensor is copied by itself
        self.kinds = [(some, [buffer.clone() for buffer in some]) for some in buffers.values()]

    def take(self) -> None:
        for buffers, copies in self.kinds:
            torch._foreach_copy_(copies, buffers)

    def restore(self) -> None:
        for buffers, copies in self.kinds:
            torch._foreach_copy_(buffers, copies)


def seed_of(*key: int) -> int:
    """One 32-bit seed of (seed, epoch, step, process)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@torch.inference_mode()
def validate(
    model: SynergyNet,
    faces: Faces,
    loop: str,
    augment: Augment,
    size: int,
    device: torch.device,
    workers: int = 1,
) -> dict[str, float]:
    """Scores in percent and degrees against a set's own labels.

    Args:
        model: scored in evaluation mode.
        faces: the set; every sample counts once.
        loop: a key of ``LOOPS``; the refined landmarks are scored where it runs the refiner.
        augment: without randomness: how the crops are cut.
        size: side of the crops, pixels.
        device: where the model is.
        workers: threads that read pictures ahead.

    Returns:
        ``nme`` (mean over samples), ``nme_balanced`` (over the yaw bins, which chooses the
        checkpoint), one a bin, ``nme_refined`` (NaN where untrained), and ``pose_mae``: the mean
        absolute error of yaw, pitch and roll against the angles of the labels' own cameras.

    Raises:
        NonFiniteError: the network's answers are not finite.
    """
    raw, refined, pose = [], [], []
    with evaluation_mode(model):
        parts = np.array_split(np.arange(len(faces)), math.ceil(len(faces) / 128))
        for batch in in_order(faces.batch, parts, workers):
            images, parameters, landmarks = augment(batch.to(device), torch.Generator(), size)
            output = model(images, loop)
            predicted = model.face_model.dewhiten(output.whitened)
            if not torch.isfinite(predicted).all():
                raise NonFiniteError("the network's answers are not finite")
            landmarks = landmarks.cpu().numpy()
            raw.append(nme(output.landmarks.cpu().numpy(), landmarks))
            if output.refined is not None:
                refined.append(nme(output.refined.cpu().numpy(), landmarks))
            found, labelled = (
                camera_angles(split_camera(p.cpu().numpy())) for p in (predicted, parameters)
            )
            pose.append(angle_differences(found, labelled).mean(1))
    raw = np.concatenate(raw)
    bins = bin_means(raw, faces.yaw())
    return {
        "nme": float(raw.mean()),
        "nme_refined": float(np.concatenate(refined).mean()) if refined else math.nan,
        "nme_balanced": float(np.nanmean(bins)),
        **{f"nme_{key}": value for key, value in by_bin(bins).items()},
        "pose_mae": float(np.concatenate(pose).mean()),
    }


# -------------------------------------------------------------------------------------- the run


class Trainer:
    """A run: everything it needs, built from the options of ``main_train.py``.

    Args:
        options: see ``main_train.parse_options``.
        face_model: the 3DMM that the parameters refer to.
        world: this process among those that train together.

    Raises:
        OSError, ValueError: of the data, the weights, the checkpoint to resume, or the folder to
            write to; each names the file.
    """

    def __init__(
        self, options: argparse.Namespace, face_model: MorphableModel, world: World
    ) -> None:
        self.options, self.world = options, world
        self.device = world.device
        self.train_set, self.val_set = self._open_sets(face_model)
        if options.report_aflw2000:
            self.benchmark = open_benchmark(DEFAULT_FOLDER)
        # by their parameters: scores on other faces are not to be compared
        scored = np.ascontiguousarray(self.val_set.parameters)
        self.val_fingerprint = hashlib.sha256(scored).hexdigest()[:16]
        self.probabilities = None
        if options.pose_balanced:
            self.probabilities = pose_balanced_probabilities(self.train_set.yaw())
        self.samples_per_epoch = options.samples_per_epoch or len(self.train_set)
        self.steps_per_epoch = self.samples_per_epoch // options.batch_size
        check_batch_size(options.batch_size, self.samples_per_epoch, world, options.norm)

        # every step has the same shapes: cuDNN measures once which kernel is the fastest
        torch.backends.cudnn.benchmark = self.device.type == "cuda"
        torch.manual_seed(options.seed)
        self.model = self._make_model(face_model)
        self.optimizer = make_optimizer(
            self.model, options.optimizer, options.lr, options.weight_decay
        )
        self.progress, self.skipped_in_a_row = Progress(), 0
        if options.resume:
            self._resume()
        done = torch.tensor([self.progress.epoch, self.progress.step], device=self.device).float()
        if not torch.equal(world.mean(done), done):
            raise ValueError(
                f"{self.last}: not every process found the same one; --out must be one folder that "
                "all machines share"
            )
        self.amp = options.amp == "bf16" or (options.amp == "auto" and supports_bf16(self.device))
        self.step, self.snapshot = self._make_step(), Snapshot(self.model)
        self.augment = AUGMENTATIONS[options.augment](face_model)
        self.plain = Augment(PROTOCOL_BORDER if options.augment == "published" else 0)
        if not options.dry_run:  # last: what cannot begin leaves no empty folder
            check_writable(options.out, "--out")  # not found out after an epoch

    def _make_model(self, face_model: MorphableModel) -> SynergyNet:
        """The network on its device, with the weights to begin with, as it is the fastest there."""
        options = self.options
        model = SynergyNet(face_model, options.backbone, options.heads, options.loop)
        model.to(self.device)
        if options.init:
            content = read_checkpoint(options.init)
            check_face_model(content, face_model, options.init)
            load_learnable(model, content, options.init)
        model.to(memory_format=picture_layout(self.device))
        if self.device.type == "cpu":
            fuse_batch_norm(model)
            speed_up_strided_depthwise(model)
            keep_freed_memory()
        elif self.world.size > 1 and self.device.type == "cuda" and options.norm == "all":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    def _make_step(self) -> nn.Module:
        """``TrainingStep``, compiled if asked for, and for several processes wrapped in DDP."""
        options, world = self.options, self.world
        step = TrainingStep(self.model, SynergyLoss(options.loop), self.amp)
        if options.compile:
            step.compile()
            if world.is_main:
                say("--compile: the first steps wait for the compiler, minutes on a CPU")
                if world.size > 1 and options.norm == "all":
                    say("--compile gains little here: batch norm across processes is not compiled")
        if world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # statistics of all processes' samples are everywhere the same already
            is_shared = any(isinstance(m, nn.SyncBatchNorm) for m in self.model.modules())
            step = DistributedDataParallel(step, device_ids=ids)
            step.broadcast_buffers = not is_shared  # the argument is deprecated since torch 2.13
        return step

    def _describe(self) -> str:
        """Network, sets and device in a line."""
        weights, own = (
            sum(p.numel() for p in network.parameters()) / 1e6
            for network in (self.model, self.model.I2P)
        )
        return (
            f"{weights:.2f} M weights, of which backbone {own:.2f} M; "
            f"{len(self.train_set):,} training and {len(self.val_set):,} validation faces; "
            f"{self.steps_per_epoch} steps of {self.options.batch_size} an epoch; {self.device}"
            f"{' x ' + str(self.world.size) if self.world.size > 1 else ''}, "
            f"{'bfloat16 encoder' if self.amp else 'float32'}"
        )

    def _open_sets(self, face_model: MorphableModel) -> tuple[Faces, Faces]:
        """The faces to train on and those to validate on."""
        options = self.options
        faces = open_training_set(options.pack or options.data, face_model)
        if options.val:
            train_set, val_set = faces, open_training_set(options.val, face_model)
            if self.world.is_main and (both := count_shared_faces(train_set, val_set)):
                say(
                    f"{options.val}: {both:,} of its {len(val_set):,} faces are trained on "
                    "too; the error on them says nothing of other faces"
                )
        else:
            sides = split_held_out(faces, options.held_out, options.seed)
            train_set, val_set = (Subset(faces, side) for side in sides)
        if options.limit:
            keep = np.random.default_rng(options.seed).permutation(len(train_set))
            train_set = Subset(train_set, np.sort(keep[: options.limit]))
        return train_set, val_set

    # ------------------------------------------------------------------------------- checkpoints

    @property
    def last(self) -> Path:
        return self.options.out / "last.pth.tar"

    def _plan(self) -> dict:
        """What decides the order of the samples: an epoch under way cannot go on with another."""
        options = self.options
        return {
            "seed": options.seed,
            "batch size": options.batch_size,
            "samples an epoch": self.samples_per_epoch,
            "training faces": len(self.train_set),
            "pose balanced": options.pose_balanced,
        }

    def _recipe(self) -> dict:
        """What may be changed between epochs, and is said when it is."""
        names = (
            "epochs", "optimizer", "schedule", "lr", "weight_decay", "warmup", "cooldown",
            "clip_norm", "augment", "train_size", "loop", "norm",
        )  # fmt: skip
        recipe = {name: getattr(self.options, name) for name in names}
        recipe["processes"] = self.world.size  # what is random in augmentation and dropout
        return recipe | {"losses": {name: LOSS_WEIGHTS[name] for name in LOOPS[self.options.loop]}}

    def _save_last(self) -> None:
        if self.world.is_main:
            state = asdict(self.progress) | {"plan": self._plan(), "recipe": self._recipe()}
            state |= {"validation": self.val_fingerprint, "optimizer": self.optimizer.state_dict()}
            write_checkpoint(self.last, self.model.checkpoint(**state))

    def _resume(self) -> None:
        """Weights, optimiser, schedule, epoch and step, best score, from ``last.pth.tar``."""
        if not self.last.exists():
            if self.world.is_main:
                say(f"{self.last}: nothing saved yet, starting from the beginning")
            return
        state = read_checkpoint(self.last)
        check_resumable(state, self.model, self.last)
        changed = differences(state["plan"], self._plan())
        if changed and state["step"]:
            raise ValueError(
                f"{self.last}: stopped in the middle of an epoch drawn with {', '.join(changed)}; "
                "resume with the same settings"
            )
        before, recipe = state["recipe"], self._recipe()
        changed += differences(before, recipe)
        if changed and self.world.is_main:
            say(f"{self.last}: goes on with other settings: {', '.join(changed)}")
        self.model.load_state_dict(state["state_dict"])
        settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        try:
            # as they are given now; before, since "fused" decides where the counters of steps lie
            for group, own in zip(state["optimizer"]["param_groups"], settings, strict=False):
                group.update(own)
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ValueError(
                f"{self.last}: its optimiser's state does not fit --optimizer "
                f"{self.options.optimizer} ({error}); resume with the same one, or begin anew with "
                f"--init {self.last}"
            ) from error
        self.progress = Progress(**{name: state[name] for name in asdict(self.progress)})
        if before.get("losses") != recipe["losses"]:
            self.progress.counted, self.progress.sums = 0, {}  # means of other terms, or none
        same_faces = state.get("validation") == self.val_fingerprint
        if same_faces and _cut(before) == _cut(recipe):
            return
        if not (same_faces or self.options.val):
            raise ValueError(
                f"{self.last}: it held out other faces for validation, so some of those held out "
                "now it was trained on; resume with the same --data, --held-out and --seed, or "
                "give a set of its own with --val"
            )
        self.progress.best_score, self.progress.best_epoch = math.inf, 0
        if self.world.is_main:
            what = "crops" if same_faces else "faces"
            say(f"{self.last}: other validation {what}; the best epoch is chosen anew")

    # ---------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Trains until the last epoch.

        Raises:
            NonFiniteError: ``max_skipped`` steps in a row were not finite, or after an epoch the
                network's answers are not; nothing of them is saved.
        """
        options, progress, world = self.options, self.progress, self.world
        log = None
        if world.is_main:
            say(self._describe())
            remove_partials(options.out)  # of a killed run: checkpoints in size
            self._say_beginning()
            if options.overwrite and not options.resume:
                self._remove_old_run()
            log = TrainingLog(options.out, progress.epoch)
        started = time.time()
        while progress.epoch < options.epochs:
            epoch_started, seen = time.time(), progress.step
            self._train_epoch()
            self._check_answers()
            self._save_last()  # what may fail now costs no epoch
            row = self._close_epoch(time.time() - epoch_started, self.steps_per_epoch - seen)
            if world.is_main:
                log.add(row)
                self._save_last()  # from here on the epoch counts as done
                told = [f"{name} {value}" for name, value in row.items()]
                if progress.epoch < options.epochs and not seen:  # only a whole epoch can tell
                    left = (time.time() - epoch_started) * (options.epochs - progress.epoch)
                    told.append(f"left: {lasting(left)}")
                say("  ".join(told))
            world.wait()
        if world.is_main:
            best = "no epoch has a score"
            if progress.best_epoch:
                best = f"best epoch {progress.best_epoch} with NME {progress.best_score:.3f} %"
                best = f"{best}: {options.out / 'best.pth.tar'}"
            say(
                f"done: {progress.epoch} epochs in {lasting(time.time() - started)}, "
                f"{progress.skipped} steps skipped; {best}"
            )
            if options.train_size < CROP_SIZE and progress.best_epoch:
                say(
                    f"the scores are of crops of {options.train_size} pixels; everything else "
                    f"crops at {CROP_SIZE}, where this network is worse: go on with the same "
                    f"command and --init {options.out / 'best.pth.tar'} --train-size {CROP_SIZE} "
                    "--out ANOTHER"
                )

    def _remove_old_run(self) -> None:
        """What the run that is given up has left, lest it be taken for the new one's; first of all
        what ``--resume`` would go on from."""
        self.last.unlink(missing_ok=True)
        names = ["best.pth.tar", EPOCH_NAME.format("*"), "log.csv", "curves.png"]
        for name in [*names, "tensorboard/events.out.tfevents.*"]:
            for path in self.options.out.glob(name):
                path.unlink()

    def _say_beginning(self) -> None:
        """Says what the weights of --init score, and warns of too long a warm-up."""
        options, steps = self.options, self.options.epochs * self.steps_per_epoch
        if options.schedule == "linear" and options.warmup > steps / 2:
            say(
                f"the warm-up (--warmup {options.warmup}) is more than half of the {steps} steps; "
                "give a smaller one, a smaller --batch-size, or more --epochs"
            )
        if options.init and self.progress.epoch == self.progress.step == 0:
            score = self._validate()["nme_balanced"]
            say(f"the weights of --init have NME {score:.3f} % (mean of the yaw bins)")

    def _train_epoch(self) -> None:
        options, progress, world = self.options, self.progress, self.world
        self.step.train()
        bar = tqdm(
            total=self.steps_per_epoch * options.batch_size,
            initial=progress.step * options.batch_size,
            desc=f"epoch {progress.epoch + 1}/{options.epochs}",
            unit="img",
            mininterval=2,
            disable=not world.is_main,
        )
        with bar:
            for batch in self._batches():
                terms = self.train_step(batch)
                if terms is None:
                    self.skipped_in_a_row += 1
                    progress.skipped += 1
                    if self.skipped_in_a_row >= options.max_skipped:
                        raise NonFiniteError(
                            f"{self.skipped_in_a_row} steps in a row had a loss or gradient that "
                            f"is not finite (epoch {progress.epoch + 1}, step {progress.step + 1})"
                            "; try a smaller --lr, or --clip-norm 5"
                        )
                else:
                    self.skipped_in_a_row = 0
                    progress.count(terms)
                    means = progress.means().items()
                    shown = {name.removeprefix("loss_"): f"{mean:.3f}" for name, mean in means}
                    bar.set_postfix(shown, refresh=False)
                progress.step += 1
                bar.update(options.batch_size)
                every = options.save_every_steps
                is_due = every and progress.step % every == 0
                if is_due and progress.step < self.steps_per_epoch and not self.skipped_in_a_row:
                    self._check_answers()
                    self._save_last()

    def _check_answers(self) -> None:
        """Refuses weights with answers that are not finite (a too long step has spoilt them), so
        that they do not replace those that can be resumed.

        Raises:
            NonFiniteError: the answers to noise, or the weights themselves, are not finite.
        """
        size, generator = self.options.train_size, torch.Generator().manual_seed(0)
        noise = torch.rand(8, 3, size, size, generator=generator) * 2 - 1
        with evaluation_mode(self.model), torch.inference_mode():
            output = self.model(noise.to(self.device), "backbone")
        answers = self.model.face_model.dewhiten(output.whitened)
        if all(torch.isfinite(t).all() for t in (answers, *self.model.state_dict().values())):
            return
        remedy = "try a smaller --lr, or --clip-norm 5"
        if self.last.exists():
            remedy += f"; --resume goes on from {self.last}, which is as it was before"
        raise NonFiniteError(
            f"the network's answers are not finite in epoch {self.progress.epoch + 1} "
            f"({self.progress.skipped} steps skipped so far); {remedy}"
        )

    def _batches(self) -> Iterator:
        options, progress, world = self.options, self.progress, self.world
        return batches(
            self.train_set,
            self.probabilities,
            self.samples_per_epoch,
            options.batch_size,
            options.seed,
            progress.epoch,
            start_step=progress.step,
            rank=world.rank,
            world_size=world.size,
            workers=options.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _learning_rate(self, step: int) -> float:
        """Of a step of the epoch under way."""
        options, epoch, per_epoch = self.options, self.progress.epoch, self.steps_per_epoch
        if options.schedule == "published":
            return published_rate(epoch, options.epochs, options.lr)
        done, steps = epoch * per_epoch + step, options.epochs * per_epoch
        cooldown = options.cooldown * per_epoch
        return linear_rate(done, steps, options.lr, options.warmup, cooldown)

    def train_step(self, batch: Batch) -> dict[str, float] | None:
        """One optimiser step; the loss terms and their sum, or None where it was skipped.

        A step is skipped whole, batch-norm statistics included, where the loss of any process or
        the common gradient is not finite.
        """
        options, progress, world = self.options, self.progress, self.world
        key = (options.seed, progress.epoch, progress.step, world.rank)
        torch.manual_seed(seed_of(*key))  # dropout
        generator = torch.Generator().manual_seed(seed_of(*key, 1))
        rate = self._learning_rate(progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, parameters, landmarks = self.augment(
            batch.to(self.device), generator, options.train_size
        )
        self.snapshot.take()
        terms = self.step(images, self.model.face_model.whiten(parameters), landmarks)
        terms = {"loss": total(terms), **terms}
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm or math.inf)
        # of all processes, and the only wait for the device in a step (several GPUs' batch norm
        # has waits of its own)
        values = world.mean(torch.stack([v.detach() for v in (*terms.values(), norm)])).tolist()
        if not all(map(math.isfinite, values)):
            self.snapshot.restore()
            self.optimizer.zero_grad(set_to_none=True)
            return None
        self.optimizer.step()
        return dict(zip(terms, values, strict=False))  # the last value is the gradient's norm

    def _close_epoch(self, seconds: float, steps: int) -> dict[str, float]:
        """The epoch's line of the log, its validation, and the weights to keep."""
        options, progress = self.options, self.progress
        rate = self._learning_rate(progress.step - 1)
        means = progress.means()
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.counted, progress.sums = 0, {}
        if not self.world.is_main:
            return {}
        row = {
            "epoch": progress.epoch,
            "seconds": round(seconds, 1),
            "images_per_second": round(steps * options.batch_size / max(seconds, 1e-9), 1),
            "lr": float(f"{rate:.6g}"),
            "skipped": progress.skipped,
        }
        row |= {name: round(mean, 5) for name, mean in means.items()}
        scores = self._validate()
        if options.report_aflw2000:
            scores |= score_aflw2000(self.model, self.benchmark, self.device)
        row |= {name: round(value, 4) for name, value in scores.items()}
        score = scores["nme_balanced"]
        if score < progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            self._save_weights("best.pth.tar")
        if options.save_val_freq and progress.epoch % options.save_val_freq == 0:
            self._save_weights(EPOCH_NAME.format(progress.epoch))
        return row

    def _validate(self) -> dict[str, float]:
        options = self.options
        return validate(
            self.model,
            self.val_set,
            options.loop,
            self.plain,
            options.train_size,
            self.device,
            options.workers,
        )

    def _save_weights(self, name: str) -> None:
        progress = self.progress
        content = self.model.checkpoint(epoch=progress.epoch, best_score=progress.best_score)
        write_checkpoint(self.options.out / name, content)

    def leave(self) -> None:
        """Lets go of the other processes, before the connection to them is closed.

        Its threads end with the last reference to it. In a network that refers to itself, and is
        so left to Python's end, they were seen to abort a quarter of all processes.
        """
        if self.world.size > 1:
            self.step = self.step.module
            gc.collect()

    def dry_run(self) -> None:
        """At most six steps of the real thing, nothing saved: size, memory, expected time.

        The time is that of the steps; where reading the data takes longer, epochs will, too.
        """
        self.progress = Progress()  # the first steps: of a stopped epoch none may be left
        self.step.train()
        durations = []
        for batch in islice(self._batches(), 6):
            started = time.perf_counter()
            self.train_step(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            durations.append(time.perf_counter() - started)
        seconds = statistics.median(durations[len(durations) // 3 :])  # the first ones warm up
        epoch = seconds * self.steps_per_epoch
        if self.world.is_main:
            say(self._describe())
            say(
                f"{peak_memory(self.device)}; {seconds:.3f} s a step, "
                f"{self.options.batch_size / seconds:.1f} images/s; "
                f"{lasting(epoch)} an epoch, "
                f"{lasting(epoch * self.options.epochs)} for {self.options.epochs} epochs"
            )


def differences(before: dict, now: dict) -> list[str]:
    """For people to read: "name old (now new)"."""
    return [f"{k} {before.get(k)} (now {v})" for k, v in now.items() if before.get(k) != v]


def _cut(recipe: dict) -> tuple[int, bool]:
    """What of a recipe decides how the validation faces are cut: their side, and a black border."""
    return recipe["train_size"], recipe["augment"] == "published"


def peak_memory(device: torch.device) -> str:
    """The most memory this process has held, for people to read."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_reserved(device) / 2**30:.2f} GiB of GPU memory at most"
    try:
        import resource
    except ImportError:  # Windows has no such count
        return "peak memory unknown on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{peak / 2**30:.2f} GiB of memory at most"


def check_resumable(state: dict, model: SynergyNet, path: Path) -> None:
    """Refuses to go on from a checkpoint of another network, face model or program; the loop may
    change.

    Raises:
        ValueError: what is another; names the file.
    """
    if "optimizer" not in state or "plan" not in state:
        raise ValueError(f"{path}: weights only, no training state; --resume needs last.pth.tar")
    if missing := asdict(Progress()).keys() - state.keys():
        raise ValueError(
            f"{path}: of another version of this program (no {', '.join(sorted(missing))} in it); "
            f"begin anew with --init {path}"
        )
    for name, ours in model.checkpoint().items():
        if name not in ("state_dict", "trained_loop") and state.get(name) != ours:
            raise ValueError(f"{path}: trained with {name} {state.get(name)}, this run has {ours}")
