"""What a run leaves for people and programs."""

from flap.reporting.console import show
from flap.reporting.picture import draw_layers
from flap.reporting.report import Report

__all__ = ["Report", "draw_layers", "show"]
