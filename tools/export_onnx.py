"""Writes the network and the face model as files that run without this project, and without torch.

synergynet_parameters  normalised crops -> the 62 parameters, whitened and not
synergynet_face        crops and their roi boxes -> parameters, pose, landmarks, dense mesh, all
                       in the photo's pixels: the numbers of synergy3DMM.Face

python -m tools.export_onnx
python -m tools.export_onnx -w pretrained/best_pose.pth.tar -o somewhere --format onnx --sparse
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_building import SynergyNet, load_synergynet
from utils import assets
from utils.cli import comma_list, complain, run_script, script_parser
from utils.files import atomic_write, check_writable
from utils.geometry import SINE_AT_POLE
from utils.inference import faces_from_parameters
from utils.morphable_model import CAMERA, MorphableModel, load_morphable_model, split_camera
from utils.onnx_engine import (
    OPSET,
    OnnxNetwork,
    compare_with_torch,
    export_onnx,
    missing_packages,
)
from utils.preprocessing import CROP_SIZE, PIXEL_MEAN, PIXEL_STD, normalize_crops

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
# How far the geometry may be from numpy's on the same parameters, as a share of the largest number:
# on a photo of 300 pixels 0.001 pixel. Float32 sums in another order were seen to differ by 1e-7.
GEOMETRY_TOLERANCE = 3e-6
# Micrometres in one unit of length inside the graph. Many runtimes turn a graph into float16, which
# ends at 65,504, and a face measures more of them; a power of two changes no bit in float32.
UNIT = 1024
BATCHES = (2, 1, 7)  # sizes that a graph is compared on; the first is traced

# What goes in and out: dtype, shape (N: the face model's vertices) and meaning.
TENSORS = {
    "images": ("float32", "(B, 3, 120, 120)", "crops, BGR, (value - 127.5) / 128"),
    "crops": ("uint8", "(B, 120, 120, 3)", "crops as cv2.resize makes them, BGR, 0 to 255"),
    "roi_boxes": ("float32", "(B, 4)", "x1 y1 x2 y2 of the crops before rounding, image frame"),
    "whitened": ("float32", "(B, 62)", "(parameters - mean) / std, as the network gives them"),
    "parameters": ("float32", "(B, 62)", "not whitened: camera 12 (crop), shape 40, expression 10"),
    "yaw_pitch_roll": ("float32", "(B, 3)", "degrees; + is to the picture's left, up, clockwise"),
    "rotation": ("float32", "(B, 3, 3)", "model frame (y up) to image axes with y up"),
    "scale": ("float32", "(B,)", "pixels of the image per unit of the model"),
    "translation": ("float32", "(B, 3)", "where the model's origin lies, image frame"),
    "landmarks": ("float32", "(B, 3, 68)", "image frame: pixels, x right, y down, z to the viewer"),
    "vertices": ("float32", "(B, 3, N)", "the dense mesh, image frame as for the landmarks"),
}

EPILOG = """\
B, the number of faces, is free. The files are compared with PyTorch and numpy before they are
written. Metadata in them say what goes in and out; with the mesh, synergynet_triangles.npy
holds its triangles, (T, 3) int32. They contain the face model: its licence binds their users.

exit code: 0 all written, 1 the export failed, 2 wrong usage
"""

CROP_SNIPPET = """\
import cv2, numpy as np, {package}

photo, (x1, y1, x2, y2) = cv2.imread("img/astronaut.jpg"), (183, 59, 271, 180)  # a face's box
x, y, half = (x1 + x2) / 2, (y1 + y2) / 2, int(1.2 * (y2 - y1) / 2)
roi_box = np.float32([x - half, y - half, x + half, y + half])  # a square 1.2 times as high
padded = cv2.copyMakeBorder(photo, *[2 * half] * 4, cv2.BORDER_CONSTANT)  # black around the photo
left, top = np.round(roi_box[:2]).astype(int) + 2 * half
crop = cv2.resize(padded[top : top + 2 * half, left : left + 2 * half], (120, 120))
"""
RUN_SNIPPETS = {
    "onnx": """\
session = onnxruntime.InferenceSession({path}, providers=["CPUExecutionProvider"])
outputs = session.run(None, {{"crops": crop[None], "roi_boxes": roi_box[None]}})
face = dict(zip([output.name for output in session.get_outputs()], outputs))
print(face["yaw_pitch_roll"][0], face["landmarks"].shape)""",
    "torchscript": """\
