"""Support sweeps: give each process a GPU, explain the errors of cells, and write the study."""
