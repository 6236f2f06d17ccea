"""The published computation's reference values, each to its tolerance.

``GOLDEN_DIR`` and ``ASSETS_DIR`` in the environment point to the reference values and to the
published assets (default: ``../shared/golden`` and ``../shared/assets`` beside the checkout).
"""

# ruff: noqa: I001  (imports will be merged at the top once all sections stand)

# ---------------------------------------------------------------- 3DMM and camera (morphable.npz)

# ---------------------------------------------------------------- network (network.npz)

# ---------------------------------------------------------------- losses (losses.npz)

# ---------------------------------------------------------------- detector (faceboxes, priors, nms)

# ---------------------------------------------------------------- rasteriser (raster.npz)

# ---------------------------------------------------------------- AFLW2000-3D protocol
