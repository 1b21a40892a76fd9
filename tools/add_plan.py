"""Add a packaged plan to flap: `python tools/add_plan.py method=flap_plus ratio=0.2`.

A plan says which heads and neurons of a model stay; flap is distributed with the plans in plans/.
The script runs flap with the options of the command line, and measures the perplexity of passages
that are not in the calibration text. It then copies the plan of this run to
plans/MODEL/METHOD-RATIO.json, and the report of this run to plans/MODEL/reports/. The checkout of
flap must have no uncommitted changes, because the report names the commit of the checkout.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from flap.results import Report
from flap.results.configs import flat

PLANS = Path(__file__).resolve().parents[1] / "plans"
MEASURED = ("eval.perplexity.max_tokens=4096", "checkpoint.save=false")


def main() -> None:
    """Run flap with the options of the command line, and add the plan of this run to plans/."""
    with TemporaryDirectory() as folder:
        words = [*MEASURED, *sys.argv[1:], f"hydra.run.dir={folder}"]
        done = subprocess.run([sys.executable, "-m", "flap", *words], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        try:
            print(f"plan={add(Path(folder), PLANS)}")
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None


def add(run: Path, plans: Path) -> str:
    """Copy the plan and the report of a finished run to `plans`, and return the plan's name.

    run: the folder of the run.

    Raises:
        ValueError: the checkout had uncommitted changes when flap ran, or the report contains an
            absolute path, which exists only on this machine.
    """
    report = Report.load(run / "report.json")
    report.checkpoint = None  # the path of the checkpoint, which exists only on this machine
    if report.git.get("dirty") is not False:
        raise ValueError(
            "the checkout has changes; commit them first, so that the report names them"
        )
    for key, value in flat(report.to_dict()).items():
        if isinstance(value, str) and Path(value).is_absolute():
            raise ValueError(f"{key}={value}: is a path of this machine; run flap in its folder")

    model = plans / report.config["model"]["name"]
    name = f"{report.config['method']}-{report.config['ratio']}"
    (model / "reports").mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "plan.json", model / f"{name}.json")
    report.save(model / "reports" / f"{name}.json")
    return f"{model.name}/{name}"


if __name__ == "__main__":
    main()
