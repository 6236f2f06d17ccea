"""Attacks through files: what a picture, list, pickle or file name could do, and does not.

More of them where their readers are tested: archives in ``test_fetch_published.py``, pickles and
arrays in ``test_files.py``, checkpoints in ``test_checkpoint.py``, all of them through the command
line in ``test_cli_errors.py``.
"""

import json
import os
import re
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from conftest import run_python
from PIL import Image
from test_artistic import Model
from test_files import png
from test_inference import photo

import benchmark
import singleImage
import video
from utils.aflw2000 import AFLW_LIST, open_aflw21
from utils.array_pickle import read_array_pickle
from utils.benchmark_report import read_run
from utils.datasets import PublishedFaces
from utils.files import read_npz
from utils.pictures import read_image
from utils.texture import textured_face

# ---------------------------------------------------------------------------------- memory bombs


def peak_of(code: str, *arguments: object, **environment: str) -> tuple[int, str]:
    """MiB that some code adds to what its process took at most, and what it prints.

    On Linux a process begins with the peak of the one that started it: only growth counts.
    """
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    modules = ("files", "pictures", "array_pickle")
    imports = "\n".join(f"from utils.{module} import *" for module in modules)
    code = f"import resource, sys\n{imports}\nbefore = {peak}\n{code}\nprint({peak} - before)"
    done = run_python("-c", code, *arguments, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    *printed, peak = done.stdout.splitlines()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(peak) // unit, "\n".join(printed)


READ = "try: print(READER(sys.argv[1]))\nexcept ValueError as error: print('refused:', error)"
BOMBS = {
    # put the only object at place 268,435,455 of the table
    "table": b"\x80\x02Nr\xff\xff\xff\x0f0.",
    # a text of one byte, encoded as hexadecimal digits again and again, twice as long each time
    "hex": b"\x80\x03c_codecs\nencode\nq\x000"
    + 40 * b"h\x00"
    + b"C\x01a"
    + 40 * b"X\x03\x00\x00\x00hex\x86R"
    + b".",
    "length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"short.",
    "array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"short.",
    # two thousand arrays made of one mebibyte
    "shared": b"\x80\x03cnumpy\ndtype\n(X\x02\x00\x00\x00u1I0\nI1\ntRq\x00"
    + b"(I3\nX\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffI0\ntb0"
    + b"B\x00\x00\x10\x00%bq\x010(I1048576\ntq\x020](" % (2**20 * b"a")
    + 2000 * b"cnumpy.core.multiarray\n_reconstruct\n)R(I1\nh\x02h\x00\x89h\x01tb"
    + b"e.",
}


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
@pytest.mark.parametrize("kind", BOMBS)
def test_pickles_that_would_fill_the_memory(tmp_path, kind):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[kind])
    peak, printed = peak_of(READ.replace("READER", "read_array_pickle"), path)
    assert peak < 400  # gigabytes otherwise
    assert "refused" in printed or kind == "table"


@pytest.mark.parametrize("items", [b"}%bK\x01s.", b"\x8f(%b\x90.", b"(%bK\x01d."])
def test_pickles_that_would_hash_for_ever(tmp_path, items):
    """A tuple that holds another twice, sixty deep, as the key of a dict, and in a set."""
    path = tmp_path / "hash.pkl"
    path.write_bytes(b"\x80\x04" + items % (b")" + 60 * b"2\x86"))
    with pytest.raises(ValueError, match="hash.pkl"):
        read_array_pickle(path)


@pytest.mark.parametrize(
    "stored",
    [
        b"c_codecs\nencode\n\x8c\x01a%b\x86R.",
        b"cnumpy\nndarray\n)R(K\x01K\x00\x85cnumpy\ndtype\n%b\x85RK\x00C\x00tb.",
    ],
)
def test_messages_do_not_show_endless_tuples(tmp_path, stored):
    path = tmp_path / "shown.pkl"
    path.write_bytes(b"\x80\x04" + stored % (b")" + 18 * b"2\x86"))  # of 60 it would take for ever
    with pytest.raises(ValueError, match=r"shown.pkl: .*expected (latin1|numbers)") as caught:
        read_array_pickle(path)
    assert len(str(caught.value)) < 1000


