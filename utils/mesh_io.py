"""Textured meshes and their files: OBJ (with MTL and PNG), GLB, PLY, HTML.

Frames
    image   pixels of the photo, x right, y down, z towards the viewer.
    model   x right, y up, z towards the viewer, as the head is turned in the photo; metres, from
            the face model's origin. What viewers and glTF expect.

The normal that the right-hand rule gives a triangle from its written coordinates points outward in
both: the flip of y between them reverses the order of its corners.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import Sim3DR
from utils.files import atomic_write
from utils.pictures import write_image

FRAMES = ("model", "image")
MESH_SUFFIXES = (".obj", ".glb", ".ply", ".html")


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """A triangle mesh with colours.

    Attributes:
        vertices: (N, 3) float32, in ``frame``.
        triangles: (T, 3) int32, 0-based, outward by the right-hand rule.
        uv: (N, 2) float32 texture coordinates in [0, 1], v up; None without.
        texture: (S, S, 3) uint8, BGR, its first row at v = 1; needs ``uv``; None without.
        colors: (N, 3) float32 in [0, 1], BGR; None without.
        confidence: (S, S) float32 in [0, 1], how far to trust the texture; None where not known.
        frame: ``image`` or ``model``.
        origin: (3,) the model frame's origin in the image frame, pixels.
        pixels_per_metre: scale from the model to the image frame.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    colors: np.ndarray | None = None
    confidence: np.ndarray | None = None
    frame: str = "image"
    origin: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 0.0)
    pixels_per_metre: float = 1.0

    @property
    def normals(self) -> np.ndarray:
        """(N, 3) float32 unit normals of the vertices, outward, in ``frame``."""
        return Sim3DR.vertex_normals(self.vertices, self.triangles)

    def replace(self, **changes: object) -> TexturedMesh:
        """A copy with other attributes; ``vertices`` stay in the mesh's frame."""
        return dataclasses.replace(self, **changes)

    def to_frame(self, frame: str) -> TexturedMesh:
        """The same mesh in another frame, still outward; ValueError where it is none of
        ``FRAMES``."""
        if frame not in FRAMES:
            raise ValueError(f"a mesh's frame is {' or '.join(FRAMES)}, not {frame!r}")
        if frame == self.frame:
            return self
        flip, origin = np.array([1.0, -1.0, 1.0]), np.asarray(self.origin)
        if frame == "model":
            vertices = (self.vertices - origin) * flip / self.pixels_per_metre
        else:
            vertices = self.vertices * flip * self.pixels_per_metre + origin
        return self.replace(
            vertices=vertices.astype(np.float32),
            triangles=np.ascontiguousarray(self.triangles[:, ::-1]),
            frame=frame,
        )


