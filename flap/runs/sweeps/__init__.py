"""Sweeps: GPUs and errors of their processes, and the study that is written at their end."""
