"""SynergyNet's training losses (section 3.4): Wing, parameter distance, and the five-term sum."""

import math

import torch
from torch import Tensor, nn

from utils.morphable_model import CAMERA

# The terms and what stands in front of each: the whole recipe at a glance.
LOSS_WEIGHTS = {
    "loss_LMK_f0": 0.05,  # Wing(3DMM landmarks, target landmarks)
    "loss_LMK_pointNet": 0.05,  # Wing(refined landmarks, target landmarks)
    "loss_Param_In": 0.02,  # parameters predicted from the image vs. target
    "loss_Param_S2": 0.02,  # coefficients regressed from the landmarks vs. target
    "loss_Param_S1S2": 0.001,  # the two predictions vs. each other, gradient to both
}

# What is trained together: the ablation of the paper, each adding to the one before. Only
# loss_LMK_pointNet makes the refiner run, and only loss_Param_S2 the inverse regressor, which needs
# the refiner: a loop without them has no ``refined``, no ``inverse``.
LOOPS = {
    "backbone": ("loss_LMK_f0", "loss_Param_In"),
    "refiner": ("loss_LMK_f0", "loss_LMK_pointNet", "loss_Param_In"),
    "inverse": ("loss_LMK_f0", "loss_LMK_pointNet", "loss_Param_In", "loss_Param_S2"),
    "full": ("loss_LMK_f0", "loss_LMK_pointNet", "loss_Param_In", "loss_Param_S2",
        "loss_Param_S1S2"),
}  # fmt: skip

WING_WIDTH, WING_CURVATURE = 10.0, 2.0  # omega, epsilon


def runs_refiner(loop: str) -> bool:
    """Whether a key of ``LOOPS`` has a term for which the refiner is run, and trained."""
    return "loss_LMK_pointNet" in LOOPS[loop]


def runs_inverse(loop: str) -> bool:
    """Whether a key of ``LOOPS`` has a term for which the inverse regressor is run, and trained."""
    return "loss_Param_S2" in LOOPS[loop]


def wing_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Wing loss (Feng et al., CVPR 2018): logarithmic near zero, linear from omega on.

    Args:
        prediction, target: same shape; crop pixels.

    Returns:
        Scalar, mean over all coordinates.

    Raises:
        ValueError: shapes that differ, which torch would broadcast.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"expected one shape, got {prediction.shape} and {target.shape}")
    distance = (prediction - target).abs()
    offset = WING_WIDTH - WING_WIDTH * math.log(1 + WING_WIDTH / WING_CURVATURE)
    near = WING_WIDTH * torch.log1p(distance / WING_CURVATURE)
    return torch.where(distance < WING_WIDTH, near, distance - offset).mean()


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root with gradient 0, not infinity, at a perfect fit; NaN stays NaN."""
    positive = x != 0  # no square is negative
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def parameter_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Camera and coefficients weighted equally, whitened: sqrt(mean_12(d^2) + mean_50(d^2)).

    Args:
        prediction, target: (B, 62).

    Returns:
        (B,) per sample.
    """
    squared = (prediction - target) ** 2
    return safe_sqrt(squared[:, :CAMERA].mean(1) + squared[:, CAMERA:].mean(1))


def coefficient_loss(inverse: Tensor, target: Tensor, aligned: bool = False) -> Tensor:
    """Distance of the inverse regressor's shape and expression: sqrt(mean_50(d^2)).

    Args:
        inverse: (B, 62) output of ``LandmarksTo3DMM``.
        target: (B, 62) whitened parameters.
        aligned: compare ``inverse[12:]``. As published, ``inverse[:50]`` is compared with
            ``target[12:]``, so that network's first 50 outputs *are* its coefficients.

    Returns:
        (B,) per sample.
    """
    coefficients = target[:, CAMERA:]
    regressed = inverse[:, CAMERA:] if aligned else inverse[:, : coefficients.shape[1]]
    return safe_sqrt(((regressed - coefficients) ** 2).mean(1))


class SynergyLoss(nn.Module):
    """All terms as one named dict.

    Args:
        loop: a key of ``LOOPS``: which terms are computed.

    Raises:
        KeyError: another loop.
    """

    def __init__(self, loop: str = "full") -> None:
        super().__init__()
        self.loop = loop
        self.weights = {name: LOSS_WEIGHTS[name] for name in LOOPS[loop]}

    def forward(
        self,
        parameters: Tensor,
        landmarks: Tensor,
        refined: Tensor | None,
        inverse: Tensor | None,
        target: Tensor,
        target_landmarks: Tensor,
        *,
        aligned: bool,
    ) -> dict[str, Tensor]:
        """The weighted terms of the loop.

        Args:
            parameters: (B, 62) whitened, from the image.
            landmarks, refined: (B, 3, 68) crop frame, before and after the refiner; ``refined`` is
                None where the loop does not run it.
            inverse: (B, 62) from the refined landmarks; None where the loop does not regress it.
            target: (B, 62) whitened.
            target_landmarks: (B, 3, 68) crop frame, from ``target`` through the same 3DMM.
            aligned: see ``coefficient_loss``; True for networks with ``heads="signed"``.

        Returns:
            term name -> weighted value; a scalar (Wing) or (B,) per sample. The total is the sum
            of the terms' means (``total``).
        """
        terms = {
            "loss_LMK_f0": lambda: wing_loss(landmarks, target_landmarks),
            "loss_LMK_pointNet": lambda: wing_loss(refined, target_landmarks),
            "loss_Param_In": lambda: parameter_loss(parameters, target),
            "loss_Param_S2": lambda: coefficient_loss(inverse, target, aligned),
            "loss_Param_S1S2": lambda: coefficient_loss(inverse, parameters, aligned),
        }
        return {name: weight * terms[name]() for name, weight in self.weights.items()}


def total(terms: dict[str, Tensor]) -> Tensor:
    """The scalar to minimise: the sum of the means of all terms."""
    return torch.stack([term.mean() for term in terms.values()]).sum()
