"""Where the tests find what is not part of the repository, and the small models they share.

The reference values of the published computation and the published assets are licensed data that
this repository does not contain. Tests that need them skip, saying so, where they are absent.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "golden"))
ASSETS_DIR = Path(os.environ.get("ASSETS_DIR", ROOT.parent / "shared" / "assets"))

torch.set_num_threads(2)


def load_golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of one reference file; skips the test where the folder is absent."""
    if not GOLDEN_DIR.is_dir():
        pytest.skip(f"reference values not present: {GOLDEN_DIR}")
    with np.load(GOLDEN_DIR / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def asset(*parts: str) -> Path:
    """Path of one published asset; skips the test where the folder is absent."""
    if not ASSETS_DIR.is_dir():
        pytest.skip(f"published assets not present: {ASSETS_DIR}")
    return ASSETS_DIR.joinpath(*parts)
