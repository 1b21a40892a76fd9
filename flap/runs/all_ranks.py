"""The start of a run in several processes: all of them prepare the same one."""

from collections.abc import Callable

from flap.config import require
from flap.results import described, device_name
from flap.runs.run import Run
from flap.storage import digest, ranks
from flap.storage.ranks import AgreedError


def prepared_alike(prepare: Callable[[], Run]) -> Run:
    """Return the run that `prepare` returns in each process, which has a part of it; the report has their devices.

    Raises:
        ValueError: it refuses its input; or configs, models or texts differ: names the first process with other ones.
    """
    if (size := ranks.size()) == 1:
        return prepare()
    run = ranks.agreed(lambda: _to_share(prepare(), size))
    model = {k: v for k, v in run.source.fingerprint.items() if k not in ("commit", "files")}
    facts = {"the config": digest(described(run.config)), "the model": digest(model)}
    facts |= {f"the content of {name}": value for name, value in run.inputs.items() if name != "model"}
    everywhere = ranks.gather((ranks.name(), device_name(run.source.device), facts))
    (first, _, expected), *others = everywhere
    for name, _, theirs in others:
        if differ := [fact for fact in {**expected, **theirs} if theirs.get(fact) != expected.get(fact)]:
            raise AgreedError(f"{name}: {', '.join(differ)} is not as on {first}")
    run.report.processes = [f"{name}: {device}" for name, device, _ in everywhere]
    return run


def _to_share(run: Run, size: int) -> Run:
    """Return the run after a check that so many processes can share it."""
    source, windows, calibration = run.source, run.windows, run.config.calibration
    allowed = "device or stream with several processes"
    require(source.placed.whole or source.placed.streams, "model.placement", source.placement, allowed)
    count = sum(sum(windows.counts(seq_len)) for seq_len in windows.lengths) if windows else size
    allowed = f"{size} windows or more, one for each process"
    require(count >= size, "calibration.num_samples", calibration.num_samples, allowed)
    return run
