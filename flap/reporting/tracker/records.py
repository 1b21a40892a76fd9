"""A report as flat names and values, and the ids that W&B keeps its runs under."""

import hashlib
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

from flap.files import write_text
from flap.reporting.report import Report


def summary(report: Report) -> dict[str, Any]:
    """The report's numbers as flat names: "pruned/wikitext2/perplexity@2048", "ratio/realised_decoder"."""
    sections: dict[str, Any] = {
        **report.evaluation,
        "ratio": report.ratio,
        "parameters": report.parameters,
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
    }
    numbers = {f"{section}/{name}": value for section, of in sections.items() for name, value in of.items()}
    return numbers | {"statistics_cache": report.statistics_cache}


def kept_id(run_dir: Path, text: str) -> str:
    """The id of the run in a folder, made once and kept there; a folder of the same name elsewhere has another."""
    file = run_dir / "wandb" / "id"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, f"{legal_id(text)}-{uuid4().hex[:8]}")
    return file.read_text()


def legal_id(text: str) -> str:
    """An id that W&B takes, for runs and artifacts alike: the end of the text, and a hash that tells texts apart."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-80:].strip("-.")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
