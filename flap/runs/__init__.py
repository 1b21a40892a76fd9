"""A run: its inputs, its stages, and its report.

All inputs except the weights are made and checked before weights are read.

Nothing is imported here: the command line and Hydra's callbacks need runs/sweeps, and do not wait
for torch.
"""
