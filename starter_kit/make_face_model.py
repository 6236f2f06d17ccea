"""Make the bundled face model: an authored mean face with bases spread from 68 landmarks.

    python -m starter_kit.make_face_model --seed 0

reads `starter_kit/landmark_model.npz` (see `landmark_statistics.py`, `fit_labels.py`), sculpts the
mean face around its mean landmarks (`face_sculpt.py`), meshes it (`face_mesh.py`), and spreads the
landmark bases over the mesh as thin plates, so that every landmark follows its own exactly.

Writes `starter_kit/face_model/face_model.npz`, the published 3DMM's arrays in one file (N vertices,
T triangles, model frame: x right, y up, z towards the viewer, micrometres, origin at the centroid
of the mean landmarks):

    u_shp (3N, 1) float32            mean face, xyz interleaved
    u_exp (3N, 1) float32            mean expression: zero, it is part of u_shp
    w_shp_sim (3N, 40) float16       shape basis, to be multiplied by
    w_shp_scale (40,) float32        the scale of its columns; a coefficient of 1 is one sigma
    w_exp_sim (3N, 10) float16, w_exp_scale (10,) float32        expression, likewise
    keypoints_sim (204,) int64       indices of the 68 landmarks into the interleaved vector
    param_mean, param_std (62,) float32        whitening
    tri (3, T) int32                 triangles, 1-based; clockwise seen from outside, as published:
                                     once y points down, in crop and image, normals are outward
    uv (N, 2) float32                cylindrical texture coordinates in [0, 1], v up
    keptInd (K,) int32               0-based vertices for textured meshes: not the lips' inner sides
    deletedTri (3, T') int32         their triangles, 1-based into the kept vertices
    mirror_sign (50,) int8           sign of each coefficient when the face is mirrored
    mirror_vertices (N,) int32       the vertex on the other side
    pixel_centres () int8            1: landmarks go back from crops exactly (``crop_to_image``)

and two pictures in `starter_kit/pictures/`.
"""

from pathlib import Path

import cv2
import numpy as np

from Sim3DR import Lighting, rasterize, shade, vertex_normals
from starter_kit.face_mesh import Mesh, build_mesh
from starter_kit.face_sculpt import Sculpture
from starter_kit.landmark_statistics import LANDMARK_MODEL
from starter_kit.mesh_smoothing import fair, interpolate, thin_plate_energy
from utils.cli import at_least, run_script, script_parser
from utils.files import read_npz, write_npz
from utils.morphable_model import CAMERA, SHAPE
from utils.pictures import write_image

FOLDER = Path(__file__).parent
UM_PER_MM = 1000.0
PIN_TENSION, FAIR_LENGTH = 40.0, 0.7  # mm
SHAPE_TENSION, EXPRESSION_TENSION = 60.0, 25.0  # mm: expressions stay nearer to their landmarks
# Where no expression reaches: x, y of the forehead and temples, mm
STILL = [(0, 80), (20, 80), (40, 79), (55, 73), (66, 62), (72, 48), (74, 38)]
LIGHT = Lighting(ambient=0.12, directional=0.75, specular=0.12, light=(-1.5, -2.5, 4.0))
SKIN_BGR = np.array([0.72, 0.80, 0.95])


def mean_face(mesh: Mesh, landmarks: np.ndarray) -> np.ndarray:
    """Vertices (N, 3) mm: nostrils sunk, landmarks moved onto (68, 3) mm, roughness ironed out."""
    vertices = Sculpture.sink_nostrils(mesh.vertices, vertex_normals(mesh.vertices, mesh.triangles))
    energy = thin_plate_energy(vertices, mesh.triangles, PIN_TENSION)
    vertices = vertices + interpolate(energy, mesh.landmarks, landmarks - vertices[mesh.landmarks])
    vertices = fair(vertices, mesh.triangles, mesh.landmarks, FAIR_LENGTH)
    vertices = (vertices + vertices[mesh.mirror] * (-1, 1, 1)) / 2
    vertices[mesh.landmarks] = landmarks
    return vertices


def spread_basis(
    vertices: np.ndarray,
    mesh: Mesh,
    columns: np.ndarray,
    sign: np.ndarray,
    *,
    tension: float,
    still: np.ndarray | None = None,
) -> np.ndarray:
    """Landmark columns (68, 3, C) spread over the mesh: (N, 3, C), exact at the landmarks.

    `still` (k,) are vertices that do not move. `sign` (C,) tells how columns mirror.
    """
    handles, values = mesh.landmarks, columns.reshape(68, -1)
    if still is not None:
        handles = np.concatenate([handles, still])
        values = np.concatenate([values, np.zeros((len(still), values.shape[1]))])
    energy = thin_plate_energy(vertices, mesh.triangles, tension)
    dense = interpolate(energy, handles, values).reshape(len(vertices), 3, -1)
    return (dense + dense[mesh.mirror] * np.array([-1, 1, 1])[:, None] * sign) / 2


