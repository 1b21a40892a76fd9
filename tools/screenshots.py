"""Take the pictures of the documentation: `make screenshots`.

docs/study.png shows the page of a sweep over methods and ratios, with failed cells. docs/layers.png
shows how much of each layer one of these models keeps, and the error of each layer. The model is
SmolLM2-135M-Instruct. The script takes about three minutes on two cores.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
SWEEP = [
    "hydra.sweep.dir=multirun_outputs/methods",
    "method=flap,wanda_sp",
    "ratio=0.2,0.4,1.5",  # flap refuses 1.5, as an example of a failed cell
    "eval=[perplexity,divergence]",
    "calibration.num_samples=32",
    "eval.perplexity.max_tokens=1024",
    "eval.divergence.max_tokens=1024",
    "checkpoint.save=false",
]
SHOWN = "*_WIFV_AL-AM_r0.2_*/layers.png"
WIDTH = 1280
HEIGHT = 1000
SCALE = 1.5
COLOURS = 128  # number of colours in a picture; a palette makes its file a third as large


def main() -> None:
    """Run the sweep and take the pictures.

    The sweep is in a temporary folder, so that the page contains no path of this machine.
    """
    with TemporaryDirectory() as folder, chromium() as page:
        sweep = Path(folder) / "multirun_outputs" / "methods"
        sweep.mkdir(parents=True)
        # There is no `check=True`, because one cell fails on purpose.
        subprocess.run([sys.executable, "-m", "flap", "-m", *SWEEP], cwd=folder, check=False)
        page.goto((sweep / "index.html").as_uri())
        photograph(page, DOCS / "study.png")
        [picture] = sweep.glob(SHOWN)
        shutil.copy(picture, DOCS / "layers.png")


@contextmanager
def chromium() -> Iterator[Page]:
    """Start the system's Chromium, and open a window of WIDTH by HEIGHT pixels."""
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("error: no chromium on the PATH; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        size = ViewportSize(width=WIDTH, height=HEIGHT)
        yield browser.new_context(viewport=size, device_scale_factor=SCALE).new_page()
        browser.close()


def photograph(page: Page, target: Path) -> None:
    """Save a picture of a page."""
    page.screenshot(path=target)
    Image.open(target).convert("RGB").quantize(COLOURS).save(target, optimize=True)


if __name__ == "__main__":
    main()
