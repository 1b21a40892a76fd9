"""The command `python -m flap reproduce RUN`.

The command repeats a run with the config in its report, and compares what the two runs have
measured, such as perplexities and accuracies.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flap.config.messages import logged
from flap.storage.status import LOG, exit_on_error

if TYPE_CHECKING:
    from flap.config import FlapConfig

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Repeat a run with the config in its report, and print the measured numbers of both runs.

    For each number, a verdict is printed, such as "equal". "within the error" means that the two
    values differ by at most one standard error, or not significantly in a paired test
    (`compare_runs` has the details). Exit with code 1 if a number has the verdict "different", or
    if the run cannot be repeated.
    """
    given = _parser().parse_args(arguments)
    # imported here because --help should not wait seconds for torch and pandas
    from flap.results.reproduction import print_reproduction, read_finished

    with exit_on_error():
        old = read_finished(given.run)
        config = config_of(old.report.config)
        if given.seed is not None:
            config.seed = given.seed
        into = given.into or _new_folder(given.run)
        _run_again(config, into)
        print(f"run again: {into}")
        if not print_reproduction(old, read_finished(into)):
            raise SystemExit(1)


def config_of(plain: dict[str, Any]) -> "FlapConfig":
    """Check the config in a report, and return the config for a repetition of the run.

    The repeated run does not use the cache, sends nothing to a service such as MLflow, and saves
    its checkpoint in its own folder.

    plain: the config as dicts and lists, as in report.json.

    Raises:
        ValueError: this version of flap does not know one of the keys or values.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from flap.config import FlapConfig, explain, literal, typed

    changed: dict[str, Any] = {"use_cache": False, "tracking": None, "dry_run": False}
    schema = OmegaConf.structured(FlapConfig)
    try:
        composed = OmegaConf.merge(schema, literal(plain | changed))
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    assert isinstance(composed, DictConfig)
    composed.checkpoint.dir = None
    composed.checkpoint.overwrite = False
    return typed(composed)


def _run_again(config: "FlapConfig", into: Path) -> None:
    """Execute the run of a config in a new folder.

    If the run fails before it has written a file, the folder is removed.

    Raises:
        ValueError: the folder exists already, or the config cannot be run on this machine.
    """
    from flap.pipeline import run
    from flap.runs.owner import quieten_libraries

    try:
        into.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(f"--into={into}: exists already; choose a new folder") from None
    try:
        with logged(into / LOG):
            quieten_libraries()
            log.info("running %s again in %s", config.run_name, into)
            run(config, into)
    except BaseException:
        if not any(into.iterdir()):
            into.rmdir()
        raise


def _new_folder(run: Path) -> Path:
    """Return the path of a folder that does not exist yet, such as RUN-again or RUN-again-2.

    The path is next to the folder of the run. If `run` is a report file that is not named
    report.json, the path is in the current working directory.
    """
    folder = run.resolve()
    if run.name == "report.json":
        folder = folder.parent
    elif not run.is_dir():
        folder = Path.cwd() / run.stem
    again = folder.with_name(f"{folder.name}-again")
    number = 2
    while again.exists():
        again = folder.with_name(f"{folder.name}-again-{number}")
        number += 1
    return again


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flap reproduce",
        description=(
            "Run the config of a report again, without the cache, and print every number of both "
            "runs: equal, within the error, or different. Exit with code 1 if one is different."
        ),
    )
    parser.add_argument("run", type=Path, help="the folder of a finished run, or its report.json")
    parser.add_argument(
        "--into",
        type=Path,
        help="the folder of the new run; by default a folder beside the run, RUN-again",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="another seed than that of the report: do its numbers depend on the seed?",
    )
    return parser
