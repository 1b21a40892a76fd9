"""Run flap as `python -m flap`."""

from flap.cli import main

main()
