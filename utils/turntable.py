"""Short clips of a textured mesh that sways from side to side, as GIF or MP4.

A fitted face is an open shell: seen from behind it is a hole. So it does not go round: it sways
to both sides by ``SWAY`` and returns to where it began, and the clip repeats without a jerk.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.files import atomic_write
from utils.mesh_io import TexturedMesh
from utils.render import render_textured
from utils.video_io import VideoWriter

logger = logging.getLogger(__name__)

SIDE = 480  # pixels
COUNT = 60  # frames
FPS = 25  # 50, 33.3, 25, 20, ...: a GIF's frames last whole hundredths of a second, at least two
SWAY = 40.0  # degrees to each side
FILL = 0.9  # share of the picture's side that the head takes
BACKGROUND = (214, 214, 214)
SUPERSAMPLING = 2
# Bayer's matrix, scaled to about the steps between the colours of a GIF's palette. Added before
# colours are rounded to the palette it hides the steps and, unlike error diffusion, does not crawl
# over the moving face.
DITHER = 6 * (
    np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16 - 15 / 32
)


def turntable_frames(
    mesh: TexturedMesh, side: int = SIDE, count: int = COUNT, sway: float = SWAY
) -> list[np.ndarray]:
    """Pictures of a mesh turned about the vertical axis: by ``sway * sin(2 pi i / count)`` degrees.

    Args:
        mesh: with texture, in the pose around which it sways.
        side: of the square pictures, pixels.
        count: frames of one period.
        sway: degrees to each side; where it is positive, first to the left edge of the picture.

    Returns:
        ``count`` pictures (side, side, 3) uint8 BGR. Unlit: the photo's light is in the texture.

    Raises:
        ValueError: no texture, or fewer than two pixels or frames.
    """
    if mesh.texture is None:
        raise ValueError("a mesh without a texture has no turntable")
    if side < 2 or count < 2:
        raise ValueError(f"a turntable has at least 2 pixels and 2 frames, not {side} and {count}")
    mesh = mesh.to_frame("image")
    angles = np.round(sway * np.sin(2 * np.pi * np.arange(count) / count), 9)
    distinct, which = np.unique(angles, return_inverse=True)  # each comes twice, there and back
    # the axis lies at the depth at which the mesh is equally far off the picture's middle at both
    # ends: not at all, if it is symmetric
    vertices = mesh.vertices - (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    there, back = (_turn(vertices, angle)[:, 0] for angle in (sway, -sway))
    sine = np.sin(np.radians(sway))
    sine = sine if abs(sine) > 1e-6 else 1.0
    vertices[:, 2] += (there.min() + there.max() - back.min() - back.max()) / 4 / sine
    turned = [_turn(vertices, angle) for angle in distinct]  # (N, 3) each
    extent = max(float(np.abs(vertices[:, :2]).max()) for vertices in turned)
    scale = FILL * side / 2 / max(extent, 1e-6)
    texture = mesh.texture
    coarser = len(texture) // (SUPERSAMPLING * side)
    if coarser > 1:  # a texture finer than the samples would sparkle
        size = [length // coarser for length in texture.shape[1::-1]]
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_AREA)
    background = np.full((side, side, 3), BACKGROUND, np.uint8)
    centre = ((side - 1) / 2, (side - 1) / 2, 0)
    pictures = [
        render_textured(
            scale * vertices + centre,
            mesh.triangles,
            mesh.uv,
            texture,
            background,
            SUPERSAMPLING,
        )
        for vertices in turned
    ]
    return [pictures[i] for i in which]


def _turn(vertices: np.ndarray, angle: float) -> np.ndarray:
    """(N, 3) vertices turned by degrees about the vertical axis, image frame."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y, z = vertices.T
    return np.stack([cos * x - sin * z, y, sin * x + cos * z], 1)


def save_turntable(path: str | os.PathLike, frames: Sequence[np.ndarray]) -> None:
    """Writes a clip, ``FPS`` frames a second, in the format of the path's suffix; it appears
    complete or not at all.

    ``.gif`` repeats forever and has one palette for all frames, so that nothing flickers. ``.mp4``
    is as ``VideoWriter`` makes it; its players decide whether it repeats.

    Args:
        path: ``.gif`` or ``.mp4``.
        frames: pictures of one size (H, W, 3) uint8 BGR; of an MP4 an odd last column or row is
            cut off.

    Raises:
        OSError: it cannot be written there.
        ValueError: another suffix, no frames, or an MP4 that OpenCV cannot write (``VideoWriter``).
    """
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"{path}: a turntable is written as {' or '.join(WRITERS)}")
    if not len(frames):
        raise ValueError(f"{path}: a turntable without frames")
    write(path, frames)


def _write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    from PIL import Image  # imported here because most runs write no GIF

    colours = [frame[..., ::-1] for frame in frames]  # RGB
    chosen = np.linspace(0, len(frames) - 1, 9).round().astype(int)
    some = [colours[i][::2, ::2] for i in chosen]
    # k-means: else what has few pixels, as the lips, gets no colours of its own
    palette = Image.fromarray(np.concatenate(some)).quantize(256, kmeans=2)
    height, width = frames[0].shape[:2]
    pattern = np.tile(DITHER, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    dithered = [np.round(picture + pattern).clip(0, 255).astype(np.uint8) for picture in colours]
    first, *rest = (Image.fromarray(a).quantize(palette=palette, dither=0) for a in dithered)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=1000 // FPS, loop=0)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _write_mp4(path: Path, frames: Sequence[np.ndarray]) -> None:
    height, width = frames[0].shape[:2]
    try:
        writer = VideoWriter(path, (width, height), FPS)
    except ValueError as error:
        raise ValueError(f"{error}; or take --turntable gif") from error
    try:
        for i, frame in enumerate(frames):
            writer.write(frame, i / FPS)
        if message := writer.close():
            logger.warning("%s", message)
        if writer.was_stopped:  # it only keeps Ctrl-C from costing the video
            raise KeyboardInterrupt
    except BaseException:
        writer.abandon()
        raise


WRITERS = {".gif": _write_gif, ".mp4": _write_mp4}  # by suffix
