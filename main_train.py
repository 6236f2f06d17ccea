"""Trains SynergyNet.

    python main_train.py --data PACKED_DIR --val PACKED_DIR --out runs/my_run
    python main_train.py ... --resume            # goes on from runs/my_run/last.pth.tar

Every epoch draws its samples and its augmentation from (seed, epoch), so a run that was stopped
and resumed goes on as if it had not been. Checkpoints are written complete or not at all:
last.pth.tar after every epoch, best.pth.tar by the validation set.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from backbone_nets import BACKBONES
from loss_definition import LOOPS, SynergyLoss, total
from model_building import HEADS, SynergyNet
from utils.assets import find_face_model
from utils.augmentation import Augmentation, AugmentationSettings
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.datasets import PackedFaces, epoch_batches, pose_balanced_weights
from utils.files import atomic_write
from utils.metrics import YAW_BINS, bin_means, nme
from utils.morphable_model import MorphableModel, load_morphable_model
from utils.preprocessing import CROP_SIZE
from utils.runtime import choose_device


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="packed training set (utils/datasets.py)")
    add("--val", type=Path, required=True, help="packed validation set; chooses best.pth.tar")
    add("--out", type=Path, default=Path("runs/synergynet"), help="where the run writes")
    add("--face-model", type=Path, help="3DMM folder or .npz (default: as singleImage.py)")
    add("--backbone", choices=BACKBONES, default="mobilenet_v2", help="image encoder")
    add("--heads", choices=HEADS, default="published", help="see model_building.py")
    add("--loop", choices=LOOPS, default="full", help="what is trained; see loss_definition.py")
    add("--optimizer", choices=["sgd", "adamw"], default="sgd", help="Nesterov SGD as published")
    add("--lr", type=float, default=0.08, help="peak learning rate")
    add("--weight-decay", type=float, default=5e-4, help="of the optimiser")
    add("--clip-norm", type=float, default=0.0, help="largest gradient norm; 0: any")
    add("--warmup", type=int, default=500, help="steps of linear warm-up")
    add("--epochs", type=int, default=80, help="epochs in all, the resumed ones included")
    add("--cooldown", type=int, default=16, help="last epochs, in which the rate falls to zero")
    add("--samples-per-epoch", type=int, default=0, help="0: as many as the set has")
    add("--batch-size", type=int, default=1024, help="samples a step")
    add("--train-size", type=int, default=CROP_SIZE, help="side of the training crops")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    add("--seed", type=int, default=0, help="of weights, sampling and augmentation")
    add("--resume", action="store_true", help="go on from last.pth.tar of --out")
    return parser.parse_args(arguments)


def learning_rate(step: int, steps_per_epoch: int, options: argparse.Namespace) -> float:
    """Linear warm-up, plateau, linear fall to zero over the cool-down."""
    steps = options.epochs * steps_per_epoch
    fall = (steps - step) / max(1, options.cooldown * steps_per_epoch)
    return options.lr * min(1.0, (step + 1) / max(1, options.warmup), fall)


def make_optimizer(model: SynergyNet, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Weight decay acts on weight matrices and kernels, not on biases and norms (AdamW)."""
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), options.lr, 0.9, weight_decay=options.weight_decay, nesterov=True
        )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, options.lr, weight_decay=options.weight_decay)


