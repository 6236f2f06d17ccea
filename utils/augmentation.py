"""Training augmentation in batches of tensors, on whatever device the batch lies.

Geometry is exact: the camera parameters are changed by the same similarity that moves the pixels,
so landmarks decoded from the changed parameters are the moved landmarks. Randomness comes from one
``torch.Generator`` on the CPU, so the same seed gives the same batch on every device.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.morphable_model import (
    CAMERA,
    MIRRORED_LANDMARKS,
    Y_FLIP,
    MorphableModel,
    split_camera,
)
from utils.preprocessing import CROP_SIZE, PIXEL_MEAN, PIXEL_STD


class Batch(NamedTuple):
    """Training samples; the source frame is that of the stored square pictures (S, S)."""

    images: Tensor  # (B, S, S, 3) uint8 BGR
    parameters: Tensor  # (B, 62) not whitened, source frame
    landmarks: Tensor  # (B, 3, 68) source frame
    valid: Tensor  # (B, 4) x1 y1 x2 y2: the part that is photo, the rest is made-up border

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class AugmentationSettings:
    """Ranges of everything random; probabilities in [0, 1]."""

    rotation: float = 15.0  # degrees, standard deviation
    far_rotation: tuple[float, float] = (0.15, 45.0)  # probability of uniform(-a, a) instead
    face_size: tuple[float, float] = (0.58, 0.78)  # landmark box's longer side over the crop's
    shift: tuple[float, float] = (0.04, 0.05)  # x, y: standard deviation, of the crop's side
    drop: float = 0.04  # mean of the y shift: detected boxes reach higher than the landmarks do
    mirror: float = 0.5
    brightness: float = 0.35  # factors uniform in [1 - x, 1 + x]
    contrast: float = 0.35
    saturation: float = 0.5
    gamma: float = 0.3  # exponent exp(uniform(-x, x))
    tint: float = 0.08
    grey: float = 0.1
    occlusion: float = 0.35
    low_resolution: float = 0.25
    noise: float = 0.25
    fill: float = 0.5  # replace made-up border by a plain colour or another picture


def similarity_on_parameters(parameters: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Parameters of a face after its picture was moved by ``p -> linear @ p + offset``.

    Args:
        parameters: (B, 62) not whitened.
        linear: (B, 2, 2) rotation times scale, y-down pixels.
        offset: (B, 2).

    Returns:
        (B, 62): landmarks decoded from them are the moved landmarks; z is scaled alike.
    """
    camera = split_camera(parameters)  # (B, 3, 4), y up
    sign = camera.new_tensor([[1.0], [-1.0]])
    xy = camera[:, :2] * sign  # y down
    xy = torch.cat([xy[..., :3], xy[..., 3:] + camera.new_tensor([[0.0], [Y_FLIP]])], 2)
    xy = linear @ xy
    shift = offset[..., None] - camera.new_tensor([[0.0], [Y_FLIP]])
    xy = torch.cat([xy[..., :3], xy[..., 3:] + shift], 2) * sign
    scale = torch.linalg.det(linear).sqrt()[:, None]
    z = camera[:, 2] * scale
    return torch.cat([xy.flatten(1), z, parameters[:, CAMERA:]], 1)


def similarity_on_points(points: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """(B, 3, P) points moved likewise; z is scaled."""
    scale = torch.linalg.det(linear).sqrt()[:, None, None]
    return torch.cat([linear @ points[:, :2] + offset[..., None], points[:, 2:] * scale], 1)


class Mirror:
    """Left-right mirroring of parameters and points.

    The mirrored face's coefficients are the affine map of the original's that fits the mirrored
    landmarks best; where the bases are closed under mirroring (the starter model) it is exact.
    """

    def __init__(self, face_model: MorphableModel) -> None:
        mean = torch.as_tensor(np.asarray(face_model.landmark_mean)).double()
        basis = torch.as_tensor(np.asarray(face_model.landmark_basis)).double()
        flip = torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64)
        norms = basis.flatten(1).norm(dim=1)
        directions = (basis.flatten(1) / norms[:, None]).T  # (204, 50)
        mirrored = (basis[:, :, MIRRORED_LANDMARKS] * flip).flatten(1).T  # (204, 50)
        offset = (mean[:, MIRRORED_LANDMARKS] * flip - mean).flatten()[:, None]
        solution = torch.linalg.lstsq(directions, torch.cat([mirrored, offset], 1)).solution
        solution = solution / norms[:, None]
        self.linear, self.offset = solution[:, :-1].float(), solution[:, -1].float()

    def parameters(self, parameters: Tensor, width: int) -> Tensor:
        """(B, 62) of a picture ``width`` wide -> of the mirrored picture, x -> width - 1 - x."""
        camera = split_camera(parameters)
        sign = camera.new_tensor([[-1.0, 1.0, 1.0, 1.0]])
        camera = camera * sign  # the head is mirrored in the model frame ...
        x = -camera[:, :1]  # ... and in the picture
        x = torch.cat([x[..., :3], x[..., 3:] + (width - 1)], 2)
        linear, offset = self.linear.to(parameters.device), self.offset.to(parameters.device)
        coefficients = parameters[:, CAMERA:] @ linear.T + offset
        return torch.cat([x.flatten(1), camera[:, 1:].flatten(1), coefficients], 1)

    @staticmethod
    def points(points: Tensor, width: int) -> Tensor:
        """(B, 3, 68) landmarks of a picture -> of the mirrored picture, renumbered."""
        mirrored = points[:, :, MIRRORED_LANDMARKS]
        return torch.cat([width - 1 - mirrored[:, :1], mirrored[:, 1:]], 1)


