"""The code of a single run: its inputs, its stages, and its report.

All inputs except the weights are created and checked before any weights are read.

This file imports nothing, because Python also runs this file when the command line imports
`flap.runs.sweeps`, and the command line should not have to wait for the import of torch.
"""
