"""What `--help` prints, made from the groups of conf/: Hydra takes a second for it, and copies all configs."""

import re
from pathlib import Path

from flap.config.schema import config_dir

TEXT = """flap: a smaller language model without training, by removing attention heads and MLP neurons.

python -m flap [group=choice …] [key=value …]

{groups}

ratio=0.2      share of the decoder's Linear weights to remove; or target.bytes=, parameters= or kv_cache_bytes=
dry_run=true   print what a run takes, and read no weight

Every key of a run, with its value: --cfg job.   A sweep: -m metric=IFV,WIFV ratio=0.2,0.5   A study: +experiment=NAME
Its page, or runs side by side: python -m flap.study FOLDER …   What this machine has: python -m flap doctor"""


def names_in(group: str) -> list[str]:
    """Return the choices of a group, a folder of conf/; a name with an underscore in front is what they share."""
    return sorted(path.stem for path in (Path(config_dir()) / group).glob("[!_]*.yaml"))


def help_text() -> str:
    """Return the help: each group of the table of contents, conf/config.yaml, with its comment and its choices."""
    contents = (Path(config_dir()) / "config.yaml").read_text()
    told = dict(re.findall(r"^  - (\w+): .*?# (.+)$", contents, re.MULTILINE)) | {
        "experiment": "a study with its sweep"
    }
    return TEXT.format(
        groups="\n".join(f"{name:<13}{text}: {', '.join(names_in(name))}" for name, text in told.items())
    )
