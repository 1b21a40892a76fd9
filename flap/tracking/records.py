"""The numbers of a report as flat names and values, and the ids of W&B runs."""

import hashlib
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

from flap.results.report import Report
from flap.storage.files import write_text


def summary(report: Report) -> dict[str, Any]:
    """Return the report's numbers by flat names: "pruned/wikitext2/perplexity@2048", "ratio/realised_decoder"."""
    sections: dict[str, Any] = {
        **report.evaluation,
        "difference_stderr": report.difference_stderr,
        "ratio": report.ratio,
        **{f"target/{name}": values for name, values in report.target.items()},
        "parameters": report.parameters,
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
    }
    numbers = {f"{section}/{name}": value for section, entries in sections.items() for name, value in entries.items()}
    return numbers | {"statistics_cache": report.statistics_cache, "checkpoint": report.checkpoint}


def kept_id(run_dir: Path, text: str) -> str:
    """Return the id of the run in a folder, which is made once and stored there; it is unique, also across machines."""
    file = run_dir / "wandb" / "id"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, f"{legal_id(text)}-{uuid4().hex[:8]}")
    return file.read_text()


def legal_id(text: str) -> str:
    """Return a valid id for W&B runs and artifacts: the end of the text, and a hash of the whole text."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-80:].strip("-.")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
