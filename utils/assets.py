"""Where the files are, and which of several is taken: published ones win over the starter kit."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STARTER_FACE_MODEL = ROOT / "starter_kit" / "face_model" / "face_model.npz"
STARTER_WEIGHTS = ROOT / "pretrained" / "starter_synergynet.pth"
STARTER_DETECTOR_WEIGHTS = ROOT / "FaceBoxes" / "weights" / "starter_faceboxes.pth"
# in the order in which they are looked for
FACE_MODELS = (ROOT / "3dmm_data", STARTER_FACE_MODEL)
WEIGHTS = (ROOT / "pretrained" / "best.pth.tar", STARTER_WEIGHTS)
DETECTOR_WEIGHTS = (
    ROOT / "FaceBoxes" / "weights" / "FaceBoxesProd.pth",
    STARTER_DETECTOR_WEIGHTS,
)

# of a script that is to run with the starter kit whatever lies there
STARTER_OPTIONS = (
    *("-w", str(STARTER_WEIGHTS), "--face-model", str(STARTER_FACE_MODEL)),
    *("--detector-weights", str(STARTER_DETECTOR_WEIGHTS)),
)


def _first_existing(candidates: tuple[Path, ...], what: str) -> Path:
    for path in candidates:
        if path.exists():
            return path
    tried = " nor ".join(str(path.relative_to(ROOT)) for path in candidates)
    raise FileNotFoundError(
        f"no {what}: neither {tried} exists. The second ships with the repository: restore it "
        "(git checkout), or get the published files (README, 'Published files')."
    )


def find_face_model() -> Path:
    """The published ``3dmm_data/`` where present, else the bundled starter model.

    Raises:
        FileNotFoundError: neither is there; of the two below likewise.
    """
    return _first_existing(FACE_MODELS, "face model")


def find_weights() -> Path:
    """The published SynergyNet weights where present, else the starter's."""
    return _first_existing(WEIGHTS, "SynergyNet weights")


def find_detector_weights() -> Path:
    """The published FaceBoxes weights where present, else the starter's."""
    return _first_existing(DETECTOR_WEIGHTS, "detector weights")


def shown(path: object) -> str:
    """A path as messages name it: relative to the repository where it lies inside."""
    path = Path(str(path)).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
