"""The results of runs: reports, studies of sweeps, and comparisons of runs."""

from flap.results.card_text import model_card
from flap.results.provenance import described, device_name
from flap.results.report import Report
from flap.results.report_tables import headline, markdown, show

__all__ = ["Report", "described", "device_name", "headline", "markdown", "model_card", "show"]
