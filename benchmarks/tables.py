"""What the benchmarks share."""

import numpy as np

# Seconds between two ways: so long the threads of numpy's BLAS may spin on after a large product.
SETTLE = 0.2


def median_and_quartiles(values: np.ndarray, form: str = ".2f") -> str:
    """Two cells of a Markdown row: the median of (repeats,) values, and their quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:{form}} | {low:{form}}–{high:{form}}"
