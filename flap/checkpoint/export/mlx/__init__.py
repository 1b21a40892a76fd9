"""Export of a checkpoint as a folder for mlx-lm."""
