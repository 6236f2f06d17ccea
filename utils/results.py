"""What the scripts write for the faces of a photo."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from utils.cli import counted, say
from utils.draw import contact_sheet, fit_into
from utils.inference import MAX_STRETCH, Face
from utils.mesh_io import MESH_SUFFIXES, TexturedMesh, save_mesh
from utils.morphable_model import MorphableModel
from utils.overlays import DENSE, NUMBERED, Overlays, nearest_last
from utils.photo_numbers import FORMATS, join_tables, save_numbers, write_numbers
from utils.photos import PHOTO_SUFFIXES, face_names
from utils.pictures import read_image, write_image
from utils.render import normalized_coordinate_code, render_depth, render_pncc

MAP_FORMATS = ("depth", "pncc")
# the published pictures: folder, what is drawn
PICTURES = {"rendering_overlay": ("mesh",), "landmarks": ("landmarks",), "poses": ("pose",)}
NOTHING = "none"  # in place of drawings: no pictures
# what shows a face with the photo's own texture; each face gets a file of its own
TEXTURED_FORMATS = (*(suffix[1:] for suffix in MESH_SUFFIXES), "uv")
# all folders that results are written to
FOLDERS = frozenset(
    [*PICTURES, "drawn", "numbers", "confidence", "turntable", *TEXTURED_FORMATS, *MAP_FORMATS]
)


def chosen_pictures(drawings: Sequence[str]) -> dict[str, Sequence[str]]:
    """What ``--draw`` asks for, as ``PICTURES``: these, or one of the drawings, or none."""
    if NOTHING in drawings:
        return {}
    return {"drawn": drawings} if drawings else PICTURES


def draw_pictures(
    image: np.ndarray, faces: Sequence[Face], pictures: Mapping[str, Sequence[str]] = PICTURES
) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures of a photo with at least one face, each with the folder it goes to.

    With a drawing of ``NUMBERED`` several faces get their numbers, from 0 on: those of the files
    NAME, NAME_1, ..., and of the faces in the numbers' files.
    """
    for folder, drawn in pictures.items():
        numbers = None if NUMBERED.isdisjoint(drawn) else range(len(faces))
        yield folder, Overlays(faces[0].face_model, drawn)(image, faces, numbers)


def save_pictures(
    out: Path,
    name: str,
    image: np.ndarray,
    faces: Sequence[Face],
    pictures: Mapping[str, Sequence[str]] = PICTURES,
    with_cell: bool = False,
) -> np.ndarray | None:
    """Writes ``draw_pictures`` under ``out``; returns the first as a contact sheet shows it, if
    ``with_cell``."""
    cell = None
    for folder, picture in draw_pictures(image, faces, pictures):
        write_image(out / folder / f"{name}.jpg", picture)
        if with_cell and cell is None:
            cell = ContactSheets.cell(picture)
        del picture  # before the next one is drawn: each is as large as the photo
    return cell


class PhotoWriter:
    """What a script writes for photos; ``utils.photo_script.run_on_photos`` calls it.

    Args:
        options: ``out`` and ``photos``.
    """

    def __init__(self, options: Namespace) -> None:
        self.out = options.out
        self.photo_names = {name.casefold() for name, _ in options.photos}

    def save(self, name: str, path: Path, image: np.ndarray, faces: Sequence[Face]) -> Any:
        """Writes all files of one photo, which may have no face; called from several threads."""
        raise NotImplementedError

    def result_of(self, name: str) -> Path:
        """One of the files of a photo with faces; it stands for all of them."""
        raise NotImplementedError

    def kept(self, name: str) -> Any:
        """What ``save`` returned for a photo with faces that an earlier run finished."""

    def saved(self, name: str, result: Any) -> None:
        """Takes what ``save`` or ``kept`` returned: of the photos in their order, one at a time."""


