"""Take the pictures of the documentation: `make screenshots`.

The script runs a sweep over methods and ratios with SmolLM2-135M-Instruct. docs/study.png shows the
page of this sweep, on which some cells (runs of the sweep) have failed. docs/layers.png comes from
the cell with method=flap and ratio=0.2, and shows how many heads and neurons each layer keeps. The
script takes about three minutes on two cores.
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
    "ratio=0.2,0.4,1.5",  # flap refuses a ratio of 1.5, so the page shows failed cells
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
COLOURS = 128  # number of colours in a picture; with all colours, its file is three times as large


def main() -> None:
    """Run the sweep and take the pictures.

    The sweep runs in a temporary folder, so that its page contains no path of this checkout.
    """
    with TemporaryDirectory() as folder, chromium() as page:
        sweep = Path(folder) / "multirun_outputs" / "methods"
        sweep.mkdir(parents=True)
        # `check` is false, because the sweep fails: its two cells with ratio=1.5 are meant to fail.
        subprocess.run([sys.executable, "-m", "flap", "-m", *SWEEP], cwd=folder, check=False)
        page.goto((sweep / "index.html").as_uri())
        photograph(page, DOCS / "study.png")
        [picture] = sweep.glob(SHOWN)
        shutil.copy(picture, DOCS / "layers.png")


@contextmanager
def chromium() -> Iterator[Page]:
    """Start the Chromium on the PATH, and yield a page of WIDTH by HEIGHT CSS pixels."""
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
    """Save a picture of a page to the file `target`, with only COLOURS colours."""
    page.screenshot(path=target)
    Image.open(target).convert("RGB").quantize(COLOURS).save(target, optimize=True)


if __name__ == "__main__":
    main()
