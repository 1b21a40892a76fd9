"""Helpers for the running processes: ranks, progress bars, peak memory and temporary state."""
