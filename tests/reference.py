"""Slow, plain twins of what the project computes fast, and deterministic test weights."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch


def deterministic_state_dict(
    shapes: Mapping[str, torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """Weights that depend on each key's name and shape alone, as the reference values used them.

    Args:
        shapes: a state dict; only keys and shapes count.
        seed: the seed that the reference values name.
    """
    state = {}
    for key, like in shapes.items():
        shape = tuple(like.shape)
        random = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()) & 0x7FFFFFFF)
        kind = key.rsplit(".", 1)[-1]
        if kind == "num_batches_tracked":
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        if kind == "running_var":
            value = 0.5 + random.rand(*shape)
        elif kind in ("running_mean", "bias"):
            value = 0.1 * random.randn(*shape)
        elif len(shape) == 1:
            value = 1 + 0.1 * random.randn(*shape)
        else:
            value = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(value.astype(np.float32))
    return state


def shade_slowly(vertices, normals, lighting, texture=None) -> np.ndarray:
    """Sim3DR.shade, vertex by vertex in float64."""
    low = vertices.astype(np.float64).min(0)
    size = (vertices - low).max()
    half = (vertices - low).max(0) / size
    colors = []
    for i, (vertex, n) in enumerate(zip(vertices, normals.astype(np.float64), strict=True)):
        point = 2 * (vertex - low) / size - half
        to_light, to_eye = np.array(lighting.light) - point, np.array(lighting.eye) - point
        to_light, to_eye = to_light / np.linalg.norm(to_light), to_eye / np.linalg.norm(to_eye)
        cosine = n @ to_light
        light = lighting.ambient + lighting.directional * min(max(cosine, 0), 1)
        if cosine != 0:  # as published, from behind as well
            mirrored = 2 * cosine * n - to_light
            light += lighting.specular * min(max(sum((to_eye * mirrored) ** 5), 0), 1)
        white = np.ones(3) if texture is None else texture[i]
        colors.append(min(max(light, 0), 1) * white)
    return np.array(colors)
