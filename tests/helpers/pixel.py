"""Replace the plot of layers (layers.png) by one grey pixel, to make tests faster.

Drawing the plot takes as long as the rest of a tiny run. tests/results/test_report.py still draws
the plot, and so do runs in separate processes that do not import this module.
"""

from pathlib import Path

from PIL import Image

import flap.runs.reporting
from flap.results import Report


def draw_pixel(report: Report, path: Path) -> None:
    Image.new("L", (1, 1)).save(path)


flap.runs.reporting.draw_layers = draw_pixel
