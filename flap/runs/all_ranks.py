"""Whether all processes of a run have prepared the same one."""

from flap.config import require
from flap.results import described, device_name
from flap.runs.run import Run
from flap.storage import digest, ranks


def check_alike(run: Run) -> None:
    """Check that all processes have the same config, model and texts, and a window each; the report has their devices.

    Raises:
        ValueError: they have not; names the first process that is not as the first one of all.
    """
    if ranks.size() == 1:
        return
    source, windows = run.source, run.windows
    model = {k: v for k, v in source.fingerprint.items() if k not in ("commit", "files")}
    facts = {"the config": digest(described(run.config)), "the model": digest(model)}
    facts |= {f"the content of {name}": value for name, value in run.inputs.items() if name != "model"}
    (first, _, expected), *others = everywhere = ranks.gather((ranks.name(), device_name(source.device), facts))
    run.report.processes = [f"{name}: {device}" for name, device, _ in everywhere]
    for name, _, theirs in others:
        if differ := [fact for fact in {**expected, **theirs} if theirs.get(fact) != expected.get(fact)]:
            raise ValueError(f"{name}: {', '.join(differ)} is not as on {first}")
    allowed = "device or stream with several processes"
    require(source.placed.whole or source.placed.streams, "model.placement", source.placement, allowed)
    if run.choices.need_windows:
        counts = [sum(windows.counts(seq_len)) for seq_len in windows.lengths] if windows else []
        allowed, given = f"{ranks.size()} windows or more, one for each process", run.config.calibration.num_samples
        require(sum(counts) >= ranks.size(), "calibration.num_samples", given, allowed)