def source_grid(linear: Tensor, offset: Tensor, size: int) -> Tensor:
    """Where each pixel of the crop lies in the source, for ``p -> linear @ p + offset``.

    Args:
        linear, offset: (B, 2, 2), (B, 2): source pixels to crop pixels.
        size: side of the output; the crop frame stays 120 wide whatever it is.

    Returns:
        (B, size, size, 2) x and y, source pixels.
    """
    # output pixel j lies at (j + 0.5) * 120 / size - 0.5 of the crop frame
    centre = (torch.arange(size, device=linear.device) + 0.5) * (CROP_SIZE / size) - 0.5
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    grid = torch.stack([x, y], -1).reshape(-1, 2)  # (size * size, 2)
    inverse = torch.linalg.inv(linear)
    grid = (grid - offset[:, None]) @ inverse.transpose(1, 2)  # (B, size * size, 2)
    return grid.reshape(-1, size, size, 2)


def sample_images(images: Tensor, grid: Tensor) -> Tensor:
    """(B, 3, S, S) pictures at (B, h, w, 2) source pixels -> (B, 3, h, w); zeros outside."""
    grid = (grid * 2 + 1) / images.shape[-1] - 1  # align_corners=False
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


class Augmentation:
    """Random crops of a batch: geometry, then light and damage.

    Args:
        face_model: for mirroring.
        settings: ranges; ``None`` gives the plain centred crop that validation uses.
    """

    def __init__(self, face_model: MorphableModel, settings: AugmentationSettings | None) -> None:
        self.settings = settings
        self.mirror = Mirror(face_model)

    def __call__(
        self, batch: Batch, generator: torch.Generator, size: int = CROP_SIZE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Returns:
            images (B, 3, size, size) float32, normalised;
            parameters (B, 62), not whitened, crop frame;
            landmarks (B, 3, 68), crop frame.
        """
        images = batch.images.permute(0, 3, 1, 2).float()  # (B, 3, S, S)
        parameters, landmarks = batch.parameters, batch.landmarks
        if self.settings is None:
            linear, offset = self._similarity(landmarks, None)
        else:
            mirrored = self._chance(len(images), self.settings.mirror, generator, images.device)
            pick, width = mirrored[:, None], images.shape[-1]
            parameters = torch.where(pick, self.mirror.parameters(parameters, width), parameters)
            points = self.mirror.points(landmarks, width)
            landmarks = torch.where(pick[..., None], points, landmarks)
            linear, offset = self._similarity(landmarks, generator)
        grid = source_grid(linear, offset, size)  # (B, size, size, 2)
        if self.settings is not None:
            x, y = grid[..., :1], grid[..., 1:]
            grid = torch.cat([torch.where(pick[..., None, None], width - 1 - x, x), y], -1)
        crops = sample_images(images, grid)
        if self.settings is not None:
            crops = self._fill_border(crops, grid, batch.valid, generator)
            crops = self._photometric(crops, generator)
            crops = self._damage(crops, generator)
        crops = crops.clamp(0, 255).round()  # inference sees 8 bits too
        return (
            (crops - PIXEL_MEAN) / PIXEL_STD,
            similarity_on_parameters(parameters, linear, offset),
            similarity_on_points(landmarks, linear, offset),
        )

    def _similarity(self, landmarks: Tensor, generator: torch.Generator | None):
        """Source pixels -> crop pixels, the landmark box centred and of the wanted size."""
        low, high = landmarks[:, :2].amin(2), landmarks[:, :2].amax(2)  # (B, 2)
        centre, side = (low + high) / 2, (high - low).amax(1)
        count, device = len(landmarks), landmarks.device
        if generator is None:
            angle = torch.zeros(count, device=device)
            fraction = torch.full((count,), 0.68, device=device)
            shift = torch.zeros(count, 2, device=device)
        else:
            s = self.settings
            angle = torch.randn(count, generator=generator) * s.rotation
            far = (torch.rand(count, generator=generator) * 2 - 1) * s.far_rotation[1]
            is_far = torch.rand(count, generator=generator) < s.far_rotation[0]
            angle = torch.deg2rad(torch.where(is_far, far, angle)).to(device)
            smallest, largest = s.face_size
            fraction = torch.rand(count, generator=generator) * (largest - smallest) + smallest
            fraction = fraction.to(device)
            shift = torch.randn(count, 2, generator=generator).clamp(-2.5, 2.5)
            shift = (shift * torch.tensor(s.shift) + torch.tensor([0.0, s.drop])).to(device)
        scale = fraction * CROP_SIZE / side
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        linear = torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
        middle = (CROP_SIZE - 1) / 2 + shift * CROP_SIZE
        offset = middle - (linear @ centre[..., None])[..., 0]
        return linear, offset

    def _fill_border(
        self, crops: Tensor, grid: Tensor, valid: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Covers made-up border by plain colour, black or a neighbour in the batch."""
        count, device = len(crops), crops.device
        low, high = valid[:, None, None, :2], valid[:, None, None, 2:] - 1
        inside = ((grid >= low) & (grid <= high)).all(-1)  # (B, h, w)
        colour = torch.rand(count, 3, 1, 1, generator=generator).to(device) * 255
        kind = torch.randint(0, 3, (count, 1, 1, 1), generator=generator).to(device)
        filling = torch.where(kind == 0, colour, torch.where(kind == 1, 0.0, crops.roll(1, 0)))
        wanted = self._chance(count, self.settings.fill, generator, device)
        keep = inside[:, None] | ~wanted[:, None, None, None]
        return torch.where(keep, crops, filling)

    def _photometric(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        s, count, device = self.settings, len(crops), crops.device

        def factor(spread: float, channels: int = 1) -> Tensor:
            value = torch.rand(count, channels, 1, 1, generator=generator) * 2 - 1
            return (1 + spread * value).to(device)

        weights = crops.new_tensor([0.114, 0.587, 0.299])[:, None, None]  # BGR
        crops = crops * factor(s.brightness)
        mean = crops.mean(dim=(1, 2, 3), keepdim=True)
        crops = (crops - mean) * factor(s.contrast) + mean
        grey = (crops * weights).sum(1, keepdim=True)
        saturation = factor(s.saturation)
        no_colour = self._chance(count, s.grey, generator, device)[:, None, None, None]
        saturation = torch.where(no_colour, 0.0, saturation)
        crops = (crops - grey) * saturation + grey
        crops = crops * factor(s.tint, 3)
        exponent = torch.exp(factor(s.gamma) - 1)
        return 255 * (crops.clamp(0, 255) / 255) ** exponent

    def _damage(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Low resolution, occlusion, noise: each for a random part of the batch."""
        s, count, device, side = self.settings, len(crops), crops.device, crops.shape[-1]
        for level in (0.25, 0.4, 0.6):
            chosen = self._chance(count, s.low_resolution / 3, generator, device)
            if chosen.any():
                small = F.interpolate(
                    crops[chosen], scale_factor=level, mode="bilinear", antialias=True
                )
                restored = F.interpolate(small, size=(side, side), mode="bilinear")
                crops = crops.masked_scatter(chosen[:, None, None, None], restored)
        crops = self._occlude(crops, generator)
        chosen = self._chance(count, s.noise, generator, device)
        level = torch.rand(count, 1, 1, 1, generator=generator).to(device) * 14
        noise = torch.randn((int(chosen.sum()), *crops.shape[1:]), generator=generator).to(device)
        return crops.index_add(0, chosen.nonzero()[:, 0], noise * level[chosen])

    def _occlude(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """A rectangle of plain colour, noise or another picture, up to half the side long."""
        count, device, side = len(crops), crops.device, crops.shape[-1]
        chosen = self._chance(count, self.settings.occlusion, generator, device)
        extent = (torch.rand(count, 2, generator=generator) * 0.4 + 0.08).to(device) * side
        corner = (torch.rand(count, 2, generator=generator).to(device)) * side - extent / 2
        axis = torch.arange(side, device=device)
        x1, y1 = corner[:, :1], corner[:, 1:]
        x2, y2 = x1 + extent[:, :1], y1 + extent[:, 1:]
        inside = ((axis >= y1) & (axis < y2))[:, :, None] & ((axis >= x1) & (axis < x2))[:, None]
        inside = inside[:, None] & chosen[:, None, None, None]
        colour = (torch.rand(count, 3, 1, 1, generator=generator) * 255).to(device)
        other = (torch.rand(count, 1, 1, 1, generator=generator) < 0.6).to(device)
        return torch.where(inside, torch.where(other, crops.roll(1, 0), colour), crops)

    @staticmethod
    def _chance(count: int, probability: float, generator: torch.Generator, device) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).to(device)
