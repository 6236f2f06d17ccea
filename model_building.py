"""SynergyNet: backbone + 3DMM + landmark refiner + inverse regressor (landmarks to 3DMM).

    image crop -> backbone -> 62 whitened parameters -> 3DMM -> 68 landmarks
                                                                   |  refiner
                      coefficients  <- inverse regressor <- refined landmarks

Inference needs the first line only; training closes the loop with the second (paper, figure 2).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from backbone_nets import create_backbone
from backbone_nets.point_networks import LandmarkRefiner, LandmarksTo3DMM
from loss_definition import LOOPS, SynergyLoss, runs_inverse, runs_refiner
from utils.checkpoint import (
    UNSAID,
    check_face_model,
    learnable_state,
    new_network,
    read_checkpoint,
    require_finite,
)
from utils.morphable_model import CAMERA, MorphableModel
from utils.onnx_engine import export_onnx, random_pictures
from utils.precision import full_precision
from utils.preprocessing import CROP_SIZE

RESIDUAL_SCALE = 0.05  # refined = landmarks + 0.05 * residual
HEADS = ("published", "signed")


class SynergyOutput(NamedTuple):
    """Everything the loop computes, in order."""

    whitened: Tensor  # (B, 62) parameters, as the network gives them
    features: Tensor  # (B, D)
    landmarks: Tensor  # (B, 3, 68) crop frame
    residual: Tensor | None  # (B, 3, 68)
    refined: Tensor | None  # (B, 3, 68) crop frame
    inverse: Tensor | None  # (B, 62), see LandmarksTo3DMM.forward


class ImageToParameters(nn.Module):
    """Holds the backbone under the published name ``I2P.backbone``."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone(images)


class SynergyNet(nn.Module):
    """The whole network; published checkpoints' learnable keys are its state dict.

    ``synergy3DMM.SynergyNet``, which takes photos, runs its ``I2P`` behind a detector.

    Args:
        face_model: the 3DMM the parameters refer to. It moves with the module (``to``, ``double``)
            and never enters the state dict: it is licensed data.
        backbone: a name of ``backbone_nets.BACKBONES``.
        heads: ``"published"`` (ReLU on the outputs of refiner and inverse
            regressor) or ``"signed"`` (linear).
        trained_loop: a key of ``LOOPS``: which networks the weights are (to be) trained for; those
            outside it are as they began, random.

    Raises:
        ValueError: an unknown backbone, heads or loop.
    """

    def __init__(
        self,
        face_model: MorphableModel,
        backbone: str = "mobilenet_v2",
        heads: str = "published",
        trained_loop: str = "full",
    ) -> None:
        super().__init__()
        for kind, name, known in (("heads", heads, HEADS), ("loop", trained_loop, tuple(LOOPS))):
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}; expected one of: {', '.join(known)}")
        self.backbone_name, self.heads, self.trained_loop = backbone, heads, trained_loop
        self.face_model = face_model.to_torch()
        self.I2P = ImageToParameters(backbone)
        num_features = self.I2P.backbone.num_features
        self.forwardDirection = LandmarkRefiner(num_features, signed=heads == "signed")
        self.reverseDirection = LandmarksTo3DMM(signed=heads == "signed")

    def _apply(self, fn, recurse=True):
        """Lets the face model follow ``to``, ``cuda``, ``double`` like a buffer."""
        super()._apply(fn, recurse)
        self.face_model = self.face_model.map(fn)
        return self

    def forward(self, images: Tensor, loop: str = "full") -> SynergyOutput:
        """Runs the parts of the loop that a key of ``LOOPS`` trains; the others' outputs are None.

        Inference needs ``I2P`` and the 3DMM alone. Under autocast only the image encoder runs in
        low precision: bfloat16 cannot tell a landmark at 100.2 pixels from one at 100.

        Args:
            images: (B, 3, H, W) float, normalised BGR crops (``preprocessing.normalize_crops``).
            loop: a key of ``LOOPS``.

        Raises:
            KeyError: another loop.
            ValueError: images of another shape (``Backbone.forward``).
        """
        whitened, features = self.I2P(images)
        residual = refined = inverse = None
        with full_precision(images.device):
            landmarks = self.landmarks_from_whitened(whitened)
            if runs_refiner(loop):
                residual = self.forwardDirection(landmarks, features, whitened[:, CAMERA:])
                refined = landmarks + RESIDUAL_SCALE * residual
            if runs_inverse(loop):
                inverse = self.reverseDirection(refined)
        return SynergyOutput(whitened, features, landmarks, residual, refined, inverse)

    def landmarks_from_whitened(self, whitened: Tensor) -> Tensor:
        """(B, 62) whitened parameters -> (B, 3, 68) landmarks, crop frame."""
        return self.face_model.landmarks(self.face_model.dewhiten(whitened))

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        criterion: SynergyLoss,
        target_landmarks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted loss terms for (B, 3, H, W) crops and (B, 62) whitened targets.

        ``target_landmarks`` (B, 3, 68), crop frame, come from ``target`` unless given.
        """
        output = self(images, criterion.loop)
        if target_landmarks is None:
            target_landmarks = self.landmarks_from_whitened(target)
        with full_precision(images.device):
            return criterion(
                output.whitened,
                output.landmarks,
                output.refined,
                output.inverse,
                target,
                target_landmarks,
                aligned=self.heads == "signed",
            )

    def checkpoint(self, **extra: Any) -> dict[str, Any]:
        """What to save: learnable weights, what they mean, and the face model's fingerprint."""
        return {
            "state_dict": self.state_dict(),
            "backbone": self.backbone_name,
            "heads": self.heads,
            "trained_loop": self.trained_loop,
            "face_model": self.face_model.fingerprint,
            **extra,
        }


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode, and at the end back into the mode it was in."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def load_synergynet(weights: str | os.PathLike, face_model: MorphableModel) -> SynergyNet:
    """SynergyNet with the weights of a published or own checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: see ``read_checkpoint`` and ``check_face_model``; also where
            the weights do not fit the network strictly.
    """
    content = read_checkpoint(weights)
    check_face_model(content, face_model, weights)
    try:
        kind = {k: content.get(k, v) for k, v in UNSAID.items()}
        model = new_network(lambda: SynergyNet(face_model, **kind))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{weights}: not the weights of a SynergyNet ({error})") from error
    load_learnable(model, content, weights)
    return model.eval()


