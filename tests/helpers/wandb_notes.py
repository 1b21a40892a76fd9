"""What a run is given to log in W&B, noted where W&B's own functions are called."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb


@dataclass
class NotedRun:
    """A run in the place of W&B's own, which sends nothing. options: those of `wandb.init`."""

    options: dict[str, Any]
    offline: bool = True
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, wandb.Artifact] = field(default_factory=dict)  # by the first word of their names
    used: list[str] = field(default_factory=list)  # artifacts that the run has used and not made
    metrics: list[tuple[Any, ...]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def id(self) -> str:
        return str(self.options["id"])

    @property
    def dir(self) -> str:
        return f"{self.options['dir']}/wandb/offline-run/files"

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics.append((name, options))

    def log(self, values: dict[str, Any]) -> None:
        self.history.append(values)

    def log_artifact(self, artifact: wandb.Artifact) -> None:
        self.artifacts[artifact.name.partition("-")[0]] = artifact

    def _log_artifact(self, artifact: wandb.Artifact, use_after_commit: bool = False, **options: Any) -> None:
        """What W&B calls for an artifact that is used offline."""
        self.log_artifact(artifact)
        self.used += [artifact.name.partition("-")[0]] * use_after_commit

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code

    def series(self, name: str) -> list[Any]:
        return [values[name] for values in self.history if name in values]

    def table(self, name: str) -> wandb.Table:
        [table] = self.series(name)
        return table

    def places(self, artifact: str) -> dict[str, str]:
        """Where each file of an artifact lies, or what it refers to."""
        entries = self.artifacts[artifact].manifest.entries
        return {path: entry.ref or entry.local_path for path, entry in entries.items()}


def leave_notes() -> None:
    """From now on each run of this process leaves in its folder what it was given, when it ends: noted.json."""
    init, finish, noted = wandb.init, wandb.Run.finish, {}

    def noting_init(**options: Any) -> wandb.Run:
        run = init(**options)
        noted[run.id] = options
        return run

    def noting_finish(run: wandb.Run, exit_code: int = 0) -> None:
        options = noted[run.id]
        names = ("id", "name", "group", "job_type", "tags", "config")
        notes = {name: options[name] for name in names} | {"summary": dict(run.summary), "exit_code": exit_code}
        (Path(options["dir"]) / "noted.json").write_text(json.dumps(notes, default=str))
        finish(run, exit_code=exit_code)

    wandb.init, wandb.Run.finish = noting_init, noting_finish
