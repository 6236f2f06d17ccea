"""Smooth functions on a triangle mesh that take given values at given vertices."""

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import splu


def laplacian(vertices: np.ndarray, triangles: np.ndarray) -> tuple[sparse.csc_matrix, np.ndarray]:
    """Cotangent stiffness (N, N), positive semi-definite, and the area of each vertex (N,)."""
    n = len(vertices)
    rows, columns, values = [], [], []
    for i in range(3):
        apex, p, q = triangles[:, i], triangles[:, (i + 1) % 3], triangles[:, (i + 2) % 3]
        v, w = vertices[p] - vertices[apex], vertices[q] - vertices[apex]
        cotangent = (v * w).sum(1) / np.linalg.norm(np.cross(v, w), axis=1)
        rows += [p, q]
        columns += [q, p]
        values += [cotangent / 2] * 2
    values = np.clip(np.concatenate(values), 0.02, 20)  # slivers must not take over
    weights = sparse.csc_matrix((values, (np.concatenate(rows), np.concatenate(columns))), (n, n))
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    third = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6
    area = np.bincount(triangles.ravel(), np.repeat(third, 3), minlength=n)
    return (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsc(), area


def thin_plate_energy(
    vertices: np.ndarray, triangles: np.ndarray, tension: float
) -> sparse.csc_matrix:
    """(N, N) energy of bending, and of stretching over lengths above `tension`; level at edges."""
    stiffness, area = laplacian(vertices, triangles)
    bending = stiffness @ sparse.diags(1 / area) @ stiffness
    return (bending + stiffness / tension**2).tocsc()


def interpolate(energy: sparse.csc_matrix, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Functions (N, m) of least energy with values (k, m) at vertices `indices` (k,)."""
    n = energy.shape[0]
    free = np.setdiff1d(np.arange(n), indices)
    result = np.zeros((n, values.shape[1]))
    result[indices] = values
    right = -energy[free][:, indices] @ values
    result[free] = splu(energy[free][:, free].tocsc()).solve(np.ascontiguousarray(right))
    return result


def fair(
    vertices: np.ndarray, triangles: np.ndarray, pinned: np.ndarray, length: np.ndarray | float
) -> np.ndarray:
    """Vertices with roughness below `length` (a number or one per vertex) ironed out."""
    stiffness, area = laplacian(vertices, triangles)
    keep = area / np.broadcast_to(length, len(vertices)) ** 4
    bending = stiffness @ sparse.diags(1 / area) @ stiffness
    keep[pinned] = 1e9 * keep.max()
    system = splu((bending + sparse.diags(keep)).tocsc())
    faired = system.solve(keep[:, None] * vertices)
    faired[pinned] = vertices[pinned]
    return faired
