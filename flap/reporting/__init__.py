"""What a run leaves for people and programs."""

from flap.reporting.picture import draw_layers
from flap.reporting.report import Report
from flap.reporting.resume import finished_run
from flap.reporting.table import markdown, show

__all__ = ["Report", "draw_layers", "finished_run", "markdown", "show"]
