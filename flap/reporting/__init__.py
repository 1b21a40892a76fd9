"""The report of a run, as files for people and for programs."""

from flap.reporting.card import model_card
from flap.reporting.picture import draw_layers
from flap.reporting.provenance import described, device_name
from flap.reporting.report import Report
from flap.reporting.resume import changed_inputs, finished_run
from flap.reporting.table import markdown, show

__all__ = [
    "Report", "changed_inputs", "described", "device_name", "draw_layers", "finished_run", "markdown", "model_card",
    "show",
]  # fmt: skip
