"""Where else a run's numbers go: nowhere, or to Weights & Biases.

Files come first: W&B mirrors what a run has written, and whatever W&B raises ends in one warning. It is imported inside
functions, because that takes most of a second. What is mirrored, under which names: docs/tracking.md.
"""

import hashlib
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flap.files import write_text
from flap.progress import Step, listening
from flap.reporting.report import Report

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
INIT_SECONDS = 20.0  # a server that says nothing for so long is taken for unreachable
FINISH_SECONDS = 120.0  # what is not uploaded by then is left to `wandb sync`
CHECKPOINT_SECONDS = 3600.0  # the same where a checkpoint is uploaded
PROGRESS_SECONDS = 1.0  # between two records of one stage
WIDTHS = ("query_heads", "kv_heads", "neurons")


@dataclass(frozen=True)
class JobInfo:
    """What a tracker calls a run. id: any text that tells the runs of one machine apart, such as a run's folder."""

    id: str
    name: str
    group: str | None = None
    job_type: str = "run"  # or "sweep"
    tags: tuple[str, ...] = ()


class TrackedRun:
    """What a run tells its tracker; here nobody listens."""

    def finish(self, report: Report) -> None:
        """Take over a finished run, whose files are written."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Take over one table."""


class Tracking(ABC):
    """A choice of the `tracking` group."""

    @abstractmethod
    def check(self) -> None:
        """All that can be known before weights are loaded. Raises: ValueError: an option is out of range."""

    @abstractmethod
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> AbstractContextManager[TrackedRun]:
        """One run for as long as the block lasts; where the block raises, the run has failed and the error passes."""

    def log_study(self, sweep_dir: Path, columns: list[str], rows: list[list[Any]]) -> None:
        """The table of a sweep, in a run of its group. Once more is the same run again, not a second one."""
        job = JobInfo(f"{sweep_dir}/study", f"{sweep_dir.name} study", group=sweep_dir.name, job_type="study")
        with self.start({}, sweep_dir, job) as tracked:
            tracked.log_table("study", columns, rows)


@dataclass(frozen=True)
class NoTracking(Tracking):
    """The files are all there is."""

    def check(self) -> None:
        """Nothing can be wrong."""

    @contextmanager
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """A run that tells nobody."""
        yield TrackedRun()


@dataclass(frozen=True)
class Wandb(Tracking):
    """Weights & Biases. mode auto: online where a key is configured, else offline; group None: the sweep's folder."""

    project: str = "flap"
    entity: str | None = None
    mode: str = "auto"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    log_checkpoint: bool = False

    def check(self) -> None:
        """Raises: ValueError: unknown mode, a tag that W&B refuses, or mode online without a key."""
        if self.mode not in MODES:
            raise ValueError(f"tracking.mode={self.mode}: expected one of {', '.join(MODES)}")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tracking.tags={tag}: expected tags of 1 to 64 characters")
        if self.mode == "online":
            _require_key()

    @contextmanager
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """One W&B run, with exit code 1 where the block raises."""
        mirror, exit_code = _Mirror(self, run_dir), 1
        folder = run_dir.resolve() / "wandb"
        # W&B's caches and staged files, too, stay in the run's folder
        with _environment(WANDB_SILENT="true", WANDB_CACHE_DIR=f"{folder}/cache", WANDB_DATA_DIR=f"{folder}/data"):
            mirror.attempt(lambda: mirror.open(config, job))
            try:
                with listening(mirror.progress):
                    yield mirror
                exit_code = 0
            finally:
                mirror.send(lambda run: run.finish(exit_code=exit_code))


