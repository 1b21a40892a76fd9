"""A run: what it needs besides weights, its stages, and its report.

What it needs is made and checked before weights are read.

Nothing is imported here: the command line and Hydra's callbacks need runs/sweeps, and do not wait
for torch.
"""
