"""What a report says of a job: where its texts come from, how they begin, and how they relate to each other."""

from flap.jobs.job import Job
from flap.storage import digest


def sources(job: Job) -> dict[str, str]:
    """Return the origin of the model and of each text."""
    texts = {use: "; ".join(text.origin for text in windows.known) for use, windows in job.texts.items()}
    images = {"images": job.images.folder} if job.images else {}
    return {"model": job.source.origin, **texts, **images, **{task.name: task.origin for task in job.suite.tasks}}


def begins_with_bos(job: Job) -> dict[str, bool]:
    """Return whether windows begin with the beginning-of-sequence token: those of calibration, and of each task."""
    tasks = {task.name: bool(task.identity["bos"]) for task in job.suite.tasks if "bos" in task.identity}
    return tasks if job.windows is None else {"calibration": job.windows.bos, **tasks}


def inputs(job: Job) -> dict[str, str]:
    """Return a digest of everything that is not in the config and changes the result: see `CacheKeys.inputs`; tasks."""
    return job.keys.inputs | {task.name: digest([task.origin, task.text_sha256]) for task in job.suite.tasks}


def domains(job: Job) -> dict[str, str]:
    """Return for each task how its domain relates to those of the texts of calibration and recovery.

    What the model has still to write is of no task's domain.
    """
    if not job.texts:
        return {}
    texts = [text for windows in job.texts.values() for text in windows.known]
    domains = {task.name: {task.domain(text) for text in texts} for task in job.suite.tasks}
    return {name: "calibration" if "calibration" in found else "other" for name, found in domains.items()}
