"""Published downloads: honest archives find their places, dishonest ones put nothing anywhere."""

import gzip
import io
import stat
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from tools import fetch_published
from tools.fetch_published import FetchError, fetch
from utils.unpack import LARGEST_READ, ArchiveError, Limits, _BoundedReads, unpack

TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_tar_of(path: Path, *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# ---------------------------------------------------------------------------------------- unpack

FILES = {"a.txt": b"one", "deep/er/b.bin": bytes(5000), "deep/empty": b""}


@pytest.mark.parametrize("kind", ["zip", *TAR_MODES])
def test_unpack_gives_back_the_files(tmp_path, kind):
    archive = tmp_path / "named_without_extension"
    if kind == "zip":
        make_zip(archive, {"deep/": b"", **FILES}, zipfile.ZIP_DEFLATED)
    else:
        make_tar(archive, FILES, TAR_MODES[kind])
    written = unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert [p.relative_to(tmp_path / "out").as_posix() for p in written] == list(FILES)


def test_tar_of_a_folder_as_the_command_writes_it(tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a.txt").write_bytes(b"one")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "in", arcname=".")
    unpack(tmp_path / "x.tar.gz", tmp_path / "out")
    assert tree(tmp_path / "out") == {"deep/a.txt": b"one"}


ESCAPES = [
    "../evil",
    "a/../../evil",
    "/tmp/evil",
    "a/./../evil",
    "..\\evil",
    "C:evil",
    "a//evil",
    "./../evil",
]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_escaping_names_are_refused(tmp_path, name, kind):
    folder = tmp_path / "in" / "out"
    archive = tmp_path / "x"
    (make_zip if kind == "zip" else make_tar)(archive, {"fine": b"1", name: b"2"})
    with pytest.raises(ArchiveError, match="leads out of its folder"):
        unpack(archive, folder)
    assert [p.name for p in tmp_path.rglob("*evil*")] == []
    with pytest.raises(ArchiveError, match="leads out"):  # also where the file itself is unwanted
        unpack(archive, folder.with_name("other"), place=lambda name: None)


def test_zip_with_a_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc")
        archive.writestr("link/passwd", b"evil")
    with pytest.raises(ArchiveError, match="is a link or a device"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "info",
    [
        special("a", tarfile.SYMTYPE, "/etc/passwd"),
        special("a", tarfile.SYMTYPE, "inside"),
        special("a", tarfile.LNKTYPE, "../outside"),
        special("a", tarfile.CHRTYPE),
        special("a", tarfile.BLKTYPE),
        special("a", tarfile.FIFOTYPE),
        special("a", tarfile.GNUTYPE_SPARSE),
    ],
    ids=["symlink", "inner symlink", "hardlink", "char device", "block device", "fifo", "sparse"],
)
def test_tar_with_anything_but_files_and_folders_is_refused(tmp_path, info):
    archive = make_tar_of(tmp_path / "x.tar", info)
    with pytest.raises(ArchiveError, match="is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    zeros = {"zeros": bytes(1 << 20)}
    limits = Limits(ratio=100, ratio_from=1 << 16)
    for archive in (
        make_zip(tmp_path / "ratio.zip", zeros, zipfile.ZIP_DEFLATED),
        make_tar(tmp_path / "ratio.tar.gz", zeros, "w:gz"),
        make_tar(tmp_path / "ratio.tar.xz", zeros, "w:xz"),
    ):
        with pytest.raises(ArchiveError, match="unpacks to more than"):
            unpack(archive, tmp_path / "out", limits=limits)
    archive = make_zip(tmp_path / "size.zip", {"a": bytes(1001)})
    with pytest.raises(ArchiveError, match="unpacks to more than 1,000 bytes"):
        unpack(archive, tmp_path / "out", limits=Limits(size=1000))
    archive = make_zip(tmp_path / "many.zip", {f"folder{i}/": b"" for i in range(4)})
    with pytest.raises(ArchiveError, match="more than 3 files"):  # folders count too
        unpack(archive, tmp_path / "out", limits=Limits(files=3))
    assert not (tmp_path / "out").exists()


def test_tar_header_of_gigabytes_is_refused_without_reading_it(tmp_path):
    # a long-name header that claims 4 GiB of name, in a tiny gzip
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 4 << 30
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(32 << 20)))
    with pytest.raises(ArchiveError, match="header of"):
        unpack(archive, tmp_path / "out")


def test_no_header_in_pieces_is_read_beyond_the_limit_either(tmp_path):
    with open(tmp_path / "x.tar", "w+b") as file:
        file.truncate(LARGEST_READ + 1)
        reads = _BoundedReads(file)
        assert len(reads.read(LARGEST_READ - 1)) == LARGEST_READ - 1
        with pytest.raises(ArchiveError, match=r"x\.tar: refused, it holds a header of more"):
            reads.read(2)


def test_zip_that_lies_about_its_sizes_is_refused(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": bytes(100_000)}, zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 10)  # uncompressed size in the directory
    archive.write_bytes(data)
    with pytest.raises(ArchiveError):
        unpack(archive, tmp_path / "out")
    assert all(len(content) <= 10 for content in tree(tmp_path / "out").values())


def damaged(data: bytes, damage: str) -> bytes:
    middle = len(data) // 2
    return {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
        "empty": b"",
        "text": b"just a text\n" * 100,
    }[damage]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
@pytest.mark.parametrize("kind", ["zip", *TAR_MODES])
def test_damaged_archives_are_errors(tmp_path, kind, damage):
    # the middle of the plain tar is the second header: tar has no checksum over contents
    files = {"a": bytes(range(256)) * 18, "b": b"2" * 3000}
    archive = tmp_path / "x"
    if kind == "zip":
        make_zip(archive, files, zipfile.ZIP_DEFLATED)
    else:
        make_tar(archive, files, TAR_MODES[kind])
    archive.write_bytes(damaged(archive.read_bytes(), damage))
    with pytest.raises(ArchiveError, match="x"):
        unpack(archive, tmp_path / "out")


def test_zip_whose_directory_points_before_its_beginning_is_damaged(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": b"1", "b": b"2"})
    data = bytearray(archive.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = struct.pack("<I", 1 << 30)  # shifts every offset by as much
    archive.write_bytes(data)
    with pytest.raises(ArchiveError):
        unpack(archive, tmp_path / "out")


def test_a_name_that_stands_twice_is_refused(tmp_path):
    archive = make_tar_of(tmp_path / "x.tar", tarfile.TarInfo("a"), tarfile.TarInfo("a"))
    with pytest.raises(ArchiveError, match="appears twice"):
        unpack(archive, tmp_path / "out")


def test_encrypted_zip_is_named_as_such(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": b"secret"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    with pytest.raises(ArchiveError, match="encrypted"):
        unpack(archive, tmp_path / "out")


# ----------------------------------------------------------------------------------- fetch, place

MODEL = {"u_shp.npy": b"mean", "w_shp_sim.npy": b"basis", "tri.mat": b"triangles"}
IN_PLACE = {f"3dmm_data/{name}": content for name, content in MODEL.items()}


def put_download(root: Path, name: str, content: bytes | Path) -> None:
    target = root / "published_downloads" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def installed(root: Path) -> dict[str, bytes]:
    return {k: v for k, v in tree(root).items() if not k.startswith("published_downloads/")}


@pytest.mark.parametrize("prefix", ["", "3dmm_data/", "some/wrapper/", "some/3dmm_data/"])
def test_any_number_of_wrapping_folders(tmp_path, prefix):
    junk = {"__MACOSX/3dmm_data/._u_shp.npy": b"x", f"{prefix}.DS_Store": b"x"}
    files = {**junk, **{prefix + name: content for name, content in MODEL.items()}}
    make_zip(tmp_path / "published_downloads/3dmm_data.zip", files)
    assert fetch("3dmm_data", tmp_path) == "3 files put in place"
    assert installed(tmp_path) == IN_PLACE
    assert fetch("3dmm_data", tmp_path) == "already there"


def test_one_archive_may_fill_several_folders(tmp_path):
    files = {
        "SynergyNet/aflw2000_data/eval/AFLW2000-3D.pts68.npy": b"labels",
        "SynergyNet/aflw2000_data/AFLW2000-3D_crop/image00002.jpg": b"crop",
        "SynergyNet/3dmm_data/u_shp.npy": b"mean",
        "SynergyNet/setup.py": b"evil",
    }
    make_tar(tmp_path / "published_downloads/data.tar.gz", files, "w:gz")
    fetch("data", tmp_path)
    assert sorted(installed(tmp_path)) == [
        "3dmm_data/u_shp.npy",
        "aflw2000_data/AFLW2000-3D_crop/image00002.jpg",
        "aflw2000_data/eval/AFLW2000-3D.pts68.npy",
    ]


def test_art_and_uv_maps_without_their_folders(tmp_path):
    make_zip(tmp_path / "published_downloads/artistic.zip", {"122.png": b"a", "64.png": b"b"})
    make_zip(tmp_path / "published_downloads/uv_maps.zip", {"maps/122_fake_B.png": b"c"})
    fetch("artistic", tmp_path)
    fetch("uv_maps", tmp_path)
    assert sorted(installed(tmp_path)) == [
        "art-all/122.png",
        "art-all/64.png",
        "uv_art/122_fake_B.png",
    ]


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # ZipInfo: always the same date, so same bytes
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"pickle")
        archive.writestr(zipfile.ZipInfo("archive/data/0"), b"numbers")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["torch zip", "old pickle", "zip around", "tar around"])
def test_weights_in_every_form(tmp_path, form):
    content = b"\x80\x02old pickle" if form == "old pickle" else torch_zip()
    if form == "zip around":
        files = {"pretrained/other.pth.tar": b"no", "pretrained/best.pth.tar": content}
        make_zip(tmp_path / "published_downloads/weights.zip", files)
    elif form == "tar around":
        make_tar(tmp_path / "published_downloads/weights.tar", {"x/epoch_80.pth.tar": content})
    else:
        put_download(tmp_path, "weights.pth.tar", content)
    fetch("weights", tmp_path)
    assert installed(tmp_path) == {"pretrained/best.pth.tar": content}


def test_existing_files_are_kept_without_force(tmp_path):
    make_zip(tmp_path / "published_downloads/3dmm_data.zip", MODEL)
    (tmp_path / "3dmm_data").mkdir()
    (tmp_path / "3dmm_data/tri.mat").write_bytes(b"mine")
    assert "1 that were there kept" in fetch("3dmm_data", tmp_path)
    assert installed(tmp_path) == {**IN_PLACE, "3dmm_data/tri.mat": b"mine"}
    fetch("3dmm_data", tmp_path, force=True)
    assert installed(tmp_path) == IN_PLACE


@pytest.mark.parametrize(
    "files",
    [{**MODEL, "../evil": b"x"}, {"readme.txt": b"x"}, {**MODEL, "zeros": bytes(3 << 20)}],
    ids=["escape", "wrong content", "bomb"],
)
def test_nothing_is_put_anywhere_when_an_archive_is_wrong(tmp_path, files):
    archive = tmp_path / "in/published_downloads/3dmm_data.zip"
    make_zip(archive, files, zipfile.ZIP_DEFLATED)
    with pytest.raises(FetchError, match=r"3dmm_data\.zip"):
        fetch("3dmm_data", tmp_path / "in", limits=Limits(ratio_from=1 << 20))
    assert list(tree(tmp_path)) == ["in/published_downloads/3dmm_data.zip"]


# --------------------------------------------------------------------------------------- download


class FakeDrive(types.ModuleType):
    """Stands in for gdown: file ids to contents; an absent id fails as gdown does."""

    class DownloadError(Exception):
        pass

    def __init__(self, files: dict[str, bytes]):
        super().__init__("gdown")
        self.files, self.asked = files, []

    def download(self, id, output, **_):
        self.asked.append(id)
        if id not in self.files:
            raise self.DownloadError("Failed to retrieve file url")
        Path(output).write_bytes(self.files[id])


@pytest.fixture
def drive(monkeypatch):
    fake = FakeDrive({})
    monkeypatch.setitem(sys.modules, "gdown", fake)
    return fake


def test_second_link_is_tried_when_the_first_is_dead(tmp_path, drive):
    dead, alive = fetch_published.PUBLISHED["weights"].ids
    drive.files[alive] = torch_zip()
    fetch("weights", tmp_path)
    assert drive.asked == [dead, alive]
    assert installed(tmp_path) == {"pretrained/best.pth.tar": torch_zip()}


def test_web_page_instead_of_the_file(tmp_path, drive):
    (file_id,) = fetch_published.PUBLISHED["3dmm_data"].ids
    drive.files[file_id] = b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>"
    with pytest.raises(FetchError, match="sent a web page instead of the file.*quota"):
        fetch("3dmm_data", tmp_path)
    assert tree(tmp_path) == {}  # the page is not mistaken for the file next time


def test_one_failure_does_not_stop_the_others(tmp_path, drive, monkeypatch, capsys):
    monkeypatch.setattr(fetch_published, "ROOT", tmp_path)
    (file_id,) = fetch_published.PUBLISHED["3dmm_data"].ids
    drive.files[file_id] = make_zip(tmp_path / "published_downloads/x", MODEL).read_bytes()
    assert fetch_published.main(["weights", "3dmm_data"]) == 1
    output = capsys.readouterr().out
    assert "FAILED: download failed (Failed to retrieve file url)" in output
    assert "https://drive.google.com/file/d/1BVHbiLTfX6iTeJcNbh-jgHjWDoemfrzG" in output
    assert "Not fetched: weights\n" in output
    assert "they belong together" in output  # the face model has come without its weights
    assert installed(tmp_path) == IN_PLACE
    assert fetch_published.main(["3dmm_data"]) == 0


def test_missing_gdown_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(FetchError, match=r"gdown is not installed: pip install -e '\.\[published"):
        fetch("weights", tmp_path)


def test_unwritable_place_is_said(tmp_path):
    make_zip(tmp_path / "published_downloads/3dmm_data.zip", MODEL)
    (tmp_path / "3dmm_data").write_bytes(b"a file where the folder should be")
    with pytest.raises(FetchError, match="cannot write the files: .*3dmm_data"):
        fetch("3dmm_data", tmp_path)


def test_unknown_name_is_wrong_usage(call):
    code, said = call(fetch_published.main, "wieghts")
    assert code == 2 and "no such name: wieghts; there are 3dmm_data, weights" in said
