"""The results of runs: reports of single runs, studies of sweeps, and comparisons of runs.

A study shows the results of all runs of one or more sweeps as a table, plots and an HTML page.
"""

from flap.results.card_text import model_card
from flap.results.provenance import described, device_name
from flap.results.report import Report
from flap.results.report_tables import headline, markdown, show

__all__ = ["Report", "described", "device_name", "headline", "markdown", "model_card", "show"]
