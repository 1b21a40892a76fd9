"""Sweeps: one GPU per process, errors of cells, and the study that is written at the end."""
