"""Runs, checkpoints and plans side by side: what differs in them, and whether it is real; `python -m flap.compare`."""
