"""A run: its inputs, its stages, and its report.

All inputs except the weights are created and checked before any weights are read.

This file imports nothing, because Python also runs it when the command line imports
`flap.runs.sweeps`, and the command line should not have to wait until torch is imported.
"""
