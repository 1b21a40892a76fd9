"""One process of a training in several: torchrun calls `python -m flap.recovery FOLDER` (processes.py)."""

import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from flap.recovery.processes import work_in

if __name__ == "__main__":
    set_verbosity_error()
    disable_progress_bar()
    work_in(Path(sys.argv[1]))
