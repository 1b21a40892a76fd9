"""Cut a text into two halves at the end of a line: `python experiments/transfer/halves.py FILE`.

The script writes the halves next to FILE: NAME-first.txt to calibrate on, and NAME-second.txt to
evaluate on, where NAME is the name of FILE without its ending. Use this script if WikiText-2's
training split cannot be downloaded: calibrate on one half of its test split, and evaluate on the
other half.
"""

import sys
from pathlib import Path


def main(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    middle = text.find("\n", len(text) // 2) + 1
    if not 0 < middle < len(text):
        raise SystemExit(
            f"{path}: no line ends within its second half; expected a text of several lines"
        )
    for name, half in (("first", text[:middle]), ("second", text[middle:])):
        target = path.with_name(f"{path.stem}-{name}.txt")
        target.write_text(half, encoding="utf-8")
        print(f"{target}: {len(half):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
