"""A symmetric triangle mesh on the sculpted face, with landmarks and feature lines on its edges.

The right half of the chart (u >= 0) is covered with points whose spacing on the surface follows
`spacing`: first the fixed ones (landmarks, lid margins, lip lines, midline, outline), then the
rest, spread by Lloyd's algorithm. Delaunay triangulation, edge flips to suit the surface instead
of the chart, and a mirror image make the whole. The mouth stays open: the lips' inner lines are a
hole, rolled inward a little.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path as Polygon