class _Mirror(TrackedRun):
    """One W&B run. The first thing that fails is said in one line; nothing that fails reaches the pipeline."""

    def __init__(self, options: Wandb, run_dir: Path) -> None:
        self.options, self.run_dir = options, run_dir
        self.run: wandb.Run | None = None
        self.warned = False
        self.due: dict[str, float] = {}  # stage -> when its next record may be sent

    def attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever W&B raises, the run's files come first
            self.warn(error)

    def send(self, action: Callable[["wandb.Run"], Any]) -> None:
        run = self.run
        if run is not None:
            self.attempt(lambda: action(run))

    def warn(self, error: Exception) -> None:
        if not self.warned:
            text = "W&B: %s: %s; the run goes on, its files in %s do not depend on it"
            log.warning(text, type(error).__name__, _one_line(error), self.run_dir)
        self.warned = True

    def open(self, config: dict[str, Any], job: JobInfo) -> None:
        """Start the W&B run; offline where that fails, as with an unreachable server."""
        import wandb

        try:
            self.run = self._init(_resolve(self.options.mode), config, job)
        except Exception as error:
            self.warn(error)
            wandb.teardown()  # else the half-started run keeps its id
            self.run = self._init("offline", config, job)
        if self.run.offline:
            log.info("W&B: recorded offline; send it with: wandb sync %s", Path(self.run.dir).parent)
        elif self.run.url:  # none where WANDB_MODE=disabled
            log.info("W&B: %s", self.run.url)
        self.run.define_metric("progress/*", summary="none")

    def _init(self, mode: str, config: dict[str, Any], job: JobInfo) -> "wandb.Run":
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=CHECKPOINT_SECONDS if self.options.log_checkpoint else FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self.options.project, entity=self.options.entity, mode=mode,  # type: ignore[arg-type]
            id=kept_id(self.run_dir, job.id), resume="allow",  # a job that was requeued continues its own run
            reinit="finish_previous",  # one run a job, also where a launcher runs all jobs in one process
            name=job.name, group=self.options.group or job.group, job_type=job.job_type,
            tags=list(dict.fromkeys([*job.tags, *self.options.tags])),
            config=config, dir=self.run_dir, settings=settings,
        )  # fmt: skip

    def progress(self, step: Step) -> None:
        """Share done, items, and tokens per second where they are counted: once a second, and the last one always."""
        now = time.monotonic()
        if step.done != step.total and now < self.due.get(step.stage, 0.0):
            return
        self.due[step.stage] = now + PROGRESS_SECONDS
        name = f"progress/{step.stage}"
        values: dict[str, float] = {f"{name}/items": step.done}
        if step.total:
            values[name] = step.done / step.total
        if step.tokens and step.seconds:
            values[f"{name}/tokens_per_second"] = step.tokens / step.seconds
        self.send(lambda run: run.log(values))

    def finish(self, report: Report) -> None:
        """Numbers, what each layer kept, the picture, report.json, and the checkpoint where that is asked for."""
        columns = ["layer", *(f"{width}_before" for width in WIDTHS), *WIDTHS]
        pairs = zip(report.layers_before, report.layers, strict=True)
        rows = [[i, *(one[width] for one in pair for width in WIDTHS)] for i, pair in enumerate(pairs)]
        self.send(lambda run: run.summary.update(summary(report)))
        self.log_table("layers", columns, rows)
        self.send(lambda run: _log_files(run, self.run_dir))
        checkpoint = report.checkpoint
        if self.options.log_checkpoint and checkpoint:
            self.send(lambda run: _log_checkpoint(run, checkpoint))

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        def log_it(run: "wandb.Run") -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)})

        self.send(log_it)


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


def _log_files(run: "wandb.Run", run_dir: Path) -> None:
    import wandb

    run.log({"picture": wandb.Image(str(run_dir / "layers.png"))})
    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    artifact.add_file(str(run_dir / "report.json"))
    run.log_artifact(artifact)


def _log_checkpoint(run: "wandb.Run", checkpoint: str) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    artifact.add_dir(checkpoint, policy="immutable", skip_cache=True)  # uploaded from where it lies, without a copy
    run.log_artifact(artifact)


def _resolve(mode: str) -> str:
    """What auto means here; WANDB_MODE and `wandb offline` are heard, too."""
    import wandb

    if mode != "auto":
        return mode
    configured = wandb.setup().settings.mode
    return "offline" if configured == "online" and not _key_found() else configured


def _key_found() -> bool:
    """Whether W&B finds a key in the environment, in netrc or in its settings; nobody is asked for one."""
    # wandb.login() is public, but finds none while a run is open, and rewrites the user's settings file
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    with _environment(WANDB_SILENT="true"):
        host = wandb_setup.singleton().settings.base_url
        found = wbauth.authenticate_session(host=host, source="flap", prompt=False, update_session=False)
    return found is not None


def _require_key() -> None:
    try:
        missing = "" if _key_found() else "no W&B key is configured"
    except ImportError:  # no reason to refuse the run; its start will say so
        return
    except Exception as error:  # a key that W&B does not take for one
        missing = _one_line(error)
    if missing:
        remedy = "run `wandb login`, set WANDB_API_KEY, or take tracking.mode=offline"
        raise ValueError(f"tracking.mode=online: {missing}; {remedy}")


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Set what the environment does not set itself, for as long as the block lasts."""
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
