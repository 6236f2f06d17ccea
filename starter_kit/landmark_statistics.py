"""From 68x3 landmark labels to the landmark model: mean, 40 shape and 10 expression directions.

    python -m starter_kit.landmark_statistics --photos PHOTOS

The model frame: origin at the centroid of the 68 mean landmarks, x right in the picture of a
frontal face, y up, z towards the viewer, in micrometres. Landmarks alone do not tell size, so the
distance of the outer eye corners is set to 90 mm (the adult mean of Farkas' norms is 88-91 mm).
Nor do they tell which pitch is zero: the line from nasion (27) to chin (8) leans 7.5 degrees
forward at the top, which makes zero pitch mean what it means in the published models.

What is computed, in order:
1. labels on which six predictions agree, and their mirror images, weighted so that every 15
   degrees of yaw count alike as far as a weight of at most 8 allows;
2. generalised Procrustes alignment with 3D similarities (Gower, Psychometrika 1975);
3. principal components of the aligned landmarks: 50 directions, none of which contains a
   similarity, so pose and coefficients do not compete;
4. ten of these 50 dimensions become expression. People keep their identity through the frames of
   a video and differ in expression, so it is the directions with most variance within a person
   beyond a share of all variance (labels also differ by noise) that leave the bones still. The 40
   dimensions orthogonal to them are shape. Each group is turned to principal axes;
5. expressions get the small similarity that keeps eye corners, nose and ears in their place: an
   open mouth moves the jaw and not the eyes;
6. each column scaled to one standard deviation of the training labels, so that a coefficient of
   1 is one sigma, and stored as float16 times a float32 scale. The rounded values are the model.

Columns are exactly symmetric or antisymmetric about x = 0: mirroring a face flips the sign of the
coefficients whose `mirror_sign` is -1.
"""

from pathlib import Path

import numpy as np

from utils.cli import at_least, run_script, script_parser, within
from utils.files import read_npz, write_npz
from utils.fitting import similarity_align
from utils.morphable_model import (
    EXPRESSION,
    MIRRORED_LANDMARKS,
    NUM_LANDMARKS,
    NUM_PARAMETERS,
    SHAPE,
    MorphableModel,
    build_morphable_model,
)

LANDMARK_MODEL = Path(__file__).parent / "landmark_model.npz"

EYE_CORNERS_UM = 90_000.0  # distance of landmarks 36 and 45
PITCH_OF_NASION_CHIN = 7.5  # degrees
LABEL_UNIT = 1 / 32  # pixels
RELIABLE_SPREAD = 0.0125  # by which six predictions of a label differ, relative to the face

STABLE = np.r_[0, 16, 27:36, 36, 39, 42, 45]  # ears, nose, eye corners
# what bones keep still: cheek bones, nose bridge, eye corners, and the width of jaw and brows
BONES = np.zeros((68, 3), dtype=bool)
BONES[np.r_[0:5, 12:17, 27:31, 36, 39, 42, 45]] = True
BONES[:27, 0] = True


def mirror(faces: np.ndarray) -> np.ndarray:
    """Mirror images of faces (..., 68, 3) in a y-up frame."""
    return faces[..., MIRRORED_LANDMARKS, :] * (-1, 1, 1)