network = torch.jit.load({path})
outputs = network(torch.from_numpy(crop[None]), torch.from_numpy(roi_box[None]))
{outputs} = outputs
print(yaw_pitch_roll[0], landmarks.shape)""",
}


def snippet(form: str, path: str, outputs: Sequence[str]) -> str:
    """A program that runs ``synergynet_face`` of one format on a photo."""
    return (CROP_SNIPPET + RUN_SNIPPETS[form]).format(
        package={"onnx": "onnxruntime", "torchscript": "torch"}[form],
        path=json.dumps(path, ensure_ascii=False),
        outputs=", ".join(outputs),
    )


# ------------------------------------------------------------- the geometry in torch, for the graph
# utils/geometry.py and utils/preprocessing.py are numpy's, and stay the reference: what is here is
# compared with them at every export.


def arctan2(y: Tensor, x: Tensor) -> Tensor:
    """Radians of the direction (x, y), float64; 0 for (0, 0).

    ONNX has no atan2, and ONNX Runtime an arctangent in float32 only: the ratio, at most 1, is made
    in float64, so that the result is good to 1e-7 in all directions.
    """
    steep = y.abs() > x.abs()
    long, short = torch.where(steep, y, x), torch.where(steep, x, y)
    ratio = short / torch.where(long == 0, 1.0, long)
    angle = torch.atan(ratio.float()).double()
    turn = (1 - 2 * (y < 0).to(y.dtype)) * torch.pi
    return torch.where(steep, turn / 2 - angle, torch.where(x < 0, angle + turn, angle))


def decompose_camera(camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``utils.geometry.decompose_camera`` of (B, 3, 4) float64; NaN where that raises."""
    rows = camera[:, :2, :3]
    lengths = (rows * rows).sum(2, keepdim=True).sqrt()  # (B, 2, 1)
    rows = rows / lengths
    third = torch.linalg.cross(rows[:, 0], rows[:, 1])[:, None]
    return lengths.mean((1, 2)), torch.cat([rows, third], 1), camera[:, :, 3]


def rotation_to_angles(rotation: Tensor) -> Tensor:
    """``utils.geometry.rotation_to_angles`` of (B, 3, 3) float64, poles included."""
    sin_yaw = rotation[:, 2, 0].clamp(-1, 1)
    yaw = arctan2(sin_yaw, ((1 - sin_yaw) * (1 + sin_yaw)).sqrt())
    at_pole = sin_yaw.abs() > SINE_AT_POLE
    pitch = arctan2(rotation[:, 1, 2], torch.where(at_pole, rotation[:, 1, 1], rotation[:, 2, 2]))
    roll = arctan2(rotation[:, 0, 1], rotation[:, 0, 0])
    roll = torch.where(at_pole, 0.0, roll)
    return torch.stack([yaw, pitch, roll], 1) * (180 / torch.pi)


def crop_to_image(points: Tensor, roi_boxes: Tensor, pixel_centres: bool) -> Tensor:
    """``utils.preprocessing.crop_to_image`` of (B, 3, P) and (B, 4) of one dtype."""
    sides = (roi_boxes[:, 2:] - roi_boxes[:, :2]) / CROP_SIZE  # (B, 2)
    scale = torch.cat([sides, sides.mean(1, keepdim=True)], 1)
    corners = roi_boxes[:, :2] + (sides - 1) / 2 if pixel_centres else roi_boxes[:, :2]
    origin = torch.cat([corners, roi_boxes[:, :1] * 0], 1)
    return points * scale[:, :, None] + origin[:, :, None]


# --------------------------------------------------------------------------------------- the graphs


class WithFaceModel(nn.Module):
    """Holds those arrays of a face model that it needs as buffers, which follow ``to``."""

    def __init__(self, face_model: MorphableModel, arrays: Sequence[str]) -> None:
        super().__init__()
        self.source, tensors = face_model, face_model.to_torch()
        for name in arrays:
            self.register_buffer(name, getattr(tensors, name))

    def face_model(self) -> MorphableModel:
        """The face model's algebra on these buffers; its other arrays are numpy's."""
        return replace(self.source, **dict(self.named_buffers(recurse=False)))


