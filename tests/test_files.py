"""Pictures of every kind read alike, strangers' files read safely, our own written atomically."""

import base64
import os
import pickle
import re
import struct
import threading
import urllib.request
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import on_disk
from PIL import Image, ImageOps, features

from utils import files
from utils.array_pickle import read_array_pickle
from utils.files import atomic_write, map_npy, new_folder, read_npy
from utils.pictures import WHAT_IS_A_PICTURE, as_picture, read_image, to_bgr8, write_image

# ---------------------------------------------------------------------------------------- pictures


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth colour picture, no two corners alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - 2 * y], -1).astype(np.uint8)


def saved(folder: Path, suffix: str, image: np.ndarray) -> Path:
    path = folder / f"picture{suffix}"
    path.write_bytes(cv2.imencode(suffix, image)[1].tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_colour(tmp_path, suffix):
    np.testing.assert_array_equal(read_image(saved(tmp_path, suffix, picture())), picture())


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_compressed_colour(tmp_path, suffix):
    found = read_image(saved(tmp_path, suffix, picture()))
    assert np.abs(found.astype(int) - picture()).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm", ".jpg"])
def test_grey_becomes_bgr(tmp_path, suffix):
    grey = picture()[..., 0]
    found = read_image(saved(tmp_path, suffix, grey)).astype(int)
    assert found.shape == (40, 60, 3)
    assert np.abs(found - grey[..., None]).max() <= (3 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_transparency_lies_over_black(tmp_path, suffix):
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :20], alpha[:, 20:30] = 0, 51
    found = read_image(saved(tmp_path, suffix, np.dstack([picture(), alpha])))
    assert not found[:, :20].any()
    np.testing.assert_array_equal(found[:, 20:30], np.round(picture()[:, 20:30] / 5))
    np.testing.assert_array_equal(found[:, 30:], picture()[:, 30:])


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit(tmp_path, suffix, channels):
    deep = np.dstack([picture(), np.full((40, 60), 255)])[..., :channels].astype(np.uint16) * 257
    deep = np.squeeze(deep) + (np.squeeze(deep) < 60000)  # a little more than the 8-bit value
    expected = picture() if channels > 1 else np.repeat(picture()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read_image(saved(tmp_path, suffix, deep)), expected)


def png(width: int, height: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """An 8-bit PNG file of a colour type, its raw rows given (each with its filter byte 0)."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    parts = [head, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def test_palette_and_grey_with_alpha(tmp_path):
    path = tmp_path / "a.png"
    colours = (b"PLTE", bytes([255, 0, 0, 0, 0, 255]))  # RGB
    path.write_bytes(png(2, 1, 3, bytes([0, 0, 1]), colours))
    np.testing.assert_array_equal(read_image(path), [[[0, 0, 255], [255, 0, 0]]])
    path.write_bytes(png(2, 1, 3, bytes([0, 0, 1]), colours, (b"tRNS", bytes([255, 0]))))
    np.testing.assert_array_equal(read_image(path), [[[0, 0, 255], [0, 0, 0]]])
    path.write_bytes(png(2, 1, 4, bytes([0, 200, 255, 200, 0])))
    np.testing.assert_array_equal(read_image(path), [[[200] * 3, [0] * 3]])


# a 16 x 16 CMYK JPEG (Adobe marker, inverted inks) of plain red
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAQCwwODAoQDg0OEhEQExgoGhgWFhgxIyUdKDozPTw5Mzg3QEhcTkBEV0U3"
    "OFBtUVdfYmdoZz5NcXlwZHhcZWdj/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABUAAQEAAAAAAAAAAAAAAAAAAAAH"
    "/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAA4EQwBNAFkASwAAPwCgJ+n6gAAAAP/Z"
)


def test_cmyk_jpeg(tmp_path):
    (tmp_path / "cmyk.jpg").write_bytes(CMYK_JPEG)
    found = read_image(tmp_path / "cmyk.jpg")
    assert found.shape == (16, 16, 3)
    assert (found[..., 2] > 200).all() and (found[..., :2] < 60).all()


def test_floating_point_is_cut_to_one(tmp_path):
    path = saved(tmp_path, ".tiff", picture().astype(np.float32))  # not in [0, 1]
    with pytest.raises(ValueError, match=r"floating point up to 2[\d.]+, expected \[0, 1\]"):
        read_image(path)
    found = read_image(saved(tmp_path, ".hdr", picture().astype(np.float32) / 64))
    assert found.dtype == np.uint8 and found.max() == 255
    expected = np.minimum(picture() / 64, 1) * 255
    assert np.abs(found - expected).mean() < 3


# how the stored picture must be turned for each orientation tag
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def exif(orientation: int) -> bytes:
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"MM\x00*\x00\x00\x00\x08\x00\x01" + tag + b"\x00\x00\x00\x00"


def with_exif(file: bytes, orientation: int) -> bytes:
    """A JPEG or PNG file with an orientation tag."""
    if file.startswith(b"\xff\xd8"):
        data = b"Exif\x00\x00" + exif(orientation)
        return file[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + file[2:]
    chunk = b"eXIf" + exif(orientation)
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return file[:33] + chunk + file[33:]  # behind the header


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["jpg", "grey jpg", "png", "grey png", "alpha png", "deep png"])
def test_orientation_tag_is_obeyed(tmp_path, orientation, kind):
    stored = picture()
    if "grey" in kind:
        stored = stored[..., 0]
    elif "alpha" in kind:
        stored = np.dstack([stored, np.tile(np.uint8(range(100, 160)), (40, 1))])
    elif "deep" in kind:
        stored = stored.astype(np.uint16) * 257
    path = saved(tmp_path, f".{kind[-3:]}", stored)
    as_stored = read_image(path)
    path.write_bytes(with_exif(path.read_bytes(), orientation))
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](as_stored))


@pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow writes no AVIF")
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_orientation_of_avif_is_obeyed(tmp_path, orientation, mode):
    stored = picture()
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(stored[..., ::-1]).convert(mode).save(
        tmp_path / "a.avif", quality=100, exif=tag.tobytes()
    )
    found, expected = read_image(tmp_path / "a.avif"), UPRIGHT[orientation](stored)
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).mean() < 3


def test_the_advice_for_pillows_pictures_turns_them_as_files_are(tmp_path):
    path = saved(tmp_path, ".png", picture())
    path.write_bytes(with_exif(path.read_bytes(), 6))
    (advice,) = re.findall(r"np\.asarray\(.*\]", WHAT_IS_A_PICTURE)
    with Image.open(path) as image:
        found = eval(advice, {"np": np, "ImageOps": ImageOps, "image": image})
    np.testing.assert_array_equal(found, read_image(path))


def test_an_address_is_no_path():
    png = cv2.imencode(".png", picture())[1].tobytes()
    page = "data:image/png;base64," + base64.b64encode(png).decode()
    for address in (page, "https://me:secret@example.com/a.jpg"):
        with pytest.raises(ValueError, match=r"urllib\.request\.urlopen\(address\)") as refused:
            as_picture(address)
        assert "secret" not in str(refused.value) and len(str(refused.value)) < 100
    np.testing.assert_array_equal(as_picture(urllib.request.urlopen(page).read()), picture())


@pytest.mark.parametrize("name", ["a b.png", "Zoë 名 😀.png", "%s '\"$.png", "-x.png", "a" * 200])
def test_any_path(tmp_path, name):
    name = on_disk(name)
    (tmp_path / name).write_bytes(saved(tmp_path, ".bmp", picture()).read_bytes())
    np.testing.assert_array_equal(read_image(tmp_path / name), picture())


@pytest.mark.parametrize("shape", [(1, 1), (20, 20_000), (20_000, 20)])
def test_odd_sizes(tmp_path, shape):
    image = np.full((*shape, 3), 77, np.uint8)
    np.testing.assert_array_equal(read_image(saved(tmp_path, ".png", image)), image)


# ------------------------------------------------------------------------------------ bad pictures


def refused(path: Path, reason: str | None, error=ValueError) -> None:
    with pytest.raises(error, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_bad_pictures(tmp_path):
    path = tmp_path / "x.jpg"
    refused(path, None, FileNotFoundError)
    for content, reason in ((b"", "empty"), (b"no picture", "not a picture"), (b"\xff", "not a")):
        path.write_bytes(content)
        refused(path, reason)
    (tmp_path / "folder.jpg").mkdir()
    refused(tmp_path / "folder.jpg", "folder", IsADirectoryError)


def thumbnailed(jpeg: bytes) -> bytes:
    """The JPEG with a whole JPEG as thumbnail in its header."""
    small = b"Exif\x00\x00" + exif(1) + cv2.imencode(".jpg", picture())[1].tobytes()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small + jpeg[2:]


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("header", [bytes, thumbnailed])
def test_truncated_jpeg(tmp_path, keep, header):
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8)
    whole = header(cv2.imencode(".jpg", noise)[1].tobytes())
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole)
    assert read_image(path).shape == (80, 90, 3)
    path.write_bytes(whole[: int(keep * len(whole))])
    refused(path, "cut short")


def test_what_follows_a_jpeg_does_not_matter(tmp_path):
    path = saved(tmp_path, ".jpg", picture())
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + bytes(200_000))  # phones append films
    np.testing.assert_array_equal(read_image(path), expected)


def test_bitmaps_of_os2(tmp_path):
    image = picture()[:, :16]  # rows of whole words
    height, width = image.shape[:2]
    header = struct.pack("<2sIIIIHHHH", b"BM", 26 + image.nbytes, 0, 26, 12, width, height, 1, 24)
    path = tmp_path / "old.bmp"
    path.write_bytes(header + image[::-1].tobytes())
    np.testing.assert_array_equal(read_image(path), image)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_other_truncated_files(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    path = saved(tmp_path, suffix, noise)
    content = path.read_bytes()
    for keep in (0.002, 0.1, 0.5, 0.99):
        path.write_bytes(content[: int(keep * len(content))])
        refused(path, None)


# ----------------------------------------------------------------------------------------- to_bgr8


def test_to_bgr8_leaves_bgr_alone():
    image = picture()
    assert to_bgr8(image) is image


def test_to_bgr8_scales():
    np.testing.assert_array_equal(
        to_bgr8(np.uint16([[0, 128, 129, 257, 32767, 65535]]))[0, :, 0], [0, 0, 1, 1, 127, 255]
    )
    for dtype in (np.float16, np.float32, np.float64):
        assert to_bgr8(np.array([[0, 0.5, 1]], dtype))[0, :, 2].tolist() == [0, 128, 255]
    transparent = np.array([[[1.0, 1, 1, 0.2]]])
    assert to_bgr8(transparent).tolist() == [[[51, 51, 51]]]


@pytest.mark.parametrize(
    "bad",
    [
        [[1, 2], [3, 4]],
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros(9, np.uint8),
        np.zeros((4, 4, 3), np.int32),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), object),
        np.full((4, 4, 3), 1.01),
        np.full((4, 4, 3), -0.01),
        np.full((4, 4, 3), np.nan),
    ],
)
def test_to_bgr8_refuses(bad):
    with pytest.raises(ValueError, match="expected|must be"):
        to_bgr8(bad)


# ----------------------------------------------------------------------------------------- writing


def test_atomic_write_creates_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("one", "zwei ä"):
        with atomic_write(path, "w") as file:
            file.write(text)
        assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(error):
        with atomic_write(path) as file:
            file.write(b"half")
            assert path.read_bytes() == b"old"
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error())
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_atomic_write_gives_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_new_folders_have_usual_permissions(tmp_path):
    tmp_path.chmod(0o1777)  # as /tmp
    old = os.umask(0o027)
    try:
        with new_folder(tmp_path / "made") as partial:
            (partial / "file").touch()
        os.mkdir(tmp_path / "plain")
    finally:
        os.umask(old)
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_an_empty_folder_or_a_link_to_one_is_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with new_folder(tmp_path / "link") as partial:
        (partial / "file").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "file").exists()
    with pytest.raises(FileExistsError, match="remove it"), new_folder(tmp_path / "link"):
        pass


@pytest.mark.parametrize(("platform", "tries"), [("win32", 3), ("linux", 1)])
def test_a_file_that_is_open_on_windows_is_waited_for(tmp_path, monkeypatch, platform, tries):
    calls, replace = [], os.replace

    def replace_later(source, target):
        calls.append(target)
        if len(calls) < 3:
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(files.sys, "platform", platform)
    monkeypatch.setattr(files.os, "replace", replace_later)
    path = tmp_path / "log.csv"
    if platform == "win32":
        with atomic_write(path) as file:
            file.write(b"new")
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(PermissionError), atomic_write(path):
            pass
    assert len(calls) == tries


def test_two_writers_at_once(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([i]) * 10_000 for i in range(8)]
    start, mask = threading.Barrier(8), os.umask(0o022)
    os.umask(mask)

    def write(content: bytes) -> None:
        start.wait()
        for _ in range(20):
            with atomic_write(path) as file:
                file.write(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents  # one of them, whole
    assert list(tmp_path.iterdir()) == [path]
    assert os.umask(mask) == mask


@pytest.mark.skipif(os.name != "posix", reason="other systems count characters, not bytes")
def test_longest_names(tmp_path):
    path = tmp_path / on_disk("名" * 83 + ".txt")  # 253 bytes of the 255 that are allowed
    with atomic_write(path, "w") as file:
        file.write("x")
    assert path.read_text() == "x"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_written_pictures_are_read_back(tmp_path, suffix):
    path = tmp_path / "new" / on_disk(f"Zoë{suffix}")
    write_image(path, picture())
    difference = np.abs(read_image(path).astype(int) - picture())
    assert difference.mean() < (3 if suffix != ".png" else 1e-9)


def test_pictures_that_cannot_be_written(tmp_path):
    for name, image in (("a.xyz", picture()), ("a", picture()), ("a.jpg", picture()[:0])):
        with pytest.raises(ValueError, match=name):
            write_image(tmp_path / name, image)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_image(tmp_path / "file" / "a.png", picture())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------- strangers' arrays


ARRAYS = {
    "float32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(5, dtype=">i4"),
    "half": np.ones(3, np.float16),
    "bool": np.array([True, False]),
    "scalar": np.float64(2.5),
    "zero-dimensional": np.array(7),
}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    content = {**ARRAYS, "nested": [1, "text", (None, ARRAYS["float32"])]}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_array_pickle(path)
    assert found.keys() == content.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == np.asarray(array).dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)
    assert found["nested"][:2] == [1, "text"]
    np.testing.assert_array_equal(found["nested"][2][1], ARRAYS["float32"])


def test_pickles_of_either_numpy_and_python_2(tmp_path):
    path = tmp_path / "old.pkl"
    new = pickle.dumps(ARRAYS["float32"], 2)
    for content in (
        new.replace(b"numpy._core.", b"numpy.core."),
        new.replace(b"numpy.core.", b"numpy._core."),
        # as Python 2 wrote it: byte strings
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\n"
        b"dtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00"
        b"\\xa0\\xc0'\ntb.",
    ):
        path.write_bytes(content)
        expected = ARRAYS["float32"] if content[:1] == b"\x80" else [1, -5]
        np.testing.assert_array_equal(read_array_pickle(path), expected)


class Global:
    """Pickles as a reference to something that exists."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"param_mean": [evil]}])
@pytest.mark.parametrize("function", [eval, os.system, np.load, np.fromfile, getattr, Path.touch])
def test_malicious_pickles_do_not_run(tmp_path, function, wrap):
    path, trace = tmp_path / "evil.pkl", tmp_path / "trace"
    argument = {eval: f"open({str(trace)!r}, 'w')", os.system: f"touch {trace}"}.get(
        function, trace
    )
    path.write_bytes(pickle.dumps(wrap(Global(function, argument))))
    with pytest.raises(ValueError, match="evil.pkl.*run code"):
        read_array_pickle(path)
    assert not trace.exists()


def test_pickles_that_are_no_arrays_of_numbers(tmp_path):
    path = tmp_path / "other.pkl"
    for content in (np.array([{}], object), {"a": np.array(["text"])}, Path("x"), print):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="other.pkl"):
            read_array_pickle(path)
    with pytest.raises(FileNotFoundError):
        read_array_pickle(tmp_path / "nothing.pkl")


def test_pickled_types_with_a_bad_state_do_not_crash(tmp_path):
    """numpy itself believes what a pickle says of a type, and reads stray memory."""
    path = tmp_path / "state.pkl"
    good = pickle.dumps(np.ones(62, np.float32), 2)
    state = b"K\x03X\x01\x00\x00\x00<q"
    assert state in good or b"K\x03h" in good
    place = good.index(b"J\xff\xff\xff\xff")
    for number in (1, 1_313_754_641, -7):
        path.write_bytes(good[: place + 1] + struct.pack("<i", number) + good[place + 5 :])
        try:
            found = read_array_pickle(path)
        except ValueError:
            continue
        np.testing.assert_array_equal(found, np.ones(62))  # size and alignment are not believed


def test_pickles_that_refer_to_themselves(tmp_path):
    path, deep = tmp_path / "deep.pkl", [np.ones(2)]
    for _ in range(60):  # 2 ** 60 items if each reference were followed
        deep = [deep, deep]
    path.write_bytes(pickle.dumps(deep))
    read_array_pickle(path)
    endless = []
    endless.append(endless)
    path.write_bytes(pickle.dumps(endless))
    with pytest.raises(ValueError, match="deep.pkl"):
        read_array_pickle(path)


@pytest.mark.parametrize("read", [read_npy, map_npy])
def test_npy(tmp_path, read):
    path = tmp_path / "a.npy"
    np.save(path, ARRAYS["float32"])
    whole = path.read_bytes()
    np.testing.assert_array_equal(read(path), ARRAYS["float32"])
    assert isinstance(read(path), np.memmap) == (read is map_npy)
    np.savez(tmp_path / "b.npz", ARRAYS["float32"])
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    others = [(tmp_path / name).read_bytes() for name in ("b.npz", "c.npy")]
    header = b"\x93NUMPY\x01\x00"
    others += [header + b"\x10\x00{'descr': '<f4'}", header + b"\x04\x00((((", b"PK\x03\x04 no zip"]
    long = b"\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}\n"
    for content in (b"", b"text", whole[:60], whole[:-1], *others, header + long):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npy: ") as refused:
            read(path)
        assert "allow_pickle" not in str(refused.value)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.npy")
