"""Training augmentation in batches of tensors, on whatever device the batch lies.

Three ways, all called ``augment(batch, generator, size)`` (``AUGMENTATIONS``): ``none``,
``published`` and ``strong``.

Geometry is exact: the camera parameters are changed by the same similarity that moves the pixels,
so landmarks decoded from the changed parameters are the moved landmarks. Random numbers come from
one ``torch.Generator`` on the CPU and are copied to the device asynchronously; only noise, as large
as the pictures, is drawn on the device, from a generator seeded by the first. So a seed gives the
same batch on every device, but for noise, the neighbours that fill borders or occlude, and where
JPEG's blocks begin (a CPU works on ``CPU_CHUNK`` samples at a time). Nothing here makes the host
wait for the device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.morphable_model import (
    CAMERA,
    MIRRORED_LANDMARKS,
    MorphableModel,
    similarity_on_parameters,
    similarity_on_points,
    split_camera,
)
from utils.preprocessing import CROP_SIZE, PIXEL_MEAN, PIXEL_STD, PROTOCOL_BORDER
from utils.runtime import picture_layout, to_device

BLACK = -PIXEL_MEAN / PIXEL_STD  # in normalised pictures; white is its opposite
GREY = (0.114, 0.587, 0.299)  # weights of B, G, R
FACE_SIZE = 0.68  # of a plain crop: the landmark box's longer side over the crop's
CPU_CHUNK = 16  # samples that are worked on together: few enough for the processor's cache


class Batch(NamedTuple):
    """Training samples; the source frame is that of the stored square pictures (S, S)."""

    images: Tensor  # (B, S, S, 3) uint8 BGR
    parameters: Tensor  # (B, 62) float32, not whitened, source frame
    landmarks: Tensor  # (B, 3, 68) float32, source frame
    valid: Tensor  # (B, 4) float32 x1 y1 x2 y2: the part that is photo; made-up border around it

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(to_device(tensor, device) for tensor in self))


@dataclass(frozen=True)
class StrongSettings:
    """Ranges of everything random in ``StrongAugmentation``; probabilities in [0, 1]."""

    rotation: float = 15.0  # degrees, standard deviation
    far_rotation: tuple[float, float] = (0.15, 100.0)  # probability of uniform(-a, a) instead
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
    shadow: float = 0.2
    occlusion: float = 0.4
    low_resolution: float = 0.25
    blur: float = 0.15
    noise: float = 0.25
    compression: float = 0.2
    fill: float = 0.5  # where it is not black: probability that what is no photo is replaced
    black: float = 0.1  # probability that it is black, as inference has it beyond a photo's edge
    border: tuple[float, float] = (0.3, 8.0)  # probability, width up to: black (the protocol: 5)
    cut: tuple[float, float] = (0.1, 40.0)  # the same along one edge: a face at the photo's edge


LOW_RESOLUTIONS = (0.25, 0.4, 0.6)  # of the crop's side
BLURS = (0.7, 1.2, 2.0)  # standard deviations, pixels of the 120 wide crop
NOISE = 14.0  # largest standard deviation, grey levels
QUALITIES = (5.0, 50.0)  # of JPEG

# Steps of JPEG's coefficients at quality 50 (ITU-T T.81, tables K.1 and K.2; K.2 is 99 but for its
# first corner), and BGR to Y, Cb, Cr (ITU-T T.871) without its 128
LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE_STEPS = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56), (47, 66))
Y_CB_CR = (GREY, (0.5, -0.331264, -0.168736), (-0.081312, -0.418688, 0.5))


class Mirror:
    """Left-right mirroring of parameters and points.

    The mirrored face's coefficients are the affine map of the original's that fits the mirrored
    landmarks best. Where the bases are closed under mirroring (the starter model) it is exact. The
    published bases are not: there points are mirrored exactly, and those decoded from the mirrored
    parameters lie 0.24 pixels of the crop beside them on average (3D; largest about 1).
    """

    def __init__(self, face_model: MorphableModel) -> None:
        mean = torch.tensor(np.asarray(face_model.landmark_mean), dtype=torch.float64)
        basis = torch.tensor(np.asarray(face_model.landmark_basis), dtype=torch.float64)
        flip = torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64)
        norms = basis.flatten(1).norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)  # directions of zeros fill a smaller model up
        directions = (basis.flatten(1) / norms[:, None]).T  # (204, 50)
        mirrored = (basis[:, :, MIRRORED_LANDMARKS] * flip).flatten(1).T  # (204, 50)
        offset = (mean[:, MIRRORED_LANDMARKS] * flip - mean).flatten()[:, None]
        target = torch.cat([mirrored, offset], 1)
        # by singular values: directions of zeros leave gelsy, the default, with noise
        solution = torch.linalg.lstsq(directions, target, driver="gelsd").solution
        solution = solution / norms[:, None]
        self.linear, self.offset = solution[:, :-1].float(), solution[:, -1].float()

    def parameters(self, parameters: Tensor, width: int) -> Tensor:
        """(B, 62), not whitened, of a picture ``width`` wide -> of the mirrored one, x -> width - 1
        - x."""
        device = parameters.device
        self.linear, self.offset = self.linear.to(device), self.offset.to(device)
        camera = split_camera(parameters)
        # mirrored in the model frame ...
        camera = torch.cat([-camera[..., :1], camera[..., 1:]], 2)
        x = -camera[:, 0]  # ... and in the picture
        x = torch.cat([x[:, :3], x[:, 3:] + (width - 1)], 1)
        coefficients = parameters[:, CAMERA:] @ self.linear.T + self.offset
        return torch.cat([x, camera[:, 1:].flatten(1), coefficients], 1)

    @staticmethod
    def points(points: Tensor, width: int) -> Tensor:
        """(B, 3, 68) landmarks of a picture -> of the mirrored picture, renumbered."""
        order = to_device(torch.from_numpy(MIRRORED_LANDMARKS), points.device)
        mirrored = points[:, :, order]
        return torch.cat([width - 1 - mirrored[:, :1], mirrored[:, 1:]], 1)


def source_points(linear: Tensor, offset: Tensor, size: int) -> Tensor:
    """Where each pixel of the crop lies in the source, for ``p -> linear @ p + offset``.

    Args:
        linear, offset: (B, 2, 2), (B, 2): source pixels to crop pixels.
        size: side of the output; the crop frame stays 120 wide whatever it is.

    Returns:
        (B, 2, size, size) x and y, source pixels.
    """
    # output pixel j lies at (j + 0.5) * 120 / size - 0.5 of the crop frame
    centre = (torch.arange(size, device=linear.device) + 0.5) * (CROP_SIZE / size) - 0.5
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    points = torch.stack([x, y]).reshape(2, -1)  # (2, size * size)
    (a, b), (c, d) = linear[:, 0].unbind(1), linear[:, 1].unbind(1)
    inverse = torch.stack([d, -b, -c, a], 1).reshape(-1, 2, 2)
    inverse = inverse / (a * d - b * c)[:, None, None]
    points = (inverse @ points).sub_(inverse @ offset[..., None])
    return points.reshape(-1, 2, size, size)


def sample_images(images: Tensor, points: Tensor) -> Tensor:
    """(B, 3, S, S) pictures at (B, 2, h, w) source pixels -> (B, 3, h, w); zeros outside."""
    grid = (points * 2 + 1) / images.shape[-1] - 1  # align_corners=False
    grid = grid.permute(0, 2, 3, 1)  # x before y all along: computes faster
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


class Augment:
    """What all augmentations are; this one cuts the crop and changes nothing (``none``).

    Pictures that are stored 120 wide are crops already and stay as they are. From larger ones the
    crop is cut upright, the face in its middle and ``FACE_SIZE`` large.

    Args:
        border: pixels of a 120 wide crop that are set to zero all around, as the published
            training and test crops have it (``PROTOCOL_BORDER``).
    """

    def __init__(self, border: int = 0) -> None:
        self.border = border

    @torch.no_grad()
    def __call__(
        self, batch: Batch, generator: torch.Generator, size: int = CROP_SIZE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Crops of a batch, and its labels in their frame.

        Args:
            batch: on any device; left alone.
            generator: on the CPU.
            size: side of the crops; parameters and landmarks refer to a 120 wide one.

        Returns:
            images (B, 3, size, size) float32, normalised, in memory as ``picture_layout`` says;
            parameters (B, 62) float32, not whitened, crop frame;
            landmarks (B, 3, 68) float32, crop frame.
        """
        count, device = len(batch.images), batch.images.device
        host = self._draw(count, generator)
        drawn = {name: to_device(value, device) for name, value in host.items()}
        move, parameters, landmarks = self._geometry(batch, drawn)
        images = torch.empty(
            (count, 3, size, size), device=device, memory_format=picture_layout(device)
        )
        chunk = CPU_CHUNK if device.type == "cpu" else count
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            images[part] = self._pixels(
                Batch(*(tensor[part] for tensor in batch)),
                None if move is None else tuple(tensor[part] for tensor in move),
                {name: value[part] for name, value in drawn.items()},
                {name: value[part] for name, value in host.items()},
                size,
            )
        return images, parameters, landmarks

    def _draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All random numbers of a batch but noise: tensors (count, ...) on the CPU."""
        return {}

    def _geometry(
        self, batch: Batch, drawn: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor, Tensor]:
        """The move from source to crop frame (linear (B, 2, 2) and offset (B, 2), None where pixels
        stay as they are), and parameters and landmarks of the crops."""
        if batch.images.shape[1] == CROP_SIZE:
            return None, batch.parameters, batch.landmarks
        move = self._centring(batch.landmarks)
        return move, *self._moved(batch.parameters, batch.landmarks, *move)

    @staticmethod
    def _centring(
        landmarks: Tensor,
        angle: Tensor | float = 0.0,
        face_size: Tensor | float = FACE_SIZE,
        shift: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Source to crop frame: the landmark box in the middle (+ shift), of the wanted size."""
        low, high = landmarks[:, :2].amin(2), landmarks[:, :2].amax(2)  # (B, 2)
        centre, side = (low + high) / 2, (high - low).amax(1)
        scale = face_size * CROP_SIZE / side
        angle = torch.zeros_like(scale) + angle
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        linear = torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
        middle = (CROP_SIZE - 1) / 2 + shift * CROP_SIZE
        return linear, middle - (linear @ centre[..., None])[..., 0]

    @staticmethod
    def _moved(parameters: Tensor, landmarks: Tensor, linear: Tensor, offset: Tensor):
        return (
            similarity_on_parameters(parameters, linear, offset),
            similarity_on_points(landmarks, linear, offset),
        )

    def _pixels(self, batch: Batch, move, drawn, host, size: int) -> Tensor:
        """Normalised crops (b, 3, size, size) of a part of the batch: b of its B samples.

        Args:
            move: of ``_geometry``.
            drawn, host: what ``_draw`` drew, on the batch's device and on the CPU. Which samples
                something is done to is read from ``host``: the device would have to be waited for.
        """
        crops = _normalize(self._cut(batch, move, size))
        self._blacken_border(crops)
        return crops

    def _cut(self, batch: Batch, move: tuple[Tensor, Tensor] | None, size: int) -> Tensor:
        images = _planar(batch.images)
        if move is None and size == images.shape[-1]:
            return images
        if move is None:  # 120 wide crops at another size
            unit = torch.eye(2, device=images.device).expand(len(images), 2, 2)
            move = unit, torch.zeros(len(images), 2, device=images.device)
        crops = sample_images(images, source_points(*move, size))
        return crops.round_()  # inference sees 8 bits too

    def _blacken_border(self, crops: Tensor) -> None:
        size = crops.shape[-1]
        width = round(self.border * size / CROP_SIZE)
        _black_outside(crops, width, size - width, width, size - width)