class Encoder(WithFaceModel):
    """``images`` (B, 3, 120, 120) normalised -> ``whitened`` and ``parameters`` (B, 62)."""

    def __init__(self, model: SynergyNet, face_model: MorphableModel) -> None:
        super().__init__(face_model, ("param_mean", "param_std"))
        self.I2P = model.I2P

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        whitened = self.I2P(images)[0]
        return whitened, self.face_model().dewhiten(whitened)


class Decoder(WithFaceModel):
    """``parameters`` (B, 62) and ``roi_boxes`` (B, 4) -> pose, landmarks and, if dense, vertices.

    As ``utils.inference.FacePipeline.faces_from_crops``: the pose in float64, the points in the
    parameters' dtype, which is that of all outputs.
    """

    POINTS = ("landmark_mean", "landmark_basis", "flip", "flip_offset")

    def __init__(self, face_model: MorphableModel, dense: bool) -> None:
        shapes = ("landmark_mean", "landmark_basis", "mean", "basis")
        face_model = replace(face_model, **{n: getattr(face_model, n) / UNIT for n in shapes})
        super().__init__(face_model, (*self.POINTS, "mean", "basis") if dense else self.POINTS)
        self.dense = dense

    def forward(self, parameters: Tensor, roi_boxes: Tensor) -> tuple[Tensor, ...]:
        model, boxes = self.face_model(), roi_boxes
        if model.pixel_centres:
            boxes = boxes.round()  # as they are cut; before double: tract rounds float32 only
        boxes = boxes.double()
        scale, rotation, translation = decompose_camera(split_camera(parameters).double())
        translation = translation[:, :, None] * model.flip.double() + model.flip_offset.double()
        pose = (
            rotation_to_angles(rotation),
            rotation,
            scale * (boxes[:, 2] - boxes[:, 0]) / CROP_SIZE,
            crop_to_image(translation, boxes, model.pixel_centres)[:, :, 0],
        )
        camera = split_camera(parameters)
        camera = torch.cat([camera[:, :, :3] * UNIT, camera[:, :, 3:]], 2).flatten(1)
        in_units = torch.cat([camera, parameters[:, CAMERA:]], 1)
        points = [model.landmarks(in_units)]
        if self.dense:
            points.append(model.vertices(in_units))
        in_image = [crop_to_image(p, boxes.to(p.dtype), model.pixel_centres) for p in points]
        return *(tensor.to(parameters.dtype) for tensor in pose), *in_image


class FaceGraph(nn.Module):
    """``crops`` (B, 120, 120, 3) BGR 0..255 and ``roi_boxes`` -> ``parameters``, Decoder's outputs.

    Takes pictures as OpenCV has them, so that callers need not know how they are normalised.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, crops: Tensor, roi_boxes: Tensor) -> tuple[Tensor, ...]:
        images = (crops.to(self.encoder.param_mean.dtype) - PIXEL_MEAN) / PIXEL_STD
        parameters = self.encoder(images.permute(0, 3, 1, 2))[1]
        return parameters, *self.decoder(parameters, roi_boxes)


@dataclass(frozen=True)
class Graph:
    """One module to export; ``samples`` hold a tensor per input."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    samples: list[tuple[Tensor, ...]]