def make_model(landmark_model: dict[str, np.ndarray], seed: int, scale: float) -> dict:
    """The arrays of the face model file, from those of the landmark model.

    Args:
        landmark_model: as ``landmark_statistics`` writes it and ``fit_labels`` completes it.
        seed: of where the vertices between the feature lines begin.
        scale: of the distances between vertices.

    Raises:
        ValueError: the landmark model has no whitening yet.
    """
    if not {"param_mean", "param_std"} <= landmark_model.keys():  # asked before minutes of work
        raise ValueError("the landmark model has no whitening yet; starter_kit.fit_labels adds it")
    landmarks = landmark_model["mean"].astype(np.float64) / UM_PER_MM
    mesh = build_mesh(landmarks, scale=scale, seed=seed)
    vertices = mean_face(mesh, landmarks)
    n = len(vertices)
    sides = np.array(STILL + [(-x, y) for x, y in STILL if x])
    distance = np.linalg.norm(vertices[None, :, :2] - sides[:, None], axis=2)
    still = np.unique(distance.argmin(1))
    still = np.union1d(still, mesh.mirror[still])
    mean = (vertices * UM_PER_MM).astype(np.float32)
    mean[mesh.landmarks] = landmark_model["mean"]
    model = {"u_shp": mean.reshape(-1, 1), "u_exp": np.zeros((3 * n, 1), np.float32)}
    for name, key, tension, fixed in (
        ("shape", "w_shp", SHAPE_TENSION, None),
        ("expression", "w_exp", EXPRESSION_TENSION, still),
    ):
        columns = landmark_model[name]  # (68, 3, C) float16, to be multiplied by the scale
        sign = landmark_model[f"{name}_mirror_sign"]
        dense = spread_basis(
            vertices, mesh, columns.astype(np.float64), sign, tension=tension, still=fixed
        ).astype(np.float16)
        dense[mesh.landmarks] = columns
        model[f"{key}_sim"] = dense.reshape(3 * n, -1)
        model[f"{key}_scale"] = landmark_model[f"{name}_scale"]
    triangles = mesh.triangles[:, ::-1]  # the published winding
    keypoints = 3 * mesh.landmarks[:, None] + np.arange(3)
    kept = np.arange(n - mesh.rolled)
    model |= {
        "keypoints_sim": keypoints.ravel().astype(np.int64),
        "param_mean": landmark_model["param_mean"],
        "param_std": landmark_model["param_std"],
        "tri": (triangles.T + 1).astype(np.int32),
        "uv": mesh.uv.astype(np.float32),
        "keptInd": kept.astype(np.int32),
        "deletedTri": (triangles[(triangles < len(kept)).all(1)].T + 1).astype(np.int32),
        "mirror_sign": np.concatenate(
            [landmark_model["shape_mirror_sign"], landmark_model["expression_mirror_sign"]]
        ),
        "mirror_vertices": mesh.mirror.astype(np.int32),
        "pixel_centres": np.int8(1),  # so do this project's training sets count
    }
    return model


def picture(vertices: np.ndarray, triangles: np.ndarray, turn: float, size: int) -> np.ndarray:
    """A shaded picture (size, size, 3) uint8 BGR of vertices (N, 3) micrometres.

    ``turn``: degrees, positive to the right edge of the picture (yaw counts to the left).
    """
    a = np.radians(turn)
    rotation = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    down = np.array([1, -1, 1])
    points = (vertices - (0, 12_000, -25_000)) @ rotation.T * down * (size / 220_000)
    points[:, :2] += size / 2 + 0.37  # off the pixel grid: the midline would fall between pixels
    colors = shade(points, vertex_normals(points, triangles), LIGHT) * SKIN_BGR
    background = np.full((2 * size, 2 * size, 3), 42, np.uint8)
    points[:, :2] *= 2  # drawn at twice the size and averaged down
    return cv2.resize(rasterize(points, triangles, colors, background), (size, size),
                      interpolation=cv2.INTER_AREA)  # fmt: skip


def pictures(model: dict[str, np.ndarray], folder: Path) -> None:
    """Writes views of the mean face and of the first components at -2 and +2 sigma."""
    triangles = model["tri"].T - 1
    mean = model["u_shp"].reshape(-1, 3)
    views = [picture(mean, triangles, turn, 400) for turn in (0, 45, 90)]
    write_image(folder / "face_model_views.png", np.hstack(views))
    rows = []
    for amount in (-2.0, 2.0):
        row = []
        for key, first in (("w_shp", CAMERA), ("w_exp", CAMERA + SHAPE)):
            for i in range(4):
                column = model[f"{key}_sim"][:, i].astype(np.float32) * model[f"{key}_scale"][i]
                sigma = model["param_std"][first + i]
                face = mean + amount * sigma * column.reshape(-1, 3)
                row.append(picture(face, triangles, 25, 200))
        rows.append(np.hstack(row))
    write_image(folder / "face_model_variation.png", np.vstack(rows))


def main() -> None:
    parser = script_parser(__doc__, module="starter_kit.make_face_model")
    add = parser.add_argument
    add("--landmark-model", type=Path, default=LANDMARK_MODEL, metavar="NPZ",
        help="default: the one that ships")  # fmt: skip
    add("-o", "--out", type=Path, default=FOLDER / "face_model" / "face_model.npz",
        help="default: the face model that ships")  # fmt: skip
    add("--pictures", type=Path, default=FOLDER / "pictures", metavar="DIR",
        help="where its pictures go (default: starter_kit/pictures)")  # fmt: skip
    add("--seed", type=at_least(0), default=0, help="of the vertices' places (default: 0)")
    add("--scale", type=at_least(0.1, float), default=0.84,
        help="of all vertex distances; larger: fewer vertices (default: 0.84)")  # fmt: skip
    options = parser.parse_args()
    model = make_model(read_npz(options.landmark_model), options.seed, options.scale)
    write_npz(options.out, model)
    pictures(model, options.pictures)
    size = options.out.stat().st_size / 1e6
    print(f"wrote {options.out}: {model['u_shp'].size // 3} vertices, {model['tri'].shape[1]} "
          f"triangles, {size:.2f} MB")  # fmt: skip


if __name__ == "__main__":
    run_script(main)