class PhotoResults(PhotoWriter):
    """What singleImage.py writes for photos, as its options say; of several also contact sheets.

    Args:
        options: ``out``, ``photos``, ``save`` and ``draw``.
        face_model: of the faces.

    Attributes:
        dense: the faces need their dense mesh.
    """

    def __init__(self, options: Namespace, face_model: MorphableModel) -> None:
        super().__init__(options)
        self.formats, self.face_model = options.save, face_model
        self.pictures = chosen_pictures(options.draw)
        drawn = set(chain(*self.pictures.values()))
        self.dense = not (drawn.isdisjoint(DENSE) and {"json", "csv"}.issuperset(self.formats))
        self.are_several = len(options.photos) > 1
        self.sheets = ContactSheets(options.out) if self.are_several and self.pictures else None
        self.names: list[str] = []  # of the photos whose results are there

    def save(
        self, name: str, path: Path, image: np.ndarray, faces: Sequence[Face]
    ) -> np.ndarray | None:
        """Writes all files of one photo; returns its cell of the contact sheet, if it has one."""
        save_numbers(self.out, name, path, faces, self.formats, self.face_model)
        if not faces:
            return None
        own_names = face_names(name, len(faces), self.photo_names)
        cell = save_pictures(self.out, name, image, faces, self.pictures, bool(self.sheets))
        save_maps(self.out, name, image, faces, self.formats)
        save_textured(self.out, own_names, image, faces, self.formats)
        return cell

    def result_of(self, name: str) -> Path:
        """The first picture that ``save_pictures`` writes, or what is saved without pictures."""
        if self.pictures:
            return self.out / next(iter(self.pictures)) / f"{name}.jpg"
        form = self.formats[0]
        folder = "numbers" if form in FORMATS else form
        suffix = "png" if form in ("uv", *MAP_FORMATS) else form
        return self.out / folder / f"{name}.{suffix}"

    def kept(self, name: str) -> np.ndarray | None:
        return self.sheets.cell(read_image(self.result_of(name))) if self.sheets else None

    def saved(self, name: str, cell: np.ndarray | None) -> None:
        self.names.append(name)
        if self.sheets:
            self.sheets.add(name, cell)

    def close(self) -> bool:
        """Writes what is of all photos together; whether all of it could be written."""
        is_whole = True
        if self.sheets:
            self.sheets.write()
            is_whole = not self.sheets.failed
        if self.are_several and "csv" in self.formats:
            try:
                join_tables(self.out, self.names)
            except OSError as error:
                is_whole = False
                say(f"failed: {error}", file=sys.stderr)
        return is_whole


class ContactSheets:
    """All photos of a folder, small, on pages: ``out/contact_sheet.jpg``, ``..._2.jpg``, ...

    A page is written as soon as it is full, so that no more than one is in memory. One that cannot
    be written costs no photo: it is said.

    Attributes:
        failed: how many pages could not be written.
    """

    COLUMNS, ROWS, CELL = 6, 6, 240

    def __init__(self, out: Path) -> None:
        self.out = out
        self.pages = self.failed = 0
        self.cells: list[np.ndarray] = []
        self.captions: list[str] = []

    @classmethod
    def cell(cls, picture: np.ndarray) -> np.ndarray:
        """A (H, W, 3) picture in the size in which a page shows it."""
        return fit_into(picture, cls.CELL, cls.CELL)

    def add(self, name: str, cell: np.ndarray | None) -> None:
        """The next photo's cell; None leaves it out."""
        if cell is None:
            return
        self.cells.append(cell)
        self.captions.append(name)
        if len(self.cells) == self.COLUMNS * self.ROWS:
            self.write()

    def write(self) -> None:
        """What is left, as the last page."""
        if not self.cells:
            return
        self.pages += 1
        number = f"_{self.pages}" if self.pages > 1 else ""
        sheet = contact_sheet(self.cells, self.COLUMNS, (self.CELL, self.CELL), self.captions)
        self.cells, self.captions = [], []  # a page that cannot be written is not tried again
        try:
            write_image(self.out / f"contact_sheet{number}.jpg", sheet)
        except OSError as error:
            self.failed += 1
            say(f"failed: {error}", file=sys.stderr)