def make_graphs(model: SynergyNet, face_model: MorphableModel, dense: bool) -> list[Graph]:
    """Both graphs, with made-up inputs to compare them on."""
    encoder = Encoder(model, face_model)
    face = FaceGraph(encoder, Decoder(face_model, dense)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    crops = [
        torch.randint(256, (n, CROP_SIZE, CROP_SIZE, 3), dtype=torch.uint8, generator=generator)
        for n in BATCHES
    ]
    images = [torch.from_numpy(normalize_crops(c.numpy())) for c in crops]
    corners = [torch.rand(n, 2, generator=generator) * 250 - 50 for n in BATCHES]
    sides = [torch.rand(n, 1, generator=generator) * 200 + 40 for n in BATCHES]
    roi_boxes = [torch.cat([c, c + s], 1) for c, s in zip(corners, sides, strict=True)]
    outputs = ("parameters", "yaw_pitch_roll", "rotation", "scale", "translation", "landmarks")
    return [
        Graph(
            "synergynet_parameters",
            encoder,
            ("images",),
            ("whitened", "parameters"),
            [(i,) for i in images],
        ),
        Graph(
            "synergynet_face",
            face,
            ("crops", "roi_boxes"),
            (*outputs, "vertices") if dense else outputs,
            list(zip(crops, roi_boxes, strict=True)),
        ),
    ]


# --------------------------------------------------------------------------------------- the export


def export_torchscript(graph: Graph, metadata: dict[str, str]) -> bytes:
    """The module as TorchScript, compared with itself; ``metadata.json`` lies in the archive.

    Raises:
        RuntimeError: it cannot be traced, or the traced form computes something else.
    """
    traced, file = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing warns where Python numbers become constants: here sizes of the face model, which
        # are. What must vary, the batch, is compared below.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        _silence_deprecation()
        script = torch.jit.trace(graph.module, graph.samples[0], check_trace=False)
        extra = {"metadata.json": json.dumps(metadata, indent=1)}
        torch.jit.save(script, traced, _extra_files=extra)
    # without what names each operation's source, by its place on this machine
    with zipfile.ZipFile(traced) as whole, zipfile.ZipFile(file, "w") as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry, whole.read(entry))
    compare_with_torch(
        open_torchscript(file.getvalue()), graph.module, graph.samples, graph.outputs
    )
    return file.getvalue()


def open_torchscript(content: bytes) -> Callable[..., list[np.ndarray]]:
    """The network of a ``.pt`` file as a function of numpy arrays."""
    with warnings.catch_warnings():
        _silence_deprecation()
        script = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in script(*map(torch.from_numpy, arrays))]

    return call


def _silence_deprecation() -> None:
    """torch.jit announces its end (warnings of two classes so far); what is to follow it writes
    files that do not run in libtorch."""
    warnings.filterwarnings("ignore", r".*torch\.jit")


def compare_with_numpy(
    network: Callable[..., Sequence[np.ndarray]], graph: Graph, face_model: MorphableModel
) -> None:
    """Raises RuntimeError where the exported face graph gives other faces than ``FacePipeline``.

    Both start from the parameters that the graph gives, so that the network's rounding, which
    ``compare_with_torch`` judges, does not count.
    """
    for crops, roi_boxes in graph.samples:
        ours = dict(zip(graph.outputs, network(crops.numpy(), roi_boxes.numpy()), strict=True))
        theirs = reference_outputs(
            face_model, ours["parameters"], roi_boxes.numpy(), "vertices" in ours
        )
        for name, expected in theirs.items():
            allowed = GEOMETRY_TOLERANCE * np.abs(expected).max()
            if not (np.abs(ours[name] - expected) <= allowed).all():
                raise RuntimeError(
                    f"the exported {name} differ from numpy's by more than {allowed:g}; please "
                    "report it"
                )


def reference_outputs(
    face_model: MorphableModel, parameters: np.ndarray, roi_boxes: np.ndarray, dense: bool
) -> dict[str, np.ndarray]:
    """Decoder's outputs as ``FacePipeline`` computes them, from (B, 62) and (B, 4), by name."""
    boxes = roi_boxes.astype(np.float64)
    faces = faces_from_parameters(face_model, parameters, boxes, np.zeros((len(boxes), 5)), dense)
    names = ["rotation", "scale", "translation", "landmarks", *(["vertices"] if dense else [])]
    return {
        "yaw_pitch_roll": np.array([[face.yaw, face.pitch, face.roll] for face in faces]),
        **{name: np.stack([getattr(face, name) for face in faces]) for name in names},
    }


def export_graph(
    graph: Graph, form: str, face_model: MorphableModel, metadata: dict[str, str]
) -> bytes:
    """The content of one file, compared with PyTorch and, the faces', with numpy.

    Raises:
        RuntimeError: it cannot be exported, or computes something else.
    """
    metadata = metadata | {"graph": graph.name} | describe(graph, face_model)
    if form == "onnx":
        content = export_onnx(
            graph.module,
            graph.samples,
            graph.outputs,
            {name: {0: "batch"} for name in (*graph.inputs, *graph.outputs)},
            metadata,
            inputs=graph.inputs,
        )
    else:
        content = export_torchscript(graph, metadata)
    if graph.name == "synergynet_face":
        network = OnnxNetwork(content) if form == "onnx" else open_torchscript(content)
        compare_with_numpy(network, graph, face_model)
    return content


