from tests.helpers.browser import browser
from tests.helpers.runs import run_tiny

__all__ = ["browser", "run_tiny"]
