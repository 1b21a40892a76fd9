"""Support sweeps: give each process a GPU, explain the errors of cells, and write the study.

A sweep is a command that runs several configs. A cell is the run of one of these configs. The
study shows all cells in a table and in plots.
"""
