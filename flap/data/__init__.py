"""Read texts for calibration and evaluation, and cut them into token windows."""

from flap.data.batch import Batch
from flap.data.mixture import SELF, Part, TextsInMemory, parse
from flap.data.prompts import FORMATS, read_prompts
from flap.data.text import Prompt, Text, repetition
from flap.data.text_files import read_text, texts_in_memory
from flap.data.token_text import retokenised, text_bytes
from flap.data.window_pool import HELD_OUT, Pool, split_windows
from flap.data.windows import (
    Windows,
    batch_sha256,
    evaluation_windows,
    tokens_sha256,
    uses_bos,
)

__all__ = [
    "FORMATS",
    "HELD_OUT",
    "SELF",
    "Batch",
    "Part",
    "Pool",
    "Prompt",
    "Text",
    "TextsInMemory",
    "Windows",
    "batch_sha256",
    "evaluation_windows",
    "parse",
    "read_prompts",
    "read_text",
    "repetition",
    "retokenised",
    "split_windows",
    "text_bytes",
    "texts_in_memory",
    "tokens_sha256",
    "uses_bos",
]
