"""Saves the gradients of one training step, of one process or of those that torchrun starts."""

import gc
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from loss_definition import SynergyLoss, total
from model_building import SynergyNet
from utils.assets import STARTER_FACE_MODEL
from utils.distributed import join_world
from utils.morphable_model import load_morphable_model
from utils.training import TrainingStep

BATCH = 8


def main(path: str | Path) -> None:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        torch.manual_seed(world.rank)  # DDP makes the weights equal: those of the first process
        face_model = load_morphable_model(STARTER_FACE_MODEL)
        step = TrainingStep(SynergyNet(face_model, "mobilenet_025"), SynergyLoss()).eval()
        model = step.model
        if world.size > 1:
            step = DistributedDataParallel(step)
        rng = np.random.default_rng(0)
        images = torch.from_numpy(rng.normal(size=(BATCH, 3, 48, 48)).astype(np.float32))
        target = torch.from_numpy(rng.normal(size=(BATCH, 62)).astype(np.float32))
        landmarks = model.landmarks_from_whitened(target)
        mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
        total(step(images[mine], target[mine], landmarks[mine])).backward()
        if world.is_main:
            torch.save({n: p.grad for n, p in model.named_parameters()}, path)
        world.wait()
        del step  # as Trainer.leave does
        gc.collect()


if __name__ == "__main__":
    main(*sys.argv[1:])
