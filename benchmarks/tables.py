"""What the tables of the benchmarks are made of."""

import numpy as np


def median_and_quartiles(values: np.ndarray, form: str = ".2f") -> str:
    """Two cells of a Markdown row: the median of (repeats,) values, and their quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:{form}} | {low:{form}}–{high:{form}}"
