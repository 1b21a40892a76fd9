"""The running process: other ranks, progress bars, peak memory and temporary state."""
