"""What a run leaves in W&B as artifacts: its report, and the lineage from the dense model to the checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from flap.results.report import Report
from flap.tracking.records import legal_id

if TYPE_CHECKING:
    import wandb


def log_report(run: "wandb.Run", run_dir: Path) -> None:
    """Send the picture of the layers, if it could be drawn, and report.json as an artifact."""
    import wandb

    if (picture := run_dir / "layers.png").is_file():
        run.log({"picture": wandb.Image(str(picture))})
    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    artifact.add_file(str(run_dir / "report.json"))
    run.log_artifact(artifact)


def log_lineage(run: "wandb.Run", report: Report, upload: bool) -> None:
    """Send the dense model as what the run used, and the checkpoint as what it made.

    The dense model is a reference to its place; so is the checkpoint, unless `upload` asks for its files.
    """
    import wandb

    dense = _dense(report)
    # run.use_artifact does the same, but refuses offline runs, and waits for the server in others
    run._log_artifact(dense, is_user_created=True, use_after_commit=True)
    checkpoint = Path(report.checkpoint or "").resolve()
    made = wandb.Artifact(f"model-{run.id}", type="model", metadata={"loads_with": report.loads_with})
    if upload:
        made.add_dir(str(checkpoint), policy="immutable", skip_cache=True)  # uploaded from its folder, without a copy
    else:
        made.add_reference(checkpoint.as_uri(), name="checkpoint", checksum=False)
    run.log_artifact(made)


def _dense(report: Report) -> "wandb.Artifact":
    """Return the dense model as a reference to its folder or its page on the hub; its weights are not read."""
    import wandb

    path = str(report.config["model"]["path"])
    artifact = wandb.Artifact(f"dense-{legal_id(path)}", type="model", metadata={"source": report.sources.get("model")})
    place = Path(path).resolve().as_uri() if Path(path).is_dir() else f"https://huggingface.co/{path}"
    artifact.add_reference(place, name="model", checksum=False)
    return artifact
