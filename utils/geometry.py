"""Camera and head pose: from the twelve camera parameters to rotation, angles and translation.

Head angles in degrees, as seen by the viewer of the picture:
    yaw     positive when the face turns towards the left edge of the picture;
    pitch   positive when the face looks up;
    roll    positive when the head tilts clockwise.
"""

import numpy as np

# Pitch and roll turn about the same axis from this |sin(yaw)| on, and up to this |cos(yaw)|.
SINE_AT_POLE, COSINE_AT_POLE = 1 - 1e-9, 1e-6


def decompose_camera(camera: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits cameras ``[A | t]`` into scale, rotation and translation.

    Args:
        camera: (n, 3, 4) ``[A | t]``, model frame to y-up crop frame.

    Returns:
        scale (n,): mean length of the first two rows of A;
        rotation (n, 3, 3): rows r1, r2 (the rows of A, normalised) and r3 = r1 x r2; y-up frame;
        translation (n, 3): t as it is, y-up crop frame. All float64.

    Raises:
        ValueError: wrong shape, or a camera without extent (a zero or non-finite row).
    """
    camera = np.asarray(camera, dtype=np.float64)
    if camera.ndim != 3 or camera.shape[1:] != (3, 4):
        raise ValueError(f"expected cameras of shape (n, 3, 4), got {camera.shape}")
    rows = camera[:, :2, :3]
    lengths = np.linalg.norm(rows, axis=2, keepdims=True)  # (n, 2, 1)
    if not np.isfinite(camera).all() or (lengths == 0).any():
        raise ValueError("a camera has a zero or non-finite row; its pose is undefined")
    rows = rows / lengths
    third = np.cross(rows[:, 0], rows[:, 1])[:, None]  # (n, 1, 3)
    return lengths.mean(axis=(1, 2)), np.concatenate([rows, third], axis=1), camera[:, :, 3]


def camera_angles(camera: np.ndarray) -> np.ndarray:
    """(n, 3, 4) cameras -> (n, 3) yaw, pitch, roll in degrees; raises as ``decompose_camera``."""
    return rotation_to_angles(decompose_camera(camera)[1])


def rotation_to_angles(rotation: np.ndarray) -> np.ndarray:
    """(n, 3, 3) rotations, y-up frame -> (n, 3) yaw, pitch, roll in degrees, as published.

    The published formulas take yaw from R[2,0] and pitch and roll from the transposed places of a
    Rz Ry Rx rotation. For a turn about one axis they are exact (yaw: up to +-90); for combined
    turns they differ from an exact decomposition. Published pose errors are measured with them. At
    the poles (yaw = +-90) pitch and roll turn about one axis: roll is 0 there and pitch takes the
    turn.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    sin_yaw = np.clip(rotation[:, 2, 0], -1, 1)  # rounding can push it past 1
    pitch = np.arctan2(rotation[:, 1, 2], rotation[:, 2, 2])
    roll = np.arctan2(rotation[:, 0, 1], rotation[:, 0, 0])
    at_pole = np.abs(sin_yaw) > SINE_AT_POLE
    pitch = np.where(at_pole, np.arctan2(rotation[:, 1, 2], rotation[:, 1, 1]), pitch)
    roll = np.where(at_pole, 0.0, roll)
    return np.degrees(np.stack([np.arcsin(sin_yaw), pitch, roll], axis=1))


def facing_angles(rotation: np.ndarray) -> np.ndarray:
    """(n, 3, 3) rotations, y-up frame -> (n, 3) yaw, pitch, roll in degrees, steady in profiles.

    Yaw and pitch say where the nose points: towards the left edge of the picture, and up. Roll is
    the head's tilt about that direction, clockwise. For a turn of up to 90 degrees about one axis
    they equal the published angles (``rotation_to_angles``). Near +-90 degrees of yaw the published
    pitch and roll are large and opposite whatever the head does; these are so only where a face
    looks straight up or down.
    """
    r = np.asarray(rotation, dtype=np.float64)
    yaw = np.arctan2(-r[:, 0, 2], r[:, 2, 2])
    pitch = np.arcsin(np.clip(r[:, 1, 2], -1, 1))  # rounding can push it past 1
    roll = np.arctan2(-r[:, 1, 0], r[:, 1, 1])
    return np.degrees(np.stack([yaw, pitch, roll], axis=1))


def angles_to_rotation(angles: np.ndarray) -> np.ndarray:
    """The rotation that AFLW2000-3D's labelled angles mean: Rx(-pitch) Ry(-yaw) Rz(-roll),
    right-handed turns about the axes of the y-up frame, z towards the viewer.

    ``exact_angles`` gives the angles back; for a turn about one axis (yaw: up to +-90)
    ``rotation_to_angles`` does, too.

    Args:
        angles: (n, 3) yaw, pitch, roll, degrees.

    Returns:
        (n, 3, 3) float64, model frame to image axes with y up, as ``decompose_camera`` gives it.
    """
    # imported here: it takes a while, and singleImage.py needs this module but no scipy
    from scipy.spatial.transform import Rotation

    turns = -np.asarray(angles, dtype=np.float64)[:, [1, 0, 2]]
    if not len(turns):  # older releases of scipy rotate no empty batch
        return np.zeros((0, 3, 3))
    return Rotation.from_euler("XYZ", turns, degrees=True).as_matrix()


def exact_angles(rotation: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
    """The inverse of ``angles_to_rotation``: (n, 3, 3) -> (n, 3) yaw, pitch, roll in degrees.

    It differs from the published formulas (``rotation_to_angles``) in two ways. Yaw is read from
    R[0, 2], which holds it alone; R[2, 0] mixes pitch and roll in. And two triples mean one
    rotation: (yaw, pitch, roll) and (180 - yaw, pitch + 180, roll + 180). The one with the smaller
    turns is taken, so that a head turned past the profile keeps its pitch and roll. At yaw = +-90
    roll is 0 and pitch takes the turn.

    Args:
        near: (n, 3) degrees; if given, the triple nearer to these is taken. Labels name some heads
            past the profile by the one, some by the other.
    """
    r = np.asarray(rotation, dtype=np.float64)
    cosine = np.hypot(r[:, 0, 0], r[:, 0, 1])
    both = []
    for sign in (1, -1):  # of cos(yaw)
        yaw = np.arctan2(-r[:, 0, 2], sign * cosine)
        pitch = np.arctan2(sign * r[:, 1, 2], sign * r[:, 2, 2])
        roll = np.arctan2(sign * r[:, 0, 1], sign * r[:, 0, 0])
        both.append(np.degrees(np.stack([yaw, pitch, roll], axis=1)))
    first, second = both
    origin = 0.0 if near is None else near
    away, second_away = (angle_differences(angles, origin).sum(1) for angles in both)
    angles = np.where((away <= second_away)[:, None], first, second)
    at_pole = cosine <= COSINE_AT_POLE
    turn = np.arctan2(-np.sign(r[:, 0, 2]) * r[:, 1, 0], r[:, 1, 1])
    angles[at_pole, 1], angles[at_pole, 2] = np.degrees(turn[at_pole]), 0.0
    return angles


def nearest_rotation(matrices: np.ndarray) -> np.ndarray:
    """(n, 3, 3) -> the rotations with the least sum of squared differences (Schönemann 1966).

    A network's camera rows are not exactly orthogonal; angles between two heads need rotations.
    """
    u, _, v = np.linalg.svd(np.asarray(matrices, dtype=np.float64))
    u[:, :, 2] *= np.linalg.det(u @ v)[:, None]  # no mirrors
    return u @ v


def angle_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| in degrees the short way round, in [0, 180]."""
    turn = np.abs(np.asarray(a, dtype=np.float64) - b) % 360
    return np.minimum(turn, 360 - turn)
