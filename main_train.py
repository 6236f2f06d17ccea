"""Trains SynergyNet: on a CPU, a GPU, or as many as torchrun starts.

bash train_script.sh                             the published recipe, this script's settings
python main_train.py --data PACKED_SET --out runs/mine --pose-balanced
torchrun --nproc_per_node 4 main_train.py ...    four GPUs share each batch
"""

import argparse
import os
from pathlib import Path

import torch

from backbone_nets import BACKBONES
from loss_definition import LOOPS
from model_building import HEADS
from utils.assets import ROOT, find_face_model
from utils.augmentation import AUGMENTATIONS
from utils.cli import at_least, complain, run_script, say, script_parser
from utils.datasets import provide_pack
from utils.distributed import join_world
from utils.memory import is_out_of_memory
from utils.morphable_model import load_morphable_model
from utils.preprocessing import CROP_SIZE
from utils.training import NonFiniteError, Trainer

EPILOG = """\
written to OUT:
  last.pth.tar     after every epoch: weights, optimiser, progress; what --resume goes on from
  best.pth.tar     weights of the epoch with the least validation error
  log.csv, curves.png, and tensorboard/ where that package is installed
  SynergyNet_checkpoint_epoch_E.pth.tar   of every Nth epoch E, with --save_val_freq N
What SLURM or torchrun start again goes on, as with --resume.

exit code: 0 done, 1 stopped by a fault on the way, 2 wrong usage, 130 stopped by Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG)

    def add(group, names: str, help: str, **settings) -> None:
        default = settings.get("default")
        shown = f" (default: {default})" if default not in (None, []) else ""
        if settings.get("type") not in (None, Path):
            settings["metavar"] = "N"
        group.add_argument(*names.split(), help=help + shown, **settings)

    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, default=ROOT,
        help="published layout, or a packed set (default: the repository's folder)")  # fmt: skip
    add(data, "--pack", "train from this packed folder; made of --data if it is not there",
        type=Path)  # fmt: skip
    add(data, "--val", "validation sets: a folder (else a held-out part of --data), and/or the "
        "word aflw2000, to report that benchmark too", nargs="+", default=[])  # fmt: skip
    add(data, "--held-out", "held-out share of --data", type=float, default=0.02)
    add(data, "--limit", "train on this many random faces; 0: all", type=at_least(0), default=0)
    add(data, "--augment", "changes of the crops (docs/training.md)",
        choices=AUGMENTATIONS, default="strong")  # fmt: skip
    add(data, "--pose-balanced", "draw rare large poses more often", action="store_true")
    add(data, "--train-size", "side of the training crops", type=at_least(32), default=CROP_SIZE)
    add(data, "--workers", "threads that read pictures", type=at_least(1), default=2)

    model = parser.add_argument_group("model")
    add(model, "--backbone", f"image encoder: {', '.join(BACKBONES)}",
        choices=BACKBONES, default="mobilenet_v2", metavar="NAME")  # fmt: skip
    add(model, "--heads", "outputs of the point networks: ReLU, or linear",
        choices=HEADS, default="published")  # fmt: skip
    add(model, "--loop", "what is trained; each adds to those before",
        choices=LOOPS, default="full")  # fmt: skip
    add(model, "--face-model", "3DMM folder or .npz (default: published, or starter)", type=Path)
    add(model, "--init", "weights to begin with", type=Path)

    plan = parser.add_argument_group("optimisation")
    add(plan, "--epochs", "in all, resumed ones included", type=at_least(0), default=80)
    add(plan, "--batch-size", "samples a step, of all processes", type=at_least(1), default=1024)
    add(plan, "--samples-per-epoch", "0: as many as the set has", type=at_least(0), default=0)
    add(plan, "--optimizer", "SGD is Nesterov's", choices=["sgd", "adamw"], default="sgd")
    add(plan, "--lr", "peak learning rate", type=at_least(0, float), default=0.08)
    add(plan, "--weight-decay", "of the optimiser", type=at_least(0, float), default=5e-4)
    add(plan, "--schedule", "constant rates, or up, plateau, down",
        choices=["published", "linear"], default="published")  # fmt: skip
    add(plan, "--warmup", "linear: steps of warm-up", type=at_least(0), default=500)
    add(plan, "--cooldown", "linear: last epochs, falling to zero", type=at_least(0), default=16)
    add(plan, "--clip-norm", "clip gradient norm at; 0: off", type=at_least(0, float), default=0.0)
    add(plan, "--max-skipped", "end after so many non-finite steps in a row",
        type=at_least(1), default=20)  # fmt: skip

    run = parser.add_argument_group("the run")
    add(run, "-o --out", "where the run writes", type=Path, default=Path("runs/synergynet"))
    add(run, "--resume", "go on from OUT/last.pth.tar", action="store_true")
    add(run, "--overwrite", "begin anew where OUT holds a run already", action="store_true")
    add(run, "--save-every-steps", "save last.pth.tar every N steps too; 0: no",
        type=at_least(0), default=0)  # fmt: skip
    add(run, "--save_val_freq", "keep every Nth epoch's weights", type=at_least(0), default=0)
    add(run, "--dry-run", "tell size, memory, time; train nothing", action="store_true")
    add(run, "--device", "auto, cpu, cuda or mps", default="auto")
    add(run, "--amp", "bfloat16 encoder; auto: where the hardware has it",
        choices=["auto", "bf16", "off"], default="auto")  # fmt: skip
    add(run, "--norm", "batch norm of all GPUs together, or of each its own",
        choices=["all", "own"], default="all")  # fmt: skip
    add(run, "--compile", "torch.compile the step (pays on GPUs)", action="store_true")
    add(run, "--threads", "CPU threads; 0: torch's choice", type=at_least(0), default=0)
    add(run, "--seed", "of everything random", type=at_least(0), default=0)
    options = parser.parse_args(arguments)
    restarts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    if any(os.environ.get(name, "0") not in ("", "0") for name in restarts):
        if options.overwrite and os.environ.get("RANK", "0") == "0":
            say("started again by the scheduler: goes on, as with --resume, without --overwrite")
        options.resume, options.overwrite = True, False  # the same command, started again
    options.report_aflw2000 = "aflw2000" in options.val
    folders = [Path(value) for value in options.val if value != "aflw2000"]
    last, best = (options.out / f"{name}.pth.tar" for name in ("last", "best"))
    if not (options.overwrite or options.dry_run):
        if last.exists() and not options.resume:
            parser.error(
                f"{last}: a run is there already: go on with it (--resume), write elsewhere "
                "(--out), or give it up (--overwrite)"
            )
        if best.exists() and not last.exists():
            parser.error(
                f"{best}: a run was there, of which last.pth.tar is gone: write elsewhere (--out; "
                "--init begins with these weights), or give it up (--overwrite)"
            )
    if len(folders) > 1:
        parser.error(f"--val: one folder at most, got {' '.join(map(str, folders))}")
    options.val = folders[0] if folders else None
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.amp == "off":
        torch.backends.cudnn.allow_tf32 = False  # float32 is meant, not what GPUs round it to
    trainer = None  # what fails before there is one is wrong usage: exit code 2
    try:
        face_model = load_morphable_model(options.face_model or find_face_model())
        if options.pack:
            provide_pack(options.data, options.pack, face_model, options.workers)
        with join_world(options.device) as world:
            trainer = Trainer(options, face_model, world)
            if options.dry_run:
                trainer.dry_run()
            else:
                trainer.run()
            trainer.leave()
    except (OSError, ValueError, NonFiniteError) as error:
        complain("main_train.py", error)
        return 1 if trainer else 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            if trainer:
                raise
            complain("main_train.py", error)  # a device that is not there or does not work
            return 2
        complain(
            "main_train.py",
            f"out of memory with --batch-size {options.batch_size}; give a smaller one (--dry-run "
            "tells the memory a size takes)",
        )
        return 1
    except KeyboardInterrupt:
        last = options.out / "last.pth.tar"
        say(f"stopped; {f'--resume goes on from {last}' if last.exists() else 'nothing saved'}")
        return 130
    return 0


if __name__ == "__main__":
    run_script(main)