def load_labels(path: Path, max_spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Reliable labels (n, 68, 3), y up, in pixels, and the identity (n,) of each ('' unknown)."""
    labels = read_npz(path)
    reliable = labels["spread"] < max_spread
    faces = labels["landmarks"][reliable].transpose(0, 2, 1) * LABEL_UNIT * (1, -1, 1)
    source, identity = labels["source"][reliable], labels["identity"][reliable]
    identity = np.where(identity == "", "", np.char.add(np.char.add(source, "/"), identity))
    return faces, identity


def align(faces: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces (n, 68, 3) brought onto the mean by similarities, and their yaw (n,) in degrees."""
    a, t = similarity_align(faces, np.broadcast_to(mean, faces.shape))
    scale = np.sqrt((a**2).sum((1, 2)) / 3)
    yaw = np.degrees(np.arcsin(np.clip(a[:, 0, 2] / scale, -1, 1)))
    return faces @ np.swapaxes(a, 1, 2) + t[:, None], yaw


def model_frame(mean: np.ndarray) -> np.ndarray:
    """A symmetric mean face (68, 3) moved into the model frame described above."""
    x = (mean[[16, 45, 54]] - mean[[0, 36, 48]]).sum(0)
    x /= np.linalg.norm(x)
    z = np.cross(x, mean[27] - mean[8])
    z /= np.linalg.norm(z)
    mean = (mean - mean.mean(0)) @ np.stack([x, np.cross(z, x), z]).T
    c, s = np.cos(np.radians(PITCH_OF_NASION_CHIN)), np.sin(np.radians(PITCH_OF_NASION_CHIN))
    mean = mean @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T
    mean *= EYE_CORNERS_UM / np.linalg.norm(mean[45] - mean[36])
    return (mean + mirror(mean)) / 2


def balanced_weights(yaw: np.ndarray, most: float = 8.0) -> np.ndarray:
    """Weights (n,) with mean 1 that make every 15 degrees of |yaw| count alike, within limits."""
    bins = np.minimum(np.abs(yaw) // 15, 5).astype(int)
    counts = np.bincount(bins, minlength=6)
    weights = np.minimum(counts.max() / np.maximum(counts, 1), most)[bins]
    return weights / weights.mean()


def procrustes_mean(faces: np.ndarray, rounds: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric mean (68, 3) in the model frame, and the weights (n,) of the faces in it."""
    mean = faces[0] - faces[0].mean(0)
    weights = np.ones(len(faces))
    for _ in range(rounds):
        aligned, _ = align(faces, mean)
        mean = np.average(aligned, axis=0, weights=weights)
        mirrored = mirror(mean)[None]
        mean = model_frame((mean + align(mirrored, mean)[0][0]) / 2)
        weights = balanced_weights(align(faces, mean)[1])
    return mean, weights


def pooled_within(residuals: np.ndarray, identity: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Covariance (204, 204) of residuals (n, 204) about the mean of their own person.

    Its degrees of freedom are those of people with about as many pictures each; of the photos that
    the shipped model was made of it is 0.7 % too large.
    """
    known = identity != ""
    _, person, count = np.unique(identity[known], return_inverse=True, return_counts=True)
    x, w = residuals[known], weights[known]
    total = np.bincount(person, w)
    means = np.stack([np.bincount(person, w * column) for column in x.T], axis=1) / total[:, None]
    several = count[person] > 1
    x, w = (x - means[person])[several], w[several]
    freedom = 1 - np.sum(1 / count[count > 1]) * count[count > 1].mean() / count[count > 1].sum()
    return (x * w[:, None]).T @ x / w.sum() / freedom


def similarity_tangents(faces: np.ndarray) -> np.ndarray:
    """How points (B, K, 3) move under a small translation, rotation, scaling: (B, 3K, 7)."""
    b, k, _ = faces.shape
    tangents = np.zeros((b, k, 3, 7))
    tangents[..., :3] = np.eye(3)
    for axis, unit in enumerate(np.eye(3)):
        tangents[..., 3 + axis] = np.cross(unit, faces)
    tangents[..., 6] = faces
    size = np.sqrt((faces**2).sum((1, 2)) / k)[:, None, None, None]
    tangents[..., 3:] /= size  # all seven alike in size, for the solver's sake
    return tangents.reshape(b, 3 * k, 7)


def principal_axes(span: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Orthogonal columns (n, m), one sigma long, of `covariance` (n, n) within a span (n, m)."""
    basis, _ = np.linalg.qr(span)
    values, vectors = np.linalg.eigh(basis.T @ covariance @ basis)
    return basis @ vectors[:, ::-1] * np.sqrt(values[::-1])


def keep_still(columns: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Columns (204, n) plus the similarity of each that moves the stable landmarks least."""
    tangents = similarity_tangents(mean[None])[0]  # (204, 7)
    rows = (3 * STABLE[:, None] + np.arange(3)).ravel()
    return columns - tangents @ np.linalg.lstsq(tangents[rows], columns[rows], rcond=None)[0]


def symmetric_columns(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns (204, n) made exactly symmetric or antisymmetric, and which: +1 or -1 (n,)."""
    mirrored = mirror(columns.T.reshape(-1, 68, 3)).reshape(-1, 204).T
    sign = np.where((columns * mirrored).sum(0) > 0, 1, -1)
    return (columns + sign * mirrored) / 2, sign


def split_expression(
    total: np.ndarray, within: np.ndarray, mean: np.ndarray, *, share: float, stiffness: float
) -> tuple[np.ndarray, np.ndarray]:
    """The leading 50 directions of `total`, split in shape (204, 40) and expression (204, 10).

    Expression is the subspace with the greatest variance within a person, less `share` of all
    variance, less `stiffness` (relative to the mean variance of the 50) times the motion of bones.
    """
    values, vectors = np.linalg.eigh(total)
    values = values[::-1][: SHAPE + EXPRESSION]
    vectors = vectors[:, ::-1][:, : len(values)]
    bones = keep_still(vectors, mean)[BONES.ravel()]
    score = vectors.T @ within @ vectors - share * np.diag(values)
    score -= stiffness * values.mean() * bones.T @ bones
    _, span = np.linalg.eigh(score)  # ascending
    shape = vectors @ principal_axes(span[:, :SHAPE], np.diag(values))
    expression = vectors @ principal_axes(span[:, SHAPE:], np.diag(values))
    return shape, keep_still(expression, mean)


def landmark_model(faces: np.ndarray, identity: np.ndarray, share: float, stiffness: float) -> dict:
    """The landmark model of labels (n, 68, 3): see the module's docstring."""
    mean, weights = procrustes_mean(faces)
    residuals = align(faces, mean)[0] - mean
    mirrored = mirror(residuals).reshape(-1, 204)
    residuals = residuals.reshape(-1, 204)
    both = np.concatenate([residuals, mirrored])
    tangents, _ = np.linalg.qr(similarity_tangents(mean[None])[0])
    both -= both @ tangents @ tangents.T  # alignment leaves second-order traces of them
    total = (both * np.tile(weights, 2)[:, None]).T @ both / (2 * weights.sum())
    within = sum(pooled_within(half, identity, weights) for half in np.split(both, 2)) / 2
    parts = split_expression(total, within, mean, share=share, stiffness=stiffness)
    model = {"mean": mean.astype(np.float32)}
    for name, columns in zip(("shape", "expression"), parts, strict=True):
        columns, sign = symmetric_columns(columns)
        scale = np.abs(columns).max(0).astype(np.float32)
        model[name] = (columns / scale).astype(np.float16).reshape(68, 3, -1)
        model[f"{name}_scale"] = scale
        model[f"{name}_mirror_sign"] = sign.astype(np.int8)
    return model


def load_model(path: Path = LANDMARK_MODEL) -> tuple[MorphableModel, np.ndarray]:
    """The landmark model as a 3DMM of 68 vertices without triangles, and the mirror signs (50,).

    The whitening is neutral while `fit_labels` has not added it.
    """
    arrays = read_npz(path)
    published = {
        "u_shp": arrays["mean"].reshape(-1, 1),
        "u_exp": np.zeros((3 * NUM_LANDMARKS, 1), np.float32),
        "keypoints_sim": np.arange(3 * NUM_LANDMARKS),
        "tri": np.zeros((3, 0), np.int32),
        "param_mean": arrays.get("param_mean", np.zeros(NUM_PARAMETERS)),
        "param_std": arrays.get("param_std", np.ones(NUM_PARAMETERS)),
    }
    for name, key in (("shape", "w_shp_sim"), ("expression", "w_exp_sim")):
        columns = arrays[name].astype(np.float32) * arrays[f"{name}_scale"]
        published[key] = columns.reshape(3 * NUM_LANDMARKS, -1)
    sign = np.concatenate([arrays["shape_mirror_sign"], arrays["expression_mirror_sign"]])
    return build_morphable_model(published, path), sign


def main() -> None:
    parser = script_parser(
        __doc__, usage="--photos DIR [options]", module="starter_kit.landmark_statistics"
    )
    add, number = parser.add_argument, at_least(0, float)
    add("--photos", type=Path, required=True, metavar="DIR",
        help="folder with faces_train_labels.npz")  # fmt: skip
    add("--max-spread", type=number, default=RELIABLE_SPREAD,
        help="leave out labels with a spread from here on (default: 0.0125)")  # fmt: skip
    add("--share", type=within(0, 1, float), default=0.35,
        help="of all variance: what a person has beyond it is expression (default: 0.35)",
    )  # fmt: skip
    add("--stiffness", type=number, default=4.0,
        help="how strongly expressions leave the bones still (default: 4)")  # fmt: skip
    add("-o", "--out", type=Path, default=LANDMARK_MODEL,
        help="default: the landmark model that ships, which is replaced")  # fmt: skip
    options = parser.parse_args()
    faces, identity = load_labels(options.photos / "faces_train_labels.npz", options.max_spread)
    print(f"{len(faces)} reliable labels, {np.unique(identity).size - 1} known people")
    model = landmark_model(faces, identity, options.share, options.stiffness)
    write_npz(options.out, model)
    for name in ("shape", "expression"):
        sigma = np.sqrt((model[name].astype(float) ** 2).sum((0, 1)) / 68) * model[f"{name}_scale"]
        print(name, "rms per landmark, mm:", np.round(sigma / 1000, 2).tolist())
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run_script(main)