def _planar(images: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, contiguous."""
    return images.permute(0, 3, 1, 2).contiguous().float()  # in this order: bytes move faster


def _normalize(crops: Tensor) -> Tensor:
    return crops.sub_(PIXEL_MEAN).div_(PIXEL_STD)


def _blend_matrix(own: Tensor, grey: Tensor) -> Tensor:
    """(...,) factors of a colour and of its grey -> (..., 3, 3) on BGR columns."""
    weights = torch.stack([grey * weight for weight in GREY], -1)[..., None, :]
    return weights + torch.diag_embed(own[..., None].expand(*own.shape, 3))


def _cover(pictures: Tensor, other: Tensor, where: Tensor) -> Tensor:
    """``torch.where`` for a mask (b, 1, h, w) of zeros and ones; ten times as fast on a CPU."""
    return torch.lerp(pictures, other, where)


def _neighbour_or_colour(pictures: Tensor, is_neighbour: Tensor, colour: Tensor) -> Tensor:
    """Each sample's (b, 3, 1, 1) colour, or (is_neighbour, (b, 1, 1, 1)) the picture before it."""
    share = is_neighbour.to(pictures.dtype)
    return pictures.roll(1, 0).mul_(share).add_(colour * (1 - share))


class PublishedAugmentation(Augment):
    """The published recipe: colour jitter, a zero border, rarely a large occlusion.

    Brightness, contrast and saturation change by factors uniform in [0.6, 1.4], in random order:
    each is a blend of the picture with black, with its mean grey, and with its grey version, cut to
    [0, 255]. (Pillow, which the published code uses, also rounds after each; here nothing is
    rounded.) Then the protocol's border becomes zero, and with probability 0.01 all but one of the
    seven ``KEPT`` parts. Geometry stays.
    """

    jitter = 0.4
    occlusion = 0.01
    # left, top, right, bottom as parts of the side: quadrants, halves, the centre half
    KEPT = (
        (0.0, 0.0, 0.5, 0.5),
        (0.5, 0.0, 1.0, 0.5),
        (0.0, 0.5, 0.5, 1.0),
        (0.5, 0.5, 1.0, 1.0),
        (0.0, 0.0, 0.5, 1.0),
        (0.5, 0.0, 1.0, 1.0),
        (0.25, 0.25, 0.75, 0.75),
    )

    def __init__(self) -> None:
        super().__init__(PROTOCOL_BORDER)

    def _draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        factors = 1 + self.jitter * (torch.rand(count, 3, generator=generator) * 2 - 1)
        order = torch.rand(count, 3, generator=generator).argsort(1)  # 0, 1, 2: b., c., s.
        part = torch.randint(0, len(self.KEPT), (count,), generator=generator)
        occluded = torch.rand(count, generator=generator) < self.occlusion
        factors = factors.gather(1, order)  # of the first, second and third change
        # Each change is a matrix, a constant and an offset from the picture's mean colour. The
        # first also normalises; the others work on normalised pictures, where black is BLACK.
        matrices = _blend_matrix(factors, (1 - factors) * (order == 2))
        from_mean = torch.tensor(GREY) * ((1 - factors) * (order == 1))[..., None]
        constants = (1 - factors) * (order == 0) * BLACK
        constants[:, 0] = BLACK
        for change in (matrices, from_mean):
            change[:, 0] /= PIXEL_STD
        return {
            "matrices": matrices,
            "from mean": from_mean,
            "constants": constants,
            "kept": torch.where(occluded, part, -1),
        }

    def _pixels(self, batch: Batch, move, drawn, host, size: int) -> Tensor:
        crops = self._cut(batch, move, size)
        shape, crops = crops.shape, crops.flatten(2)  # (b, 3, P)
        spare = torch.empty_like(crops)
        for matrix, from_mean, constant in zip(
            *(drawn[name].unbind(1) for name in ("matrices", "from mean", "constants")), strict=True
        ):
            offset = (crops.mean(2) * from_mean).sum(1) + constant  # (b,)
            torch.baddbmm(offset[:, None, None], matrix, crops, out=spare)
            spare.clamp_(BLACK, -BLACK)
            crops, spare = spare, crops
        crops = crops.reshape(shape)
        self._blacken_border(crops)
        for row, kept in enumerate(host["kept"].tolist()):
            if kept >= 0:
                x1, y1, x2, y2 = (round(edge * size) for edge in self.KEPT[kept])
                _black_outside(crops[row], x1, x2, y1, y2)
        return crops


def _black_outside(crops: Tensor, x1: int, x2: int, y1: int, y2: int) -> None:
    """Blackens (..., h, w) normalised pictures but for columns x1 to x2 - 1, rows y1 to y2 - 1."""
    crops[..., :y1, :] = crops[..., y2:, :] = BLACK
    crops[..., :x1] = crops[..., x2:] = BLACK


class StrongAugmentation(Augment):
    """Random crops of a batch (``strong``): geometry, then light and damage.

    What lies outside the photo stays as it is stored, or shows the photo's last row or column, a
    plain colour, black, or another picture of the batch. Some crops get a black border, as the
    benchmark's protocol has.

    Args:
        face_model: for mirroring.
        settings: ranges of what is random.
    """

    def __init__(
        self, face_model: MorphableModel, settings: StrongSettings = StrongSettings()
    ) -> None:
        super().__init__()
        self.settings = settings
        self.mirror = Mirror(face_model)

    def _draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        s = self.settings

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator) * (high - low) + low

        def chance(probability: float) -> Tensor:
            return torch.rand(count, generator=generator) < probability

        def factor(spread: float, *shape: int) -> Tensor:
            return 1 + spread * uniform(-1, 1, *shape)

        def kind(probability: float, kinds: int) -> Tensor:  # -1: none
            which = torch.randint(0, kinds, (count,), generator=generator)
            return torch.where(chance(probability), which, -1)

        angle = torch.randn(count, generator=generator) * s.rotation
        far = uniform(-1, 1) * s.far_rotation[1]
        shift = torch.randn(count, 2, generator=generator).clamp(-2.5, 2.5)
        seed = torch.randint(0, 2**62, (), generator=generator)
        return {
            "mirrored": chance(s.mirror),
            "angle": torch.deg2rad(torch.where(chance(s.far_rotation[0]), far, angle)),
            "face size": uniform(*s.face_size),
            "shift": shift * torch.tensor(s.shift) + torch.tensor([0.0, s.drop]),
            "filling": torch.where(chance(s.black), 3, kind(s.fill, 3)),
            "fill colour": uniform(0, 255, 3, 1, 1),
            "brightness": factor(s.brightness),
            "contrast": factor(s.contrast),
            "saturation": torch.where(chance(s.grey), 0.0, factor(s.saturation)),
            "tint": factor(s.tint, 3),
            "gamma": torch.exp(factor(s.gamma) - 1),
            "low resolution": kind(s.low_resolution, len(LOW_RESOLUTIONS)),
            "blur": kind(s.blur, len(BLURS)),
            "shadow": torch.where(chance(s.shadow), uniform(0.2, 0.9), 0.0),
            "shadow angle": uniform(0, 2 * math.pi),
            "shadow offset": uniform(-0.3, 0.3),
            "shadow softness": uniform(0.02, 0.6),
            "occluded": chance(s.occlusion),
            "occluder extent": uniform(0.08, 0.6, 2),
            "occluder angle": uniform(0, math.pi),
            "occluder centre": uniform(0, 1, 2),
            "occluder colour": uniform(0, 255, 3, 1, 1),
            "occluder look": kind(1.0, 3),
            "occluder is round": chance(0.5),
            "noisy": chance(s.noise),
            "noise": uniform(0, NOISE, 1, 1, 1),
            "noise seed": seed + torch.arange(count),  # a chunk of the batch takes its first
            "compressed": chance(s.compression),
            "quality": torch.exp(uniform(*map(math.log, QUALITIES))),
            "block": torch.randint(0, 8, (count, 2), generator=generator),
            "border": torch.where(chance(s.border[0]), uniform(1, s.border[1]), 0.0) / CROP_SIZE,
            "cut": torch.where(chance(s.cut[0]), uniform(1, s.cut[1]), 0.0) / CROP_SIZE,
            "cut edge": torch.randint(0, 4, (count,), generator=generator),
        }

    def _geometry(self, batch: Batch, drawn: dict[str, Tensor]):
        parameters, landmarks, width = batch.parameters, batch.landmarks, batch.images.shape[1]
        mirrored = drawn["mirrored"][:, None]
        parameters = torch.where(mirrored, self.mirror.parameters(parameters, width), parameters)
        points = self.mirror.points(landmarks, width)
        landmarks = torch.where(mirrored[..., None], points, landmarks)
        linear, offset = self._centring(
            landmarks, drawn["angle"], drawn["face size"], drawn["shift"]
        )
        parameters, landmarks = self._moved(parameters, landmarks, linear, offset)
        # pixels come from the picture as it is stored: the mirroring goes into the map
        offset = offset + torch.where(mirrored, linear[..., 0] * (width - 1), 0.0)
        sign = torch.where(mirrored, -1.0, 1.0)  # (B, 1)
        linear = torch.stack([linear[..., 0] * sign, linear[..., 1]], 2)
        return (linear, offset), parameters, landmarks

    def _pixels(self, batch: Batch, move, drawn, host, size: int) -> Tensor:
        crops = self._filled_crops(batch, source_points(*move, size), drawn)
        crops = self._light(crops, drawn)
        crops = _shade(crops, drawn)
        crops = self._damage(crops, drawn, host)
        crops = _black_border(crops, drawn)
        return _normalize(crops.clamp_(0, 255).round_())  # inference sees 8 bits too

    @staticmethod
    def _filled_crops(batch: Batch, points: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """The crops, what is no photo covered by plain colour, a neighbour or the photo's edge."""
        images = _planar(batch.images)
        # -1 as it is, 0 edge, 1 colour, 2 neighbour, 3 black
        filling = drawn["filling"][:, None, None, None]
        low = batch.valid[:, :2, None, None]
        high = batch.valid[:, 2:, None, None] - 1
        outside = ((points < low) | (points > high)).any(1, keepdim=True)
        covered = (outside & (filling > 0)).to(images.dtype)
        low = torch.where(filling == 0, low, 0.0)
        high = torch.where(filling == 0, high, images.shape[-1] - 1.0)
        points = torch.minimum(torch.maximum(points, low), high)
        crops = sample_images(images, points)
        colour = drawn["fill colour"] * (filling == 1)
        return _cover(crops, _neighbour_or_colour(crops, filling == 2, colour), covered)

    @staticmethod
    def _light(crops: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Brightness, contrast, saturation and tint as one matrix for every sample, then gamma."""
        brightness, contrast, tint = drawn["brightness"], drawn["contrast"], drawn["tint"]
        matrix = _blend_matrix(drawn["saturation"], 1 - drawn["saturation"]) * tint[..., None]
        offset = (brightness * (1 - contrast) * crops.mean((1, 2, 3)))[:, None] * tint  # (b, 3)
        matrix = matrix * (brightness * contrast / 255)[:, None, None]
        light = torch.bmm(matrix, crops.flatten(2)).add_(offset[..., None] / 255).clamp_(0, 1)
        # x ** gamma; log2 and exp2 take half the time of pow
        light = light.log2_().mul_(drawn["gamma"][:, None, None]).exp2_().mul_(255)
        return light.reshape(crops.shape)

    @staticmethod
    def _damage(crops: Tensor, drawn: dict[str, Tensor], host: dict[str, Tensor]) -> Tensor:
        """Low resolution, blur, occlusion, noise, JPEG: each for the samples drawn for it.

        They are picked by numbers that are known on the host, so nobody waits for the device.
        """
        device, side = crops.device, crops.shape[-1]

        def rows(chosen: Tensor) -> Tensor:
            return to_device(chosen.nonzero()[:, 0], device)

        for kind, level in enumerate(LOW_RESOLUTIONS):
            chosen = rows(host["low resolution"] == kind)
            if len(chosen):
                # sizes, not a factor: one that gives no whole number of pixels would shift the face
                size = (round(side * level),) * 2
                small = F.interpolate(crops[chosen], size=size, mode="bilinear", antialias=True)
                restored = F.interpolate(small, size=(side, side), mode="bilinear")
                crops.index_copy_(0, chosen, restored)
        for kind, sigma in enumerate(BLURS):
            chosen = rows(host["blur"] == kind)
            if len(chosen):
                crops.index_copy_(0, chosen, blur(crops[chosen], sigma * side / CROP_SIZE))
        crops = _occlude(crops, drawn)
        chosen = rows(host["noisy"])
        if len(chosen):
            generator = torch.Generator(device).manual_seed(int(host["noise seed"][0]))
            shape = (len(chosen), *crops.shape[1:])
            noise = torch.randn(shape, generator=generator, device=device)
            crops.index_add_(0, chosen, noise.mul_(drawn["noise"][chosen]))
        chosen = rows(host["compressed"])
        if len(chosen):
            first = tuple(host["block"][0].tolist())  # one of the chunk's: they are cut together
            packed = compress(crops[chosen].clamp_(0, 255), drawn["quality"][chosen], first)
            crops.index_copy_(0, chosen, packed)
        return crops


def blur(images: Tensor, sigma: float) -> Tensor:
    """(B, 3, H, W) convolved with a Gaussian of ``sigma`` pixels; the edge is repeated."""
    radius = min(max(1, round(2.5 * sigma)), images.shape[-1] - 1)
    weights = [math.exp(-0.5 * (at / sigma) ** 2) for at in range(-radius, radius + 1)]
    images = F.pad(images, [radius] * 4, mode="replicate")
    for axis in (2, 3):  # moved and added: on a CPU much faster than a convolution by channel
        length = images.shape[axis] - 2 * radius
        blurred = torch.zeros_like(images.narrow(axis, 0, length))
        for at, weight in enumerate(weights):
            blurred.add_(images.narrow(axis, at, length), alpha=weight / sum(weights))
        images = blurred
    return images


def compress(images: Tensor, quality: Tensor, first: tuple[int, int] = (0, 0)) -> Tensor:
    """(B, 3, H, W) BGR levels with JPEG's artefacts: the cosine coefficients of blocks of 8 x 8
    pixels of Y, Cb and Cr are rounded to whole steps (ITU-T T.81, annexes A and K).

    Args:
        quality: (B,) up to 50, of the usual scale.
        first: pixels that the first block lacks at the top and at the left.
    """
    device, (height, width) = images.device, images.shape[2:]
    top, left = first
    padding = [left, -(left + width) % 8, top, -(top + height) % 8]
    padded = F.pad(images, padding, mode="replicate")
    waves, steps, colours, backwards = (to_device(table, device) for table in _jpeg_tables())
    steps = steps * (50 / quality)[:, None, None]
    steps = steps.round().clamp_(1, 255)[:, :, None]  # (B, 3, 1, 64)
    planes = (colours @ padded.flatten(2)).reshape(padded.shape)
    planes[:, 0] -= 128
    tiles = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, 3, h, w, 8, 8)
    rounded = (tiles.reshape(*tiles.shape[:2], -1, 64) @ waves.T).div_(steps).round_().mul_(steps)
    planes = (rounded @ waves).reshape(tiles.shape).transpose(3, 4).reshape(padded.shape)
    planes[:, 0] += 128
    restored = (backwards @ planes.flatten(2)).reshape(padded.shape)
    return restored[:, :, top : top + height, left : left + width]


@cache
def _jpeg_tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines of a block's coefficients (64) at its pixels (64), their steps at quality 50 (3, 64),
    BGR to Y, Cb, Cr (3, 3) and its inverse; on the CPU."""
    frequency, at = np.mgrid[:8, :8]
    cosines = np.cos(frequency * (2 * at + 1) * (np.pi / 16)) / 2  # (8, 8)
    cosines[0] /= 2**0.5
    steps = np.full((3, 8, 8), 99.0)
    steps[0] = LUMINANCE_STEPS
    for row, own in enumerate(CHROMINANCE_STEPS):
        steps[1:, row, : len(own)] = own
    colours = np.array(Y_CB_CR)
    tables = np.kron(cosines, cosines), steps.reshape(3, 64), colours, np.linalg.inv(colours)
    return tuple(torch.from_numpy(table.astype(np.float32)) for table in tables)


def _from_middle(side: int, device: torch.device) -> Tensor:
    """(side,) pixels' places, in parts of the side, 0 in the middle."""
    return (torch.arange(side, device=device) + 0.5) / side - 0.5


def _shade(crops: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """A shadow on one side of a straight line, whose edge is sharp or soft."""
    axis = _from_middle(crops.shape[-1], crops.device)
    angle, offset = drawn["shadow angle"][:, None], drawn["shadow offset"][:, None]
    across = 1 / drawn["shadow softness"][:, None]
    x, y = (torch.cos(angle) * axis - offset) * across + 0.5, torch.sin(angle) * axis * across
    dark = (x[:, None] + y[:, :, None]).clamp_(0, 1)  # (b, side, side)
    return crops.mul_(1 - (dark * drawn["shadow"][:, None, None])[:, None])


def _occlude(crops: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """A turned rectangle or ellipse of plain colour, another picture, or much like the face."""
    side = crops.shape[-1]
    cos, sin = torch.cos(drawn["occluder angle"]), torch.sin(drawn["occluder angle"])
    turn = torch.stack([cos, sin, -sin, cos], 1).reshape(-1, 2, 2)
    turn = turn / (drawn["occluder extent"] / 2)[..., None]  # to the unit square or circle
    centre = drawn["occluder centre"] - 0.5
    x, y = (_from_middle(side, crops.device) - centre[..., None]).unbind(1)  # (b, side) each
    u, v = (
        ((row[:, :1] * x)[:, None] + (row[:, 1:] * y)[:, :, None]).square_()
        for row in turn.unbind(1)
    )  # (b, side, side)
    inside = torch.where(drawn["occluder is round"][:, None, None], u + v, torch.maximum(u, v)) < 1
    inside &= drawn["occluded"][:, None, None]
    look = drawn["occluder look"][:, None, None, None]  # 0 colour, 1 picture, 2 the face's colour
    middle = slice(side // 3, side - side // 3)
    skin = crops[..., middle, middle].mean((2, 3), keepdim=True)
    colour = torch.lerp(drawn["occluder colour"], skin, 0.7 * (look == 2))
    other = _neighbour_or_colour(crops, look == 1, colour)
    return _cover(crops, other, inside[:, None].to(crops.dtype))


def _black_border(crops: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """Blackens ``border`` (b,) all around and ``cut`` along one edge, in parts of the side, rounded
    down to whole pixels."""
    side = crops.shape[-1]
    axis = torch.arange(side, device=crops.device)
    edges = torch.arange(4, device=crops.device)  # left, top, right, bottom
    widths = drawn["border"][:, None] + drawn["cut"][:, None] * (
        drawn["cut edge"][:, None] == edges
    )
    widths = (widths * side).floor()[..., None]  # (b, 4, 1)
    inside = (axis >= widths[:, :2]) & (axis < side - widths[:, 2:])  # (b, 2, side)
    inside = inside.to(crops.dtype)
    return crops.mul_(inside[:, 0, None, None]).mul_(inside[:, 1, None, :, None])


# What ``main_train.py --augment`` offers: face model -> augmentation.
AUGMENTATIONS: dict[str, Callable[[MorphableModel], Augment]] = {
    "published": lambda face_model: PublishedAugmentation(),
    "strong": StrongAugmentation,
    "none": lambda face_model: Augment(),
}
