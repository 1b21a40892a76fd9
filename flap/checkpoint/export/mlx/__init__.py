"""Export a checkpoint as a folder for mlx-lm."""

from flap.checkpoint.export.mlx.export import export_mlx

__all__ = ["export_mlx"]