@torch.inference_mode()
def validate(
    model: SynergyNet,
    face_model: MorphableModel,
    faces: PackedFaces,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, float]:
    """NME in percent against the set's landmarks, raw and refined (NaN if untrained), by yaw."""
    model.eval()
    centred = Augmentation(face_model, None)
    raw, refined = [], []
    for indices in np.array_split(np.arange(len(faces)), max(1, len(faces) // 128)):
        images, _, target = centred(
            faces.batch(indices).to(device), torch.Generator(), options.train_size
        )
        output = model(images, options.loop)
        target = target.cpu().numpy()
        raw.append(nme(output.landmarks.cpu().numpy(), target))
        if output.refined is not None:
            refined.append(nme(output.refined.cpu().numpy(), target))
    raw = np.concatenate(raw)
    bins = bin_means(raw, faces.yaw())
    result = {f"nme_{low}_{high}": float(v) for (low, high), v in zip(YAW_BINS, bins, strict=True)}
    return {
        "nme": float(raw.mean()),
        "nme_refined": float(np.concatenate(refined).mean()) if refined else math.nan,
        "nme_balanced": float(np.nanmean(bins)),
        **result,
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    face_model = load_morphable_model(options.face_model or find_face_model())
    train_set = PackedFaces(options.data, face_model)
    val_set = PackedFaces(options.val, face_model)
    probabilities = pose_balanced_weights(train_set.yaw())

    model = SynergyNet(face_model, options.backbone, options.heads).to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, options)
    criterion = SynergyLoss(options.heads == "signed", options.loop)
    augment = Augmentation(face_model, AugmentationSettings())
    last, best = options.out / "last.pth.tar", options.out / "best.pth.tar"
    first_epoch, best_score = 0, math.inf
    if options.resume and not last.exists():
        tqdm.write(f"{last}: nothing saved yet, starting from the beginning")
    elif options.resume:
        state = read_checkpoint(last)
        check_resumable(state, model, last)
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, best_score = state["epoch"], state["best_score"]
        keep_rows(options.out / "log.csv", first_epoch)

    samples = options.samples_per_epoch or len(train_set)
    steps_per_epoch = samples // options.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"an epoch of {samples} samples has no full batch of {options.batch_size}; give a "
            "smaller --batch-size"
        )
    for epoch in range(first_epoch, options.epochs):
        started = time.time()
        epoch_seed = options.seed * 100_003 + epoch
        torch.manual_seed(epoch_seed)  # dropout
        generator = torch.Generator().manual_seed(epoch_seed)
        model.train()
        sums: dict[str, float] = {}
        batches = epoch_batches(probabilities, samples, options.batch_size, epoch_seed)
        bar = tqdm(batches, total=steps_per_epoch, desc=f"epoch {epoch + 1}", mininterval=5)
        for index, indices in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    epoch * steps_per_epoch + index, steps_per_epoch, options
                )
            batch = type(train_set.batch(indices[:1]))(
                *(tensor.to(device) for tensor in train_set.batch(indices))
            )
            images, parameters, landmarks = augment(batch, generator, options.train_size)
            images = images.contiguous(memory_format=torch.channels_last)
            target = model.face_model.whiten(parameters)
            terms = model.loss(images, target, criterion, target_landmarks=landmarks)
            loss = total(terms)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if options.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            optimizer.step()
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().mean().item()
            bar.set_postfix(loss=f"{sums['loss'] / (index + 1):.3f}", refresh=False)

        scores = validate(model, face_model, val_set, device, options)
        row = {"epoch": epoch + 1, "seconds": round(time.time() - started)}
        row |= {name: round(value / max(1, steps_per_epoch), 4) for name, value in sums.items()}
        row |= {name: round(value, 3) for name, value in scores.items()}
        append_row(options.out / "log.csv", row)
        tqdm.write("  ".join(f"{name} {value}" for name, value in row.items()))
        improved = scores["nme_balanced"] < best_score
        best_score = min(best_score, scores["nme_balanced"])
        checkpoint = model.checkpoint(epoch=epoch + 1, best_score=best_score)
        if improved:
            write_checkpoint(best, checkpoint)
        # last: from here on the epoch is done, and a resumed run starts with the next
        write_checkpoint(last, {**checkpoint, "optimizer": optimizer.state_dict()})


def check_resumable(state: dict, model: SynergyNet, path: Path) -> None:
    """Refuses to go on from a checkpoint of another network, face model or program."""
    if "optimizer" not in state or "best_score" not in state:
        raise ValueError(f"{path}: weights only, no training state; --resume needs last.pth.tar")
    for name, ours in model.checkpoint().items():
        if name != "state_dict" and state.get(name) != ours:
            raise ValueError(f"{path}: trained with {name} {state.get(name)}, this run has {ours}")


def keep_rows(path: Path, epochs: int) -> None:
    """Drops rows of epochs that a stopped run logged but did not save."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with atomic_write(path, "w") as file:
            file.writelines(lines[: 1 + epochs])


def append_row(path: Path, row: dict[str, float]) -> None:
    """Adds a line to the run's CSV, with a heading when it is new."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row.keys())
        if is_new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
