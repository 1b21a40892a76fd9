"""The pruning method, from calibration to recovery.

The subpackages, in order, are calibration, importance, allocation, compression, search, vocabulary
and recovery. Each of them may import from the subpackages before it in this list, but not from
those after it.
"""
