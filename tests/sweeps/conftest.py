from tests.helpers.runs import run_tiny

__all__ = ["run_tiny"]
