"""The process that runs: the ranks beside it, its progress bars, memory and temporary state."""
