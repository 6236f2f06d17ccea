"""Steadier faces in a video: a One-Euro filter on what a face is made of.

What is filtered are the parameters, and landmarks, mesh and pose are derived from the filtered
ones, so that they stay consistent with each other: filtering landmarks and vertices would shrink a
face that turns, and its pose would not be the mesh's. The camera is taken apart in the image frame
(the crop of the next frame lies elsewhere) into parts that move and shake independently:

    place      where the landmarks' centre lies. Not the model's origin: it lies behind the face, so
               a shaking rotation shakes it too, and filtered apart the two would no longer fit
    depth      its z
    turn       the rotation nearest to the camera
    size       the logarithm of the camera's scale
    stretch    what is left of the camera (unequal scales, shear): constant, so it follows slowly
    shape      its coefficients, constant for a person: likewise
    expression its coefficients: they move with the face, and are filtered as the pose is

The filter (Casiez, Roussel, Vogel: 1 EUR Filter, CHI 2012) is a low-pass whose cutoff rises with
speed: still faces are smoothed heavily, moving ones hardly lag. Two things differ. Time is counted
in frames, because what is seen is jitter from frame to frame. And the speed is measured in units of
the noise of its own estimate, taken from second differences (constant motion has none), so that the
same settings serve clean and noisy pictures, pixels, radians and coefficients alike. A single
step is measured in the noise's units too: it tells of motion where the mean speed passes through
zero. Place and expression have a limit to the noise, above which they move: a camera in the hand, a
talking mouth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.inference import Face
from utils.morphable_model import CAMERA, EXPRESSION, MorphableModel, split_camera
from utils.preprocessing import CROP_SIZE, crop_to_image

SPEED_SHARE = 0.1  # weight of a new difference in the running mean that is the speed
NOISE_SHARE = 0.05  # weight of a new second difference in the running mean that is the noise
NOISE_START = 5  # so many second differences count in full, later ones only up to a limit
# Until so many values have come, each of a part that can move is weighted as if it ended a line of
# steady motion: how large the noise is, and so whether the part does move, is not known yet.
LINE = 4
SIGNIFICANT = 3.0  # speed over its noise from which it counts as motion
# The most that the place is taken to be noisy: a share of the face's size, and at least so many
# pixels; about what was seen in pictures with a noise of 25 levels. What shakes more moves.
PLACE_NOISE = 0.005, 0.3
EXPRESSION_NOISE = 0.03  # the same of the expression: a share of how much it varies


@dataclass(frozen=True)
class Strength:
    """How much is smoothed. A constant speed lags behind by ``1 / rate`` frames.

    Attributes:
        rest: rate of what stands still.
        motion: what each unit of significant speed adds to it.
        identity: rate of shape and stretch.
    """

    rest: float
    motion: float
    identity: float


STRENGTHS = {
    "off": None,
    "light": Strength(rest=0.18, motion=0.4, identity=1 / 10),
    "strong": Strength(rest=1 / 25, motion=0.1, identity=1 / 40),
}


class OneEuro:
    """Filters one vector over time.

    Args:
        rest: rate at rest, per frame; a constant speed lags behind by ``1 / rate`` frames.
        motion: added to the rate for each unit of significant speed; 0: a plain low-pass.

    Attributes:
        most_noise: standard deviation over the whole vector; values that shake more move.
    """

    def __init__(self, rest: float, motion: float = 0.0) -> None:
        self.rest, self.motion, self.most_noise = rest, motion, np.inf
        self.count = 0  # values seen

    def __call__(self, value: np.ndarray, frames: int = 1) -> np.ndarray:
        """The filtered value; ``frames`` frames have passed since the one before."""
        self.count += 1
        if self.count == 1:
            self.raw = self.smoothed = value
            self.speed = np.zeros_like(value)  # per frame
            self.difference, self.noise = None, 0.0  # noise: variance, summed over the vector
            self.noise_count = 0  # second differences that are in it
            return value
        difference = (value - self.raw) / frames
        self.raw = value
        rate = self.rest
        if self.motion:
            rate += self.motion * self._significance(difference, frames)
        rate *= frames
        share = rate / (1 + rate) if np.isfinite(rate) else 1.0
        n = self.count
        if self.motion and n <= LINE:
            # the weight of the last of n values at the end of the straight line fitted to them
            start = (4 * n - 2) / (n * (n + 1))
        else:
            start = 1 / n  # so the first values are averaged, until ``share`` is the larger weight
        self.smoothed = self.smoothed + max(share, start) * (value - self.smoothed)
        return self.smoothed

    def _significance(self, difference: np.ndarray, frames: int) -> float:
        """By how much the speed exceeds what noise alone would show, in units of the latter."""
        self.speed = self.speed + (1 - (1 - SPEED_SHARE) ** frames) * (difference - self.speed)
        # a value that is repeated, as where a video stands still, says nothing of the noise
        if self.difference is not None and difference.any():
            # a second difference (weights 1, -2, 1) has six times the variance of a value
            variance = float(((difference - self.difference) ** 2).sum()) / 6
            self.noise_count += 1
            if self.noise_count > NOISE_START:
                variance = min(variance, 4 * self.noise)  # a jump is no noise
            self.noise += max(NOISE_SHARE, 1 / self.noise_count) * (variance - self.noise)
        self.difference = difference
        speed, step = float(np.linalg.norm(self.speed)), frames * float(np.linalg.norm(difference))
        # three values do not tell how noisy they are
        variance = min(self.noise if self.count > 3 else np.inf, self.most_noise**2)
        noise = SPEED_SHARE * np.sqrt(variance * (1 + SPEED_SHARE / (2 - SPEED_SHARE)))
        if noise == 0:
            return np.inf if speed else 0.0
        # a step may be too large for noise where the mean of the last ones is small: a camera that
        # is shaken, a head that turns back
        return max(speed / noise, step / np.sqrt(2 * variance), SIGNIFICANT) - SIGNIFICANT


class FaceSmoother:
    """Filters the faces of one track.

    Args:
        face_model: of the faces.
        strength: of ``STRENGTHS``.
    """

    def __init__(self, face_model: MorphableModel, strength: Strength) -> None:
        self.face_model = face_model
        moving = ("place", "depth", "turn", "size", "expression")
        self.filters = {name: OneEuro(strength.rest, strength.motion) for name in moving}
        spread = float(np.linalg.norm(face_model.param_std[-EXPRESSION:]))
        self.filters["expression"].most_noise = EXPRESSION_NOISE * spread
        self.filters |= {name: OneEuro(strength.identity) for name in ("stretch", "shape")}

    def __call__(self, face: Face, frames: int = 1) -> np.ndarray:
        """(62,) float32 filtered parameters, in the crop frame of the face's own roi box.

        ``frames`` frames have passed since the face before.
        """
        parts = take_apart(face)
        size = float(np.sqrt(np.ptp(face.landmarks[:2], axis=1).prod()))
        self.filters["place"].most_noise = max(PLACE_NOISE[0] * size, PLACE_NOISE[1])
        smoothed = {name: self.filters[name](part, frames) for name, part in parts.items()}
        return put_together(smoothed, face.roi_box, self.face_model)


def take_apart(face: Face) -> dict[str, np.ndarray]:
    """The independent parts of a face's parameters (see above), float64.

    place (2,), depth (1,) in the image frame; turn (9,), stretch (9,) on its axes with y up; size
    (1,), shape (40,), expression (10,).
    """
    parameters = face.parameters.astype(np.float64)
    linear = split_camera(parameters[None])[0, :, :3] * (_side(face.roi_box) / CROP_SIZE)
    # left polar decomposition: linear = size * stretch @ turn
    u, lengths, vt = np.linalg.svd(linear)
    size = lengths.mean()
    centre = face.landmarks.mean(axis=1, dtype=np.float64)
    return {
        "place": centre[:2],
        "depth": centre[2:],
        "turn": (u @ vt).ravel(),
        "size": np.log([size]),
        "stretch": ((u * lengths / size) @ u.T).ravel(),
        "shape": parameters[CAMERA:-EXPRESSION],
        "expression": parameters[-EXPRESSION:],
    }


def put_together(
    parts: dict[str, np.ndarray], roi_box: np.ndarray, face_model: MorphableModel
) -> np.ndarray:
    """(62,) float32 parameters of the parts, in the crop frame of a roi box.

    The inverse of ``take_apart``; ``turn`` may be any matrix, the rotation nearest to it is taken.
    """
    scale = _side(roi_box) / CROP_SIZE  # crop pixels to image pixels
    u, _, vt = np.linalg.svd(parts["turn"].reshape(3, 3))
    linear = np.exp(parts["size"]) / scale * parts["stretch"].reshape(3, 3) @ (u @ vt)
    camera = np.concatenate([linear, np.zeros((3, 1))], axis=1)
    parameters = np.concatenate([camera.ravel(), parts["shape"], parts["expression"]])
    landmarks = face_model.landmarks(parameters[None].astype(np.float32)).astype(np.float64)
    centre = landmarks.mean(axis=2, keepdims=True)  # (1, 3, 1)
    centre = crop_to_image(centre, roi_box[None], face_model.pixel_centres)[0, :, 0]
    # the crop frame's y points down, the camera's up
    shift = (np.append(parts["place"], parts["depth"]) - centre) / scale * face_model.flip[:, 0]
    parameters[:CAMERA].reshape(3, 4)[:, 3] = shift
    return parameters.astype(np.float32)


def _side(roi_box: np.ndarray) -> float:
    return float(roi_box[2] - roi_box[0])