def save_confidence(out: Path, name: str, mesh: TexturedMesh) -> None:
    """How far to trust a photo's texture, ``out/confidence/NAME.png``: 0 black, 1 white."""
    grey = np.round(mesh.confidence * 255).astype(np.uint8)
    write_image(out / "confidence" / f"{name}.png", grey)


def save_maps(
    out: Path,
    name: str,
    image: np.ndarray,
    faces: Sequence[Face],
    formats: Sequence[str],
) -> None:
    """Depth and PNCC (``utils.render``) of one or more faces, ``out/depth`` and ``out/pncc``."""
    face_model = faces[0].face_model
    vertices = [face.vertices for face in nearest_last(faces)]
    if "depth" in formats:
        picture = render_depth(vertices, face_model.triangles, *image.shape[:2])
        write_image(out / "depth" / f"{name}.png", picture)
    if "pncc" in formats:
        codes = normalized_coordinate_code(face_model.mean)
        picture = render_pncc(vertices, face_model.triangles, codes, *image.shape[:2])
        write_image(out / "pncc" / f"{name}.png", picture)


def save_textured(
    out: Path,
    names: Sequence[str],
    image: np.ndarray,
    faces: Sequence[Face],
    formats: Sequence[str],
) -> None:
    """Each face's mesh with the photo's texture, ``out/FORMAT/NAME.FORMAT``; for ``uv`` the
    texture and how far to trust it, ``out/uv`` and ``out/confidence``."""
    formats = [form for form in TEXTURED_FORMATS if form in formats]
    if not formats:
        return
    from utils.texture import textured_face  # imported here: most runs unwrap no texture

    for face, name in zip(faces, names, strict=True):
        mesh = textured_face(face, image)
        for form in formats:
            if form == "uv":
                write_image(out / "uv" / f"{name}.png", mesh.texture)
                save_confidence(out, name, mesh)
            else:
                save_mesh(out / form / f"{name}.{form}", mesh)


def save_face(path: Path, face: Face, image: np.ndarray | None) -> list[Path]:
    """The work of ``Face.save``."""
    suffix = path.suffix.lower()
    if suffix[1:] in FORMATS:
        write_numbers(path, [face], {}, face.face_model)
        return [path]
    if suffix not in (*PHOTO_SUFFIXES, *MESH_SUFFIXES):
        expected = ", ".join([*(f".{form}" for form in FORMATS), *MESH_SUFFIXES, ".png", ".jpg"])
        raise ValueError(f"{path}: a face is written as {expected}, not {suffix!r}")
    if suffix in PHOTO_SUFFIXES:
        if image is None:
            raise ValueError(f"{path}: needs the face's photo: face.save(path, image)")
        write_image(path, face.draw(image))
        return [path]
    # imported here: most runs unwrap no texture
    from utils.texture import face_mesh, textured_face, with_geometry

    if image is None:
        return save_mesh(path, face_mesh(face))
    mesh = textured_face(face.fitted or face, image)
    return save_mesh(path, with_geometry(mesh, face) if face.fitted else mesh)


def summary(faces: Sequence[Face]) -> str:
    """``1 face: yaw -12.3 pitch 4.5 roll 0.1``; where the first three face, degrees; and of which
    (from 0, as in the files) the fit is doubtful."""
    angles = ["yaw {:.1f} pitch {:.1f} roll {:.1f}".format(*face.facing) for face in faces]
    more = ["..."] if len(angles) > 3 else []
    line = f"{counted(len(faces), 'face')}: {'; '.join(angles[:3] + more)}"
    doubtful = [str(i) for i, face in enumerate(faces) if face.stretch > MAX_STRETCH]
    if doubtful:
        line += f" (face {', '.join(doubtful)} fitted badly: upside down, or no face?)"
    return line
