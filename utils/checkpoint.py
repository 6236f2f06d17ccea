"""Weights on disk: the published layout read safely, ours written without licensed data."""

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import first_line
from utils.files import atomic_write, read_weights_file
from utils.morphable_model import SHAPE, MorphableModel

# Buffers that published checkpoints carry: copies of the 3DMM the weights were trained with.
FACE_MODEL_BUFFERS = (
    "param_mean",
    "param_std",
    "w_shp",
    "u",
    "w_exp",
    "u_base",
    "w_shp_base",
    "w_exp_base",
)
# What checkpoints are that do not say it, as the published ones.
UNSAID = {"backbone": "mobilenet_v2", "heads": "published", "trained_loop": "full"}
_TOGETHER = (
    "Weights and face model must belong together: the published ones come together "
    '(`make published NAMES="3dmm_data weights"`), and so do the bundled ones, which are used '
    "where the published ones are not at their places; or name others with their options. A face "
    "model of your own: docs/face_model.md."
)

Module = TypeVar("Module", bound=nn.Module)


def new_network(make: Callable[[], Module]) -> Module:
    """A network to be filled with weights: float32, on the CPU, whatever defaults the calling
    program has set in torch; the program's random numbers stay as they are."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return make().float()


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """A checkpoint file as a dict with at least ``state_dict``.

    Only tensors and plain containers are read (``weights_only=True``): no code in the file runs.
    The prefix ``module.`` of DataParallel is stripped, floating point becomes float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or no state dict, or a weight under two names.
    """
    stored = io.BytesIO(read_weights_file(path))
    try:
        if zipfile.is_zipfile(stored):  # torch packs nothing; a packed one can fill the memory
            with zipfile.ZipFile(stored) as archive:
                if any(entry.compress_type for entry in archive.infolist()):
                    raise ValueError("its tensors are compressed")
        stored.seek(0)
        content = torch.load(stored, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage and forbidden content in many ways
        reason = first_line(error)
        if reason.startswith("Weights only load failed"):  # torch goes on to advise unsafe loading
            reason = "it holds more than tensors, or is no torch file"
        raise ValueError(
            f"{path}: not a checkpoint of plain tensors; it was not loaded, since other files can "
            f"run code ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    if not isinstance(content.get("state_dict"), dict):
        content = {"state_dict": content}
    state = content["state_dict"]
    if not state or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{path}: holds no state dict of tensors")
    left = stored.getbuffer().nbytes  # a thousand tensors may be made of one
    for key, value in state.items():
        is_dense = value.layout == torch.strided and value.device.type == "cpu"
        if not is_dense or value.is_quantized or value.is_complex():
            raise ValueError(f"{path}: {key} is not a plain tensor of real numbers")
        left -= value.numel() * value.element_size()
        if left < 0:
            raise ValueError(f"{path}: {key} has more numbers than the file holds for it")
    content["state_dict"] = {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in state.items()
    }
    if len(content["state_dict"]) < len(state):
        raise ValueError(f"{path}: holds the same weights with and without the prefix module.")
    return content


def require_finite(state: dict[str, Tensor], path: object) -> None:
    """Raises ValueError where weights are whole numbers, NaN, infinite, or variances below zero;
    names the file and the key."""
    for key, value in state.items():
        if not (value.is_floating_point() or key.endswith("num_batches_tracked")):
            raise ValueError(f"{path}: {key} holds {value.dtype}, expected floating point")
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {key} holds NaN or infinite values; the file is damaged")
        if key.endswith("running_var") and (value < 0).any():
            raise ValueError(f"{path}: {key} holds negative variances; the file is damaged")


def require_in_half(state: dict[str, Tensor], path: object) -> None:
    """Raises ValueError where a weight that was halved is infinite: past 65,504 float16 ends."""
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {key} does not fit half precision")


def check_face_model(content: dict[str, Any], face_model: MorphableModel, path: object) -> None:
    """Refuses weights that were trained with another face model.

    Published checkpoints carry the model itself, ours a fingerprint; one with neither is taken.

    Raises:
        ValueError: the models differ; both are named.
    """
    theirs = content.get("face_model")
    if theirs is not None and theirs != face_model.fingerprint:
        raise ValueError(
            f"{path}: these weights speak the language of face model {theirs}, but "
            f"{face_model.source} is face model {face_model.fingerprint}. {_TOGETHER}"
        )
    buffers = _face_model_buffers(face_model)
    for name in FACE_MODEL_BUFFERS:
        if name not in content["state_dict"]:
            continue
        stored = content["state_dict"][name].detach().numpy().reshape(-1)
        ours = buffers[name].reshape(-1)
        least = 1e-9 if name.startswith("param_") else 1e-6  # the cameras' are small numbers
        if stored.shape != ours.shape or not np.allclose(stored, ours, rtol=1e-5, atol=least):
            raise ValueError(
                f"{path}: its face model ({name}, {stored.size} numbers, fingerprint "
                f"{_stored_fingerprint(content['state_dict'], face_model)}) differs from "
                f"{face_model.source} ({ours.size} numbers, fingerprint {face_model.fingerprint}); "
                f"the weights would draw wrong faces. {_TOGETHER}"
            )


def _stored_fingerprint(state: dict[str, Tensor], like: MorphableModel) -> str:
    """Of the face model whose eight buffers a published checkpoint carries."""
    try:
        stored = {name: state[name].detach().numpy() for name in FACE_MODEL_BUFFERS}
        u, u_base = (stored[name].reshape(-1, 3) for name in ("u", "u_base"))
        basis = np.concatenate([stored["w_shp"], stored["w_exp"]], axis=1)
        vertices = {vertex.tobytes(): i for i, vertex in reversed(list(enumerate(u)))}
        return replace(
            like,
            mean=u.T,
            basis=basis.reshape(len(u), 3, -1).transpose(2, 1, 0),
            landmark_indices=np.array([vertices.get(point.tobytes(), -1) for point in u_base]),
            param_mean=stored["param_mean"],
            param_std=stored["param_std"],
        ).fingerprint
    except (KeyError, ValueError):
        return "unknown"


def _face_model_buffers(face_model: MorphableModel) -> dict[str, np.ndarray]:
    """The eight published buffers, as the face model at hand would fill them."""

    def interleaved(array: Any) -> np.ndarray:  # (..., 3, N) -> (3N, ...)
        array = np.asarray(array)
        return array.T.reshape(-1) if array.ndim == 2 else array.T.reshape(-1, len(array))

    basis = interleaved(face_model.basis)
    landmark_basis = interleaved(face_model.landmark_basis)
    return {
        "param_mean": np.asarray(face_model.param_mean),
        "param_std": np.asarray(face_model.param_std),
        "u": interleaved(face_model.mean),
        "w_shp": basis[:, :SHAPE],
        "w_exp": basis[:, SHAPE:],
        "u_base": interleaved(face_model.landmark_mean),
        "w_shp_base": landmark_basis[:, :SHAPE],
        "w_exp_base": landmark_basis[:, SHAPE:],
    }


def learnable_state(content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict without the 3DMM buffers."""
    return {k: v for k, v in content["state_dict"].items() if k not in FACE_MODEL_BUFFERS}


def mixed_state(
    state: dict[str, Tensor], before: dict[str, Tensor], share: float, name: str | os.PathLike
) -> dict[str, Tensor]:
    """Weights after training with ``share`` of those it began from: what they knew is kept.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022. Counters stay ``state``'s.

    Args:
        name: of the file of ``before``, for the message.

    Raises:
        ValueError: ``before`` has other tensors.
    """
    shapes, others = ({k: v.shape for k, v in weights.items()} for weights in (state, before))
    if shapes != others:
        raise ValueError(f"{name}: has not the tensors of the weights it is to be mixed with")
    return {
        k: torch.lerp(v.float(), before[k].float(), share) if v.is_floating_point() else v
        for k, v in state.items()
    }


def write_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Saves a dict of tensors and plain values under ``path``, complete or not at all."""
    whole = io.BytesIO()  # where the disk is full, torch's own writing hides the reason
    torch.save(content, whole)
    with atomic_write(path, durable=True) as file:
        file.write(whole.getbuffer())
