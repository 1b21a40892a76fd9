"""What a run leaves for people and programs."""

from flap.reporting.picture import draw_layers
from flap.reporting.report import Report
from flap.reporting.state import finished_run, read_state, write_status
from flap.reporting.table import markdown, show

__all__ = ["Report", "draw_layers", "finished_run", "markdown", "read_state", "show", "write_status"]
