"""The README's promises: links, targets, file ids, and its commands, which are run.

Every command in the ```bash and ```python blocks of README.md and docs/ is run as it stands, in a
copy of the repository, or stands in ``NOT_RUN`` with the reason why not and where it is tested. A
new command needs nothing where its script is one of ``RUN`` and the files it names are among those
that ``copy`` or ``MADE_BY`` make; else add it to one of these places. (```sh blocks install things
on other systems: they are only read.)
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from conftest import ROOT, run_python
from moving_pictures import film, write_film

import artistic
import singleImage
import synergy3DMM
import video
from synergy3DMM import Face, SynergyNet
from tools.fetch_published import PUBLISHED, url
from utils import assets, photo_numbers, video_numbers
from utils.mesh_io import save_mesh
from utils.overlays import DRAWINGS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
RECIPES = "docs/recipes.md"
ALL_PAGES = (*PAGES, "img/README.md", "starter_kit/CARD.md", "starter_kit/HISTORY.md")


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_lead_to_files_and_their_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), link
        assert not heading or heading in headings(path), link


def headings(path: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    for page in ALL_PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    assert {"demo", "test", "build", "lint", "venv", "published", "clean", "help"} <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "setting"), [("demo", "PHOTO"), ("demo", "OUT"), ("benchmark-demo", "BENCHMARK")]
)
def test_make_passes_any_name_on_as_it_is(target, setting):
    name = "runs/o'brien"
    command = ["make", "--dry-run", target, f"{setting}={name}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    own = lines[lines.index("test -d" if target == "benchmark-demo" else " singleImage.py") :]
    words = shlex.split(own.replace("\\\n", " "))
    assert any(word in (name, f"{name}/aflw2000_data") for word in words), words


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("name", "word"), [("~/a  b", "~/'a  b'"), ("o' ~/b", r"'o'\'' ~/b'")])
def test_make_leaves_the_home_folder_to_the_shell(name, word):
    command = ["make", "--dry-run", "demo", f"PHOTO={name}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f" -f {word} -o " in lines


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_nothing_that_a_name_holds(tmp_path):
    names = ("PHOTO", "OUT", "BENCHMARK")
    settings = [f"{name}=$(shell touch {tmp_path / name})" for name in names]
    subprocess.run(["make", "help", *settings], cwd=ROOT, capture_output=True, check=True)
    assert not list(tmp_path.iterdir())


def test_every_published_download_is_linked():
    linked = set(re.findall(r"https://drive\.google\.com/file/d/[\w-]+", README))
    assert linked == {url(file_id) for item in PUBLISHED.values() for file_id in item.ids}
    assert all(f"| `{name}` |" in README for name in PUBLISHED)


# Where users read what drawings and formats there are: the text, how it names an X, which it names.
OF_FACES = [*photo_numbers.FORMATS, *artistic.FORMATS]
TOLD = {
    "README.md": (README, r"`X`|--save \S*\bX\b", [",".join(DRAWINGS), *singleImage.FORMATS]),
    "singleImage.py": (singleImage.EPILOG, r"OUT/X/|OUT/numbers/.*\.X\b", singleImage.FORMATS),
    "artistic.py": (artistic.EPILOG, r"\bX/NAME\.X\b", artistic.FORMATS),
    "video.py": (video.EPILOG, "\n  X ", video_numbers.FORMATS),
    "synergy3DMM.py": (synergy3DMM.__doc__, "by suffix:.* X ", OF_FACES),
    "Face.save": (Face.save.__doc__, r"``\.X``", OF_FACES),
    "Face.draw": (Face.draw.__doc__, r"\bX[,.]", DRAWINGS),
    "save_mesh": (save_mesh.__doc__, r"``\.X``", artistic.FORMATS),
}


@pytest.mark.parametrize("place", TOLD)
def test_drawings_and_formats_are_told(place):
    text, pattern, names = TOLD[place]
    assert [name for name in names if not re.search(pattern.replace("X", name), text)] == []


# ------------------------------------------------------------------------------------- commands

# What is run: `python SCRIPT ...` or `python -m MODULE ...`, in the copy of the repository.
RUN = {
    "singleImage.py",
    "artistic.py",
    "video.py",
    "benchmark.py",
    "tools.draw_conventions",
    "tools.export_onnx",
    "tools.prepare_data",
}

# What is not: why, and the file that tests it instead. All else must be in RUN.
NOT_RUN = {
    "make demo": (
        "builds; the same as singleImage.py's first command here",
        "tests/test_readme.py",
    ),
    "make demo PHOTO=mine.jpg": ("the same", "tests/test_readme.py"),
    "make test": ("this is it", "pyproject.toml"),
    "make train-demo": ("takes minutes", "tests/test_training.py"),
    "make benchmark-demo": ("takes minutes", ".ci/run"),
    "python video.py -f 0 --show": ("needs a camera and a display", "tests/test_video.py"),
    "python video.py -f rtsp://192.0.2.1/stream -o out.mp4": (
        "needs a camera on the network",
        "tests/test_video.py",
    ),
    "python artistic.py -f art-all/122.png": (
        "needs the published photos and UV maps",
        "tests/test_artistic.py",
    ),
    "python -m tools.prepare_aflw2000 --raw AFLW2000 --out aflw2000_data": (
        "needs the original download",
        "tests/test_prepare_aflw2000.py",
    ),
    "bash train_script.sh": ("needs GPUs and the published data", "tests/test_training.py"),
    "bash train_script.sh --pack runs/packed --compile": (
        "needs GPUs and the published data",
        "tests/test_training.py",
    ),
    "python benchmark.py -w pretrained/best.pth.tar": (
        "such weights would be taken for everything here; benchmark.py alone is run",
        "tests/test_benchmark.py",
    ),
    "python benchmark.py -w mine.pth.tar --out runs/mine --boxes jitter detector": (
        "takes 20 seconds",
        "tests/test_benchmark.py",
    ),
    "python benchmark.py --compare runs/a runs/b": (
        "needs two runs",
        "tests/test_benchmark.py",
    ),
}

# What commands and Python blocks need that another command makes: by a word in them.
MADE_BY = {
    "benchmark.py": (
        "aflw2000_data",
        "-m tools.render_faces aflw2000_data --layout aflw2000 --count 9",
    ),
    "exported/": ("exported", "-m tools.export_onnx"),
    "numbers/astronaut.json": (
        "inference_output/numbers",
        "singleImage.py -f img/astronaut.jpg --save json",
    ),
}


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, content) of every fenced block of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    texts = [(page, (ROOT / page).read_text(encoding="utf-8")) for page in PAGES]
    return [(page, block) for page, text in texts for block in fence.findall(text)]


def commands() -> list[str]:
    """The lines of the ```bash blocks, each once: comments off, continued lines joined."""
    joined = [block.replace("\\\n", " ") for _, block in blocks("bash")]
    lines = [line for block in joined for line in block.splitlines()]
    return list(dict.fromkeys(filter(None, (shlex.join(shlex.split(x, True)) for x in lines))))


def script_of(command: str) -> str | None:
    """The script or module that a command gives to Python."""
    program, *arguments = shlex.split(command)
    if program != "python" or not arguments:
        return None
    return arguments[1] if arguments[0] == "-m" else arguments[0]


TO_RUN = [command for command in commands() if command not in NOT_RUN]


def test_every_command_is_run_or_has_a_reason():
    assert [command for command in TO_RUN if script_of(command) not in RUN] == []
    assert NOT_RUN.keys() <= set(commands())  # none that the pages no longer have
    for command, (_, where) in NOT_RUN.items():
        name = (script_of(command) or command.split()[1]).split(".")[-1 if "-m " in command else 0]
        if name != "test":
            tested = (ROOT / where).read_text(encoding="utf-8")
            assert name.replace("-", "_") in tested or name in tested
    assert len(TO_RUN) >= 10


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What the commands need of the repository, with the starter kit, and the files they name."""
    starter = (assets.STARTER_WEIGHTS, assets.STARTER_FACE_MODEL, assets.STARTER_DETECTOR_WEIGHTS)
    model = SynergyNet(*starter, device="cpu")  # so that the exported networks are there to copy
    copy = tmp_path_factory.mktemp("commands") / "repository"
    shutil.copytree(
        ROOT,
        copy,
        ignore=lambda folder, names: [
            name for name in names if not _is_needed(Path(folder, name).relative_to(ROOT))
        ],
    )
    write_film(copy / "in.mp4", film(lambda t: [(20 + t, 30), (200, 40)], 6))

    # weights under another name, with their exported network
    weights = copy / "pretrained" / "best_pose.pth.tar"
    shutil.copy(starter[0], weights)
    for cached in (copy / "pretrained").glob(f".onnx_cache/{starter[0].name}.*"):
        shutil.copy(cached, str(cached).replace(starter[0].name, weights.name))
    # and as a training of one's own may leave them
    content = torch.load(starter[0], weights_only=True)
    torch.save(content | {"options": SimpleNamespace(lr=0.1)}, copy / "mine.pth")

    # a photo with landmarks, as in the 300-W collection
    photo = cv2.imread(str(copy / "img" / "astronaut.jpg"))
    (copy / "300W").mkdir()
    for i in range(2):
        cv2.imwrite(str(copy / "300W" / f"face_{i}.png"), photo)
        rows = "\n".join(f"{x + 1} {y + 1}" for x, y in model(photo)[0].landmarks[:2].T)
        text = f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n"
        (copy / "300W" / f"face_{i}.pts").write_text(text)
    return copy


def _is_needed(path: Path) -> bool:
    """Whether a file or folder of the repository is copied: code, the photo, the starter kit."""
    if path.name == "__pycache__" or path.suffix in (".pth", ".onnx", ".npz"):
        return path.name.startswith(("starter_", "face_model"))
    if len(path.parts) == 1:
        code = ("FaceBoxes", "Sim3DR", "backbone_nets", "tools", "utils")
        return path.suffix == ".py" or path.name in (*code, "img", "pretrained", "starter_kit")
    if path.parts[0] == "starter_kit":
        return path.parts[1] == "face_model"
    return path.suffix != ".tar"


def run(arguments: list[str], folder: Path, text: str | None = None) -> str:
    """What a run of Python in a folder prints; it must succeed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    result = run_python(*arguments, cwd=folder, env=environment, input=text)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def make_ready(text: str, folder: Path) -> None:
    """Makes what a command or block needs and no command has made yet."""
    for word, (result, command) in MADE_BY.items():
        if word in text and not (folder / result).exists():
            run(command.split(), folder)


def stamps(folder: Path) -> dict[Path, int]:
    """When each file was written; compiled Python aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("command", TO_RUN)
def test_the_command_writes_what_it_says(command, copy):
    arguments = shlex.split(command)[1:]
    make_ready(command, copy)
    before = stamps(copy)
    run(arguments, copy)
    written = [path for path, stamp in stamps(copy).items() if before.get(path) != stamp]
    assert written
    assert all(path.stat().st_size for path in written)
    for option in {"-o", "--out"} & set(arguments):
        assert (copy / arguments[arguments.index(option) + 1]).exists()


def programs() -> list[str]:
    """The Python blocks; those of the recipes go on from the first one of their page."""
    found = blocks("python")
    start = next(block for page, block in found if page == RECIPES)
    return [start + block if page == RECIPES else block for page, block in found]


@pytest.mark.parametrize("block", programs())
def test_the_python_block_runs(block, copy):
    make_ready(block, copy)
    run(["-W", "error", "-"], copy, block)


# ------------------------------------------------------------------- commands that are only parsed


def indented_commands() -> list[tuple[str, str, str]]:
    """(page, module, arguments) of the commands in indented blocks, most of which take long."""
    found = []
    for page in ALL_PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(
            r"^ {4,}((?:[A-Z_]+=\d+ )*(?:python|torchrun|bash) .*)$", text, re.M
        ):
            words = [word for word in shlex.split(line, comments=True) if not word.startswith("$")]
            while "=" in words[0]:
                words.pop(0)
            program, first, *rest = words
            if program == "torchrun":
                rest = rest[rest.index("main_train.py") + 1 :]
                first = "main_train.py"
            elif first == "-m":
                first = rest.pop(0)
            elif first == "train_script.sh":
                first = "main_train.py"  # whose options it takes
            if first != "-c":
                found.append((page, first.removesuffix(".py"), shlex.join(rest)))
    return list(dict.fromkeys(found))


class Parsed(BaseException):
    """Raised in place of the work."""


@pytest.mark.parametrize(("page", "module", "arguments"), indented_commands())
def test_indented_commands_have_options_that_are_there(page, module, arguments, monkeypatch):
    real = argparse.ArgumentParser.parse_known_args

    def parse(self, *given):
        _, unknown = real(self, *given)
        raise Parsed(unknown)

    main = importlib.import_module(module).main
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    monkeypatch.setattr("sys.argv", [module, *shlex.split(arguments)])
    with pytest.raises(Parsed) as parsed:
        main()
    assert parsed.value.args[0] == []


def test_there_are_indented_commands():
    assert len(indented_commands()) > 40
