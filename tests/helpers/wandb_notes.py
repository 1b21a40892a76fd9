"""What the jobs of a command line give W&B, noted where its functions are called; W&B itself works offline."""

import json
from pathlib import Path
from typing import Any

import wandb


def leave_notes() -> None:
    """From now on each run of this process leaves in its folder what it was given, when it ends: noted.json."""
    init, finish, asked = wandb.init, wandb.Run.finish, {}

    def noting_init(**options: Any) -> wandb.Run:
        run = init(**options)
        asked[run.id] = options
        return run

    def noting_finish(run: wandb.Run, exit_code: int = 0) -> None:
        options = asked[run.id]
        names = ("id", "name", "group", "job_type", "tags", "config")
        notes = {name: options[name] for name in names} | {"summary": dict(run.summary), "exit_code": exit_code}
        (Path(options["dir"]) / "noted.json").write_text(json.dumps(notes, default=str))
        finish(run, exit_code=exit_code)

    wandb.init, wandb.Run.finish = noting_init, noting_finish
