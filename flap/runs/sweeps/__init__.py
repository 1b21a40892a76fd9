"""Support sweeps: give each process a GPU, explain the errors of cells, and write the study.

A sweep is a command that runs several configs. A cell is one of these runs. The study shows all of
them in a table and in plots.
"""