def absurd(kind: str) -> bytes:
    """A picture file of some bytes whose header says that it is larger than any."""
    if kind == "png":
        return png(60_000, 60_000, 2, b"\0" * 100)
    if kind == "widest png":
        return png(2**31 - 1, 2**31 - 1, 2, b"\0" * 100)
    if kind == "ppm":
        return b"P6 1000000 100000 255\n123"
    content = cv2.imencode(f".{kind}", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    if kind == "bmp":
        return content[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + content[26:]
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + struct.pack(">HH", 65535, 65535) + content[frame + 4 :]


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
@pytest.mark.parametrize("kind", ["png", "widest png", "ppm", "bmp", "jpg"])
def test_pictures_of_absurd_size(tmp_path, kind):
    path = tmp_path / f"absurd.{kind.split()[-1]}"
    path.write_bytes(absurd(kind))
    peak, printed = peak_of(READ.replace("READER", "read_image"), path)
    assert peak < 400
    assert printed.startswith("refused:") and str(path) in printed


def test_the_limit_of_opencv_can_be_moved(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((40, 50, 3), np.uint8))
    code = READ.replace("READER(sys.argv[1])", "read_image(sys.argv[1]).shape")
    for limit, expected in (("1999", "refused"), ("2000", "(40, 50, 3)")):
        _, printed = peak_of(code, path, OPENCV_IO_MAX_IMAGE_PIXELS=limit)
        assert printed.startswith(expected)
        assert ("OPENCV_IO_MAX_IMAGE_PIXELS" in printed) == (expected == "refused")


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_a_picture_that_really_is_that_large(tmp_path):
    side = 17_000  # 289 million black pixels of one bit each: 38 kB
    content = bytearray(png(side, side, 0, bytes((1 + side // 8) * side)))
    content[24] = 1  # bits a pixel
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    peak, printed = peak_of(READ.replace("READER", "read_image"), path)
    assert peak < 200  # 290 or more otherwise
    assert f"{path}: it says that it has 17000x17000 pixels" in printed
    assert "SYNERGYNET_MAX_PIXELS" in printed


@pytest.mark.parametrize("kind", ["png", "jpg", "progressive jpg", "bmp", "tif", "big tif", "gif"])
def test_the_limit_of_pictures_can_be_moved(tmp_path, monkeypatch, kind):
    path = tmp_path / f"a.{kind.split()[-1]}"
    picture = Image.new("RGB", (50, 40), (200, 100, 50))
    if kind == "big tif":
        Path(path).write_bytes(big_endian_tiff(50, 40))
    else:
        picture.save(path, progressive=True) if "progressive" in kind else picture.save(path)
    monkeypatch.setenv("SYNERGYNET_MAX_PIXELS", "1999")
    with pytest.raises(ValueError, match=r"50x40 pixels, more than 1,999; .*SYNERGYNET_MAX_PIXELS"):
        read_image(path)
    monkeypatch.setenv("SYNERGYNET_MAX_PIXELS", "2000")
    if kind != "gif" or cv2.haveImageReader(str(path)):  # older OpenCV reads none
        assert read_image(path).shape == (40, 50, 3)
    monkeypatch.setenv("SYNERGYNET_MAX_PIXELS", "much")
    with pytest.raises(ValueError, match="SYNERGYNET_MAX_PIXELS='much': expected a number"):
        read_image(path)


def test_a_tiff_that_says_its_size_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNERGYNET_MAX_PIXELS", "1999")
    path = tmp_path / "a.tif"
    path.write_bytes(big_endian_tiff(50, 40, (256, 3, 5), (257, 4, 4)))
    with pytest.raises(ValueError, match="50x40 pixels, more than 1,999"):
        read_image(path)


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_a_jpeg_of_nothing_but_fill_bytes(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8" + 4_000_000 * b"\xff")
    peak, printed = peak_of(READ.replace("READER", "read_image"), path)
    assert peak < 150 and "refused" in printed  # 400 otherwise


def big_endian_tiff(width: int, height: int, *more: tuple[int, int, int]) -> bytes:
    """Grey, without compression; numbers begin with their greatest byte."""
    tags = [(256, 3, width), (257, 4, height), *more, (258, 3, 8), (259, 3, 1), (262, 3, 1),
            (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, width * height)]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHIHH" if kind == 3 else ">HHII", tag, kind, 1, value, *[0] * (kind == 3))
        for tag, kind, value in tags
    )
    table = struct.pack(">H", len(tags)) + entries + bytes(4)
    return b"MM\0*" + struct.pack(">I", 8 + width * height) + bytes(width * height) + table


def test_arrays_that_unpack_to_too_much(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(500_000), b=np.zeros(500_000))
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"a.npz: .*unpacks to 8,0.* at most 8,000,000"):
        read_npz(path, limit=8_000_000)
    assert read_npz(path, limit=8_001_000)["b"].shape == (500_000,)
    content = path.read_bytes()  # a file that says it is small; zipfile stops there
    small = content.replace(struct.pack("<I", 4_000_128), struct.pack("<I", 1000))
    path.write_bytes(small)
    assert small != content
    with pytest.raises(ValueError, match="a.npz"):
        read_npz(path)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(9000, 9000, 2, b"\0" * 100))
    with pytest.raises(ValueError, match="damaged"):
        read_image(path)


@pytest.mark.parametrize("script", [singleImage, video, benchmark])
def test_names_move_no_cursor(call, tmp_path, script):
    option = "--data" if script is benchmark else "-f"
    code, output = call(script.main, option, tmp_path / "a\x1b[2J\x9b2J\rb")
    assert code == 2
    assert r"a\x1b[2J\x9b2J\x0db" in output and not {"\x1b", "\x9b", "\r"} & set(output)


# ----------------------------------------------------------------------------------------- lists


def test_lists_that_lead_elsewhere(tmp_path):
    for name in ("../evil.jpg", "/etc/passwd", "a/../../b.jpg"):
        (tmp_path / AFLW_LIST).parent.mkdir(exist_ok=True)
        (tmp_path / AFLW_LIST).write_text(f"fine.jpg\n{name}\n")
        with pytest.raises(ValueError, match="no plain file name"):
            open_aflw21(tmp_path)


def test_lists_and_results_that_are_no_text(tmp_path, face_model):
    (tmp_path / "3dmm_data").mkdir()
    (tmp_path / "train_aug_120x120").mkdir()
    (tmp_path / "3dmm_data/param_all_norm_v201.pkl").write_bytes(b"")
    listing = tmp_path / "3dmm_data/train_aug_120x120.list.train"
    listing.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(listing))}: not a list of file names"):
        PublishedFaces(tmp_path, face_model)
    (tmp_path / "results.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not a results.json"):
        read_run(tmp_path / "results.json")


# ----------------------------------------------------------------------------------- file names

NAMES = [
    "line\nf 1 1 1\nmtllib evil.mtl",
    "cr\rv 0 0 0",
    "<script>alert(1)<&script>",
    "</title><img src=x onerror=alert(1)>".replace("/", "&"),
    "\"'`$(touch evil)`;touch evil; %s {0} \\u0041",
    ".",
    "..",
    "...",
    "-o evil",
    "--out=evil",
    " spaces ",
    "# comment",
    "tab\tescape\x1b[2J",
    "C:\\evil",
]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows admits no such names")
def test_hostile_photo_names(call, monkeypatch, face_model, tmp_path):
    monkeypatch.setattr(singleImage, "load_model", lambda options: Model(face_model))
    monkeypatch.setattr(singleImage, "finished_photos", lambda *_: None)
    monkeypatch.setattr(  # a smaller texture
        "utils.texture.textured_face", lambda *arguments: textured_face(*arguments, size=64)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    picture = cv2.imencode(".png", photo((20, 30, 40)))[1].tobytes()
    for name in NAMES:
        (tmp_path / "in" / f"{name}.png").write_bytes(picture)
    hidden = [Path("in") / f"{name}.png" for name in NAMES if name.startswith(".")]
    assert hidden  # those are left out of a folder, unless they are named
    files = ["-f", "in", *hidden]
    code, output = call(singleImage.main, *files, "-o", "out", "--save", "json,obj,html,npz")
    assert code == 0, output
    assert "\x1b" not in output and r"tab\x09escape\x1b[2J" in output
    assert len([line for line in output.splitlines() if "1 face" in line]) == len(NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {f"{n}.png" for n in NAMES}
    folders = {"rendering_overlay", "landmarks", "poses", "numbers", "obj", "html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == folders | {"contact_sheet.jpg"}

    out = tmp_path / "out"
    for folder, suffix in (("landmarks", "jpg"), ("numbers", "json"), ("obj", "obj")):
        found = {path.name for path in (out / folder).glob(f"*.{suffix}")}
        found |= {path.name for path in (out / folder).glob(f".*.{suffix}")}
        # not always the name: from Python 3.14 on, what is dots but for its end has no suffix
        assert found == {f"{Path(f'{name}.png').stem}.{suffix}" for name in NAMES}
    for name in NAMES:
        stem = Path(f"{name}.png").stem
        content = json.loads((out / "numbers" / f"{stem}.json").read_text())
        assert content["photo"] == str(Path("in") / f"{name}.png") and len(content["faces"]) == 1
        page = (out / "html" / f"{stem}.html").read_text(encoding="utf-8")
        head = page[: page.index("<body>")]
        assert "<script>alert" not in page and "<img" not in head
        assert "Content-Security-Policy" in head
        check_obj(out / "obj" / f"{stem}.obj")


def check_obj(path: Path) -> None:
    """The OBJ and its MTL hold the lines that they should, and the picture is found."""
    lines = path.read_bytes().splitlines()
    assert {line.split()[0] for line in lines} == {b"mtllib", b"usemtl", b"v", b"vt", b"vn", b"f"}
    (library,) = (line for line in lines if line.startswith(b"mtllib"))
    material = path.parent / os.fsdecode(library.partition(b" ")[2])
    lines = material.read_bytes().splitlines()
    assert [line.split()[0] for line in lines] == b"newmtl Ka Kd Ks illum map_Kd".split()
    assert not lines[-1].partition(b" ")[2].startswith((b"-", b" ", b"#"))
    mesh = trimesh.load(path, process=False)
    assert mesh.visual.material.image.size == (64, 64)


def test_a_photo_whose_own_chunks_lie(tmp_path):
    """A length that points beyond the file, and a text that unpacks to much more."""
    path = tmp_path / "a.png"
    whole = png(
        4, 4, 2, (b"\0" + b"\x7f" * 12) * 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(9**7)))
    )
    path.write_bytes(whole)
    assert (read_image(path) == 127).all()
    path.write_bytes(whole[:33] + b"\x7f\xff\xff\xff" + whole[37:])
    with pytest.raises(ValueError, match="a.png"):
        read_image(path)