def load_learnable(model: SynergyNet, content: dict[str, Any], path: str | os.PathLike) -> None:
    """Fills a network with a checkpoint's learnable weights, strictly.

    Args:
        model: of the checkpoint's backbone and heads.
        content: from ``read_checkpoint``.
        path: for the message.

    Raises:
        ValueError: the weights do not fit the network, or are not finite.
    """
    for kind, ours in (("backbone", model.backbone_name), ("heads", model.heads)):
        theirs = content.get(kind, ours)  # published checkpoints don't say
        if theirs != ours:
            raise ValueError(
                f"{path}: weights with {kind} {theirs!r}, but the network is to have {ours!r} "
                f"(--{kind})"
            )
    state = learnable_state(content)
    require_finite(state, path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        if "backbone" not in content:
            reason += (
                f"; the file does not name its backbone, {model.backbone_name} was tried: for "
                "main_train.py --init give another with --backbone"
            )
        raise ValueError(f"{path}: not the weights of this SynergyNet ({reason})") from error


def export_encoder(weights: str | os.PathLike, face_model: MorphableModel) -> bytes:
    """``I2P`` as an ONNX graph: ``images`` (B, 3, 120, 120) to ``parameters`` and ``features``.

    The metadata name the face model that the weights were checked against.

    Raises:
        FileNotFoundError, ValueError: see ``load_synergynet``.
        ExportError, UnavailableError: see ``export_onnx``.
    """
    model = load_synergynet(weights, face_model)
    return export_onnx(
        model.I2P,
        random_pictures([(n, CROP_SIZE, CROP_SIZE) for n in (2, 1, 3)], 2, -1),
        ("parameters", "features"),
        {name: {0: "batch"} for name in ("images", "parameters", "features")},
        {
            "network": "SynergyNet",
            "backbone": model.backbone_name,
            "heads": model.heads,
            "face_model": face_model.fingerprint,
        },
    )