def describe(graph: Graph, face_model: MorphableModel) -> dict[str, str]:
    """A line for each input and output: dtype, shape, meaning."""
    lines = {}
    for name in (*graph.inputs, *graph.outputs):
        dtype, shape, meaning = TENSORS[name]
        shape = shape.replace("N", str(face_model.num_vertices))
        lines[name] = f"{dtype} {shape}: {meaning}"
    return lines


def write_exports(
    weights: Path, face_model: Path, out: Path, formats: Sequence[str], dense: bool
) -> list[str]:
    """Exports, compares and, when all is well, writes all files, each complete or not at all.

    Args:
        weights: SynergyNet checkpoint.
        face_model: 3DMM folder or ``.npz``, the one the weights were trained with.
        out: folder; made where it is missing. Files of these names are replaced.
        formats: of ``SUFFIXES``.
        dense: with the dense mesh.

    Returns:
        What to tell the user: of each file path, size, inputs and outputs; how to use them.

    Raises:
        OSError, ValueError: a file is missing or does not fit, or the folder cannot be written.
        RuntimeError: the export failed, or the files would compute something else.
    """
    model_3d = load_morphable_model(face_model)
    model = load_synergynet(weights, model_3d)
    check_writable(out, "-o")
    metadata = {
        "network": "SynergyNet",
        "backbone": model.backbone_name,
        "heads": model.heads,
        "weights": weights.name,
        "face_model": model_3d.fingerprint,
        "box": "a face's, from the middle of the forehead to the chin; crops are 1.2 times as high",
        "mapping": (
            "roi_boxes are rounded; x = (x_crop + 1/2) * side / 120 - 1/2 + x1"
            if model_3d.pixel_centres
            else "roi_boxes are not rounded; x = x_crop * side / 120 + x1"
        ),
    }
    graphs = make_graphs(model, model_3d, dense)
    exported = [
        (graph, form, export_graph(graph, form, model_3d, metadata))
        for graph in graphs
        for form in formats
    ]
    lines = []
    for graph, form, content in exported:
        path = out / f"{graph.name}{SUFFIXES[form]}"
        with atomic_write(path) as file:
            file.write(content)
        version = f"opset {OPSET}" if form == "onnx" else f"torch {torch.__version__}"
        lines += [f"{path}  {len(content) / 1e6:.1f} MB, {version}"]
        for name, text in describe(graph, model_3d).items():
            lines += [f"  {'in ' if name in graph.inputs else 'out'} {name:<15} {text}"]
    if dense:
        path = out / "synergynet_triangles.npy"
        with atomic_write(path) as file:
            np.save(file, model_3d.triangles)
        lines += [f"{path}  {path.stat().st_size / 1e6:.1f} MB, the mesh's triangles"]
    for form in formats:
        path = (out / f"synergynet_face{SUFFIXES[form]}").as_posix()
        lines += ["", f"{path} in use:", "", snippet(form, path, graphs[1].outputs)]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__doc__, EPILOG, module="tools.export_onnx")
    add = parser.add_argument
    add("-w", "--weights", type=Path, metavar="FILE",
        help="SynergyNet checkpoint (default: published, or starter)")  # fmt: skip
    add("--face-model", type=Path, metavar="PATH",
        help="3DMM folder or .npz (default: published, or starter)")  # fmt: skip
    add("-o", "--out", type=Path, default=Path("exported"), metavar="FOLDER",
        help="where to write (default: exported)")  # fmt: skip
    add("--format", type=comma_list(tuple(SUFFIXES)), default=tuple(SUFFIXES), metavar="LIST",
        help="any of onnx,torchscript (default: both)")  # fmt: skip
    add("--sparse", action="store_true", help="landmarks and pose only, no dense mesh")
    options = parser.parse_args(arguments)
    if "onnx" in options.format and (missing := missing_packages()):
        parser.error(
            f"--format onnx needs what is not installed: pip install {' '.join(missing)}; "
            "--format torchscript does without"
        )
    # The networks run on a few crops only; on a busy machine two threads wait for each other at
    # every layer, which was seen to take minutes for a tenth of a second's work.
    torch.set_num_threads(1)
    try:
        lines = write_exports(
            options.weights or assets.find_weights(),
            options.face_model or assets.find_face_model(),
            options.out,
            options.format,
            dense=not options.sparse,
        )
    except RuntimeError as error:
        complain("export_onnx.py", error)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_script(main)