def save_mesh(path: str | os.PathLike, mesh: TexturedMesh, frame: str = "model") -> list[Path]:
    """Writes a mesh in the format of the path's suffix; each file appears complete or not at all.

    ``.obj``: as published, ``v x y z r g b`` (RGB in [0, 1]) and ``f``; with a texture also
    ``vt``, ``vn``, and NAME.mtl and NAME_texture.png beside it. ``.glb``: glTF 2.0 with the texture
    in it, or vertex colours. ``.ply``: binary, vertex colours where the mesh has them. ``.html``: a
    page that shows the mesh turning and needs nothing else (``utils.html_viewer``), in the model
    frame (y up) whatever ``frame`` is.

    Returns:
        The files written.

    Raises:
        OSError: it cannot be written there.
        ValueError: another suffix or frame, or, except in a PLY, a texture without texture
            coordinates.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    # a PLY has the colours alone
    if suffix != ".ply" and mesh.texture is not None and mesh.uv is None:
        raise ValueError(f"{path}: the mesh has a texture, but no texture coordinates (uv)")
    mesh = mesh.to_frame(frame)
    if suffix == ".obj":
        return _save_obj(path, mesh)
    if suffix not in MESH_SUFFIXES:
        raise ValueError(f"{path}: meshes are written as {', '.join(MESH_SUFFIXES)}")
    if suffix == ".glb":
        content = to_trimesh(mesh).export(file_type="glb", include_normals=True)
    elif suffix == ".html":
        # imported here: scripts import this file as they start
        from utils.html_viewer import to_html

        content = to_html(to_trimesh(mesh.to_frame("model")), path.stem)
    else:
        assert suffix == ".ply", suffix
        untextured = to_trimesh(mesh.replace(texture=None))
        content = untextured.export(file_type="ply", vertex_normal=True)
    with atomic_write(path) as file:
        file.write(content)
    return [path]


def to_trimesh(mesh: TexturedMesh):
    """The mesh as a ``trimesh.Trimesh``, in its own frame, vertices and their order unchanged.

    With a texture it has a rough, not metallic PBR material; else vertex colours, if any.
    """
    import trimesh  # imported here: it takes half a second, and most runs write no mesh
    from PIL import Image

    visual = None
    if mesh.texture is not None:
        picture = Image.fromarray(mesh.texture[..., ::-1])  # RGB
        material = trimesh.visual.material.PBRMaterial(
            name="face", baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0
        )
        visual = trimesh.visual.TextureVisuals(uv=mesh.uv, material=material)
    elif mesh.colors is not None:
        rgba = np.full((len(mesh.colors), 4), 255, np.uint8)
        rgba[:, :3] = np.round(mesh.colors[:, ::-1] * 255)
        visual = trimesh.visual.ColorVisuals(vertex_colors=rgba)
    return trimesh.Trimesh(
        mesh.vertices,
        mesh.triangles,
        vertex_normals=mesh.normals,
        visual=visual,
        process=False,
        validate=False,
    )


def _save_obj(path: Path, mesh: TexturedMesh) -> list[Path]:
    """OBJ, and the files it names first, so that it is never there without them."""
    triangles = mesh.triangles + 1
    vertices = mesh.vertices.astype(np.float64)
    if mesh.colors is not None:
        vertices = np.concatenate([vertices, mesh.colors[:, ::-1]], 1)
    parts = [_rows("v", vertices, "%.7g")]
    files = []
    if mesh.texture is None:
        parts.append(_rows("f", triangles, "%d"))
    else:
        # not NAME.png: that may well be the photo
        ends = ("_texture.png", ".mtl")
        picture, material = (path.with_name(_reference(path.stem) + end) for end in ends)
        write_image(picture, mesh.texture)
        with atomic_write(material) as file:
            lines = (b"newmtl face", b"Ka 0 0 0", b"Kd 1 1 1", b"Ks 0 0 0", b"illum 1")
            file.write(b"\n".join([*lines, b"map_Kd " + os.fsencode(picture.name), b""]))
        parts.insert(0, b"mtllib " + os.fsencode(material.name) + b"\nusemtl face\n")
        parts += [_rows("vt", mesh.uv, "%.7g"), _rows("vn", mesh.normals, "%.5g")]
        parts.append(_rows("f", np.repeat(triangles, 3, 1), "%d/%d/%d", 3))
        files = [material, picture]
    with atomic_write(path) as file:
        file.writelines(parts)
    return [path, *files]


def _reference(stem: str) -> str:
    """A name that OBJ and MTL can refer to, another one for each stem.

    They have no quotes: in the name of a stranger's photo a line break would begin a line of its
    own, a dash in front an option; readers drop a space there.
    """
    unfit = r"[%\x00-\x1f\x7f\x85\u2028\u2029]|^[-# ]"
    return re.sub(unfit, lambda c: "".join(f"%{byte:02X}" for byte in c[0].encode()), stem)


def _rows(keyword: str, values: np.ndarray, form: str, per_form: int = 1) -> bytes:
    """Lines ``keyword value value ...``; ``form`` takes ``per_form`` values."""
    line = " ".join([keyword, *[form] * (values.shape[1] // per_form)]) + "\n"
    return (line * len(values) % tuple(values.ravel().tolist())).encode()
