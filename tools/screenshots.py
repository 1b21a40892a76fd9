"""Make the pictures of the documentation anew, `make screenshots`: run what they show, and photograph it.

docs/study.png: the page of a sweep over methods and ratios, with a cell that fails. docs/layers.png: what each layer of
one of its models kept. Both are of SmolLM2-135M and take about ten minutes on two cores.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import ViewportSize, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
SWEEP = [
    "hydra.sweep.dir=multirun_outputs/methods",
    "method=flap,wanda_sp,mag_sp",
    "ratio=0.1,0.2,0.3,1.5",  # the last is refused, as an example of a failed cell
    "calibration.num_samples=32",
    "eval.perplexity.max_tokens=4096",
    "checkpoint.save=false",
]
SHOWN = "*_WIFV_AL-AM_r0.2_*/layers.png"
WIDTH, HEIGHT, SCALE = 1280, 1000, 1.5


def main() -> None:
    """Run the sweep in a folder of its own, so that the page names no path of this machine, and take the pictures."""
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "flap", "-m", *SWEEP], cwd=folder, check=False)  # one cell fails
        sweep = Path(folder) / "multirun_outputs" / "methods"
        photograph(sweep / "index.html", DOCS / "study.png")
        [picture] = sweep.glob(SHOWN)
        shutil.copy(picture, DOCS / "layers.png")


def photograph(page_file: Path, target: Path) -> None:
    """Save what a page shows on a screen of WIDTH by HEIGHT pixels, by the system's Chromium without a network."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("error: no chromium on the PATH; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        size = ViewportSize(width=WIDTH, height=HEIGHT)
        page = browser.new_context(offline=True, viewport=size, device_scale_factor=SCALE).new_page()
        page.goto(page_file.as_uri())
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    main()
