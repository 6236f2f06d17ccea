"""Kills runs at random moments and looks at what they leave: nothing half-written, nothing lost.

    python -m tools.check_faults --rounds 100
    python -m tools.check_faults --only training,folder --seed 7

Four kinds of runs, small ones (starter face model, 1 to 4 seconds each):

training   main_train.py that saves every 2nd step; then again with --resume
packing    main_train.py's packing of a training set; then again
export     the first SynergyNet() with ONNX Runtime on weights without a cache; then again
folder     singleImage.py on a folder with --save npz,json,obj; then again with --resume

An undisturbed run of each gives the time it takes and the files it writes. Each round starts
another, kills it (SIGKILL) at a moment drawn uniformly in that time, imports not included, and
then checks that

- every file under a final name opens, is whole and equals the undisturbed run's (a training's
  checkpoints on the way: open, and know how far they are). Hidden .partial names are not final.
- no more is lost than one unit of work: of a training the steps since the last save; of packing the
  set under way; of an export the network under way; of a folder the photos not yet reported done.
- a second run ends well and leaves exactly the files of the undisturbed one.

Exit code: 0 no fault, 1 faults found, 2 wrong usage. Linux and macOS.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import main_train
import singleImage
from model_building import SynergyNet as Network
from synergy3DMM import SynergyNet
from utils import assets, training, training_log
from utils.array_pickle import read_array_pickle
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.cli import at_least, comma_list, quiet, run_script, script_parser
from utils.datasets import PUBLISHED_LIST, PUBLISHED_PARAMETERS, provide_pack
from utils.files import read_npz
from utils.morphable_model import load_morphable_model
from utils.onnx_engine import OnnxNetwork
from utils.pictures import read_image, write_image
from utils.synthetic_sets import write_training_set

# Processes are forked from one that has imported all this, so that a round is work and no import,
# and none has a thread of this one.
_IMPORTS = [
    "main_train",
    "singleImage",
    "synergy3DMM",
    "onnxruntime",
    "torch.onnx",
    "utils.texture",
]


@cache
def _context() -> multiprocessing.context.BaseContext:
    """Made when it is needed: Windows has none of that kind."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    return context


# ------------------------------------------------------------------------- processes to be killed


@dataclass
class Run:
    """How a process ended: its exit code, and whether it was killed before its work was done."""

    code: int | None
    killed: bool
    seconds: float


def run(
    work: Callable[..., int | None], arguments: tuple, log: Path, kill_after: float | None = None
) -> Run:
    """``work(*arguments)`` in a process of its own, what it prints in ``log``.

    Args:
        work: a function of a module.
        kill_after: seconds from the beginning of the work to SIGKILL.
    """
    ours, theirs = _context().Pipe(duplex=False)
    process = _context().Process(target=_in_child, args=(work, arguments, log, theirs))
    process.start()
    theirs.close()
    ours.recv()
    started = time.monotonic()
    if not ours.poll(kill_after):
        process.kill()
    try:
        ours.recv()  # it waits for the end of the work, or of the process
        done = True
    except EOFError:
        done = False
    seconds = time.monotonic() - started
    process.join()
    ours.close()
    return Run(process.exitcode, not done and process.exitcode == -signal.SIGKILL, seconds)


def _in_child(work: Callable, arguments: tuple, log: Path, pipe) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
        stream.reconfigure(line_buffering=True)  # what was said must survive the kill
    tqdm.set_lock(threading.RLock())  # its own one is a semaphore of the system, which would stay
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    pipe.send("begins")
    code = work(*arguments)
    pipe.send("done")
    sys.exit(code)


# ----------------------------------------------------------------------------- is a file whole?


