"""A run: what it needs besides weights, made and checked before they are read, its stages, and its report.

Nothing is imported here: the command line and Hydra's callbacks need runs/sweeps, and do not wait
for torch.
"""
