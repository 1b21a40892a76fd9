"""Texts for calibration and evaluation, and their token windows."""

from flap.data.texts import Text, read_text
from flap.data.windows import begins_with_bos, calibration_windows, evaluation_windows, tokens_sha256

__all__ = [
    "Text", "begins_with_bos", "calibration_windows", "evaluation_windows", "read_text", "tokens_sha256",
]  # fmt: skip