def read_whole(path: Path) -> object:
    """The content of a file, read to its end, in a form that can be compared.

    Raises:
        Exception: of many kinds, where the file is not whole.
    """
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".png"):
        with Image.open(path) as picture:
            picture.load()  # raises where pixels are missing
        return read_image(path)  # checks the JPEG's end
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix == ".json":
        return json.loads(path.read_text())
    if suffix == ".tar":
        return read_checkpoint(path)
    if suffix == ".onnx":
        graph = path.read_bytes()
        if path.name.split(".")[-2] != f"{zlib.crc32(graph):08x}":
            raise ValueError("its checksum is not the one in its name")
        OnnxNetwork(graph, threads=1)
        return graph
    if suffix == ".csv":  # seconds and speed differ from run to run
        rows = [line.split(",") for line in path.read_text().splitlines()]
        timed = [i for i, name in enumerate(rows[0]) if name in ("seconds", "images_per_second")]
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("lines of different lengths")
        return [[value for i, value in enumerate(row) if i not in timed] for row in rows]
    return path.read_bytes()


def is_equal(a: object, b: object) -> bool:
    """To the bit, all the way down."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b


def is_temporary(path: Path) -> bool:
    return any(part.startswith(".") and part.endswith(".partial") for part in path.parts)


# ------------------------------------------------------------------------------- kinds of runs


class Kind:
    """A run that is killed.

    Args:
        folder: new; what all rounds need is made there, and the undisturbed run.

    Attributes:
        unfinished: suffixes of files that a killed run may leave with another content than the
            undisturbed run's, though whole.
        seconds: that a run takes when nobody kills it.
        expected: name to content (``read_whole``) of every file of the undisturbed run.

    Raises:
        RuntimeError: the undisturbed run failed.
    """

    unfinished: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.prepare()
        whole = self.start(folder / "undisturbed")
        if whole.code:
            log = (folder / "undisturbed" / "log.txt").read_text()
            raise RuntimeError(f"the undisturbed run ended with code {whole.code}:\n{log}")
        self.seconds = whole.seconds
        self.expected = {
            name: read_whole(path) for name, path in self.files(folder / "undisturbed").items()
        }

    def prepare(self) -> None:
        """What all runs need."""

    def work(self, place: Path, again: bool) -> tuple[Callable, tuple]:
        """The function, and its arguments, that writes below ``place / "out"``."""
        raise NotImplementedError

    def lost(self, place: Path, found: dict[str, object]) -> list[str]:
        """What is lost beyond one unit of work after a kill."""
        return []

    def start(self, place: Path, again: bool = False, kill_after: float | None = None) -> Run:
        place.mkdir(exist_ok=True)
        log = place / ("log_again.txt" if again else "log.txt")
        return run(*self.work(place, again), log, kill_after)

    def files(self, place: Path) -> dict[str, Path]:
        """Files under final names by their path below ``out``."""
        root = place / "out"
        paths = [path for path in root.rglob("*") if path.is_file()]
        names = {path.relative_to(root).as_posix(): path for path in paths}
        return {n: p for n, p in names.items() if not is_temporary(Path(n))}

    def check(self, place: Path, complete: bool) -> tuple[int, list[str]]:
        """How many files lie there, and their faults; ``complete``: of a run that has ended."""
        faults, found = [], {}
        files = self.files(place)
        for name, path in files.items():
            try:
                found[name] = read_whole(path)
            except Exception as error:  # noqa: BLE001 - whatever a damaged file raises
                faults.append(f"{name}: not whole ({type(error).__name__}: {error})")
                continue
            if name not in self.expected:
                faults.append(f"{name}: no file of the undisturbed run")
            elif (complete or path.suffix not in self.unfinished) and not is_equal(
                found[name], self.expected[name]
            ):
                faults.append(f"{name}: differs from the undisturbed run's")
        if complete:
            faults += [f"{name}: missing" for name in self.expected.keys() - files.keys()]
        else:
            faults += self.lost(place, found)
        return len(files), faults


EPOCHS, STEPS, EVERY = 2, 5, 2  # of the training: steps an epoch, and from one save to the next


def train(arguments: list[str], count: Path) -> int:
    """``main_train.main``; the steps done are counted in a file.

    In place of the curves a small plain picture is written: matplotlib would take most of the time.
    """
    real = training.Trainer.train_step

    def counted(trainer: training.Trainer, batch) -> dict | None:
        terms = real(trainer, batch)
        done = trainer.progress.epoch * STEPS + trainer.progress.step + 1
        os.pwrite(file, f"{done:8}".encode(), 0)
        return terms

    def drawn(rows: list[dict], path: Path) -> None:
        write_image(path, np.full((8, 8, 3), len(rows), np.uint8))

    file = os.open(count, os.O_WRONLY | os.O_CREAT)
    training.Trainer.train_step = counted
    training_log.draw_curves = drawn
    return main_train.main(arguments)


class Training(Kind):
    # the log, its curves, and checkpoints grow; those of the undisturbed run are the last ones
    unfinished = (".tar", ".csv", ".png")

    def prepare(self) -> None:
        model = load_morphable_model(assets.STARTER_FACE_MODEL)
        with quiet():
            for name, count in (("train", 8 * STEPS), ("val", 16)):
                write_training_set(self.folder / name, model, count)

    def work(self, place: Path, again: bool) -> tuple[Callable, tuple]:
        arguments = ["--data", str(self.folder / "train"), "--val", str(self.folder / "val")]
        arguments += ["--out", str(place / "out"), "--save-every-steps", str(EVERY)]
        arguments += "--backbone mobilenet_025 --train-size 32 --batch-size 8".split()
        arguments += f"--epochs {EPOCHS} --lr 0.01 --device cpu --threads 1".split()
        arguments += ["--resume"] * again
        return train, (arguments, place / "steps")

    def files(self, place: Path) -> dict[str, Path]:
        files = super().files(place)  # TensorBoard's events are appended to, and named by time
        return {n: p for n, p in files.items() if not n.startswith("tensorboard/")}

    def lost(self, place: Path, found: dict[str, object]) -> list[str]:
        count = place / "steps"
        done = int(count.read_text() or 0) if count.exists() else 0
        last = found.get("last.pth.tar")
        saved = last["epoch"] * STEPS + last["step"] if last else 0
        faults = []
        if done - saved > EVERY:
            faults.append(f"{done} steps done, {saved} saved, one of {EVERY} was to be")
        if last and last["best_epoch"] and "best.pth.tar" not in found:
            faults.append("last.pth.tar speaks of a best.pth.tar that is not there")
        return faults

    def check(self, place: Path, complete: bool) -> tuple[int, list[str]]:
        count, faults = super().check(place, complete)
        if complete and "goes on with other settings" in (place / "log_again.txt").read_text():
            faults.append("resumed with other settings")
        return count, faults


class Packing(Kind):
    TIMES = 100  # a face is listed that often: a set that takes a second, but little to make

    def prepare(self) -> None:
        self.model = load_morphable_model(assets.STARTER_FACE_MODEL)
        with quiet():
            write_training_set(self.folder / "set", self.model, 40)
        names, parameters = (
            self.folder / "set" / name for name in (PUBLISHED_LIST, PUBLISHED_PARAMETERS)
        )
        names.write_text(names.read_text() * self.TIMES)
        parameters.write_bytes(
            np.tile(read_array_pickle(parameters), (self.TIMES, 1)).astype(np.float32).dumps()
        )

    def work(self, place: Path, again: bool) -> tuple[Callable, tuple]:
        return pack, (self.folder / "set", place / "out")


def pack(data: Path, folder: Path) -> None:
    """As ``main_train.py --data DATA --pack FOLDER`` begins."""
    cv2.setNumThreads(1)
    provide_pack(data, folder, load_morphable_model(assets.STARTER_FACE_MODEL))


def export(weights: Path, detector: Path, temporary: Path) -> None:
    """The first use of weights with ONNX Runtime."""
    tempfile.tempdir = str(temporary)
    os.environ["XDG_CACHE_HOME"] = str(weights.parent)
    face_model = assets.STARTER_FACE_MODEL
    SynergyNet(weights, face_model, detector, device="cpu", engine="onnx", threads=1)


class Export(Kind):
    def prepare(self) -> None:
        torch.manual_seed(0)
        model = Network(load_morphable_model(assets.STARTER_FACE_MODEL), "mobilenet_025")
        write_checkpoint(self.folder / "w.pth.tar", model.checkpoint())
        (self.folder / "d.pth").write_bytes(assets.STARTER_DETECTOR_WEIGHTS.read_bytes())

    def work(self, place: Path, again: bool) -> tuple[Callable, tuple]:
        out, temporary = place / "out", place / "temporary"
        for folder in (out, temporary):
            folder.mkdir(exist_ok=True)
        for name in ("w.pth.tar", "d.pth"):
            if not again:
                (out / name).write_bytes((self.folder / name).read_bytes())
        return export, (out / "w.pth.tar", out / "d.pth", temporary)

    def files(self, place: Path) -> dict[str, Path]:
        files = super().files(place)
        return {p.name: p for n, p in files.items() if n.startswith("synergynet/")}

    def lost(self, place: Path, found: dict[str, object]) -> list[str]:
        self.kept = {p: p.stat().st_mtime_ns for p in self.files(place).values()}
        return []

    def check(self, place: Path, complete: bool) -> tuple[int, list[str]]:
        count, faults = super().check(place, complete)
        if complete:
            again = [p.name for p, t in self.kept.items() if p.stat().st_mtime_ns != t]
            faults += [f"{name}: was there, and was exported again" for name in again]
        return count, faults


class Folder(Kind):
    PHOTOS = 3
    MADE_ANEW = ("finished.jsonl", "contact_sheet.jpg")  # names files; shows what it reads again

    def prepare(self) -> None:
        photo = read_image(assets.ROOT / "img" / "astronaut.jpg")
        for i in range(self.PHOTOS):
            part = photo[:, 10 * i :] if i else np.concatenate([photo, photo[:, ::-1]], 1)
            side = 260 + 20 * i
            small = cv2.resize(part, (side * part.shape[1] // part.shape[0], side), cv2.INTER_AREA)
            write_image(self.folder / "photos" / f"{i}.jpg", small)

    def work(self, place: Path, again: bool) -> tuple[Callable, tuple]:
        arguments = ["-f", str(self.folder / "photos"), "-o", str(place / "out")]
        arguments += [*assets.STARTER_OPTIONS, *"--save npz,json,obj --device cpu --jobs 2".split()]
        arguments += ["--resume"] * again
        return singleImage.main, (arguments,)

    def files(self, place: Path) -> dict[str, Path]:
        return {n: p for n, p in super().files(place).items() if n not in self.MADE_ANEW}

    def check(self, place: Path, complete: bool) -> tuple[int, list[str]]:
        count, faults = super().check(place, complete)
        sheet = place / "out" / "contact_sheet.jpg"
        if sheet.exists():
            read_whole(sheet)
        elif complete:
            faults.append("contact_sheet.jpg: missing")
        if complete:
            again = [p.name for p, t in self.kept.items() if p.stat().st_mtime_ns != t]
            faults += [f"{name}: was reported done, and was made again" for name in again]
        return count, faults

    def lost(self, place: Path, found: dict[str, object]) -> list[str]:
        faults, self.kept = [], {}
        for line in (place / "log.txt").read_text().splitlines():
            path, colon, rest = line.partition(": ")
            if colon and " face" in rest and Path(path).parent.name == "photos":
                stem = Path(path).stem
                wanted = [n for n in self.expected if Path(n).stem.split("_")[0] == stem]
                paths = [place / "out" / name for name in wanted]
                self.kept |= {p: p.stat().st_mtime_ns for p in paths if p.exists()}
                faults += [
                    f"{name}: missing, though {stem} was reported done"
                    for name in wanted
                    if name not in found
                ]
        return faults


KINDS = {"training": Training, "packing": Packing, "export": Export, "folder": Folder}


# -------------------------------------------------------------------------------------- rounds


@dataclass
class Tally:
    """What the rounds of one kind gave.

    Attributes:
        killed: rounds whose run was killed before its work was done; the others had just ended.
        writing: rounds that left a temporary file: killed while a file was written.
        begun: rounds that left any file at all.
        files: checked, under final names.
    """

    kind: str
    rounds: int = 0
    killed: int = 0
    writing: int = 0
    begun: int = 0
    files: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def check_kind(name: str, rounds: int, seed: int, folder: Path, minutes: float = math.inf) -> Tally:
    """Kills ``rounds`` runs of a kind, or as many as begin within ``minutes``.

    ``folder`` may be removed afterwards.
    """
    deadline = time.monotonic() + 60 * minutes
    kind, tally = KINDS[name](folder / name), Tally(name)
    tally.seconds = kind.seconds
    rng = np.random.default_rng((seed, sorted(KINDS).index(name)))
    for i in tqdm(range(rounds), desc=name, unit="kill", disable=None):
        if time.monotonic() > deadline:
            break
        with tempfile.TemporaryDirectory(dir=folder / name, prefix=f"round_{i}_") as place:
            place = Path(place)
            moment = float(rng.uniform(0, kind.seconds))
            ended = kind.start(place, kill_after=moment)
            tally.rounds += 1
            tally.killed += ended.killed
            tally.writing += any(is_temporary(p.relative_to(place)) for p in place.rglob("*"))
            files, faults = kind.check(place, complete=False)
            tally.begun += bool(files)
            tally.files += files
            if not ended.killed:
                kind.seconds = ended.seconds  # the machine is not always equally fast
                if ended.code:
                    faults.append(f"ended with code {ended.code}, not killed")
            second = kind.start(place, again=True)
            if second.code:
                log = (place / "log_again.txt").read_text().strip().splitlines()
                faults.append(f"the second run ended with code {second.code}: {log[-1:]}")
            if not files:
                kind.seconds = second.seconds
            files, more = kind.check(place, complete=True)
            tally.files += files
            for fault in faults + more:
                tally.faults.append(f"round {i}, killed at {moment:.2f} s: {fault}")
                tqdm.write(f"{name}: {tally.faults[-1]}", file=sys.stderr)
    return tally


def table(tallies: list[Tally]) -> str:
    """For people, and for a Markdown page."""
    lines = [
        "| run | undisturbed, s | rounds | killed while running | left files | while writing one"
        " | files checked | faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.kind} | {t.seconds:.1f} | {t.rounds} | {t.killed} | {t.begun} | {t.writing} | "
        f"{t.files} | {len(t.faults)} |"
        for t in tallies
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, module="tools.check_faults")
    add = parser.add_argument
    add("--rounds", type=at_least(1), default=100, help="kills of each kind (default: 100)")
    add("--seed", type=at_least(0), default=0, help="of the moments (default: 0)")
    add("--minutes", type=float, default=math.inf, help="of each kind at most; then fewer rounds")
    add("--only", type=comma_list(tuple(KINDS)), default=tuple(KINDS), metavar="LIST",
        help=f"some of {','.join(KINDS)}")  # fmt: skip
    options = parser.parse_args(arguments)
    if "training" in options.only:  # torch imports it at the first step, and needs seconds
        _context().set_forkserver_preload([*_IMPORTS, "torch._dynamo"])
    with tempfile.TemporaryDirectory(prefix="check_faults_") as folder:
        tallies = [
            check_kind(name, options.rounds, options.seed, Path(folder), options.minutes)
            for name in options.only
        ]
    print(table(tallies))
    return 1 if any(tally.faults for tally in tallies) else 0


if __name__ == "__main__":
    run_script(main)
